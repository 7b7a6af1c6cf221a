//! TLS to real servers: certificates are verified, followed while they rotate, and each failure names its Secret.

use std::{fs, path::Path};

use serde_json::{Value, json};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tempfile::TempDir;

use crate::harness::{
    Authority, Issued, KEY, Load, Pipeline, PrivatePostgres, PrivateRedis, Process, eventually, free_port, record,
    shared, tls_redis,
};

/// The name that the servers' certificates have; their address is not in them.
pub(crate) const HOST: &str = "localhost";
/// Plain connections and those of TLS of any user, except that `client` needs a certificate of its name; standbys.
const HBA: &str = "hostssl all client 127.0.0.1/32 cert\nhost all,replication all 127.0.0.1/32 trust\n";

/// A Redis with a port for TLS beside its plain one, which the harness uses.
pub(crate) struct Redis {
    pub(crate) server: PrivateRedis,
    files: TempDir,
    pub(crate) port: u16,
}

impl Redis {
    async fn start(certificate: &Issued, clients: &Authority, more: &[&str]) -> Self {
        let (files, port) = (tempfile::tempdir().unwrap(), free_port());
        let path = |name: &str| files.path().join(name).display().to_string();
        install(files.path(), "server", certificate);
        fs::write(path("clients.crt"), &clients.pem).unwrap();
        let settings = [
            format!("tls-port {port}"),
            format!("tls-cert-file {}", path("server.crt")),
            format!("tls-key-file {}", path("server.key")),
            format!("tls-ca-cert-file {}", path("clients.crt")),
            "tls-auth-clients optional".to_owned(),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).chain(more.iter().copied()).collect();
        let server = PrivateRedis::start(&settings).await;
        Self { server, files, port }
    }

    fn url(&self) -> String {
        format!("rediss://{HOST}:{}", self.port)
    }

    fn set(&self, words: &[&str]) {
        let mut connection = redis::Client::open(self.server.url()).unwrap().get_connection().unwrap();
        let () = redis::cmd("CONFIG").arg("SET").arg(words).query(&mut connection).unwrap();
    }

    /// Replaces its certificate while it runs.
    fn renew(&self, certificate: &Issued) {
        install(self.files.path(), "server", certificate);
        let path = |name: &str| self.files.path().join(name).display().to_string();
        self.set(&["tls-cert-file", &path("server.crt"), "tls-key-file", &path("server.key")]);
    }

    /// A field of its state of replication. `None` also while a sentinel reconfigures it, which closes all connections.
    fn replication(&self, field: &str) -> Option<String> {
        let mut connection = redis::Client::open(self.server.url()).unwrap().get_connection().ok()?;
        let about: String = redis::cmd("INFO").arg("replication").query(&mut connection).ok()?;
        about.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(str::to_owned))
    }

    /// Closes the connections of all clients.
    fn disconnect(&self) {
        let mut connection = redis::Client::open(self.server.url()).unwrap().get_connection().unwrap();
        let () = redis::cmd("CLIENT").arg(&["KILL", "TYPE", "normal", "SKIPME", "yes"]).query(&mut connection).unwrap();
    }
}

async fn postgres(certificate: &Issued, clients: &Authority) -> PrivatePostgres {
    let files = [
        ("server.crt", certificate.certificate.as_str()),
        ("server.key", &certificate.key),
        ("clients.crt", &clients.pem),
    ];
    PrivatePostgres::with_tls(&files, HBA).await
}

/// Writes a certificate and its key.
pub(crate) fn install(dir: &Path, name: &str, Issued { certificate, key }: &Issued) {
    mount(dir, &format!("{name}.crt"), certificate);
    mount(dir, &format!("{name}.key"), key);
}

/// Mounts a file of a Secret in one step.
pub(crate) fn mount(dir: &Path, name: &str, content: &str) {
    fs::write(dir.join("new"), content).unwrap();
    fs::rename(dir.join("new"), dir.join(name)).unwrap();
}

/// A spec with the Secrets of TLS.
fn spec() -> Value {
    let of = |server: &str| {
        json!({
            "urlSecretRef": {"name": format!("payments-{server}"), "key": "url"},
            "tls": {
                "caSecretRef": {"name": format!("{server}-ca"), "key": "ca.crt"},
                "clientCertSecretRef": {"name": format!("{server}-client")},
            },
        })
    };
    json!({"shards": 1, "redis": of("redis"), "postgres": of("postgres")})
}

/// The URL of the pipeline's database by TLS, as the user who has a certificate.
pub(crate) fn postgres_url(
    pipeline: &Pipeline,
    server: &PrivatePostgres,
    user: &str,
    host: &str,
    mode: &str,
) -> String {
    let database = pipeline.postgres_url().rsplit('/').next().unwrap();
    format!("postgres://{user}@{host}:{}/{database}?sslmode={mode}", server.port())
}

/// The message of the only problem of this reason.
pub(crate) async fn problem(process: &Process, reason: &str) -> String {
    let status = process
        .reports(reason, |status| {
            status["problems"].as_array().is_some_and(|all| all.iter().any(|problem| problem["reason"] == reason))
        })
        .await;
    let problems = status["problems"].as_array().unwrap();
    problems.iter().find(|problem| problem["reason"] == reason).unwrap()["message"].as_str().unwrap().to_owned()
}

/// Everything of one test of both servers.
pub(crate) struct World {
    pub(crate) authority: Authority,
    pub(crate) redis: Redis,
    pub(crate) postgres: PrivatePostgres,
    pub(crate) pipeline: Pipeline,
    pub(crate) dir: TempDir,
}

impl World {
    /// Servers whose certificates have the name [`HOST`], and a pipeline's mounted Secrets.
    pub(crate) async fn new() -> Self {
        let authority = Authority::new("first");
        let redis = Redis::start(&authority.issue(&[HOST]), &authority, &[]).await;
        let postgres = postgres(&authority.issue(&[HOST]), &authority).await;
        let pipeline = Pipeline::on(&redis.server.url(), &postgres.url(), spec()).await;
        let mut connection = PgConnection::connect(&postgres.url()).await.unwrap();
        connection.execute("create role client superuser login").await.unwrap();
        let dir = tempfile::tempdir().unwrap();
        mount(dir.path(), "key", KEY);
        mount(dir.path(), "redis", &redis.url());
        mount(dir.path(), "postgres", &postgres_url(&pipeline, &postgres, "client", HOST, "verify-full"));
        for server in ["redis", "postgres"] {
            mount(dir.path(), &format!("{server}-ca"), &authority.pem);
            install(dir.path(), &format!("{server}-client"), &authority.issue(&["client"]));
        }
        Self { authority, redis, postgres, pipeline, dir }
    }

    async fn renew_postgres(&self, files: &[(&str, &str)]) {
        self.postgres.install(files);
        let mut connection = PgConnection::connect(&self.postgres.url()).await.unwrap();
        connection.execute("select pg_reload_conf()").await.unwrap();
    }

    /// Ends all connections, so that new ones are made.
    pub(crate) async fn disconnect(&self) {
        self.redis.disconnect();
        let mut connection = PgConnection::connect(&self.postgres.url()).await.unwrap();
        let end = "select pg_terminate_backend(pid) from pg_stat_activity where application_name like 'millrace%'";
        connection.execute(end).await.unwrap();
    }

    /// Sends records and waits until they are applied.
    pub(crate) async fn carries(&self, name: &str) {
        self.pipeline.send_through(&Load::new(name, 50).records).await;
        self.pipeline.applied().await;
    }
}

#[tokio::test]
async fn certificates_rotate_without_a_restart() {
    let world = World::new().await;
    world.redis.set(&["tls-auth-clients", "yes"]);
    let World { pipeline, dir, authority, .. } = &world;
    let (mut serve, mut work) = (pipeline.start_in_pod("serve", dir.path()), pipeline.start_in_pod("work", dir.path()));
    serve.ready().await;
    work.ready().await;
    world.carries("a").await;
    let plain = "select count(*) from pg_stat_ssl join pg_stat_activity using (pid)
                 where application_name like 'millrace%' and not ssl";
    assert_eq!(pipeline.number(plain).await, 0, "every connection is encrypted");

    // First the new authority is trusted beside the old one, then it signs the servers and the clients.
    let next = Authority::new("second");
    let both = format!("{}{}", authority.pem, next.pem);
    for server in ["redis", "postgres"] {
        mount(dir.path(), &format!("{server}-ca"), &both);
    }
    for process in [&serve, &work] {
        process.logs("config.redis_url.changed").await;
        process.logs("config.postgres_url.changed").await;
    }
    let (for_redis, for_postgres) = (next.issue(&[HOST]), next.issue(&[HOST]));
    mount(world.redis.files.path(), "clients.crt", &both);
    world.redis.set(&["tls-ca-cert-file", &world.redis.files.path().join("clients.crt").display().to_string()]);
    world.redis.renew(&for_redis);
    let files =
        [("server.crt", for_postgres.certificate.as_str()), ("server.key", &for_postgres.key), ("clients.crt", &both)];
    world.renew_postgres(&files).await;
    for server in ["redis", "postgres"] {
        install(dir.path(), &format!("{server}-client"), &next.issue(&["client"]));
        mount(dir.path(), &format!("{server}-ca"), &next.pem);
    }
    for process in [&serve, &work] {
        eventually("each process turned to the new authority", async || {
            process.logged("config.postgres_url.changed").len() >= 2
                && process.logged("config.redis_url.changed").len() >= 2
        })
        .await;
        process.has_problems(&[]).await;
    }
    // Now only the new files open a connection.
    world.redis.set(&["tls-ca-cert-file", &{
        mount(world.redis.files.path(), "clients.crt", &next.pem);
        world.redis.files.path().join("clients.crt").display().to_string()
    }]);
    world.renew_postgres(&[("clients.crt", &next.pem)]).await;
    world.disconnect().await;
    world.carries("b").await;
    assert!(!serve.has_ended() && !work.has_ended());
}

#[tokio::test]
async fn certificates_that_fail_leave_the_previous_ones_in_use() {
    let world = World::new().await;
    let World { pipeline, dir, authority, .. } = &world;
    let (serve, work) = (pipeline.start_in_pod("serve", dir.path()), pipeline.start_in_pod("work", dir.path()));
    serve.ready().await;
    work.ready().await;
    let (other, expired) = (Authority::new("other").pem, Authority::expired("old").pem);
    let cases = [
        ("no certificate".to_owned(), "TlsFilesInvalid", "holds no certificate in PEM"),
        (expired, "TlsExpired", "every certificate in it expired"),
        (other, "TlsUntrusted", "not signed by an authority in"),
    ];
    for server in ["redis", "postgres"] {
        let file = format!("{server}-ca");
        for (n, (content, reason, words)) in cases.iter().enumerate() {
            mount(dir.path(), &file, content);
            for process in [&serve, &work] {
                let message = problem(process, reason).await;
                assert!(message.contains(&format!("{server}-ca, key ca.crt")) && message.contains(words), "{message}");
            }
            world.disconnect().await;
            world.carries(&format!("{server}-{n}")).await;
            assert!(work.is_ready().await && serve.is_ready().await);
        }
        mount(dir.path(), &file, &authority.pem);
        install(
            dir.path(),
            &format!("{server}-client"),
            &Issued { key: "s3cret".to_owned(), ..authority.issue(&["c"]) },
        );
        let message = problem(&work, "TlsFilesInvalid").await;
        assert!(message.contains(&format!("{server}-client")) && !message.contains("s3cret"), "{message}");
        install(dir.path(), &format!("{server}-client"), &authority.issue(&["client"]));
        for process in [&serve, &work] {
            process.has_problems(&[]).await;
        }
    }
}

/// A failure of a new process: a change to the mounted files, its reason, and words of its message.
struct Failure {
    change: fn(&World),
    reason: &'static str,
    words: &'static [&'static str],
}

const OF_REDIS: &[Failure] = &[
    Failure {
        change: |world| mount(world.dir.path(), "redis-ca", &Authority::new("other").pem),
        reason: "TlsUntrusted",
        words: &["Redis", "payments-redis, key url", "redis-ca, key ca.crt"],
    },
    Failure {
        change: |world| world.redis.renew(&world.authority.issue_expired(&[HOST])),
        reason: "TlsExpired",
        words: &["Redis", "payments-redis, key url", "redis-ca, key ca.crt", "renew it on the server"],
    },
    Failure {
        change: |world| world.redis.renew(&world.authority.issue(&["redis.example"])),
        reason: "TlsNameMismatch",
        words: &["Redis", "payments-redis, key url", "localhost", "redis.example"],
    },
    Failure {
        change: |world| {
            world.redis.set(&["tls-auth-clients", "yes"]);
            install(world.dir.path(), "redis-client", &Authority::new("other").issue(&["client"]));
        },
        reason: "TlsClientRefused",
        words: &["Redis", "redis-client"],
    },
    Failure {
        change: |world| mount(world.dir.path(), "redis", &world.redis.server.url()),
        reason: "SecretInvalid",
        words: &["payments-redis, key url", "the URL is redis://, without TLS", "use rediss://"],
    },
];

const OF_POSTGRES: &[Failure] = &[
    Failure {
        change: |world| mount(world.dir.path(), "postgres-ca", &Authority::new("other").pem),
        reason: "TlsUntrusted",
        words: &["Postgres", "payments-postgres, key url", "postgres-ca, key ca.crt"],
    },
    Failure {
        change: |world| world.mount_postgres("client", "127.0.0.1", "verify-full"),
        reason: "TlsNameMismatch",
        words: &["Postgres", "payments-postgres, key url", "127.0.0.1", "localhost"],
    },
    Failure {
        change: |world| {
            install(world.dir.path(), "postgres-client", &Authority::new("other").issue(&["client"]));
        },
        reason: "TlsClientRefused",
        words: &["Postgres", "postgres-client"],
    },
    Failure {
        change: |world| mount(world.dir.path(), "postgres-ca", &Authority::expired("old").pem),
        reason: "TlsExpired",
        words: &["postgres-ca, key ca.crt", "every certificate in it expired"],
    },
    Failure {
        change: |world| world.mount_postgres("client", HOST, "prefer"),
        reason: "SecretInvalid",
        words: &["payments-postgres, key url", "sslmode=prefer", "use sslmode=verify-full"],
    },
];

impl World {
    fn mount_postgres(&self, user: &str, host: &str, mode: &str) {
        mount(self.dir.path(), "postgres", &postgres_url(&self.pipeline, &self.postgres, user, host, mode));
    }

    /// The files and servers as they were.
    fn restore(&self) {
        let (dir, authority) = (self.dir.path(), &self.authority);
        self.redis.set(&["tls-auth-clients", "optional"]);
        self.redis.renew(&authority.issue(&[HOST]));
        mount(dir, "redis", &self.redis.url());
        self.mount_postgres("client", HOST, "verify-full");
        for server in ["redis", "postgres"] {
            mount(dir, &format!("{server}-ca"), &authority.pem);
            install(dir, &format!("{server}-client"), &authority.issue(&["client"]));
        }
    }
}

#[tokio::test]
async fn each_failure_of_tls_at_the_start_names_its_secret() {
    let world = World::new().await;
    for Failure { change, reason, words } in OF_REDIS.iter().chain(OF_POSTGRES) {
        change(&world);
        let processes = ["work", "serve"].map(|role| world.pipeline.start_in_pod(role, world.dir.path()));
        for process in &processes {
            let message = problem(process, reason).await;
            for word in *words {
                assert!(message.contains(word), "{reason}: {word} is not in: {message}");
            }
            // During a rollout the previous processes stay.
            assert!(!process.is_ready().await, "{reason}");
        }
        world.restore();
        // A process that started with it continues without a restart.
        for process in &processes {
            process.has_problems(&[]).await;
            process.ready().await;
        }
    }
}

#[tokio::test]
async fn a_migration_ends_with_the_reason_of_tls() {
    let world = World::new().await;
    world
        .renew_postgres(&{
            let Issued { certificate, key } = world.authority.issue_expired(&[HOST]);
            [("server.crt", certificate.leak() as &str), ("server.key", key.leak())]
        })
        .await;
    let ended = world.pipeline.command_in_pod("migrate", world.dir.path(), &[]).await;
    assert!(!ended.status.success());
    let line: Value = serde_json::from_str(&fs::read_to_string(world.dir.path().join("termination")).unwrap()).unwrap();
    assert_eq!(line["reason"], "TlsExpired", "{line}");
    assert!(line["message"].as_str().unwrap().contains("postgres-ca, key ca.crt"), "{line}");
}

#[tokio::test]
async fn each_command_names_the_secret_and_the_reason() {
    let world = World::new().await;
    let dir = world.dir.path();
    let says = async |command: &[&str], words: &[&str]| {
        let ended = world.pipeline.command_in_pod(command[0], dir, &command[1..]).await;
        let error = String::from_utf8(ended.stderr).unwrap();
        let code = if command[0] == "verify" { 2 } else { 1 };
        assert!(ended.status.code() == Some(code) && !error.contains("s3cret"), "{command:?}: {error}");
        for word in words {
            assert!(error.contains(word), "{command:?}: {word} is not in: {error}");
        }
    };
    let commands: [&[&str]; 4] = [&["keys", "list"], &["sinks", "list"], &["losses", "acknowledge"], &["verify"]];
    mount(dir, "postgres-ca", &Authority::new("other").pem);
    for command in commands {
        says(command, &["TlsUntrusted", "payments-postgres, key url", "postgres-ca, key ca.crt"]).await;
    }
    mount(dir, "postgres-ca", &world.authority.pem);
    // The certificate is of another user, and the database is not there.
    let url = postgres_url(&world.pipeline, &world.postgres, "client", HOST, "verify-full");
    let cases = [
        (url.replace("/it_", "/none_it_"), "PostgresDatabaseNotFound"),
        (url.replace("client@", "nobody:s3cret@"), "PostgresAccessDenied"),
        (url.replace("client@", "reader@"), "PostgresPermissionDenied"),
    ];
    let mut connection = PgConnection::connect(&world.postgres.url()).await.unwrap();
    connection.execute("create role reader login").await.unwrap();
    for (url, reason) in &cases {
        mount(dir, "postgres", url);
        for command in commands {
            says(command, &[reason]).await;
        }
    }
    world.restore();
    // A sink that has started, so that the command asks for its cursor.
    let work = world.pipeline.start_in_pod("work", dir);
    eventually("the sink is started", async || {
        world.pipeline.number("select count(*) from sinks where name = 'notifications' and started").await == 1
    })
    .await;
    drop(work);
    mount(dir, "redis-ca", &Authority::new("other").pem);
    for command in [&["verify"] as &[&str], &["sinks", "resume", "notifications", "--from", "now"]] {
        says(command, &["TlsUntrusted", "payments-redis, key url", "redis-ca, key ca.crt"]).await;
    }
}

#[tokio::test]
async fn sslmode_decides_what_is_verified() {
    let world = World::new().await;
    let dir = world.dir.path();
    let migrates = async |user: &str, host: &str, mode: &str| {
        world.mount_postgres(user, host, mode);
        world.pipeline.command_in_pod("migrate", dir, &[]).await.status.success()
    };
    // The address is not in the certificate, but the authority is the right one.
    assert!(migrates("client", "127.0.0.1", "verify-ca").await);
    assert!(!migrates("client", "127.0.0.1", "verify-full").await);
    mount(dir, "postgres-ca", &Authority::new("other").pem);
    assert!(!migrates("client", HOST, "verify-ca").await);
    // Files that a mode does not use are refused; without them it encrypts and verifies nothing.
    assert!(!migrates("client", HOST, "require").await);
    for file in ["postgres-ca", "postgres-client.crt", "postgres-client.key"] {
        fs::remove_file(dir.join(file)).unwrap();
    }
    for mode in ["disable", "prefer", "require"] {
        assert!(migrates("postgres", HOST, mode).await, "{mode}");
    }
    // The authority is not one of the system's.
    assert!(!migrates("postgres", HOST, "verify-ca").await);
    let plain = PrivatePostgres::start().await;
    mount(dir, "postgres", &format!("postgres://postgres@{HOST}:{}/postgres?sslmode=require", plain.port()));
    let ended = world.pipeline.command_in_pod("migrate", dir, &[]).await;
    let line = fs::read_to_string(dir.join("termination")).unwrap();
    assert!(!ended.status.success() && line.contains("TlsNotOffered"), "{line}");
}

#[tokio::test]
async fn sentinels_and_the_primary_are_reached_by_tls() {
    let authority = Authority::new("a");
    let certificate = authority.issue(&[HOST]);
    let redis = Redis::start(&certificate, &authority, &["tls-replication yes"]).await;
    let pipeline = Pipeline::on(&redis.server.url(), &shared().await.postgres, spec()).await;
    let sentinel = Sentinel::start(&redis, &certificate, &authority).await;
    let dir = tempfile::tempdir().unwrap();
    mount(dir.path(), "key", KEY);
    mount(dir.path(), "postgres", pipeline.postgres_url());
    mount(dir.path(), "redis", &format!("rediss+sentinel://{HOST}:{}/primary", sentinel.port));
    mount(dir.path(), "redis-ca", &Authority::new("other").pem);
    let (serve, work) = (pipeline.start_in_pod("serve", dir.path()), pipeline.start_in_pod("work", dir.path()));
    assert!(problem(&work, "TlsUntrusted").await.contains("redis-ca, key ca.crt"));
    mount(dir.path(), "redis-ca", &authority.pem);
    serve.ready().await;
    work.ready().await;
    pipeline.send_through(&[record("a", "d")]).await;
    pipeline.applied().await;
}

#[tokio::test]
async fn a_failover_among_servers_with_tls_is_followed() {
    let authority = Authority::new("a");
    let certificate = authority.issue(&[HOST]);
    let secure = ["tls-replication yes", "repl-diskless-sync-delay 0", "replica-announce-ip localhost"];
    let mut primary = Redis::start(&certificate, &authority, &secure).await;
    let pipeline = Pipeline::on(&primary.server.url(), &shared().await.postgres, spec()).await;
    let of_primary = format!("replicaof {HOST} {}", primary.port);
    let replica = Redis::start(&certificate, &authority, &[&secure[..], &[&of_primary]].concat()).await;
    let sentinel = Sentinel::start(&primary, &certificate, &authority).await;
    let known = format!("sentinel known-replica primary {HOST} {}", replica.port);
    eventually("the sentinel has found the replica", async || sentinel.configuration().contains(&known)).await;
    let dir = tempfile::tempdir().unwrap();
    mount(dir.path(), "key", KEY);
    mount(dir.path(), "postgres", pipeline.postgres_url());
    mount(dir.path(), "redis", &format!("rediss+sentinel://{HOST}:{}/primary", sentinel.port));
    mount(dir.path(), "redis-ca", &authority.pem);
    let (mut serve, mut work) = (pipeline.start_in_pod("serve", dir.path()), pipeline.start_in_pod("work", dir.path()));
    serve.ready().await;
    work.ready().await;
    pipeline.send_through(&Load::new("before", 50).records).await;
    eventually("all are applied", async || pipeline.number("select count(*) from records").await == 50).await;
    let offset = |redis: &Redis| redis.replication("master_repl_offset");
    eventually("the replica has all", async || offset(&primary).is_some_and(|sent| offset(&replica) == Some(sent)))
        .await;

    primary.server.kill();
    let promoted = async || replica.replication("role").as_deref() == Some("master");
    eventually("the replica is the primary", promoted).await;
    let after = Load::new("after", 50).records;
    eventually("records are accepted again", async || {
        let body = serde_json::to_string(&after).unwrap();
        pipeline.post_json("/records/batch", body).await.status == 202
    })
    .await;
    eventually("all are applied", async || pipeline.number("select count(*) from records").await == 100).await;
    for process in [&serve, &work] {
        process.has_problems(&[]).await;
    }
    assert!(!serve.has_ended() && !work.has_ended());
}

/// A sentinel of one primary, whose name it announces.
struct Sentinel {
    server: Option<std::process::Child>,
    port: u16,
    dir: TempDir,
}

impl Sentinel {
    async fn start(redis: &Redis, certificate: &Issued, clients: &Authority) -> Self {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        install(dir.path(), "server", certificate);
        mount(dir.path(), "clients.crt", &clients.pem);
        let path = |name: &str| dir.path().join(name).display().to_string();
        let content = format!(
            "bind 127.0.0.1\nport 0\ntls-port {port}\ndir {}\ntls-cert-file {}\ntls-key-file {}\ntls-ca-cert-file {}\n\
             tls-auth-clients no\ntls-replication yes\nsentinel resolve-hostnames yes\nsentinel announce-hostnames yes\n\
             sentinel monitor primary {HOST} {} 1\nsentinel down-after-milliseconds primary 1000\n\
             sentinel failover-timeout primary 3000\n",
            dir.path().display(),
            path("server.crt"),
            path("server.key"),
            path("clients.crt"),
            redis.port,
        );
        mount(dir.path(), "sentinel.conf", &content);
        let mut command = std::process::Command::new("setpriv");
        command.args(["--pdeathsig=KILL", &tls_redis(), &path("sentinel.conf"), "--sentinel"]);
        let server = Some(command.stdout(std::process::Stdio::null()).spawn().unwrap());
        Self { server, port, dir }
    }

    /// Its file, into which it writes the servers that it found.
    fn configuration(&self) -> String {
        fs::read_to_string(self.dir.path().join("sentinel.conf")).unwrap()
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

#[tokio::test]
async fn a_cluster_is_reached_by_the_names_that_it_announces() {
    let authority = Authority::new("a");
    let bus = format!("cluster-port {}", free_port());
    let settings = ["cluster-enabled yes", "tls-cluster yes", "tls-replication yes", &bus];
    let redis = Redis::start(&authority.issue(&[HOST]), &authority, &settings).await;
    let mut connection = redis::Client::open(redis.server.url()).unwrap().get_connection().unwrap();
    let () = redis::cmd("CLUSTER").arg(&["ADDSLOTSRANGE", "0", "16383"]).query(&mut connection).unwrap();
    eventually("the cluster works", async || {
        let info: String = redis::cmd("CLUSTER").arg("INFO").query(&mut connection).unwrap();
        info.contains("cluster_state:ok")
    })
    .await;
    // The address, which is not in the certificate.
    redis.set(&["cluster-announce-ip", "127.0.0.1"]);
    let pipeline = Pipeline::on(&redis.server.url(), &shared().await.postgres, spec()).await;
    let dir = tempfile::tempdir().unwrap();
    mount(dir.path(), "key", KEY);
    mount(dir.path(), "postgres", pipeline.postgres_url());
    mount(dir.path(), "redis", &format!("rediss+cluster://{HOST}:{}", redis.port));
    mount(dir.path(), "redis-ca", &authority.pem);
    let (serve, work) = (pipeline.start_in_pod("serve", dir.path()), pipeline.start_in_pod("work", dir.path()));
    let message = problem(&work, "TlsNameMismatch").await;
    assert!(message.contains("127.0.0.1") && message.contains(HOST), "{message}");
    redis.set(&["cluster-announce-hostname", HOST]);
    redis.set(&["cluster-preferred-endpoint-type", "hostname"]);
    serve.ready().await;
    work.has_problems(&[]).await;
    pipeline.send_through(&[record("a", "d")]).await;
    pipeline.applied().await;
}
