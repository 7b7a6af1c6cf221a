//! Redis and Postgres servers: shared by all tests of a run, or private to a test that destroys, stops or fills its
//! server.
//!
//! No server outlives the tests. A shell guards the shared servers and stops them when this process ends. The kernel
//! signals private servers when the thread of their test ends.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

use nix::{
    sys::signal::Signal,
    unistd::{User, geteuid},
};
use tempfile::TempDir;

use super::{eventually, free_port, process::send};

/// The servers that tests share.
#[derive(Debug)]
pub(crate) struct Shared {
    /// URL without a path.
    pub(crate) redis: String,
    /// URL of a database, for connections that create others.
    pub(crate) postgres: String,
    /// The guard reads its input, which ends with this process.
    _guard: Option<Child>,
}

/// The shared servers: those of the variables `MILLRACE_TEST_*_URL`, else servers that the first call starts.
pub(crate) async fn shared() -> &'static Shared {
    static SHARED: OnceLock<Shared> = OnceLock::new();
    let shared = SHARED.get_or_init(|| {
        match (std::env::var("MILLRACE_TEST_REDIS_URL"), std::env::var("MILLRACE_TEST_POSTGRES_URL")) {
            (Ok(redis), Ok(postgres)) => Shared { redis, postgres, _guard: None },
            _ => start_guarded(),
        }
    });
    wait_for_redis(&shared.redis).await;
    wait_for_postgres(&shared.postgres).await;
    shared
}

fn start_guarded() -> Shared {
    let dir = server_dir().keep();
    let (redis_port, postgres_port) = (free_port(), free_port());
    let data = initialise(&dir);
    // Background jobs of a shell ignore SIGINT until they set a handler; Postgres sets one.
    let script = r#"cd "$1"; shift
        redis-server redis.conf & redis=$!
        "$@" & postgres=$!
        read -r _
        kill -INT $postgres; kill $redis; wait
        cd /; rm -rf "$OLDPWD""#;
    fs::write(dir.join("redis.conf"), redis_configuration(&dir, redis_port, &[])).unwrap();
    let server = postgres_command(&data, postgres_port, None);
    let log = fs::File::create(dir.join("servers.log")).unwrap();
    let guard = Command::new("sh")
        .args(["-c", script, "guard"])
        .arg(&dir)
        .arg(server.get_program())
        .args(server.get_args())
        .stdin(Stdio::piped())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    Shared { redis: redis_url(redis_port), postgres: postgres_url(postgres_port), _guard: Some(guard) }
}

/// The program of a Redis with TLS. `MILLRACE_TEST_TLS_REDIS` names it where the usual one is built without.
pub(crate) fn tls_redis() -> String {
    std::env::var("MILLRACE_TEST_TLS_REDIS").unwrap_or_else(|_| "redis-server".to_owned())
}

/// A Redis for one test. It keeps its data when it is killed.
#[derive(Debug)]
pub(crate) struct PrivateRedis {
    dir: TempDir,
    port: u16,
    program: String,
    child: Option<Child>,
}

impl PrivateRedis {
    /// Starts a server; `settings` are lines of its configuration, such as `maxmemory 4mb`.
    pub(crate) async fn start(settings: &[&str]) -> Self {
        let dir = server_dir();
        let port = free_port();
        fs::write(dir.path().join("redis.conf"), redis_configuration(dir.path(), port, settings)).unwrap();
        let with_tls = settings.iter().any(|setting| setting.starts_with("tls-port"));
        let program = if with_tls { tls_redis() } else { "redis-server".to_owned() };
        let mut this = Self { dir, port, program, child: None };
        this.restart().await;
        this
    }

    /// Starts it again with its data.
    pub(crate) async fn restart(&mut self) {
        let mut command = guarded(None);
        command.arg(&self.program).arg(self.dir.path().join("redis.conf"));
        self.child = Some(spawn(command, self.dir.path()));
        wait_for_redis(&self.url()).await;
    }

    pub(crate) fn url(&self) -> String {
        redis_url(self.port)
    }

    /// Kills it. All acknowledged writes are in its files.
    pub(crate) fn kill(&mut self) {
        end(&mut self.child, Signal::SIGKILL);
    }

    /// Removes its data, like a lost volume. Only while it does not run.
    pub(crate) fn lose_data(&self) {
        assert!(self.child.is_none(), "a running server holds its data in memory");
        fs::remove_dir_all(self.dir.path().join("appendonlydir")).unwrap();
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        send(self.child.as_ref().unwrap(), signal).unwrap();
    }

    /// Removes the last bytes of its append-only file, like a disk that lost its last second. Only while it does not
    /// run.
    pub(crate) fn truncate_log(&self, bytes: u64) {
        assert!(self.child.is_none(), "a running server writes to its log");
        let files = fs::read_dir(self.dir.path().join("appendonlydir")).unwrap();
        let log = files.map(|file| file.unwrap().path()).find(|path| path.to_string_lossy().ends_with(".incr.aof"));
        let log = fs::OpenOptions::new().write(true).open(log.unwrap()).unwrap();
        let length = log.metadata().unwrap().len();
        assert!(length > bytes, "the log has {length} bytes only");
        log.set_len(length - bytes).unwrap();
    }
}

impl Drop for PrivateRedis {
    fn drop(&mut self) {
        end(&mut self.child, Signal::SIGKILL);
    }
}

/// A Postgres for one test. It keeps its data when it is stopped.
#[derive(Debug)]
pub(crate) struct PrivatePostgres {
    pub(super) dir: TempDir,
    pub(super) port: u16,
    pub(super) child: Option<Child>,
}

impl PrivatePostgres {
    pub(crate) async fn start() -> Self {
        let dir = server_dir();
        initialise(dir.path());
        let mut this = Self { dir, port: free_port(), child: None };
        this.restart().await;
        this
    }

    /// Starts a server that offers TLS. `files` are written into its directory, `hba` replaces its rules for clients.
    pub(crate) async fn with_tls(files: &[(&str, &str)], hba: &str) -> Self {
        let dir = server_dir();
        let data = initialise(dir.path());
        let settings =
            "ssl = on\nssl_cert_file = 'server.crt'\nssl_key_file = 'server.key'\nssl_ca_file = 'clients.crt'\n";
        let configuration = data.join("postgresql.conf");
        fs::write(&configuration, fs::read_to_string(&configuration).unwrap() + settings).unwrap();
        fs::write(data.join("pg_hba.conf"), hba).unwrap();
        let mut this = Self { dir, port: free_port(), child: None };
        this.install(files);
        this.restart().await;
        this
    }

    /// Writes files into its directory, which only it may read. It reads them when it is reloaded.
    pub(crate) fn install(&self, files: &[(&str, &str)]) {
        for (name, content) in files {
            let file = self.dir.path().join("postgres").join(name);
            fs::write(&file, content).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            if let Some(user) = postgres_user() {
                chown(&file, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            }
        }
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Starts it again with its data.
    pub(crate) async fn restart(&mut self) {
        let command = postgres_command(&self.dir.path().join("postgres"), self.port, Some("INT"));
        self.child = Some(spawn(command, self.dir.path()));
        wait_for_postgres(&self.url()).await;
    }

    pub(crate) fn url(&self) -> String {
        postgres_url(self.port)
    }

    /// Stops it by a fast shutdown, which ends its sessions.
    pub(crate) fn stop(&mut self) {
        end(&mut self.child, Signal::SIGINT);
    }

    /// Makes it a standby at its next start, until it is promoted. Only while it does not run.
    pub(crate) fn demote(&self) {
        assert!(self.child.is_none(), "a running server is demoted by nobody");
        fs::write(self.dir.path().join("postgres/standby.signal"), "").unwrap();
    }

    /// Asks this role for its password from now on.
    pub(crate) async fn ask_for_password(&self, role: &str) {
        let rules = format!("host all {role} 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n");
        fs::write(self.dir.path().join("postgres/pg_hba.conf"), rules).unwrap();
        let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&self.url()).await.unwrap();
        sqlx::query("select pg_reload_conf()").execute(&mut connection).await.unwrap();
    }

    /// Copies its data. Only while it does not run.
    pub(crate) fn back_up(&self) {
        self.copy("postgres", "backup");
    }

    /// Replaces its data by the copy. Only while it does not run.
    pub(crate) fn restore(&self) {
        self.copy("backup", "postgres");
    }

    fn copy(&self, from: &str, to: &str) {
        assert!(self.child.is_none(), "a running server writes to its files");
        let _ = fs::remove_dir_all(self.dir.path().join(to));
        let mut command = Command::new("cp");
        command.arg("--archive").arg(self.dir.path().join(from)).arg(self.dir.path().join(to));
        assert!(command.status().unwrap().success());
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        end(&mut self.child, Signal::SIGQUIT);
    }
}

pub(super) fn end(child: &mut Option<Child>, signal: Signal) {
    if let Some(mut child) = child.take() {
        let _ = send(&child, signal);
        let _ = child.wait();
    }
}

/// A directory that other users may enter.
pub(super) fn server_dir() -> TempDir {
    let dir = tempfile::Builder::new().prefix("millrace-it.").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    dir
}

fn redis_url(port: u16) -> String {
    format!("redis://127.0.0.1:{port}")
}

pub(super) fn redis_configuration(dir: &Path, port: u16, settings: &[&str]) -> String {
    format!(
        "bind 127.0.0.1\nport {port}\ndir {}\nappendonly yes\nappendfsync always\nsave \"\"\n\
         maxmemory-policy noeviction\naof-load-truncated yes\n{}\n",
        dir.display(),
        settings.join("\n")
    )
}

fn postgres_url(port: u16) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/postgres")
}

/// A command whose process gets the signal, KILL unless given, when this thread ends.
pub(super) fn guarded(signal: Option<&str>) -> Command {
    let mut command = Command::new("setpriv");
    command.arg(format!("--pdeathsig={}", signal.unwrap_or("KILL")));
    command
}

pub(super) fn spawn(mut command: Command, dir: &Path) -> Child {
    let log = fs::OpenOptions::new().create(true).append(true).open(dir.join("server.log")).unwrap();
    command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).current_dir("/");
    command.spawn().unwrap()
}

/// Makes the data directory below `dir`, empty, of a user that Postgres accepts.
pub(super) fn data_directory(dir: &Path) -> PathBuf {
    let data = dir.join("postgres");
    fs::create_dir(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o700)).unwrap();
    if let Some(user) = postgres_user() {
        chown(&data, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
    }
    data
}

/// Runs `initdb` below `dir`, as a user that Postgres accepts; returns the data directory.
fn initialise(dir: &Path) -> PathBuf {
    let data = data_directory(dir);
    let mut command = as_postgres(None);
    command.arg(program("initdb")).arg("--pgdata").arg(&data);
    command.args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale", "--no-sync"]);
    let output = command.current_dir("/").output().unwrap();
    assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
    data
}

fn postgres_command(data: &Path, port: u16, death: Option<&str>) -> Command {
    let mut command = as_postgres(death);
    let server = program("postgres");
    // A standby loads the client library, which must be that of its version.
    if let Some(libraries) = server.parent().map(|bin| bin.join("../lib")).filter(|lib| lib.join("libpq.so.5").exists())
    {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command.arg(server).arg("-D").arg(data);
    // No test cuts the power: the files need not be flushed.
    let settings = ["listen_addresses=127.0.0.1", "unix_socket_directories=", "max_connections=300", "fsync=off"];
    command.args(settings.iter().flat_map(|setting| ["-c", setting])).arg("-c").arg(format!("port={port}"));
    command
}

/// The user that runs Postgres when this process is root, as which Postgres refuses to run.
fn postgres_user() -> Option<User> {
    geteuid().is_root().then(|| {
        let named = |name| User::from_name(name).ok().flatten();
        named("postgres").or_else(|| named("nobody")).expect("a user for Postgres, which refuses root")
    })
}

pub(super) fn as_postgres(death: Option<&str>) -> Command {
    let mut command = Command::new("setpriv");
    if let Some(User { uid, gid, .. }) = postgres_user() {
        command.args([format!("--reuid={uid}"), format!("--regid={gid}"), "--clear-groups".to_owned()]);
    }
    if let Some(signal) = death {
        command.arg(format!("--pdeathsig={signal}"));
    }
    command.arg("--");
    command
}

/// The path of a Postgres program, in PATH or in Debian's directory.
pub(super) fn program(name: &str) -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut debian: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .map(|versions| versions.flatten().map(|version| version.path().join("bin")).collect())
        .unwrap_or_default();
    debian.sort();
    std::env::split_paths(&path)
        .chain(debian.into_iter().rev())
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{name} is not installed; hack/install-deps does it"))
}

async fn wait_for_redis(url: &str) {
    eventually("Redis answers", async || {
        let Ok(mut connection) = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await else {
            return false;
        };
        redis::cmd("PING").query_async::<()>(&mut connection).await.is_ok()
    })
    .await;
}

async fn wait_for_postgres(url: &str) {
    eventually("Postgres answers", async || <sqlx::PgConnection as sqlx::Connection>::connect(url).await.is_ok()).await;
}
