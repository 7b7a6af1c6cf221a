//! Resources that a round uses between two moments: processor time, WAL, AOF, requests of Redis, fsyncs, memory.
//!
//! Must never charge the product with the tool's own requests.

mod fsyncs;
mod postgres;
pub(crate) mod proc;
pub(crate) mod redis;

use std::fs;

use anyhow::Context as _;

use crate::{
    figures::{Figure, Figures},
    servers::Servers,
};
use fsyncs::Counter;
use proc::{Machine, Processes, Ticks};
use redis::RedisCounters;

/// The processes of the pipeline that run at a moment, by id.
#[derive(Debug, Clone, Default)]
pub(crate) struct Roles {
    pub(crate) serve: Vec<u32>,
    pub(crate) work: Vec<u32>,
}

/// Counters at one moment.
#[derive(Debug)]
struct Snapshot {
    redis_time: Ticks,
    postgres_time: Ticks,
    serve_time: Ticks,
    work_time: Ticks,
    load_time: Ticks,
    machine: Machine,
    redis: RedisCounters,
    wal_bytes: u64,
}

impl Snapshot {
    /// Reads them. A role without a process has used no time.
    async fn take(servers: &mut Servers, roles: &Roles) -> anyhow::Result<Self> {
        let processes = Processes::read()?;
        let machine = Machine::read()?;
        let of_role = |pids: &[u32]| {
            let times = pids.iter().map(|pid| Ok(processes.of_tree(*pid)?.0));
            times.sum::<anyhow::Result<u64>>().map(Ticks)
        };
        Ok(Self {
            redis_time: processes.of_tree(servers.redis_pid)?,
            postgres_time: processes.of_tree(servers.postgres_pid)?,
            serve_time: of_role(&roles.serve)?,
            work_time: of_role(&roles.work)?,
            // Its children are parts of the pipeline.
            load_time: processes.of_one(std::process::id())?,
            machine,
            redis: RedisCounters::parse(&servers.redis_info().await?)?,
            wal_bytes: postgres::wal_bytes(&mut servers.postgres).await?,
        })
    }
}

/// A measurement that runs.
#[derive(Debug)]
pub(crate) struct Window {
    began: Snapshot,
    own_requests: u64,
    fsyncs: Fsyncs,
    // The pipes of perf; removed when it ends.
    _dir: tempfile::TempDir,
}

/// The source of fsyncs.
#[derive(Debug)]
enum Fsyncs {
    Perf {
        redis: Box<Counter>,
        postgres: Box<Counter>,
    },
    /// Without perf: those of the WAL alone, by Postgres's own count at the start.
    Wal(u64),
}

/// A measurement between two moments.
#[derive(Debug)]
pub(crate) struct Usage {
    figures: Figures,
    records: f64,
    wal_fsyncs_before: Option<u64>,
}

impl Window {
    /// Begins to measure. `own_requests`: requests that the tool has sent to Redis so far.
    pub(crate) async fn open(servers: &mut Servers, roles: &Roles, own_requests: u64) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        let fsyncs = if servers.has_perf {
            let (for_redis, for_postgres) = (dir.path().join("redis"), dir.path().join("postgres"));
            fs::create_dir(&for_redis)?;
            fs::create_dir(&for_postgres)?;
            let processes = Processes::read()?;
            Fsyncs::Perf {
                redis: Box::new(Counter::start(&processes.tree(servers.redis_pid), &for_redis).await?),
                postgres: Box::new(Counter::start(&processes.tree(servers.postgres_pid), &for_postgres).await?),
            }
        } else {
            Fsyncs::Wal(postgres::wal_fsyncs(&mut servers.postgres).await?)
        };
        Ok(Self { began: Snapshot::take(servers, roles).await?, own_requests, fsyncs, _dir: dir })
    }

    /// Ends the measurement, in which `records` were processed.
    pub(crate) async fn close(
        self,
        servers: &mut Servers,
        roles: &Roles,
        own_requests: u64,
        records: usize,
    ) -> anyhow::Result<Usage> {
        let ended = Snapshot::take(servers, roles).await?;
        let mut usage = Usage { figures: Figures::default(), records: records as f64, wal_fsyncs_before: None };
        usage.add_times(&self.began, &ended);
        // One more: the INFO of this snapshot.
        usage.add_servers(&self.began, &ended, own_requests - self.own_requests + 1);
        match self.fsyncs {
            Fsyncs::Perf { redis, postgres } => {
                usage.per_record(Figure::RedisFsyncs, redis.stop().await? as f64);
                usage.per_record(Figure::PostgresFsyncs, postgres.stop().await? as f64);
            }
            Fsyncs::Wal(before) => usage.wal_fsyncs_before = Some(before),
        }
        for (figure, pids) in [(Figure::ServePeakMib, &roles.serve), (Figure::WorkPeakMib, &roles.work)] {
            // Of several processes the largest.
            let peaks = pids.iter().map(|pid| proc::peak_mib(*pid)).collect::<anyhow::Result<Vec<f64>>>()?;
            if let Some(peak) = peaks.into_iter().reduce(f64::max) {
                usage.figures.set(figure, peak);
            }
        }
        Ok(usage)
    }
}

impl Usage {
    fn per_record(&mut self, figure: Figure, sum: f64) {
        self.figures.set(figure, sum / self.records);
    }

    fn add_times(&mut self, began: &Snapshot, ended: &Snapshot) {
        let parts = [
            (Figure::RedisCpuMicros, ended.redis_time.micros_since(began.redis_time)),
            (Figure::PostgresCpuMicros, ended.postgres_time.micros_since(began.postgres_time)),
            (Figure::ServeCpuMicros, ended.serve_time.micros_since(began.serve_time)),
            (Figure::WorkCpuMicros, ended.work_time.micros_since(began.work_time)),
            (Figure::LoadCpuMicros, ended.load_time.micros_since(began.load_time)),
        ];
        let all = ended.machine.busy_micros_since(&began.machine);
        let known: f64 = parts.iter().map(|(_, micros)| micros).sum();
        for (figure, micros) in parts {
            self.per_record(figure, micros);
        }
        self.per_record(Figure::OtherCpuMicros, (all - known).max(0.0));
        self.per_record(Figure::MachineCpuMicros, all);
        self.per_record(Figure::KernelCpuMicros, ended.machine.kernel_micros_since(&began.machine));
    }

    fn add_servers(&mut self, began: &Snapshot, ended: &Snapshot, own_requests: u64) {
        let reads = (ended.redis.reads - began.redis.reads).saturating_sub(own_requests);
        let commands = (ended.redis.commands - began.redis.commands).saturating_sub(own_requests);
        self.per_record(Figure::WalBytes, (ended.wal_bytes - began.wal_bytes) as f64);
        self.per_record(Figure::AofBytes, ended.redis.aof_bytes.saturating_sub(began.redis.aof_bytes) as f64);
        self.per_record(Figure::RedisRoundTrips, reads as f64);
        self.per_record(Figure::RedisCommands, commands as f64);
    }

    /// The figures, once the pipeline's processes have ended: their sessions have then reported all fsyncs of the WAL.
    pub(crate) async fn figures(mut self, servers: &mut Servers) -> anyhow::Result<Figures> {
        if let Some(before) = self.wal_fsyncs_before {
            let now = postgres::wal_fsyncs(&mut servers.postgres).await.context("fsyncs of the WAL")?;
            self.per_record(Figure::PostgresFsyncs, (now - before) as f64);
        }
        Ok(self.figures)
    }
}
