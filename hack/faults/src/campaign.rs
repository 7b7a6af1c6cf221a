//! A run: rounds of load and faults, on one pipeline after another. After each round the campaign heals the pipeline,
//! waits until it is idle, and checks it.

use std::{
    collections::HashSet,
    fs,
    path::PathBuf,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    check::{Allowed, Check, Violation, Wrong},
    faults::{Injected, Stage},
    load::Load,
    plan::{Fault, Harm, Kind, Plan},
    read::{Readers, whole_stream},
    report::Report,
    traces::Traces,
    world::{ADDED, SINKS, Setup, World, postgres},
};

/// Longest wait for a pipeline to become idle after it was healed.
const IDLE: Duration = Duration::from_secs(150);
/// Longest wait for the answers to requests that are in flight.
const ANSWERS: Duration = Duration::from_secs(60);
/// Time within which the pipeline reports a loss, with its lower and its upper bound.
const REPORTED: Duration = Duration::from_secs(5);
/// Most power losses that a round gets because a run has to have some.
const MOST_LOSSES: u64 = 3;
/// Memory that processes may hold beyond their base, in kB.
const MEMORY_KB: u64 = 96 << 10;

/// The settings of a run.
#[derive(Debug)]
pub(crate) struct Orders {
    pub(crate) setup: Setup,
    pub(crate) seed: u64,
    pub(crate) until: Instant,
    pub(crate) minutes: f64,
    /// Power losses that have to take effect.
    pub(crate) power_losses: u64,
    pub(crate) rounds: u64,
    /// Rounds of one pipeline.
    pub(crate) rounds_each: u64,
    pub(crate) round: Duration,
    pub(crate) rate: f64,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) until_wrong: bool,
    pub(crate) verbose: bool,
    /// A rejected trace is counted and no violation.
    pub(crate) tolerates_rejected: bool,
    /// The folders of all pipelines are kept.
    pub(crate) keeps: bool,
}

impl Orders {
    /// Whether a round begins now: there is time, or a power loss is due.
    fn begins(&self, report: &Report) -> bool {
        let more = Duration::from_secs_f64(self.minutes * 30.0);
        let now = Instant::now();
        now < self.until || report.power_losses() < self.power_losses && now < self.until + more
    }

    /// How many power losses are due in the next round, so that all are when the time is over.
    fn due_losses(&self, report: &Report) -> u64 {
        let left = self.until.saturating_duration_since(Instant::now() + self.round * 2).as_secs_f64();
        let share = 1.0 - left / (self.minutes * 60.0).max(1.0);
        let due = (self.power_losses as f64 * share.clamp(0.0, 1.0)).ceil() as u64;
        due.saturating_sub(report.power_losses()).min(MOST_LOSSES)
    }
}

/// Carries out a run. `report` holds its findings, also when an error ends it.
pub(crate) async fn run(orders: &Orders, report: &mut Report) -> anyhow::Result<()> {
    let mut plan = Plan::new(orders.seed, &orders.kinds, orders.round.as_millis() as u64);
    let done = |report: &Report| orders.until_wrong && !report.violations.is_empty();
    while !done(report) && report.rounds < orders.rounds && orders.begins(report) {
        let dir: PathBuf = orders.setup.dir.join(format!("pipeline-{}", report.pipelines));
        let mut pipeline = PipelineRun::start(orders, dir.clone(), report.pipelines).await?;
        report.pipelines += 1;
        let last = report.rounds + orders.rounds_each;
        let mut continues = true;
        while continues && report.rounds < last.min(orders.rounds) && orders.begins(report) {
            report.rounds += 1;
            let faults = plan.next_round(&report.coverage, orders.due_losses(report));
            continues = pipeline.round(report.rounds, &faults, report.rounds == last, orders, report).await;
        }
        pipeline.stage.world.end().await;
        {
            let history = pipeline.stage.load.history();
            report.records += history.ids();
            report.add(&history.answers, &pipeline.check.counts);
        }
        report.destroyed += pipeline.check.destroyed;
        report.said_lost += pipeline.check.reported_lost;
        if pipeline.check.violations.is_empty() && !orders.keeps {
            fs::remove_dir_all(&dir)?;
        } else {
            println!("its folder is kept: {}", dir.display());
        }
        report.violations.append(&mut pipeline.check.violations);
        for (wrong, times) in &pipeline.check.times {
            *report.wrong.entry(*wrong).or_default() += times;
        }
    }
    Ok(())
}

/// One pipeline, with its load, readers and check.
struct PipelineRun {
    stage: Stage,
    readers: Readers,
    check: Check,
    traces: Traces,
    base: Option<(u64, u64)>,
}

impl PipelineRun {
    async fn start(orders: &Orders, dir: PathBuf, n: u64) -> anyhow::Result<Self> {
        let traces = Traces::new(dir.join("traces"));
        let world = World::start(Setup { dir, ..orders.setup.clone() }).await?;
        let readers = Readers::start(world.redis.lock().await.port).await?;
        let load = Load::new(orders.seed.wrapping_add(n), world.urls().await?, orders.rate);
        let check = Check::new(&load);
        Ok(Self { stage: Stage::new(world, load), readers, check, traces, base: None })
    }

    /// One round. False: the pipeline does not become idle and cannot be used any more, or something is wrong and the
    /// run ends with that.
    async fn round(&mut self, round: u64, faults: &[Fault], last: bool, orders: &Orders, report: &mut Report) -> bool {
        let began = Instant::now();
        let (before, destroyed) = (self.check.violations.len(), self.check.destroyed);
        let injected = self.load_and_inject(round, faults, orders.round).await;
        let (stats, idle_after) = self.wait_until_idle().await;
        report.longest_rest_ms = report.longest_rest_ms.max(idle_after.as_millis() as u64);
        let loses = faults.iter().any(|fault| matches!(fault.kind.harm(), Harm::Redis | Harm::Postgres));
        let stats = match stats {
            // The pipeline reports a loss within seconds.
            Ok(_) if loses => {
                sleep(REPORTED).await;
                self.wait_until_idle().await.0
            }
            other => other,
        };
        let continues = match stats {
            Ok(stats) => self.check_round(round, faults, last, &stats).await,
            Err(why) => {
                self.stuck(round, why);
                false
            }
        };
        let continues = self.check_trace(round, faults, orders.tolerates_rejected, report) && continues;
        self.check_reads(round, faults, report);
        self.check_memory(round, report).await;
        for (wrong, detail) in self.stage.world.take_found() {
            self.wrong(round, wrong, detail);
        }
        let mut report_ms =
            std::mem::take(&mut *self.stage.world.report_ms.lock().unwrap_or_else(PoisonError::into_inner));
        if self.check.destroyed > destroyed {
            report.lossy_rounds += 1;
            report.uncertain += u64::from(self.check.is_loss_uncertain);
            report.unsaid += u64::from(report_ms.is_empty());
        }
        report.said_ms.append(&mut report_ms);
        let mut line = Vec::new();
        for injected in &injected {
            report.injected(injected);
            let doubt = if injected.took { "" } else { "?" };
            let note = if orders.verbose || !injected.took { format!(" ({})", injected.note) } else { String::new() };
            line.push(format!("{}{doubt}{note}", injected.kind.name()));
        }
        let wrong = &self.check.violations[before..];
        println!(
            "round {round}: {} ids, {} processed, {} destroyed, idle after {:.1} s, {:.0} s: {}{}",
            self.stage.load.history().ids(),
            self.check.counts.processed,
            self.check.destroyed,
            idle_after.as_secs_f64(),
            began.elapsed().as_secs_f64(),
            if wrong.is_empty() { "ok; " } else { "WRONG; " },
            line.join(", "),
        );
        for Violation { wrong, detail, .. } in wrong {
            println!("  {wrong:?}: {detail}");
        }
        if self.check.violations.is_empty() {
            self.prune().await;
            return continues;
        }
        continues && !orders.until_wrong
    }

    /// Load and faults, until both are over and everything is healed.
    async fn load_and_inject(&mut self, round: u64, faults: &[Fault], lasts: Duration) -> Vec<Injected> {
        let mut clients = self.stage.load.start(round);
        let mut injections = JoinSet::new();
        for fault in faults {
            injections.spawn_local(self.stage.clone().inject(*fault));
        }
        sleep(lasts).await;
        let mut injected = Vec::new();
        while let Some(ended) = injections.join_next().await {
            match ended {
                Ok(one) => injected.push(one),
                Err(error) => self.wrong(round, Wrong::Stuck, format!("a fault failed: {error}")),
            }
        }
        // The load ends last: faults that take longer have load, too.
        self.stage.load.end();
        if let Err(error) = self.stage.world.heal().await {
            self.stuck(round, format!("it could not be healed: {error:#}"));
        }
        let answered = timeout(ANSWERS, async { while clients.join_next().await.is_some() {} });
        if answered.await.is_err() {
            self.stuck(
                round,
                format!("clients got no answer to all of their records, {ANSWERS:?} after everything was healed"),
            );
            self.stage.load.give_up();
            let _ = timeout(ANSWERS, async { while clients.join_next().await.is_some() {} }).await;
        }
        injected
    }

    /// Waits until nothing is queued, every publisher has published all, and the readers have read all. Returns
    /// `/stats`, and the time that it took.
    async fn wait_until_idle(&self) -> (Result<Value, String>, Duration) {
        let began = Instant::now();
        let mut why = "no serve process answered".to_owned();
        let mut quiet = 0;
        while began.elapsed() < IDLE {
            match self.stage.world.idle_stats().await {
                // Two looks: an entry can be between two counts in one.
                Ok(stats) if quiet == 1 => return (Ok(stats), began.elapsed()),
                Ok(_) => quiet += 1,
                Err(error) => {
                    quiet = 0;
                    why = format!("{error:#}");
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
        (Err(format!("it does not become idle: {why}")), began.elapsed())
    }

    /// Reads the sinks' streams: each destroyed entry is there again, and only once.
    async fn check_streams(&mut self) -> anyhow::Result<()> {
        let port = self.stage.world.redis.lock().await.port;
        for (n, (sink, _)) in SINKS.iter().enumerate() {
            self.check.stream(n, &whole_stream(port, sink).await?);
        }
        Ok(())
    }

    /// Checks the stream of a sink that a fault added, and removes the sink.
    async fn check_added_sink(&mut self) -> anyhow::Result<()> {
        let world = Arc::clone(&self.stage.world);
        let added = world.added_sink.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(name) = added else { return Ok(()) };
        let port = world.redis.lock().await.port;
        self.check.stream(ADDED.0, &whole_stream(port, &name).await?);
        world.remove_sink(&name).await
    }

    /// Compares answers, streams and Postgres. False: they could not be read.
    async fn check_round(&mut self, round: u64, faults: &[Fault], last: bool, stats: &Value) -> bool {
        let world = &self.stage.world;
        let has = |test: &dyn Fn(Kind) -> bool| faults.iter().any(|fault| test(fault.kind));
        let sinks_lost = has(&Kind::cuts_redis);
        let redis_lost = has(&|kind| kind.harm() == Harm::Redis);
        let trimmed = world.trimmed.swap(0, Ordering::Relaxed);
        let allowed = Allowed {
            redis_lost,
            sinks_lost,
            postgres_lost: has(&|kind| kind.harm() == Harm::Postgres),
            at_most: (redis_lost && !sinks_lost).then_some(trimmed),
            external: world.external.load(Ordering::Relaxed),
        };
        let read = self.readers.take();
        let deliveries =
            (self.stage.world.endpoint.take(), faults.iter().all(|fault| fault.kind.ends_workers_at_most()));
        let port = self.stage.world.postgres.lock().await.port;
        let mut sql = match postgres::connect(port).await {
            Ok(sql) => sql,
            Err(error) => {
                self.stuck(round, format!("Postgres does not answer: {error}"));
                return false;
            }
        };
        let totals = self.stage.world.get("/records/aggregations?records=false").await;
        let checked = async {
            self.check.round(round, allowed, read, deliveries, (stats, &totals?), &mut sql).await?;
            self.check_added_sink().await?;
            if sinks_lost || last { self.check_streams().await } else { Ok(()) }
        };
        let checked: anyhow::Result<()> = checked.await;
        if let Err(error) = checked {
            self.stuck(round, format!("it could not be checked: {error:#}"));
            return false;
        }
        true
    }

    /// No client has read less than it knew.
    fn check_reads(&mut self, round: u64, faults: &[Fault], report: &mut Report) {
        let load = Arc::clone(&self.stage.load);
        let mut history = load.history();
        report.reads += std::mem::take(&mut history.reads.checked);
        if faults.iter().any(|fault| fault.kind.harm() == Harm::Postgres) {
            history.reads.clear();
        }
        for detail in std::mem::take(&mut history.reads.stale) {
            self.wrong(round, Wrong::Stale, detail);
        }
    }

    fn stuck(&mut self, round: u64, detail: String) {
        self.wrong(round, Wrong::Stuck, detail);
    }

    fn wrong(&mut self, round: u64, wrong: Wrong, detail: String) {
        self.check.round = round;
        self.check.wrong(wrong, || detail);
    }

    /// Each step of the protocol is one that the model allows. False: one was not, and the replay has no state any more.
    fn check_trace(&mut self, round: u64, faults: &[Fault], tolerates: bool, report: &mut Report) -> bool {
        match self.traces.judge(round, faults) {
            Ok(judged) => {
                report.judged.0 += judged.steps;
                report.judged.1 += judged.unanswered;
                report.judged_rounds += u64::from(judged.steps > 0);
                true
            }
            Err(why) => {
                report.rejected += 1;
                if tolerates {
                    println!("round {round}: the trace was rejected: {why}");
                } else {
                    self.wrong(round, Wrong::Rejected, why);
                }
                false
            }
        }
    }

    /// Processes return memory that they took.
    async fn check_memory(&mut self, round: u64, report: &mut Report) {
        let now = self.stage.world.memory().await;
        let base = *self.base.get_or_insert(now);
        if report.memory_base_kb == (0, 0) {
            report.memory_base_kb = base;
        }
        report.memory_most_kb = (report.memory_most_kb.0.max(now.0), report.memory_most_kb.1.max(now.1));
        if now.0 > base.0 * 2 + MEMORY_KB || now.1 > base.1 * 2 + MEMORY_KB {
            let detail = format!("processes hold {now:?} kB, at first it was {base:?}");
            self.wrong(round, Wrong::Memory, detail);
        }
    }

    /// Removes the logs of ended processes after a round in which all was well.
    async fn prune(&self) {
        let world: &Arc<World> = &self.stage.world;
        let mut kept = HashSet::new();
        for slot in world.serves.iter().chain(&world.workers) {
            kept.insert(slot.lock().await.log.clone());
        }
        let logs = fs::read_dir(world.setup.dir.join("logs")).into_iter().flatten().flatten();
        for log in logs.filter(|log| !kept.contains(&log.path())) {
            let _ = fs::remove_file(log.path());
        }
    }
}
