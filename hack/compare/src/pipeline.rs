//! The processes of one round's pipeline: one `serve`, and one `work` or several.
//!
//! Must never let a process that ended by itself pass unseen.

use std::{
    fs,
    future::poll_fn,
    path::{Path, PathBuf},
    task::Poll,
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
    build::{Build, KEY, Place, With},
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
    /// In the order of their start.
    processes: Vec<Role>,
}

#[derive(Debug)]
struct Role {
    kind: &'static str,
    name: String,
    child: Child,
    log: PathBuf,
}

impl Pipeline {
    /// Migrates; no process runs yet.
    pub(crate) fn new(build: &Build, place: Place) -> anyhow::Result<Self> {
        build.migrate(&place)?;
        Ok(Self { build: build.clone(), place, port: free_port(), processes: Vec::new() })
    }

    /// Starts `serve`, and waits until it is ready.
    pub(crate) async fn start_serve(&mut self) -> anyhow::Result<()> {
        let mut command = self.build.command("serve", &self.place);
        command
            .env("MILLRACE_LISTEN", format!("127.0.0.1:{}", self.port))
            .env("MILLRACE_HEALTH_LISTEN", format!("127.0.0.1:{}", free_port()))
            .env("MILLRACE_BOOTSTRAP_KEY", KEY);
        self.processes.push(Role::start("serve", "serve", command, &self.place.dir)?);
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

    /// Starts each `work`; waits for nothing.
    pub(crate) fn start_work(&mut self) -> anyhow::Result<()> {
        for n in 1..=self.place.settings.workers {
            let mut command = self.build.command("work", &self.place);
            command.env("MILLRACE_BATCH", self.place.settings.commit.to_string());
            self.processes.push(Role::start("work", &format!("work-{n}"), command, &self.place.dir)?);
        }
        Ok(())
    }

    /// Streams of the sinks that nobody reads.
    pub(crate) fn more_streams(&self) -> Vec<String> {
        self.place.more_sinks().map(|sink| self.place.stream(&sink)).collect()
    }

    /// What its rounds have beside those of the base.
    pub(crate) fn with(&self) -> Option<With> {
        self.build.with
    }

    /// The ids of its processes.
    pub(crate) fn roles(&self) -> Roles {
        let pids = |kind| self.processes.iter().filter(|it| it.kind == kind).filter_map(|it| it.child.id()).collect();
        Roles { serve: pids("serve"), work: pids("work") }
    }

    /// Waits for a result, or for the end of a process, which is an error.
    pub(crate) async fn watch<T>(&mut self, result: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        let outcome = {
            let mut ends: Vec<_> = self.processes.iter_mut().map(|role| Box::pin(role.end())).collect();
            let end = poll_fn(|context| {
                let ended = ends.iter_mut().map(|end| end.as_mut().poll(context)).find(Poll::is_ready);
                ended.unwrap_or(Poll::Pending)
            });
            tokio::select! {
                result = result => result,
                end = end => Err(end),
            }
        };
        outcome.map_err(|error| error.context(self.logs()))
    }

    /// Asks the processes to end, and waits.
    ///
    /// # Errors
    /// When one does not end in order.
    pub(crate) async fn stop(mut self) -> anyhow::Result<()> {
        while let Some(role) = self.processes.pop() {
            role.stop().await?;
        }
        Ok(())
    }

    /// The last lines of all logs.
    fn logs(&self) -> String {
        let tails = self.processes.iter().map(Role::log_tail);
        format!("{}, {}{}", self.build.name, self.place.pipeline, tails.collect::<String>())
    }
}

impl Role {
    fn start(kind: &'static str, name: &str, mut command: std::process::Command, dir: &Path) -> anyhow::Result<Self> {
        let log = dir.join(format!("{name}.log"));
        let file = fs::File::create(&log)?;
        command.stdout(file.try_clone()?).stderr(file);
        let child = Command::from(command).kill_on_drop(true).spawn().context("setpriv")?;
        Ok(Self { kind, name: name.to_owned(), child, log })
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
