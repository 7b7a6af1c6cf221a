//! A run: rounds of load and faults, each healed, brought to rest and checked, on one pipeline after another.

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
    faults::{Stage, Struck},
    load::Load,
    plan::{Fault, Harm, Kind, Plan},
    read::{Readers, whole_stream},
    report::Report,
    world::{ADDED, SHARDS, SINKS, Setup, World, postgres, records, stream},
};

/// Longest wait for a pipeline to come to rest once everything is healed.
const REST: Duration = Duration::from_secs(150);
/// Longest wait for clients to be told that what they have in flight is taken.
const ANSWERS: Duration = Duration::from_secs(60);
/// Within which a loss is to be said, with how many at least and at most.
const SAID: Duration = Duration::from_secs(5);
/// What processes may hold beyond their base, in kB.
const MEMORY_KB: u64 = 96 << 10;

/// What a run is asked to do.
#[derive(Debug)]
pub(crate) struct Orders {
    pub(crate) setup: Setup,
    pub(crate) seed: u64,
    pub(crate) until: Instant,
    pub(crate) rounds: u64,
    /// Rounds of one pipeline.
    pub(crate) rounds_each: u64,
    pub(crate) round: Duration,
    pub(crate) rate: f64,
    pub(crate) kinds: Vec<Kind>,
    pub(crate) until_wrong: bool,
    pub(crate) verbose: bool,
}

/// Carries out a run; `report` has what was seen, also when an error ends it.
pub(crate) async fn run(orders: &Orders, report: &mut Report) -> anyhow::Result<()> {
    let mut plan = Plan::new(orders.seed, &orders.kinds, orders.round.as_millis() as u64);
    let done = |report: &Report| orders.until_wrong && !report.violations.is_empty();
    while !done(report) && report.rounds < orders.rounds && Instant::now() < orders.until {
        let dir: PathBuf = orders.setup.dir.join(format!("pipeline-{}", report.pipelines));
        let mut leg = Leg::start(orders, dir.clone(), report.pipelines).await?;
        report.pipelines += 1;
        let last = report.rounds + orders.rounds_each;
        let mut goes_on = true;
        while goes_on && report.rounds < last.min(orders.rounds) && Instant::now() < orders.until {
            report.rounds += 1;
            goes_on = leg.round(report.rounds, &plan.next_round(), report.rounds == last, orders, report).await;
        }
        leg.stage.world.end().await;
        {
            let history = leg.stage.load.history();
            report.records += history.ids();
            report.add(&history.answers, &leg.check.counts);
        }
        report.destroyed += leg.check.destroyed;
        report.said_lost += leg.check.said_lost.0;
        report.said_lost_at_most = leg.check.said_lost.1.map(|most| report.said_lost_at_most.unwrap_or(0) + most);
        if leg.check.violations.is_empty() {
            fs::remove_dir_all(&dir)?;
        } else {
            println!("what is left of it: {}", dir.display());
        }
        report.violations.append(&mut leg.check.violations);
        for (wrong, times) in &leg.check.times {
            *report.wrong.entry(*wrong).or_default() += times;
        }
    }
    Ok(())
}

/// One pipeline.
struct Leg {
    stage: Stage,
    readers: Readers,
    check: Check,
    base: Option<(u64, u64)>,
}

impl Leg {
    async fn start(orders: &Orders, dir: PathBuf, n: u64) -> anyhow::Result<Self> {
        let world = World::start(Setup { dir, ..orders.setup.clone() }).await?;
        let readers = Readers::start(world.redis.lock().await.port).await?;
        let load = Load::new(orders.seed.wrapping_add(n), world.urls().await?, orders.rate);
        let check = Check::new(&load);
        Ok(Self { stage: Stage { world, load }, readers, check, base: None })
    }

    /// One round. False: the pipeline does not come to rest and there is no continuing with it, or something is wrong and
    /// that was asked for.
    async fn round(&mut self, round: u64, faults: &[Fault], last: bool, orders: &Orders, report: &mut Report) -> bool {
        let began = Instant::now();
        let (before, destroyed) = (self.check.violations.len(), self.check.destroyed);
        let struck = self.let_loose(round, faults, orders.round).await;
        let (stats, rested) = self.rest().await;
        report.longest_rest_ms = report.longest_rest_ms.max(rested.as_millis() as u64);
        let loses = faults.iter().any(|fault| matches!(fault.kind.harm(), Harm::Redis | Harm::Postgres));
        let stats = match stats {
            // What was lost, and at most, is said within seconds.
            Ok(_) if loses => {
                sleep(SAID).await;
                self.rest().await.0
            }
            other => other,
        };
        let goes_on = match stats {
            Ok(stats) => self.judge(round, faults, last, &stats).await,
            Err(why) => {
                self.stuck(round, why);
                false
            }
        };
        self.look_at_memory(round, report).await;
        for end in self.stage.world.ended() {
            self.wrong(round, Wrong::Stuck, end);
        }
        let mut said = std::mem::take(&mut *self.stage.world.said_ms.lock().unwrap_or_else(PoisonError::into_inner));
        if self.check.destroyed > destroyed {
            report.lossy_rounds += 1;
            report.without_most += u64::from(self.check.said_lost.1.is_none());
            report.unsaid += u64::from(said.is_empty());
        }
        report.said_ms.append(&mut said);
        let mut line = Vec::new();
        for struck in &struck {
            report.struck(struck);
            let mark = if struck.took { "" } else { "?" };
            let note = if orders.verbose || !struck.took { format!(" ({})", struck.note) } else { String::new() };
            line.push(format!("{}{mark}{note}", struck.kind.name()));
        }
        let wrong = &self.check.violations[before..];
        println!(
            "round {round}: {} ids, {} processed, {} destroyed, rest after {:.1} s, {:.0} s: {}{}",
            self.stage.load.history().ids(),
            self.check.counts.processed,
            self.check.destroyed,
            rested.as_secs_f64(),
            began.elapsed().as_secs_f64(),
            if wrong.is_empty() { "ok; " } else { "WRONG; " },
            line.join(", "),
        );
        for Violation { wrong, detail, .. } in wrong {
            println!("  {wrong:?}: {detail}");
        }
        if self.check.violations.is_empty() {
            self.prune().await;
            return goes_on;
        }
        goes_on && !orders.until_wrong
    }

    /// Load and faults, until both are over and everything is healed.
    async fn let_loose(&mut self, round: u64, faults: &[Fault], lasts: Duration) -> Vec<Struck> {
        let mut clients = self.stage.load.start(round);
        let mut strikes = JoinSet::new();
        for fault in faults {
            strikes.spawn_local(self.stage.clone().strike(*fault));
        }
        sleep(lasts).await;
        let mut struck = Vec::new();
        while let Some(ended) = strikes.join_next().await {
            match ended {
                Ok(one) => struck.push(one),
                Err(error) => self.wrong(round, Wrong::Stuck, format!("a fault failed: {error}")),
            }
        }
        // Faults that take longer are not left without load.
        self.stage.load.end();
        if let Err(error) = self.stage.world.heal().await {
            self.stuck(round, format!("it could not be healed: {error:#}"));
        }
        let answered = timeout(ANSWERS, async { while clients.join_next().await.is_some() {} });
        if answered.await.is_err() {
            self.stuck(
                round,
                format!("clients are not told that all is taken, {ANSWERS:?} after everything was healed"),
            );
            self.stage.load.give_up();
            let _ = timeout(ANSWERS, async { while clients.join_next().await.is_some() {} }).await;
        }
        struck
    }

    /// Waits until nothing is queued, every sink has carried all, and the readers have read all. Answers `/stats`, and how
    /// long it took.
    async fn rest(&self) -> (Result<Value, String>, Duration) {
        let began = Instant::now();
        let mut why = "nobody answered".to_owned();
        let mut quiet = 0;
        while began.elapsed() < REST {
            match self.at_rest().await {
                // Twice, for a count can be between two looks.
                Ok(stats) if quiet == 1 => return (Ok(stats), began.elapsed()),
                Ok(_) => quiet += 1,
                Err(error) => {
                    quiet = 0;
                    why = format!("{error:#}");
                }
            }
            sleep(Duration::from_millis(200)).await;
        }
        (Err(format!("it does not come to rest: {why}")), began.elapsed())
    }

    async fn at_rest(&self) -> anyhow::Result<Value> {
        let stats = self.stage.world.get("/stats").await?;
        anyhow::ensure!(stats["backlog"] == 0, "/stats: {stats}");
        for sink in stats["sinks"].as_array().into_iter().flatten() {
            let states = sink["states"].as_array().is_some_and(|states| !states.is_empty());
            anyhow::ensure!(sink["lag"] == 0 && sink["started"] == true && !states, "/stats: {stats}");
        }
        self.stage.world.all_are_ready().await?;
        let redis = self.stage.world.redis.lock().await;
        for shard in 0..SHARDS {
            let left: u64 = redis.ask(&["XLEN", &records(shard)]).await?;
            anyhow::ensure!(left == 0, "{left} entries are left in shard {shard}; /stats: {stats}");
        }
        for (sink, _) in SINKS {
            let newest: Vec<redis::Value> = redis.ask(&["XREVRANGE", &stream(sink), "+", "-", "COUNT", "1"]).await?;
            let Some(redis::Value::Array(newest)) = newest.first() else { continue };
            let newest: String = redis::from_redis_value_ref(&newest[0])?;
            let groups: Vec<std::collections::HashMap<String, redis::Value>> =
                redis.ask(&["XINFO", "GROUPS", &stream(sink)]).await?;
            let read = groups.first().is_some_and(|group| {
                let text = |field| group.get(field).and_then(|value| redis::from_redis_value_ref::<String>(value).ok());
                text("last-delivered-id").as_deref() == Some(&newest) && text("pending").as_deref() == Some("0")
            });
            anyhow::ensure!(read, "the reader of {sink} is behind");
        }
        Ok(stats)
    }

    /// Reads the sinks' streams as they stand: what was destroyed is there again, and only once.
    async fn look_at_streams(&mut self) -> anyhow::Result<()> {
        let port = self.stage.world.redis.lock().await.port;
        for (n, (sink, _)) in SINKS.iter().enumerate() {
            self.check.stream(n, &whole_stream(port, sink).await?);
        }
        Ok(())
    }

    /// Reads the stream of a sink that a fault added, and takes the sink away.
    async fn look_at_added_sink(&mut self) -> anyhow::Result<()> {
        let world = Arc::clone(&self.stage.world);
        let added = world.added_sink.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(name) = added else { return Ok(()) };
        let port = world.redis.lock().await.port;
        self.check.stream(ADDED.0, &whole_stream(port, &name).await?);
        world.remove_sink(&name).await
    }

    async fn judge(&mut self, round: u64, faults: &[Fault], last: bool, stats: &Value) -> bool {
        let world = &self.stage.world;
        let has = |test: &dyn Fn(Kind) -> bool| faults.iter().any(|fault| test(fault.kind));
        let sinks_lost = has(&|kind| matches!(kind, Kind::RedisCut | Kind::RedisFlush));
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
            self.check.round(round, allowed, read, (stats, &totals?), &mut sql).await?;
            self.look_at_added_sink().await?;
            if sinks_lost || last { self.look_at_streams().await } else { Ok(()) }
        };
        let checked: anyhow::Result<()> = checked.await;
        if let Err(error) = checked {
            self.stuck(round, format!("it could not be checked: {error:#}"));
            return false;
        }
        true
    }

    fn stuck(&mut self, round: u64, detail: String) {
        self.wrong(round, Wrong::Stuck, detail);
    }

    fn wrong(&mut self, round: u64, wrong: Wrong, detail: String) {
        self.check.round = round;
        self.check.wrong(wrong, || detail);
    }

    /// Processes return what they took.
    async fn look_at_memory(&mut self, round: u64, report: &mut Report) {
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

    /// Logs of processes that are gone say nothing after a round in which all was well.
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
