//! The processes of one round's pipeline: one `serve` and one `work`.
//!
//! Must never let a process that ended by itself pass unseen.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use crate::{
    build::{Build, KEY, Place},
    free_port::free_port,
    load::http::Connection,
    usage::Roles,
};

/// Longest wait for a process to be ready.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Longest wait for a process that was asked to end.
const STOP_TIMEOUT: Duration = Duration::from_secs(40);
/// Bytes of a log that an error shows.
const LOG_TAIL: usize = 2_000;

/// A pipeline of one round.
#[derive(Debug)]
pub(crate) struct Pipeline {
    build: Build,
    place: Place,
    /// The port of the API.
    pub(crate) port: u16,
    serve: Option<Role>,
    work: Option<Role>,
}

#[derive(Debug)]
struct Role {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Pipeline {
    /// Migrates; no process runs yet.
    pub(crate) fn new(build: &Build, place: Place) -> anyhow::Result<Self> {
        build.migrate(&place)?;
        Ok(Self { build: build.clone(), place, port: free_port(), serve: None, work: None })
    }

    /// Starts `serve`, and waits until it is ready.
    pub(crate) async fn start_serve(&mut self) -> anyhow::Result<()> {
        let mut command = self.build.command("serve", &self.place);
        command
            .env("MILLRACE_LISTEN", format!("127.0.0.1:{}", self.port))
            .env("MILLRACE_HEALTH_LISTEN", format!("127.0.0.1:{}", free_port()))
            .env("MILLRACE_BOOTSTRAP_KEY", KEY);
        self.serve = Some(Role::start("serve", command, &self.place.dir)?);
        let port = self.port;
        let ready = async {
            let began = Instant::now();
            while !Connection::is_ready(port).await {
                ensure!(began.elapsed() < START_TIMEOUT, "serve is not ready after {} s", START_TIMEOUT.as_secs());
                sleep(Duration::from_millis(20)).await;
            }
            Ok(())
        };
        self.watch(ready).await
    }

    /// Starts `work`; waits for nothing.
    pub(crate) fn start_work(&mut self) -> anyhow::Result<()> {
        let command = self.build.command("work", &self.place);
        self.work = Some(Role::start("work", command, &self.place.dir)?);
        Ok(())
    }

    /// The ids of its processes.
    pub(crate) fn roles(&self) -> Roles {
        let pid = |role: &Option<Role>| role.as_ref().and_then(|role| role.child.id());
        Roles { serve: pid(&self.serve), work: pid(&self.work) }
    }

    /// Waits for a result, or for the end of a process, which is an error.
    pub(crate) async fn watch<T>(&mut self, result: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let outcome = {
            let roles = [&mut self.serve, &mut self.work];
            let [serve, work] = roles.map(|role| async {
                match role {
                    Some(role) => role.end().await,
                    None => std::future::pending().await,
                }
            });
            tokio::select! {
                result = result => result,
                end = serve => Err(end),
                end = work => Err(end),
            }
        };
        outcome.map_err(|error| error.context(self.logs()))
    }

    /// Asks the processes to end, and waits.
    ///
    /// # Errors
    /// When one does not end in order.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        for role in [self.work.take(), self.serve.take()].into_iter().flatten() {
            role.stop().await?;
        }
        Ok(())
    }

    /// The last lines of both logs.
    fn logs(&self) -> String {
        let tails = [&self.serve, &self.work].into_iter().flatten().map(Role::log_tail);
        format!("{}, {}{}", self.build.name, self.place.pipeline, tails.collect::<String>())
    }
}

impl Role {
    fn start(name: &'static str, mut command: std::process::Command, dir: &Path) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = fs::File::create(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        let child = Command::from(command).kill_on_drop(true).spawn().context("setpriv")?;
        Ok(Self { name, child, log })
    }

    /// Waits until it ends by itself.
    async fn end(&mut self) -> anyhow::Error {
        match self.child.wait().await {
            Ok(status) => anyhow::anyhow!("{} ended with {status}", self.name),
            Err(error) => error.into(),
        }
    }

    async fn stop(mut self) -> anyhow::Result<()> {
        let Some(pid) = self.child.id() else { bail!("{} ended by itself{}", self.name, self.log_tail()) };
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGTERM)?;
        let ended = timeout(STOP_TIMEOUT, self.child.wait()).await;
        let status = ended.with_context(|| format!("{} does not end", self.name))??;
        ensure!(status.success(), "{} ended with {status}{}", self.name, self.log_tail());
        Ok(())
    }

    fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let from = log.ceil_char_boundary(log.len().saturating_sub(LOG_TAIL));
        if log.is_empty() { String::new() } else { format!("\n{}.log: {}", self.name, log[from..].trim_end()) }
    }
}
