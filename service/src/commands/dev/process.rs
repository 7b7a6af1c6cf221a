//! A server as a child process: started in a process group of its own, watched, and stopped in order.
//!
//! Must never signal a process that is not known to be the server: process ids come again.

use std::{
    fs::{self, OpenOptions},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{process::Command, sync::watch, task::JoinHandle, time::Instant};

/// Longest wait for a server's start and for its end.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A server that was started by this process.
#[derive(Debug)]
pub(super) struct Server {
    name: &'static str,
    pid: Pid,
    log: PathBuf,
    /// Says how it ended, once it did.
    ended: watch::Receiver<Option<String>>,
    waiting: JoinHandle<()>,
    /// The signal that ends it in order.
    stop: Signal,
}

impl Server {
    /// Starts a server whose output goes to `log`.
    pub(super) fn start(name: &'static str, mut command: Command, log: PathBuf, stop: Signal) -> anyhow::Result<Self> {
        let output = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("cannot write {}", log.display()))?;
        let errors = output.try_clone().with_context(|| format!("cannot write {}", log.display()))?;
        // A group of its own: Ctrl-C must not reach it before the pipeline has drained.
        command.stdin(Stdio::null()).stdout(output).stderr(errors).process_group(0).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| format!("cannot start {name}"))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).context("a child without a process id")?;
        let (tell, ended) = watch::channel(None);
        let waiting = tokio::spawn(async move {
            let how = match child.wait().await {
                Ok(status) => status.to_string(),
                Err(error) => error.to_string(),
            };
            tell.send_replace(Some(how));
        });
        tracing::info!(event = "dev.server.started", server = name, pid, "started a server");
        Ok(Self { name, pid: Pid::from_raw(pid), log, ended, waiting, stop })
    }

    /// Waits until `answers` says so.
    ///
    /// # Errors
    /// When the server ends before, or does not answer within a minute.
    pub(super) async fn wait_until<F: AsyncFn() -> Result<(), String>>(&self, answers: F) -> anyhow::Result<()> {
        let begun = Instant::now();
        loop {
            let Err(why) = answers().await else { return Ok(()) };
            if let Some(how) = self.ended.borrow().as_ref() {
                bail!("{} ended at once ({how}); its log is {}", self.name, self.log.display());
            }
            if begun.elapsed() > TIMEOUT {
                bail!("{} does not answer ({why}); its log is {}", self.name, self.log.display());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// A future that fails when the server ends.
    pub(super) fn watch(&self) -> impl Future<Output = anyhow::Result<()>> + Send + 'static {
        let (name, log, mut ended) = (self.name, self.log.clone(), self.ended.clone());
        async move {
            let how = ended.wait_for(Option::is_some).await.map(|how| how.clone()).ok().flatten();
            bail!("{name} ended ({}); its log is {}", how.as_deref().unwrap_or("unseen"), log.display())
        }
    }

    /// Ends the server in order, and waits for it.
    pub(super) async fn stop(mut self) {
        let Self { name, pid, .. } = self;
        if self.ended.borrow().is_none() {
            let _ = kill(pid, self.stop);
        }
        if tokio::time::timeout(TIMEOUT, self.ended.wait_for(Option::is_some)).await.is_err() {
            tracing::warn!(
                event = "dev.server.killed",
                server = name,
                pid = pid.as_raw(),
                "killed a server that did not stop in time"
            );
            self.waiting.abort();
        }
        let _ = self.waiting.await;
        tracing::info!(event = "dev.server.stopped", server = name, "stopped a server");
    }
}

/// Ends a server that a killed `dev` left over. `pid_file` has its process id in the first line, and it works in `dir`.
///
/// # Errors
/// When it does not end.
pub(super) async fn end_leftover(name: &'static str, pid_file: &Path, dir: &Path, stop: Signal) -> anyhow::Result<()> {
    let Ok(text) = fs::read_to_string(pid_file) else { return Ok(()) };
    let Some(pid) = text.lines().next().and_then(|line| line.trim().parse::<i32>().ok()) else { return Ok(()) };
    if pid <= 1 || !works_in(pid, dir) {
        return Ok(());
    }
    tracing::info!(event = "dev.server.left_over", server = name, pid, "stopping a server of an earlier run");
    let pid = Pid::from_raw(pid);
    let begun = Instant::now();
    if kill(pid, stop) == Err(Errno::EPERM) {
        bail!("{name} with process id {pid} still runs for another user; end it first");
    }
    while works_in(pid.as_raw(), dir) {
        if begun.elapsed() > TIMEOUT {
            bail!("{name} with process id {pid} was left over and does not end; end it first");
        }
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Whether a process lives that works on `dir`: both servers have it as their working directory, and Postgres also on
/// its command line, for root in a container may not look at the working directory of another user's process.
fn works_in(pid: i32, dir: &Path) -> bool {
    let names_it = || {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).any(|argument| argument == dir.as_os_str().as_encoded_bytes())
    };
    fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|at| at == dir) || names_it()
}
