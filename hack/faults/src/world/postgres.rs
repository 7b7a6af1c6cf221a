//! The campaign's Postgres: its processes, its folder, and connections past the proxies.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, geteuid},
};
use sqlx::{Connection as _, PgConnection};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use super::{NAME, alive, children, clock_environment, disk::Disk, eventually, free_port};

/// Longest wait for it to start.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A Postgres; its data remain when it is killed.
#[derive(Debug)]
pub(crate) struct Postgres {
    pub(crate) dir: PathBuf,
    pub(crate) port: u16,
    /// Its data directory.
    pub(crate) data: PathBuf,
    /// The disk of all its files, where it has one of its own.
    pub(crate) disk: Option<Disk>,
    /// How far its clock is moved, such as `+100d`, from its next start on.
    pub(crate) clock: Option<String>,
    /// Whether it flushes what it commits: its disk can lose power.
    is_durable: bool,
    child: Option<Child>,
}

/// The role that owns the pipeline's tables.
pub(crate) const OWNER: &str = "postgres";

/// The URL of its database for a role.
pub(crate) fn url(role: &str, port: u16) -> String {
    format!("postgres://{role}@127.0.0.1:{port}/postgres")
}

impl Postgres {
    /// Starts one below `dir`.
    pub(super) async fn start(dir: &Path, has_disk: bool) -> anyhow::Result<Self> {
        let image = dir.join("postgres.disk");
        let dir = dir.join("postgres");
        fs::create_dir_all(&dir)?;
        let disk = has_disk.then(|| Disk::mount(&image, &dir)).transpose()?;
        make_dir(&dir)?;
        let data = dir.join("data");
        let mut command = program("initdb")?;
        command.arg("--pgdata").arg(&data).args(["--username=postgres", "--auth=trust", "--encoding=UTF8"]);
        let output = command.args(["--no-locale", "--no-sync"]).output().await?;
        ensure!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        disk.iter().try_for_each(Disk::flush)?;
        let mut this = Self { dir, port: free_port(), data, disk, clock: None, is_durable: has_disk, child: None };
        this.ensure().await?;
        Ok(this)
    }

    /// A standby on a port of its own, which receives all writes from now on.
    pub(crate) async fn standby(&self) -> anyhow::Result<Self> {
        let mut standby = self.copy("standby", &["--write-recovery-conf"]).await?;
        standby.port = free_port();
        standby.launch()?;
        let port = standby.port;
        let follows = eventually(TIMEOUT, async || {
            let query = "select exists (select from pg_stat_wal_receiver where status = 'streaming')";
            let Ok(mut connection) = PgConnection::connect(&url(OWNER, port)).await else { return false };
            sqlx::query_scalar::<_, bool>(query).fetch_one(&mut connection).await.unwrap_or(false)
        });
        ensure!(follows.await, "the standby does not follow");
        Ok(standby)
    }

    /// A copy of its current data directory; it does not run.
    pub(crate) async fn copy(&self, name: &str, more: &[&str]) -> anyhow::Result<Self> {
        let data = (0..).map(|n| self.dir.join(format!("{name}-{n}"))).find(|data| !data.exists());
        let data = data.context("no name is free")?;
        let mut command = program("pg_basebackup")?;
        command.args([
            "--host=127.0.0.1",
            &format!("--port={}", self.port),
            "--username=postgres",
            "--checkpoint=fast",
        ]);
        if !self.is_durable {
            command.arg("--no-sync");
        }
        let output = command.arg("--pgdata").arg(&data).args(more).output().await?;
        ensure!(output.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&output.stderr));
        let (dir, port, is_durable) = (self.dir.clone(), self.port, self.is_durable);
        Ok(Self { dir, port, data, disk: None, clock: None, is_durable, child: None })
    }

    /// Puts another one in its place; this one is killed and its data directory removed.
    pub(crate) async fn replace(&mut self, mut other: Self) -> anyhow::Result<()> {
        self.kill().await;
        other.disk = self.disk.take();
        let old = std::mem::replace(self, other);
        Ok(fs::remove_dir_all(&old.data)?)
    }

    /// Its log.
    pub(crate) fn log(&self) -> PathBuf {
        self.dir.join("postgres.log")
    }

    /// Starts it where it does not run, resumes it where it is suspended, and waits until it takes writes.
    pub(crate) async fn ensure(&mut self) -> anyhow::Result<()> {
        self.resume();
        let port = self.port;
        let answers = eventually(TIMEOUT, async || {
            if !self.runs() && self.launch().is_err() {
                return false;
            }
            timeout(Duration::from_secs(2), writable(port)).await.is_ok_and(|writable| writable.unwrap_or(false))
        });
        ensure!(answers.await, "Postgres does not answer; see {}", self.log().display());
        Ok(())
    }

    /// Starts it on its data directory, and waits for nothing.
    pub(crate) fn launch(&mut self) -> anyhow::Result<()> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.log())?;
        let clock = self.clock.iter().flat_map(|offset| clock_environment(offset));
        let mut command = program_with("postgres", clock)?;
        let fsync = if self.is_durable { "fsync=on" } else { "fsync=off" };
        // No page is written before a checkpoint, so that a log that ends early is an older state.
        let writer = "bgwriter_lru_maxpages=0";
        let settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=300", fsync, writer];
        command.arg("-D").arg(&self.data).args(settings.iter().flat_map(|setting| ["-c", setting]));
        command.args(["-c", &format!("port={}", self.port)]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        self.child = Some(command.spawn().context("postgres")?);
        Ok(())
    }

    /// Whether its first process runs.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// All of its processes, the first one first.
    pub(crate) fn pids(&self) -> Vec<u32> {
        let Some(first) = self.child.as_ref().and_then(Child::id) else { return Vec::new() };
        std::iter::once(first).chain(children(first)).collect()
    }

    /// Sends a signal to all of its processes.
    pub(crate) fn signal_all(&self, signal: Signal) -> usize {
        self.pids().into_iter().filter(|pid| kill(Pid::from_raw(pid.cast_signed()), signal).is_ok()).count()
    }

    /// Resumes it where it is suspended.
    pub(crate) fn resume(&self) {
        self.signal_all(Signal::SIGCONT);
    }

    /// Kills its first process; the others notice it and end. Returns whether all ended.
    pub(crate) async fn kill(&mut self) -> bool {
        let rest = self.pids();
        let Some(mut child) = self.child.take() else { return false };
        let _ = child.kill().await;
        for pid in &rest {
            let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT);
        }
        // A new one refuses to start beside processes of the old one.
        eventually(Duration::from_secs(20), async || !rest.iter().any(|pid| alive(*pid))).await
    }

    /// Kills all of its processes at once. Returns whether all ended.
    pub(crate) async fn kill_all(&mut self) -> bool {
        self.signal_all(Signal::SIGKILL);
        self.kill().await
    }

    /// Ends it in order, its sessions at once.
    pub(crate) async fn end(&mut self) {
        self.resume();
        if let Some(mut child) = self.child.take() {
            if let Some(pid) = child.id() {
                let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT);
            }
            if timeout(Duration::from_secs(20), child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }

    /// A connection into the pipeline's schema, past the proxies.
    pub(crate) async fn connect(&self) -> sqlx::Result<PgConnection> {
        connect(self.port).await
    }
}

/// A connection into the pipeline's schema.
pub(crate) async fn connect(port: u16) -> sqlx::Result<PgConnection> {
    PgConnection::connect(&format!("{}?options=-csearch_path%3Dmillrace_{NAME}", url(OWNER, port))).await
}

async fn writable(port: u16) -> sqlx::Result<bool> {
    let mut connection = PgConnection::connect(&url(OWNER, port)).await?;
    sqlx::query_scalar("select not pg_is_in_recovery()").fetch_one(&mut connection).await
}

/// The user to run Postgres as, which refuses root; `None`: the current one.
fn user() -> anyhow::Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    let named = |name| User::from_name(name).ok().flatten();
    Ok(Some(
        named("postgres").or_else(|| named("nobody")).context("there is no user for Postgres, which refuses root")?,
    ))
}

/// A folder for Postgres's user.
pub(crate) fn make_dir(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir)?;
    if let Some(user) = user()? {
        chown(dir, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    Ok(())
}

/// A program of Postgres as its user; it ends with this program.
fn program(name: &str) -> anyhow::Result<Command> {
    program_with(name, [])
}

/// The same with variables that it alone gets: a library that is preloaded opens files as its user.
fn program_with(name: &str, variables: impl IntoIterator<Item = (&'static str, String)>) -> anyhow::Result<Command> {
    let mut command = Command::new("setpriv");
    if let Some(User { uid, gid, .. }) = user()? {
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
    }
    command.args(["--pdeathsig=INT", "--", "env"]);
    command.args(variables.into_iter().map(|(name, value)| format!("{name}={value}")));
    command.arg(find(name)?).current_dir("/").kill_on_drop(true);
    Ok(command)
}

/// The path of a program: in PATH, or in Debian's directory of Postgres.
fn find(name: &str) -> anyhow::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut debian: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|version| version.path().join("bin")).collect())
        .unwrap_or_default();
    debian.sort();
    let mut files = std::env::split_paths(&path).chain(debian.into_iter().rev()).map(|dir| dir.join(name));
    files.find(|file| file.is_file()).with_context(|| format!("{name} is not installed; hack/install-deps does it"))
}
