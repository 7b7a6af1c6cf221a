//! One round: a fresh pipeline of one build, measured in one mode, and removed.
//!
//! Must never give figures of a round in which a process ended, or a notification was lost or came twice.

use std::{fmt, time::Duration};

use anyhow::{Context as _, ensure};
use clap::ValueEnum;
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use crate::{
    build::{Build, Place, With},
    figures::{Figure, Figures},
    load::{
        beside,
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
    settings::Settings,
    usage::{Usage, Window},
};

/// Single records at once.
pub(crate) const SINGLE_CONNECTIONS: usize = 64;

/// Longest wait for sinks that nobody reads, once the one that is read has all.
const COPIES_TIMEOUT: Duration = Duration::from_secs(60);

/// A way to load a pipeline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Mode {
    /// Batches of records, 4 at once, to the last notification
    Batches,
    /// Single records on 64 connections, to the last notification
    Singles,
    /// Records accepted before work starts, then drained to the last notification
    Preloaded,
    /// Single records at a fixed rate, whatever the answers: latency to the notification
    Latency,
    /// As latency, and each answer is the outcome of its record: latency to the answer
    Wait,
    /// Single records at a fixed rate, whatever the answers: latency to the answer
    Answers,
    /// Batches of records, to the last answer; no worker runs
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

/// A running round.
struct Round<'a> {
    servers: &'a mut Servers,
    settings: Settings,
    pipeline: Pipeline,
    reader: Reader,
    /// Requests to Redis, beside the reader's.
    own_requests: u64,
    records: Records,
    figures: Figures,
    /// Microseconds from planned POST to answer, of an open loop.
    answered: Option<Histogram<u64>>,
}

/// Measures a build in a mode once. `pipeline` is a name that nothing on the servers has.
pub(crate) async fn run(
    servers: &mut Servers,
    build: &Build,
    mode: Mode,
    settings: &Settings,
    pipeline: &str,
) -> anyhow::Result<Figures> {
    let dir = tempfile::Builder::new().prefix("millrace-compare.").tempdir()?;
    let place = Place {
        pipeline: pipeline.to_owned(),
        settings: *settings,
        redis_url: servers.redis_url.clone(),
        postgres_url: servers.create_database(pipeline).await?,
        dir: dir.path().to_owned(),
    };
    let streams = Sink::ALL.map(|sink| place.stream(sink.name()));
    let records = settings.records(mode);
    let mut pipeline_processes = Pipeline::new(build, place.clone())?;
    servers.fill(&place).await?;
    servers.wait_until_idle().await?;
    pipeline_processes.start_serve().await?;
    let notified = match mode {
        Mode::AcceptBatches | Mode::AcceptSingles => Records { measured: 0, ..records },
        Mode::Batches | Mode::Singles | Mode::Preloaded | Mode::Latency | Mode::Wait | Mode::Answers => records,
    };
    let reader = Reader::start(&servers.redis_url, streams, notified).await?;
    let figures = Figures::default();
    let mut round = Round {
        servers,
        settings: *settings,
        pipeline: pipeline_processes,
        reader,
        own_requests: 0,
        records,
        figures,
        answered: None,
    };
    let usage = match mode {
        Mode::Batches => round.end_to_end(Kind::Batch).await?,
        Mode::Singles => round.end_to_end(Kind::Single).await?,
        Mode::Preloaded => round.preloaded().await?,
        Mode::Latency | Mode::Answers => round.open_loop(Kind::Single, settings.rate).await?,
        Mode::Wait => round.open_loop(Kind::Awaited, settings.rate).await?,
        Mode::AcceptBatches => round.accepted(Kind::Batch).await?,
        Mode::AcceptSingles => round.accepted(Kind::Single).await?,
    };
    let Round { servers, pipeline: processes, reader, mut figures, answered, .. } = round;
    processes.stop().await?;
    let notified = reader.finish().await?.latency;
    figures.extend(usage.figures(servers).await?);
    let latency = match mode {
        Mode::Latency => Some(notified),
        Mode::Wait | Mode::Answers => answered,
        _ => None,
    };
    if let Some(latency) = latency {
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
        let bodies = self.records.batches(0..self.records.primed, self.settings.batch);
        let load = Load { kind: Kind::Batch, bodies, connections: self.settings.batch_connections() };
        let (port, wanted) = (self.pipeline.port, Counts::of_first(self.records.primed, self.records));
        let reader = &mut self.reader;
        let primed = async move {
            closed::send(port, load).await?;
            reader.wait_for(wanted).await
        };
        self.pipeline.watch(primed).await.context("the first record of each key")?;
        Ok(())
    }

    async fn open(&mut self) -> anyhow::Result<Window> {
        Window::open(self.servers, &self.pipeline.roles(), self.reader.requests() + self.own_requests).await
    }

    async fn close(&mut self, window: Window) -> anyhow::Result<Usage> {
        let (roles, requests) = (self.pipeline.roles(), self.reader.requests() + self.own_requests);
        window.close(self.servers, &roles, requests, self.records.measured).await
    }

    /// The load of all measured records.
    fn load(&self, kind: Kind) -> Load {
        let numbers = self.records.primed..self.records.total();
        match kind {
            Kind::Batch => {
                let bodies = self.records.batches(numbers, self.settings.batch);
                Load { kind, bodies, connections: self.settings.batch_connections() }
            }
            Kind::Single | Kind::Awaited => {
                Load { kind, bodies: self.records.singles(numbers), connections: SINGLE_CONNECTIONS }
            }
        }
    }

    /// From the first POST to the last notification.
    async fn end_to_end(&mut self, kind: Kind) -> anyhow::Result<Usage> {
        let load = self.load(kind);
        self.prime().await?;
        let window = self.open().await?;
        let (port, wanted) = (self.pipeline.port, Counts::of_first(self.records.total(), self.records));
        let client = match self.pipeline.with() {
            Some(With::Console) => beside::Client::console(port),
            _ => beside::Client::start(port, self.settings.beside, self.settings.keys),
        };
        let reader = &mut self.reader;
        let both = async move { tokio::try_join!(closed::send(port, load), reader.wait_for(wanted)) };
        let (sent, progress) = self.pipeline.watch(both).await?;
        client.end().await?;
        let copied = self.wait_for_more_sinks(wanted.notifications).await?;
        let usage = self.close(window).await?;
        self.figures.set(Figure::AcceptedPerSecond, self.rate(sent.ended - sent.began));
        let ended = [progress.last_at, copied].into_iter().flatten().fold(sent.ended, Instant::max);
        self.figures.set(Figure::RecordsPerSecond, self.rate(ended - sent.began));
        Ok(usage)
    }

    /// Waits until the sinks that nobody reads have as many entries as the one that is read. `None`: there are none.
    async fn wait_for_more_sinks(&mut self, notifications: usize) -> anyhow::Result<Option<Instant>> {
        let (mut ended, began) = (None, Instant::now());
        for stream in self.pipeline.more_streams() {
            loop {
                self.own_requests += 1;
                if self.servers.length(&stream).await? >= notifications {
                    break;
                }
                ensure!(began.elapsed() < COPIES_TIMEOUT, "{stream} does not get all notifications");
                sleep(Duration::from_millis(10)).await;
            }
            ended = Some(Instant::now());
        }
        Ok(ended)
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
        let (port, wanted) = (self.pipeline.port, Counts::of_first(self.records.total(), self.records));
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

    /// A record a tick. The latencies of notifications are the reader's.
    async fn open_loop(&mut self, kind: Kind, rate: f64) -> anyhow::Result<Usage> {
        let Load { bodies, .. } = self.load(kind);
        self.prime().await?;
        let window = self.open().await?;
        let (port, wanted) = (self.pipeline.port, Counts::of_first(self.records.total(), self.records));
        let schedule = Schedule::new(self.records.primed, rate);
        self.reader.follow(schedule);
        let loud = (self.pipeline.with() == Some(With::LoudSource)).then(|| beside::Client::loud(port, 10.0 * rate));
        let reader = &mut self.reader;
        let both = async move {
            let answered = open::send(port, kind, bodies, schedule).await?;
            // Its records are in the way of those that are awaited.
            let refused = match loud {
                Some(client) => Some(client.refused().await?),
                None => None,
            };
            reader.wait_for(wanted).await?;
            anyhow::Ok((answered, refused))
        };
        let (answered, refused) = self.pipeline.watch(both).await?;
        if let Some(refused) = refused {
            println!("the loud source was refused {refused} times");
        }
        self.answered = Some(answered);
        self.close(window).await
    }

    fn rate(&self, time: Duration) -> f64 {
        self.records.measured as f64 / time.as_secs_f64()
    }
}
