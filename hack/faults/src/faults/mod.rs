//! Faults: each does its harm, checks that it took effect, and undoes it.
//!
//! Must never count a fault without effect: `took` is true only where the process died or the bytes stopped.

mod clients;
mod clock;
mod commit;
mod dead_letters;
mod network;
mod poison;
mod postgres;
mod postgres_back;
mod postgres_role;
mod power;
mod process;
mod redis;
mod restart;
mod rollups;
mod webhook;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::MutexGuard,
    time::{Instant, sleep},
};

use crate::{
    endpoint::Behaviour,
    load::{Held, Load, Mode},
    phases::{Moment, Phase},
    plan::{Fault, Kind},
    world::{World, process::Slot},
};

/// Longest wait for an idle pipeline.
const IDLE: Duration = Duration::from_secs(30);
/// Longest wait for the phase that a fault aims at.
const AIM: Duration = Duration::from_millis(1_500);

/// The world and the load, which all faults share.
#[derive(Debug, Clone)]
pub(crate) struct Stage {
    pub(crate) world: Arc<World>,
    pub(crate) load: Arc<Load>,
    /// When the fault took effect.
    moment: Arc<Mutex<Moment>>,
}

/// The effect of a fault.
#[derive(Debug)]
pub(crate) struct Injected {
    pub(crate) kind: Kind,
    /// Whether it took effect.
    pub(crate) took: bool,
    /// The victim, or the reason why it took no effect.
    pub(crate) note: String,
    /// The phases that it hit: of the victim, or of all processes.
    pub(crate) phases: BTreeSet<Phase>,
}

/// Whether a fault took effect, and a note.
type Effect = anyhow::Result<(bool, String)>;

impl Stage {
    /// For the faults of a pipeline.
    pub(crate) fn new(world: Arc<World>, load: Arc<Load>) -> Self {
        Self { world, load, moment: Arc::default() }
    }

    /// Waits for the fault's time and injects it.
    pub(crate) async fn inject(mut self, mut fault: Fault) -> Injected {
        sleep(Duration::from_millis(fault.at_ms)).await;
        self.moment = Arc::default();
        if let Some(slot) = self.aim(fault).await {
            fault.pick = slot;
        }
        self.mark();
        let effect = self.act(fault).await;
        let (took, note) = effect.unwrap_or_else(|error| (false, format!("{error:#}")));
        let phases = self.hit(&note);
        Injected { kind: fault.kind, took, note, phases }
    }

    async fn act(&self, fault: Fault) -> Effect {
        let lasts = Duration::from_millis(fault.for_ms);
        match fault.kind {
            Kind::KillWork => self.end("work", fault, false).await,
            Kind::KillServe => self.end("serve", fault, false).await,
            Kind::PauseWork => self.pause("work", fault).await,
            Kind::PauseServe => self.pause("serve", fault).await,
            Kind::TermWork => self.end("work", fault, true).await,
            Kind::TermServe => self.end("serve", fault, true).await,
            Kind::Scale => self.scale(fault).await,
            Kind::Upgrade => self.upgrade().await,
            Kind::Point(point, act) => self.point(point, act, fault).await,
            Kind::SinkStart(act) => self.sink_start(act, fault).await,
            Kind::PoisonedRecord => self.poisoned_record(fault.pick).await,
            Kind::PoisonedBatch => self.poisoned_batch().await,
            Kind::RedisKill => self.redis_kill(lasts).await,
            Kind::RedisRestart => self.redis_restart().await,
            Kind::RedisPause => self.redis_pause(lasts).await,
            Kind::RedisSlow => self.redis_slow(lasts).await,
            Kind::RedisFull => self.redis_full(lasts).await,
            Kind::RedisGroup => self.redis_group(fault.pick).await,
            Kind::RedisMalformed => self.redis_malformed(fault.pick).await,
            Kind::RedisCut => self.redis_cut().await,
            Kind::RedisFlush => self.redis_flush().await,
            Kind::RedisTrim => self.redis_trim(fault.pick).await,
            Kind::RedisStream => self.redis_stream(fault.pick).await,
            Kind::RedisHash => self.redis_hash(fault.pick).await,
            Kind::RedisIds => self.redis_ids().await,
            Kind::PowerRedis => self.power(true, false).await,
            Kind::PowerPostgres => self.power(false, true).await,
            Kind::PowerBoth => self.power(true, true).await,
            Kind::PowerEverysec => self.power_everysec(lasts).await,
            Kind::RedisTorn => self.redis_torn(fault.pick).await,
            Kind::RedisHalf => self.redis_half().await,
            Kind::RedisBit => self.redis_bit(fault.pick).await,
            Kind::PostgresBit => self.postgres_bit(lasts, fault.pick).await,
            Kind::PostgresKill => self.postgres_kill(lasts).await,
            Kind::PostgresTerminate => self.postgres_terminate().await,
            Kind::PostgresPause => self.postgres_pause(lasts).await,
            Kind::PostgresSlow => self.postgres_slow(lasts).await,
            Kind::PostgresLock => self.postgres_lock(lasts).await,
            Kind::PostgresFull => self.postgres_full(lasts).await,
            Kind::PostgresSyncStandby => self.postgres_standby(true, lasts).await,
            Kind::PostgresAsyncStandby => self.postgres_standby(false, lasts).await,
            Kind::PostgresRestore => self.postgres_restore(lasts).await,
            Kind::PostgresClock => self.postgres_clock().await,
            Kind::PostgresRole => self.postgres_role(lasts).await,
            Kind::NetCut | Kind::NetDelay | Kind::NetHalfOpen | Kind::NetCutAnswer => self.network(fault).await,
            Kind::NetCutCommit => self.cut_commit().await,
            Kind::ClockAhead => self.clock("+7m", fault).await,
            Kind::ClockBehind => self.clock("-7m", fault).await,
            Kind::Duplicates => self.clients(Mode::DUPLICATES, lasts).await,
            Kind::Herd => self.clients(Mode::HERD, lasts).await,
            Kind::Hot => self.clients(Mode::HOT, lasts).await,
            Kind::Poison => self.clients(Mode::POISON, lasts).await,
            Kind::CutUpload => self.clients(Mode::CUT, lasts).await,
            Kind::Collide => self.collide().await,
            Kind::DeadLetters => self.dead_letters_at_once(fault.pick).await,
            Kind::RestartIdle => self.restart_idle(lasts).await,
            Kind::Rollups => self.rollups_again(lasts).await,
            Kind::WebhookDown => self.webhook_down(lasts).await,
            Kind::WebhookSlow => self.webhook_spoils(Behaviour::Slow, lasts).await,
            Kind::WebhookCut => self.webhook_spoils(Behaviour::Cuts, lasts).await,
            Kind::WebhookLie => self.webhook_spoils(Behaviour::Lies, lasts).await,
            Kind::WebhookName => self.webhook_name(lasts).await,
        }
    }

    /// Notes that the fault takes effect now.
    fn mark(&self) {
        *self.moment.lock().unwrap_or_else(PoisonError::into_inner) = Moment::now(&self.world.traces());
    }

    /// The phases at the moment of the fault: of the processes that the note names, or of all.
    fn hit(&self, note: &str) -> BTreeSet<Phase> {
        let moment = self.moment.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let phases = moment.phases(&self.world.traces());
        let is_named = phases.keys().any(|slot| note.contains(slot));
        let of_victim = phases.into_iter().filter(|(slot, _)| !is_named || note.contains(slot));
        of_victim.flat_map(|(_, phases)| phases).collect()
    }

    /// Waits until a process is in the phase that a fault aims at; its number, where the fault takes one process.
    async fn aim(&self, fault: Fault) -> Option<u64> {
        let (aim, until) = (fault.aim?, Instant::now() + AIM);
        let role = ["serve-", "work-"].into_iter().find(|role| fault.kind.name().starts_with(role));
        while Instant::now() < until {
            let moment = Moment::now(&self.world.traces());
            let phases = moment.phases(&self.world.traces());
            let in_role = phases.iter().filter(|(slot, _)| role.is_none_or(|role| slot.starts_with(role)));
            if let Some((slot, _)) = in_role.into_iter().find(|(_, phases)| phases.contains(&aim)) {
                return role.and_then(|role| slot.strip_prefix(role)?.parse().ok());
            }
            sleep(Duration::from_millis(1)).await;
        }
        None
    }

    /// Holds the load until the pipeline is idle, and for as long as the result lives. `None`: it was not idle in time.
    async fn idle_load(&self) -> Option<Held> {
        let held = self.load.hold(IDLE).await?;
        self.world.becomes_idle(IDLE).await.then_some(held)
    }

    /// Locks the slots of the workers that there should be.
    async fn wanted_workers(&self) -> Vec<MutexGuard<'_, Slot>> {
        let mut slots = self.world.all_workers().await;
        slots.retain(|slot| slot.is_wanted());
        slots
    }
}
