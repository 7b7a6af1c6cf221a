//! The campaign's Redis: its process, its append-only file, and a connection past the proxies.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use redis::{FromRedisValue, aio::MultiplexedConnection};
use tokio::process::{Child, Command};

use super::{disk::Disk, eventually, free_port};

/// Longest wait for it to start.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A Redis; its data remain when it is killed.
#[derive(Debug)]
pub(crate) struct Redis {
    dir: PathBuf,
    pub(crate) port: u16,
    /// The disk of its data, where it has one of its own.
    pub(crate) disk: Option<Disk>,
    /// Its configuration and its log, which are on no disk of its own.
    configuration: PathBuf,
    text: PathBuf,
    child: Option<Child>,
}

impl Redis {
    /// Starts one below `dir`.
    pub(super) async fn start(dir: &Path, has_disk: bool) -> anyhow::Result<Self> {
        let (image, file, text) = (dir.join("redis.disk"), dir.join("redis.conf"), dir.join("redis.log"));
        let dir = dir.join("redis");
        fs::create_dir_all(&dir)?;
        let disk = has_disk.then(|| Disk::mount(&image, &dir)).transpose()?;
        let port = free_port();
        let configuration = format!(
            "bind 127.0.0.1\nport {port}\ndir {}\nappendonly yes\nappendfsync always\nsave \"\"\n\
             maxmemory-policy noeviction\naof-load-truncated yes\n",
            dir.display()
        );
        fs::write(&file, configuration)?;
        let mut this = Self { dir, port, disk, configuration: file, text, child: None };
        this.ensure().await?;
        Ok(this)
    }

    /// Starts it where it does not run, and resumes it where it is suspended.
    pub(crate) async fn ensure(&mut self) -> anyhow::Result<()> {
        let port = self.port;
        // Again where it ended at once: another campaign on this machine can use its port for a moment.
        let answers = eventually(TIMEOUT, async || {
            self.start_if_ended().is_ok() && command::<String>(port, &["PING"]).await.is_ok()
        });
        ensure!(answers.await, "Redis does not answer");
        Ok(())
    }

    fn start_if_ended(&mut self) -> anyhow::Result<()> {
        if !self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))) {
            let log = fs::OpenOptions::new().create(true).append(true).open(&self.text)?;
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig=KILL", "--", "redis-server"]).arg(&self.configuration);
            command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).kill_on_drop(true);
            self.child = Some(command.spawn().context("redis-server")?);
        }
        self.signal(Signal::SIGCONT);
        Ok(())
    }

    /// Its process.
    pub(crate) fn pid(&self) -> Option<u32> {
        self.child.as_ref()?.id()
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) -> bool {
        self.pid().is_some_and(|pid| kill(Pid::from_raw(pid.cast_signed()), signal).is_ok())
    }

    /// Kills it; all acknowledged writes are in its files. Returns whether it ran.
    pub(crate) async fn kill(&mut self) -> bool {
        let Some(mut child) = self.child.take() else { return false };
        child.kill().await.is_ok()
    }

    /// Asks it to end in order.
    pub(crate) async fn stop(&mut self) -> bool {
        self.signal(Signal::SIGTERM);
        let Some(mut child) = self.child.take() else { return false };
        child.wait().await.is_ok_and(|status| status.success())
    }

    /// The newest file of its log, and that file's length.
    pub(crate) fn log(&self) -> Option<(PathBuf, u64)> {
        let files = fs::read_dir(self.dir.join("appendonlydir")).ok()?.flatten();
        let number = |path: &Path| path.to_str()?.strip_suffix(".incr.aof")?.rsplit_once('.')?.1.parse::<u64>().ok();
        let newest = files.map(|file| file.path()).filter_map(|path| Some((number(&path)?, path))).max()?.1;
        let length = newest.metadata().ok()?.len();
        Some((newest, length))
    }

    /// Runs a command, past the proxies.
    pub(crate) async fn command<T: FromRedisValue>(&self, words: &[&str]) -> redis::RedisResult<T> {
        command(self.port, words).await
    }
}

/// Opens a connection.
pub(crate) async fn connect(port: u16) -> redis::RedisResult<MultiplexedConnection> {
    let client = redis::Client::open(format!("redis://127.0.0.1:{port}"))?;
    let settings = redis::AsyncConnectionConfig::new()
        .set_connection_timeout(Some(Duration::from_secs(2)))
        .set_response_timeout(Some(Duration::from_secs(5)));
    client.get_multiplexed_async_connection_with_config(&settings).await
}

/// Runs one command over a connection of its own.
async fn command<T: FromRedisValue>(port: u16, words: &[&str]) -> redis::RedisResult<T> {
    let mut connection = connect(port).await?;
    redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await
}
