//! The pipeline of one test: manifest, database, keys, processes, and clients of its servers.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

use redis::aio::ConnectionManager;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, PgPool, postgres::PgPoolOptions};
use tempfile::TempDir;

use super::{
    ManyRedis, Pooler, Process, document::assert_documented, eventually, failover::Place, free_port, obtain, shared,
};

/// The bootstrap key of every pipeline here, with all scopes.
pub(crate) const KEY: &str = "mk_integration-tests-0123456789-abcdef";

/// The lease of workers in milliseconds; short, so that a successor soon acquires shards.
pub(crate) const LEASE_MS: u64 = 1_500;

/// A migrated pipeline. Dropping it removes its keys and its database.
#[derive(Debug)]
pub(crate) struct Pipeline {
    /// Unique among all tests.
    pub(crate) name: String,
    /// Connections with its schema as search path.
    pub(crate) sql: PgPool,
    redis: Redis,
    redis_url: String,
    postgres_url: String,
    /// The URL of the server and the name of the database to drop at the end.
    database: Option<(String, String)>,
    dir: TempDir,
    metadata: Mutex<Value>,
    spec: Mutex<Value>,
    started: AtomicU32,
    serving: Mutex<Option<String>>,
    http: reqwest::Client,
}

/// The connection to Redis.
#[derive(Debug, Clone)]
enum Redis {
    /// Reconnects by itself.
    One(Box<ConnectionManager>),
    Many(Place),
}

impl Pipeline {
    /// A pipeline on the shared servers, of two shards and four sinks. Fields of `spec` replace the defaults.
    pub(crate) async fn new(spec: Value) -> Self {
        let shared = shared().await;
        Self::on(&shared.redis, &shared.postgres, spec).await
    }

    /// A pipeline on other servers. `postgres` is the URL of a database whose user may create another.
    pub(crate) async fn on(redis: &str, postgres: &str, spec: Value) -> Self {
        Self::with(redis, None, postgres, spec).await
    }

    /// A pipeline on a cluster, or on a primary with sentinels.
    pub(crate) async fn on_many(redis: &ManyRedis, spec: Value) -> Self {
        Self::with(&redis.url(), Some(redis.place()), &shared().await.postgres, spec).await
    }

    async fn with(redis: &str, many: Option<Place>, postgres: &str, spec: Value) -> Self {
        let database = format!("it_{:016x}", rand::random::<u64>());
        let mut connection = PgConnection::connect(postgres).await.unwrap();
        // Safe: the name is generated above.
        let create = format!("create database {database}");
        sqlx::query(AssertSqlSafe(create)).execute(&mut connection).await.unwrap();
        let (server, _) = postgres.rsplit_once('/').unwrap();
        let url = format!("{server}/{database}");
        let mut this = Self::made(redis, many, &url, &url, spec).await;
        this.database = Some((postgres.to_owned(), database));
        this
    }

    /// A pipeline in a new database of the pooler's server, whose processes connect by the pooler.
    pub(crate) async fn behind(pooler: &Pooler, spec: Value) -> Self {
        let database = format!("it_{:016x}", rand::random::<u64>());
        let mut connection = PgConnection::connect(pooler.server()).await.unwrap();
        let create = format!("create database {database}");
        sqlx::query(AssertSqlSafe(create)).execute(&mut connection).await.unwrap();
        let mut this = Self::behind_in(pooler, &database, spec).await;
        this.database = Some((pooler.server().to_owned(), database));
        this
    }

    /// The same in an existing database.
    pub(crate) async fn behind_in(pooler: &Pooler, database: &str, spec: Value) -> Self {
        let (server, _) = pooler.server().rsplit_once('/').unwrap();
        let direct = format!("{server}/{database}");
        Self::made(&shared().await.redis, None, &direct, &pooler.url(database), spec).await
    }

    /// The name of its database.
    pub(crate) fn database(&self) -> &str {
        self.postgres_url.rsplit_once('/').unwrap().1
    }

    /// A pipeline in an existing database, such as that of another pipeline.
    pub(crate) async fn beside(redis: &str, database: &str, given: Value) -> Self {
        Self::made(redis, None, database, database, given).await
    }

    /// The same without a schema yet.
    pub(crate) async fn beside_unmigrated(redis: &str, database: &str, given: Value) -> Self {
        Self::written(redis, None, database, database, given).await
    }

    async fn made(redis: &str, many: Option<Place>, database: &str, postgres_url: &str, given: Value) -> Self {
        let this = Self::written(redis, many, database, postgres_url, given).await;
        let migrated = this.command("migrate", &[]).await;
        assert!(migrated.status.success(), "migrate: {}", String::from_utf8_lossy(&migrated.stderr));
        this
    }

    /// `database` is the URL for the test, `postgres_url` that for processes.
    async fn written(redis: &str, many: Option<Place>, database: &str, postgres_url: &str, given: Value) -> Self {
        let name = format!("t{:012x}", rand::random::<u64>() >> 16);
        let mut spec = json!({
            "shards": 2,
            "threshold": "200",
            "sinks": [
                sink("notifications", "Processed"), sink("alerts", "Alert"),
                sink("dead-letters", "DeadLettered"), sink("conflicts", "Conflicted"),
            ],
        });
        for (field, value) in given.as_object().unwrap() {
            spec[field] = value.clone();
        }
        let sql = connections(database, &name);
        let this = Self {
            sql,
            redis: match many {
                Some(place) => Redis::Many(place),
                None => {
                    Redis::One(Box::new(ConnectionManager::new(redis::Client::open(redis).unwrap()).await.unwrap()))
                }
            },
            redis_url: redis.to_owned(),
            postgres_url: postgres_url.to_owned(),
            database: None,
            dir: tempfile::Builder::new().prefix("millrace-it.").tempdir().unwrap(),
            metadata: json!({"name": &name}).into(),
            name,
            spec: spec.into(),
            started: AtomicU32::new(0),
            serving: Mutex::default(),
            http: reqwest::Client::new(),
        };
        this.write_manifest();
        this
    }

    /// Uses other servers from now on: for commands, for processes that start, and for the test. The database has the same
    /// name there.
    pub(crate) async fn move_to(&mut self, redis: &str, postgres_server: &str) {
        let client = redis::Client::open(redis).unwrap();
        self.redis = Redis::One(Box::new(ConnectionManager::new(client).await.unwrap()));
        redis.clone_into(&mut self.redis_url);
        let (server, _) = postgres_server.rsplit_once('/').unwrap();
        self.postgres_url = format!("{server}/{}", self.database());
        self.sql = connections(&self.postgres_url, &self.name);
    }

    /// Changes the manifest's spec, in its file.
    pub(crate) fn change(&self, change: impl FnOnce(&mut Value)) {
        change(&mut self.spec.lock().unwrap());
        self.write_manifest();
    }

    /// Replaces the manifest's file by any text.
    pub(crate) fn write(&self, text: &str) {
        let fresh = self.dir.path().join("manifest.new");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.manifest()).unwrap();
    }

    fn write_manifest(&self) {
        let manifest = json!({
            "apiVersion": "millrace.dev/v1alpha1", "kind": "RecordPipeline",
            "metadata": &*self.metadata.lock().unwrap(), "spec": &*self.spec.lock().unwrap(),
        });
        self.write(&manifest.to_string());
    }

    /// The manifest's file.
    pub(crate) fn manifest(&self) -> PathBuf {
        self.dir.path().join("manifest.yaml")
    }

    /// The URL of its Redis.
    pub(crate) fn redis_url(&self) -> &str {
        &self.redis_url
    }

    /// The database's URL.
    pub(crate) fn postgres_url(&self) -> &str {
        &self.postgres_url
    }

    /// How many shards it has.
    pub(crate) fn shards(&self) -> u64 {
        self.spec.lock().unwrap()["shards"].as_u64().unwrap()
    }

    /// A shard's input stream.
    pub(crate) fn records(&self, shard: u64) -> String {
        format!("{{{}.{shard}}}:records", self.name)
    }

    /// The hash beside a shard's input stream: fence, watermarks and counts.
    pub(crate) fn fence(&self, shard: u64) -> String {
        format!("{{{}.{shard}}}:fence", self.name)
    }

    /// Waits until an owner has noted the shard's server, and sets the time since when it is the same to long ago.
    pub(crate) async fn backdate_fence(&self, shard: u64) {
        let fence = self.fence(shard);
        eventually("an owner has noted the server", async || self.redis::<bool>(&["HEXISTS", &fence, "server"]).await)
            .await;
        let _: i64 = self.redis(&["HSET", &fence, "since", "1"]).await;
    }

    /// The default stream of a sink.
    pub(crate) fn stream(&self, sink: &str) -> String {
        format!("{}.{sink}", self.name)
    }

    /// A sink's cursor.
    pub(crate) fn cursor(&self, sink: &str) -> String {
        format!("{{{}}}:cursor", self.stream(sink))
    }

    /// The binary with `arguments`, set up for this pipeline.
    fn binary(&self, subcommand: &str, arguments: &[&str]) -> Command {
        // The kernel kills it when the thread of the test ends, for any reason.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "--", env!("CARGO_BIN_EXE_millrace"), subcommand]).args(arguments);
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("MILLRACE_PIPELINE", self.manifest());
        command.env("MILLRACE_REDIS_URL", &self.redis_url).env("MILLRACE_POSTGRES_URL", &self.postgres_url);
        command.env("MILLRACE_BOOTSTRAP_KEY", KEY).env("MILLRACE_LEASE_MS", LEASE_MS.to_string());
        command
    }

    /// A command with the environment of a pod: URLs and key come from files in `dir`, which may be missing.
    fn in_pod(&self, subcommand: &str, dir: &Path, arguments: &[&str]) -> Command {
        let mut command = self.binary(subcommand, arguments);
        let files = [("REDIS_URL", "redis"), ("POSTGRES_URL", "postgres"), ("BOOTSTRAP_KEY", "key")];
        for (variable, file) in files.map(|(name, file)| (format!("MILLRACE_{name}"), dir.join(file))) {
            command.env_remove(&variable).env(format!("{variable}_FILE"), file);
        }
        for (variable, file) in [
            ("MILLRACE_REDIS_TLS_CA_FILE", "redis-ca"),
            ("MILLRACE_REDIS_TLS_CERT_FILE", "redis-client.crt"),
            ("MILLRACE_REDIS_TLS_KEY_FILE", "redis-client.key"),
            ("MILLRACE_POSTGRES_TLS_CA_FILE", "postgres-ca"),
            ("MILLRACE_POSTGRES_TLS_CERT_FILE", "postgres-client.crt"),
            ("MILLRACE_POSTGRES_TLS_KEY_FILE", "postgres-client.key"),
            ("MILLRACE_POSTGRES_READ_URL_FILE", "postgres-read"),
        ] {
            // As the operator does it for the fields that the manifest has.
            if dir.join(file).exists() {
                command.env(variable, dir.join(file));
            }
        }
        command.env("MILLRACE_PIPELINE_NAME", &self.name).env("MILLRACE_LOG_FORMAT", "json");
        command.env("MILLRACE_TERMINATION_LOG", dir.join("termination")).env("MILLRACE_WAIT_MS", "300");
        command.env("MILLRACE_LISTEN", "0.0.0.0:8080").env("MILLRACE_HEALTH_LISTEN", "0.0.0.0:8081");
        command
    }

    /// Runs a subcommand to its end, with the environment of a pod.
    pub(crate) async fn command_in_pod(&self, subcommand: &str, dir: &Path, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::from(self.in_pod(subcommand, dir, arguments));
        command.kill_on_drop(true).output().await.unwrap()
    }

    /// Starts a role with the environment of a pod, and does not wait until it is ready.
    pub(crate) fn start_in_pod(&self, role: &'static str, dir: &Path) -> Process {
        let listen = format!("127.0.0.1:{}", free_port());
        let arguments: &[&str] = if role == "serve" { &["--listen", &listen] } else { &[] };
        let command = self.in_pod(role, dir, arguments);
        if role == "serve" {
            *self.serving.lock().unwrap() = Some(format!("http://{listen}"));
        }
        let n = self.started.fetch_add(1, Ordering::Relaxed);
        Process::start(role, command, self.dir.path().join(format!("{n}-{role}.log")))
    }

    /// Changes the manifest's metadata, in its file.
    pub(crate) fn annotate(&self, change: impl FnOnce(&mut Value)) {
        change(&mut self.metadata.lock().unwrap());
        self.write_manifest();
    }

    /// Runs a subcommand to its end.
    pub(crate) async fn command(&self, subcommand: &str, arguments: &[&str]) -> Output {
        let mut command = tokio::process::Command::from(self.binary(subcommand, arguments));
        command.kill_on_drop(true).output().await.unwrap()
    }

    fn start(&self, role: &'static str, arguments: &[&str], environment: &[(&str, &str)]) -> Process {
        let mut command = self.binary(role, arguments);
        command.envs(environment.iter().copied());
        let n = self.started.fetch_add(1, Ordering::Relaxed);
        Process::start(role, command, self.dir.path().join(format!("{n}-{role}.log")))
    }

    /// Starts a role with further variables, and does not wait until it answers.
    pub(crate) fn start_waiting(&self, role: &'static str, environment: &[(&str, &str)]) -> Process {
        let listen = format!("127.0.0.1:{}", free_port());
        let arguments: &[&str] = if role == "serve" { &["--listen", &listen] } else { &[] };
        if role == "serve" {
            *self.serving.lock().unwrap() = Some(format!("http://{listen}"));
        }
        self.start(role, arguments, environment)
    }

    /// Starts a serve process on this address, and does not wait until it answers.
    pub(crate) fn start_listening(&self, listen: &str) -> Process {
        self.start("serve", &["--listen", listen], &[])
    }

    /// Starts a worker.
    pub(crate) fn work(&self) -> Process {
        self.work_with(&[])
    }

    /// Starts a worker with further variables, such as `MILLRACE_FAULT`.
    pub(crate) fn work_with(&self, environment: &[(&str, &str)]) -> Process {
        self.start("work", &[], environment)
    }

    /// Starts a serve process and waits until it answers. Later requests go to it.
    pub(crate) async fn serve(&self) -> Process {
        self.serve_with(&[]).await
    }

    /// Starts a serve process with further variables, and waits until it answers. Later requests go to it.
    pub(crate) async fn serve_with(&self, environment: &[(&str, &str)]) -> Process {
        let process = self.starting_serve_with(environment);
        self.answers().await;
        process
    }

    /// Starts a serve process that need not answer yet. Later requests go to it.
    pub(crate) fn starting_serve_with(&self, environment: &[(&str, &str)]) -> Process {
        let listen = format!("127.0.0.1:{}", free_port());
        let process = self.start("serve", &["--listen", &listen], environment);
        *self.serving.lock().unwrap() = Some(format!("http://{listen}"));
        process
    }

    /// Waits until the newest serve process answers.
    pub(crate) async fn answers(&self) {
        let url = self.serving.lock().unwrap().clone().expect("a serve process was started");
        eventually("serve answers", async || reqwest::get(format!("{url}/health")).await.is_ok()).await;
    }

    /// A request to the newest serve process, with the administrator's key.
    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = self.serving.lock().unwrap().clone().expect("a serve process was started");
        self.http.request(method, format!("{url}{path}")).bearer_auth(KEY)
    }

    /// The JSON body of a GET, which must be answered with 200 as the OpenAPI document says.
    pub(crate) async fn get(&self, path: &str) -> Value {
        let answer = self.request(Method::GET, path).send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        assert_eq!(status, StatusCode::OK, "GET {path}: {text}");
        let body = serde_json::from_str(&text).unwrap();
        assert_documented(path, &body);
        body
    }

    /// Sends a POST of JSON; returns status and body.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        let answer = self.request(Method::POST, path).json(body).send().await.unwrap();
        (answer.status(), answer.json().await.unwrap())
    }

    /// Sends records in order; all must be accepted.
    pub(crate) async fn send(&self, records: &[Value]) {
        for part in records.chunks(250) {
            let (status, answer) = self.post("/records/batch", &part.into()).await;
            assert_eq!((status, &answer["accepted"]), (StatusCode::ACCEPTED, &part.len().into()), "{answer}");
        }
    }

    /// Sends records in order, and repeats each batch until all of it is accepted, as a client does while servers are
    /// unavailable.
    pub(crate) async fn send_through(&self, records: &[Value]) {
        for part in records.chunks(250) {
            eventually("a batch is accepted", async || {
                let Ok(answer) = self.request(Method::POST, "/records/batch").json(&part).send().await else {
                    return false;
                };
                let status = answer.status();
                let answer: Value = answer.json().await.unwrap_or_default();
                status == StatusCode::ACCEPTED && answer["accepted"] == part.len()
            })
            .await;
        }
    }

    /// Runs a Redis command, and repeats it when the connection is lost.
    pub(crate) async fn redis<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        command.arg(&words[1..]);
        obtain(words[0], async || {
            let answer = match self.redis.clone() {
                Redis::One(mut connection) => command.query_async(&mut *connection).await,
                Redis::Many(place) => place.ask(words).await,
            };
            match answer {
                Ok(answer) => Some(answer),
                Err(error) if error.is_io_error() || matches!(self.redis, Redis::Many(_)) => None,
                Err(error) => panic!("{words:?}: {error}"),
            }
        })
        .await
    }

    /// Runs a query that returns one number.
    pub(crate) async fn number(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.sql).await.unwrap_or_else(|error| panic!("{query}: {error}"))
    }

    /// Runs a statement; returns how many rows it changed.
    pub(crate) async fn execute(&self, statement: &'static str) -> u64 {
        let done = sqlx::query(statement).execute(&self.sql).await;
        done.unwrap_or_else(|error| panic!("{statement}: {error}")).rows_affected()
    }

    /// How many shards each worker owns, in ascending order. Workers without shards and expired leases are left out.
    pub(crate) async fn shares(&self) -> Vec<i64> {
        sqlx::query_scalar(
            "select count(*) from shards where owner is not null and lease_until > clock_timestamp()
             group by owner order by 1",
        )
        .fetch_all(&self.sql)
        .await
        .unwrap()
    }
}

/// Connections to a database, with the schema of a pipeline as search path.
fn connections(database: &str, pipeline: &str) -> PgPool {
    let url = format!("{database}?options=-csearch_path%3Dmillrace_{pipeline}");
    PgPoolOptions::new().max_connections(4).connect_lazy(&url).unwrap()
}

/// A sink of the manifest, with its default stream and without a bound.
pub(crate) fn sink(name: &str, event: &str) -> Value {
    json!({"name": name, "event": event, "redisStream": {"maxLength": 0}})
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let (redis_url, database, name) = (self.redis_url.clone(), self.database.take(), self.name.clone());
        // A thread with its own runtime, since `drop` cannot await. A private server may have ended already.
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                if let Ok(mut connection) = redis::Client::open(redis_url).and_then(|client| client.get_connection()) {
                    let keys: Vec<String> =
                        redis::cmd("KEYS").arg(format!("*{name}*")).query(&mut connection).unwrap_or_default();
                    let _ = keys.iter().try_for_each(|key| redis::cmd("UNLINK").arg(key).query(&mut connection));
                }
                let Some((server, database)) = database else { return };
                if let Ok(mut connection) = PgConnection::connect(&server).await {
                    let drop = format!("drop database {database} with (force)");
                    let _ = sqlx::query(AssertSqlSafe(drop)).execute(&mut connection).await;
                }
            });
        });
        let _ = cleaning.join();
    }
}
