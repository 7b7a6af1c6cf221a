//! One round: a fresh pipeline of one build, measured in one mode, and removed.
//!
//! Must never give figures of a round in which a process ended, or a notification was lost or came twice.

use std::{fmt, time::Duration};

use anyhow::Context as _;
use clap::ValueEnum;
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    build::{Build, Place},
    figures::{Figure, Figures},
    load::{
        closed::{self, Load},
        http::Kind,
        open::{self, Schedule},
        record::Records,
    },
    pipeline::Pipeline,
    read::{
        Reader,
        ledger::{Counts, Sink},
    },
    servers::Servers,
    usage::{Usage, Window},
};

/// Records of a batch.
pub(crate) const BATCH: usize = 500;
/// Batches at once.
const BATCH_CONNECTIONS: usize = 4;
/// Single records at once.
pub(crate) const SINGLE_CONNECTIONS: usize = 64;

/// A way to load a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// Batches of 500 records, 4 at once, to the last notification
    Batches,
    /// Single records on 64 connections, to the last notification
    Singles,
    /// Records accepted before work starts, then drained to the last notification
    Preloaded,
    /// Single records at a fixed rate, whatever the answers: latency to the notification
    Latency,
    /// Batches of 500 records, to the last answer; no worker runs
    AcceptBatches,
    /// Single records on 64 connections, to the last answer; no worker runs
    AcceptSingles,
}

impl Mode {
    /// The modes of a run that names none.
    pub(crate) const USUAL: [Self; 4] = [Self::Batches, Self::Singles, Self::Preloaded, Self::Latency];
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().ok_or(fmt::Error)?.get_name())
    }
}

/// The sizes of a round.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Sizes {
    /// Records of `batches` and `preloaded`.
    pub(crate) records: usize,
    /// Records of `singles`.
    pub(crate) singles: usize,
    /// Records a second of `latency`.
    pub(crate) rate: f64,
    /// Duration of `latency`.
    pub(crate) seconds: f64,
    pub(crate) shards: u16,
    pub(crate) keys: usize,
    pub(crate) random_ids: bool,
}

impl Sizes {
    fn records(&self, mode: Mode) -> Records {
        let (primed, measured) = match mode {
            Mode::Batches => (self.keys, self.records),
            Mode::Singles => (self.keys, self.singles),
            // Without a worker nothing can go ahead.
            Mode::Preloaded | Mode::AcceptBatches => (0, self.records),
            Mode::AcceptSingles => (0, self.singles),
            Mode::Latency => (self.keys, (self.rate * self.seconds) as usize),
        };
        Records { keys: self.keys, primed, measured, random_ids: self.random_ids }
    }
}

/// A running round.
struct Round<'a> {
    servers: &'a mut Servers,
    pipeline: Pipeline,
    reader: Reader,
    records: Records,
    figures: Figures,
}

/// Measures a build in a mode once. `pipeline` is a name that nothing on the servers has.
pub(crate) async fn run(
    servers: &mut Servers,
    build: &Build,
    mode: Mode,
    sizes: &Sizes,
    pipeline: &str,
) -> anyhow::Result<Figures> {
    let dir = tempfile::Builder::new().prefix("millrace-compare.").tempdir()?;
    let place = Place {
        pipeline: pipeline.to_owned(),
        shards: sizes.shards,
        redis_url: servers.redis_url.clone(),
        postgres_url: servers.prepare(pipeline).await?,
        dir: dir.path().to_owned(),
    };
    let streams = Sink::ALL.map(|sink| place.stream(sink.name()));
    let records = sizes.records(mode);
    let mut pipeline_processes = Pipeline::new(build, place)?;
    pipeline_processes.start_serve().await?;
    let notified = match mode {
        Mode::AcceptBatches | Mode::AcceptSingles => 0,
        Mode::Batches | Mode::Singles | Mode::Preloaded | Mode::Latency => records.total(),
    };
    let reader = Reader::start(&servers.redis_url, streams, notified).await?;
    let figures = Figures::default();
    let mut round = Round { servers, pipeline: pipeline_processes, reader, records, figures };
    let usage = match mode {
        Mode::Batches => round.end_to_end(Kind::Batch).await?,
        Mode::Singles => round.end_to_end(Kind::Single).await?,
        Mode::Preloaded => round.preloaded().await?,
        Mode::Latency => round.latency(sizes.rate).await?,
        Mode::AcceptBatches => round.accepted(Kind::Batch).await?,
        Mode::AcceptSingles => round.accepted(Kind::Single).await?,
    };
    let Round { servers, pipeline: processes, reader, mut figures, .. } = round;
    processes.stop().await?;
    let latency = reader.finish().await?.latency;
    figures.extend(usage.figures(servers).await?);
    if mode == Mode::Latency {
        let millis = |micros: u64| micros as f64 / 1_000.0;
        figures.set(Figure::LatencyP50Ms, millis(latency.value_at_quantile(0.50)));
        figures.set(Figure::LatencyP95Ms, millis(latency.value_at_quantile(0.95)));
        figures.set(Figure::LatencyP99Ms, millis(latency.value_at_quantile(0.99)));
        figures.set(Figure::LatencyMaxMs, millis(latency.max()));
    }
    servers.remove(pipeline).await?;
    Ok(figures)
}

impl Round<'_> {
    /// Starts `work` and lets a record of each key through: then every shard has an owner, and statements are prepared.
    async fn prime(&mut self) -> anyhow::Result<()> {
        self.pipeline.start_work()?;
        let bodies = self.records.batches(0..self.records.primed, BATCH);
        let load = Load { kind: Kind::Batch, bodies, connections: BATCH_CONNECTIONS };
        let (port, wanted) = (self.pipeline.port, Counts::of_first(self.records.primed));
        let reader = &mut self.reader;
        let primed = async move {
            closed::send(port, load).await?;
            reader.wait_for(wanted).await
        };
        self.pipeline.watch(primed).await.context("the first record of each key")?;
        Ok(())
    }

    async fn open(&mut self) -> anyhow::Result<Window> {
        Window::open(self.servers, self.pipeline.roles(), self.reader.requests()).await
    }

    async fn close(&mut self, window: Window) -> anyhow::Result<Usage> {
        let (roles, requests) = (self.pipeline.roles(), self.reader.requests());
        window.close(self.servers, roles, requests, self.records.measured).await
    }

    /// The load of all measured records.
    fn load(&self, kind: Kind) -> Load {
        let numbers = self.records.primed..self.records.total();
        match kind {
            Kind::Batch => {
                let bodies = self.records.batches(numbers, BATCH);
                Load { kind, bodies, connections: BATCH_CONNECTIONS }
            }
            Kind::Single => Load { kind, bodies: self.records.singles(numbers), connections: SINGLE_CONNECTIONS },
        }
    }

    /// From the first POST to the last notification.
    async fn end_to_end(&mut self, kind: Kind) -> anyhow::Result<Usage> {
        let load = self.load(kind);
        self.prime().await?;
        let window = self.open().await?;
        let (port, wanted) = (self.pipeline.port, Counts::of_first(self.records.total()));
        let reader = &mut self.reader;
        let both = async move { tokio::try_join!(closed::send(port, load), reader.wait_for(wanted)) };
        let (sent, progress) = self.pipeline.watch(both).await?;
        let usage = self.close(window).await?;
        self.figures.set(Figure::AcceptedPerSecond, self.rate(sent.ended - sent.began));
        let ended = progress.last_at.unwrap_or(sent.ended).max(sent.ended);
        self.figures.set(Figure::RecordsPerSecond, self.rate(ended - sent.began));
        Ok(usage)
    }

    /// From the first POST to the last answer.
    async fn accepted(&mut self, kind: Kind) -> anyhow::Result<Usage> {
        let load = self.load(kind);
        let window = self.open().await?;
        let sent = self.pipeline.watch(closed::send(self.pipeline.port, load)).await?;
        let usage = self.close(window).await?;
        self.figures.set(Figure::AcceptedPerSecond, self.rate(sent.ended - sent.began));
        Ok(usage)
    }

    /// All records are accepted first. Measured is how they are drained then.
    async fn preloaded(&mut self) -> anyhow::Result<Usage> {
        let load = self.load(Kind::Batch);
        let (port, wanted) = (self.pipeline.port, Counts::of_first(self.records.total()));
        let sent = self.pipeline.watch(closed::send(port, load)).await?;
        self.figures.set(Figure::AcceptedPerSecond, self.rate(sent.ended - sent.began));
        let window = self.open().await?;
        let began = Instant::now();
        self.pipeline.start_work()?;
        let reader = &mut self.reader;
        let progress = self.pipeline.watch(reader.wait_for(wanted)).await?;
        let usage = self.close(window).await?;
        let first = progress.first.context("no notification came")?;
        let drained = progress.last_at.unwrap_or(first.at) - first.at;
        self.figures.set(Figure::StartSeconds, (first.at - began).as_secs_f64());
        // From notification to notification: the start of a process is a figure of its own.
        let rate = (self.records.measured - first.notifications) as f64 / drained.as_secs_f64();
        self.figures.set(Figure::RecordsPerSecond, rate);
        Ok(usage)
    }

    /// A record a tick. The latencies are the reader's.
    async fn latency(&mut self, rate: f64) -> anyhow::Result<Usage> {
        let Load { bodies, .. } = self.load(Kind::Single);
        self.prime().await?;
        let window = self.open().await?;
        let (port, wanted) = (self.pipeline.port, Counts::of_first(self.records.total()));
        let schedule = Schedule::new(self.records.primed, rate);
        self.reader.follow(schedule);
        let reader = &mut self.reader;
        let both = async move { tokio::try_join!(open::send(port, bodies, schedule), reader.wait_for(wanted)) };
        self.pipeline.watch(both).await?;
        self.close(window).await
    }

    fn rate(&self, time: Duration) -> f64 {
        self.records.measured as f64 / time.as_secs_f64()
    }
}
