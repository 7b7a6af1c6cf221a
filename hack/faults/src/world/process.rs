//! A place for a `serve` or `work` process: started, signalled, ended, and started again.

use std::{
    fs,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{ExitStatus, Stdio},
    sync::atomic::Ordering,
    time::Duration,
};

use anyhow::Context as _;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use super::{World, free_port, postgres::OWNER, proxy::Link};

/// Longest wait for a process that was asked to end.
const GRACE: Duration = Duration::from_secs(30);

/// Settings of a process beyond the usual ones.
#[derive(Debug, Default)]
pub(crate) struct Start {
    /// More variables, such as `MILLRACE_FAULT`.
    pub(crate) environment: Vec<(&'static str, String)>,
    /// Its role in Postgres; `None`: the owner of the tables.
    pub(crate) role: Option<&'static str>,
}

/// A place for one process.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    role: &'static str,
    /// The port of a serve process, and the port of `/health` and `/metrics`.
    pub(crate) port: u16,
    pub(crate) health: u16,
    child: Option<Child>,
    /// Whether there should be a process.
    wanted: bool,
    pub(crate) log: PathBuf,
}

impl Slot {
    /// A place for a serve process.
    pub(super) fn serve(n: usize, port: u16) -> Self {
        Self::new("serve", n, port)
    }

    /// A place for a worker.
    pub(super) fn work(n: usize) -> Self {
        Self::new("work", n, 0)
    }

    fn new(role: &'static str, n: usize, port: u16) -> Self {
        let log = PathBuf::new();
        Self { name: format!("{role}-{n}"), role, port, health: 0, child: None, wanted: false, log }
    }

    /// Starts a process, in the place of one that ended.
    pub(crate) fn start(&mut self, world: &World, how: &Start) -> anyhow::Result<()> {
        let n = world.starts.fetch_add(1, Ordering::Relaxed);
        // At every start: another program may have taken the last one meanwhile.
        self.health = free_port();
        self.log = world.setup.dir.join(format!("logs/{n:05}-{}.log", self.name));
        let log = fs::File::create(&self.log)?;
        // Without proxies no lock is taken here: servers keep their ports.
        let ports = world.proxies.as_ref().map(|proxies| {
            anyhow::Ok((proxies.port(&Link::redis(self.role))?, proxies.port(&Link::postgres(self.role))?))
        });
        let (redis, postgres) = match ports {
            Some(ports) => ports?,
            None => world.server_ports,
        };
        // It ends with this program, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "--"]).arg(world.build()).arg(self.role);
        command.args(["--health-listen", &format!("127.0.0.1:{}", self.health)]);
        if self.role == "serve" {
            command.args(["--listen", &format!("127.0.0.1:{}", self.port)]);
        }
        command.env_clear().envs(world.environment(redis, postgres, how.role.unwrap_or(OWNER)));
        let trace = world.setup.dir.join(format!("traces/{n:05}-{}.jsonl", self.name));
        command.env("MILLRACE_PROTOCOL_TRACE", trace);
        command.envs(how.environment.iter().map(|(name, value)| (*name, value.as_str())));
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
        self.child = Some(command.spawn().context("setpriv")?);
        self.wanted = true;
        Ok(())
    }

    /// Whether there should be a process.
    pub(crate) fn is_wanted(&self) -> bool {
        self.wanted
    }

    /// The process's id, until its end was noticed.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// Whether it runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// How it ended, where it was not asked to.
    pub(super) fn ended_by_itself(&mut self) -> Option<String> {
        let status = self.child.as_mut()?.try_wait().ok()??;
        self.child = None;
        self.wanted.then(|| format!("{} ended with {status} ({})", self.name, self.log.display()))
    }

    /// Sends a signal; false: there is no process.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        self.pid().is_some_and(|pid| kill(Pid::from_raw(pid.cast_signed()), signal).is_ok())
    }

    /// Resumes it where it is suspended.
    pub(crate) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Kills it; returns whether it died of that.
    pub(crate) async fn kill(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return false };
        let _ = child.start_kill();
        self.wanted = false;
        child.wait().await.is_ok_and(|status| status.signal() == Some(9))
    }

    /// Asks it to end, and kills it when it does not; returns whether it ended in order.
    pub(crate) async fn stop(&mut self) -> bool {
        self.resume();
        self.signal(Signal::SIGTERM);
        self.wanted = false;
        let Some(mut child) = self.child.take() else { return false };
        match timeout(GRACE, child.wait()).await {
            Ok(Ok(status)) => status.success(),
            _ => {
                let _ = child.kill().await;
                false
            }
        }
    }

    /// The status with which it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok()?
    }
}
