//! The Redis and the Postgres that both builds run on, and their state at the begin of a round.
//!
//! Must never begin a round while one before it still has an effect: no data, no dirty page, no session of it is left.

use std::{process::Stdio, str::FromStr as _, time::Duration};

use anyhow::{Context as _, ensure};
use redis::aio::MultiplexedConnection;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, postgres::PgConnectOptions};
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{
    build::Place,
    settings::Settings,
    usage::{
        proc::{Machine, Processes},
        redis::{field, number},
    },
};

/// Longest wait for servers to become idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Longest wait for other processes of the machine; a round then begins all the same.
const OTHERS_TIMEOUT: Duration = Duration::from_secs(20);
/// The share of one core that the machine uses at most when a round begins.
const QUIET: f64 = 0.15;
/// Time over which that share is taken.
const QUIET_SPAN: Duration = Duration::from_millis(400);

/// The SQL of rows that are there before a round.
const ROWS: &str = include_str!("rows.sql");

/// The servers, with a connection to each for measuring.
#[derive(Debug)]
pub(crate) struct Servers {
    pub(crate) redis_url: String,
    pub(crate) redis: MultiplexedConnection,
    pub(crate) redis_pid: u32,
    pub(crate) postgres: PgConnection,
    /// The first process of Postgres, the parent of the others.
    pub(crate) postgres_pid: u32,
    /// Whether perf can count the servers' fsyncs.
    pub(crate) has_perf: bool,
    /// Versions, for the report.
    pub(crate) versions: String,
    postgres_url: String,
}

impl Servers {
    /// Connects to servers of this machine.
    ///
    /// # Errors
    /// Also when a server would lose acknowledged writes in a crash: measurements of such a server are worth nothing.
    pub(crate) async fn connect(redis_url: &str, postgres_url: &str) -> anyhow::Result<Self> {
        let mut redis = redis::Client::open(redis_url)?.get_multiplexed_async_connection().await.context("Redis")?;
        let mut postgres =
            PgConnection::connect_with(&PgConnectOptions::from_str(postgres_url)?).await.context("Postgres")?;
        for (setting, wanted) in [("appendonly", "yes"), ("appendfsync", "always"), ("maxmemory-policy", "noeviction")]
        {
            let found: Vec<String> = redis::cmd("CONFIG").arg("GET").arg(setting).query_async(&mut redis).await?;
            ensure!(found.last().is_some_and(|found| found == wanted), "Redis has to run with {setting} {wanted}");
        }
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            let query = sqlx::query_scalar::<_, String>("select current_setting($1)").bind(setting);
            ensure!(query.fetch_one(&mut postgres).await? == "on", "Postgres has to run with {setting}=on");
        }
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut redis).await?;
        let redis_pid = u32::try_from(number(&info, "process_id")?)?;
        let session: i32 = sqlx::query_scalar("select pg_backend_pid()").fetch_one(&mut postgres).await?;
        let processes = Processes::read()?;
        let postgres_pid = processes.parent(session.cast_unsigned());
        let postgres_pid = postgres_pid.context("Postgres has to run on this machine: /proc does not have it")?;
        ensure!(!processes.tree(redis_pid).is_empty(), "Redis has to run on this machine: /proc does not have it");
        let version: String = sqlx::query_scalar("show server_version").fetch_one(&mut postgres).await?;
        // A rewrite would shrink the file during a round, and its bytes would count for nothing.
        let set = redis::cmd("CONFIG").arg("SET").arg("auto-aof-rewrite-percentage").arg(0).to_owned();
        set.query_async::<()>(&mut redis).await?;
        Ok(Self {
            redis_url: redis_url.to_owned(),
            redis_pid,
            postgres_pid,
            has_perf: perf_counts(redis_pid).await,
            versions: format!("Redis {}, Postgres {version}", field(&info, "redis_version")?),
            redis,
            postgres,
            postgres_url: postgres_url.to_owned(),
        })
    }

    /// Creates a database for a pipeline. Returns its URL.
    pub(crate) async fn create_database(&mut self, pipeline: &str) -> anyhow::Result<String> {
        let database = database(pipeline);
        self.execute(&format!("create database {database}")).await?;
        let server = self.postgres_url.split('?').next().and_then(|url| url.rsplit_once('/'));
        Ok(format!("{}/{database}", server.context("the URL of Postgres names no database")?.0))
    }

    /// Waits until servers and machine are idle.
    pub(crate) async fn wait_until_idle(&mut self) -> anyhow::Result<()> {
        self.execute("checkpoint").await?;
        // A short file, as after each round: its growth is then that of the round.
        redis::cmd("BGREWRITEAOF").query_async::<()>(&mut self.redis).await?;
        let began = Instant::now();
        while !self.are_idle().await? {
            ensure!(began.elapsed() < IDLE_TIMEOUT, "the servers are not idle after {} s", IDLE_TIMEOUT.as_secs());
            sleep(Duration::from_millis(20)).await;
        }
        tokio::task::spawn_blocking(nix::unistd::sync).await?;
        wait_for_others().await
    }

    /// Fills a migrated database: partitions of earlier periods, and records with their ids, of shards that the pipeline
    /// has not: nothing publishes them.
    pub(crate) async fn fill(&self, place: &Place) -> anyhow::Result<()> {
        let Settings { rows, partitions, .. } = place.settings;
        if rows == 0 && partitions == 0 {
            return Ok(());
        }
        let mut postgres = PgConnection::connect(&place.postgres_url).await?;
        let schema = format!("millrace_{}", database(&place.pipeline));
        let mut statements = String::new();
        for n in 0..partitions {
            statements += &format!(
                "create table \"{schema}\".records_old_{n} (like \"{schema}\".records including all);\n\
                 alter table \"{schema}\".records attach partition \"{schema}\".records_old_{n} \
                 for values in (date '1970-01-01' + {n});\n",
            );
        }
        if rows > 0 {
            statements += &ROWS.replace("SCHEMA", &schema).replace("ROWS", &rows.to_string());
        }
        for statement in statements.split(";\n").filter(|statement| !statement.trim().is_empty()) {
            sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut postgres).await.context("rows")?;
        }
        Ok(postgres.close().await?)
    }

    /// The length of a stream.
    pub(crate) async fn length(&mut self, stream: &str) -> anyhow::Result<usize> {
        Ok(redis::cmd("XLEN").arg(stream).query_async(&mut self.redis).await?)
    }

    /// Removes all that a pipeline has. Its processes have ended.
    pub(crate) async fn remove(&mut self, pipeline: &str) -> anyhow::Result<()> {
        self.execute(&format!("drop database if exists {} with (force)", database(pipeline))).await?;
        let mut cursor = 0_u64;
        loop {
            let scan = redis::cmd("SCAN").arg(cursor).arg("MATCH").arg(format!("*{pipeline}*")).to_owned();
            let (next, keys): (u64, Vec<String>) = scan.query_async(&mut self.redis).await?;
            for key in keys {
                redis::cmd("DEL").arg(key).query_async::<()>(&mut self.redis).await?;
            }
            cursor = next;
            if cursor == 0 {
                return Ok(());
            }
        }
    }

    /// The answer of INFO.
    pub(crate) async fn redis_info(&mut self) -> anyhow::Result<String> {
        Ok(redis::cmd("INFO").query_async(&mut self.redis).await?)
    }

    /// No session but this one, no autovacuum, no rewrite of the append-only file.
    async fn are_idle(&mut self) -> anyhow::Result<bool> {
        let query = "select count(*) from pg_stat_activity
                     where backend_type in ('client backend', 'autovacuum worker') and pid <> pg_backend_pid()";
        let sessions: i64 = sqlx::query_scalar(query).fetch_one(&mut self.postgres).await?;
        let info = self.redis_info().await?;
        let rewrites = number(&info, "aof_rewrite_in_progress")? + number(&info, "aof_rewrite_scheduled")?;
        Ok(sessions == 0 && rewrites == 0 && number(&info, "connected_clients")? == 1)
    }

    async fn execute(&mut self, statement: &str) -> anyhow::Result<()> {
        // The names in it are made here.
        sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut self.postgres).await?;
        Ok(())
    }
}

fn database(pipeline: &str) -> String {
    pipeline.replace('-', "_")
}

/// Whether perf is installed and may count system calls of a process.
async fn perf_counts(pid: u32) -> bool {
    let mut perf = Command::new("perf");
    perf.args(["stat", "--event", "syscalls:sys_enter_fdatasync", "--pid", &pid.to_string(), "--", "true"]);
    perf.stdout(Stdio::null()).stderr(Stdio::null());
    perf.status().await.is_ok_and(|status| status.success())
}

/// Waits until the machine is nearly idle, or for some time.
async fn wait_for_others() -> anyhow::Result<()> {
    let began = Instant::now();
    while began.elapsed() < OTHERS_TIMEOUT {
        let before = Machine::read()?;
        sleep(QUIET_SPAN).await;
        if Machine::read()?.busy_micros_since(&before) <= QUIET * QUIET_SPAN.as_micros() as f64 {
            break;
        }
    }
    Ok(())
}
