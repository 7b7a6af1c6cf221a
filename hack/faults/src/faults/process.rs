//! Faults of processes: killed, suspended, asked to end, dead at a named point of a record's path, fewer and more of
//! them.

use std::{os::unix::process::ExitStatusExt as _, sync::atomic::Ordering, time::Duration};

use nix::sys::signal::Signal;
use tokio::{sync::MutexGuard, time::sleep};

use super::{Effect, Stage};
use crate::{
    plan::{Act, Fault},
    world::{
        LEASE, USUAL_WORKERS, WORKERS, eventually, is_stopped,
        process::{Slot, Start},
    },
};

/// Longest wait until a process reaches its point, and until it ends there in order.
const TO_POINT: Duration = Duration::from_secs(12);

impl Stage {
    /// A running process of a role that no other fault uses.
    pub(super) fn victim(&self, role: &str, pick: u64) -> Option<MutexGuard<'_, Slot>> {
        let slots = if role == "serve" { &self.world.serves } else { &self.world.workers };
        let start = pick as usize % slots.len();
        let mut free = (0..slots.len()).filter_map(|n| slots[(start + n) % slots.len()].try_lock().ok());
        free.find_map(|mut slot| slot.runs().then_some(slot))
    }

    /// A process is killed, or asked to end (`in_order`); another starts after a while.
    pub(super) async fn end(&self, role: &str, fault: Fault, in_order: bool) -> Effect {
        let Some(mut slot) = self.victim(role, fault.pick) else { return none() };
        self.mark();
        let ended = if in_order { slot.stop().await } else { slot.kill().await };
        sleep(Duration::from_millis(fault.for_ms / 4)).await;
        slot.start(&self.world, &Start::default())?;
        Ok((ended, slot.name.clone()))
    }

    /// A process is suspended for longer than a lease lasts.
    pub(super) async fn pause(&self, role: &str, fault: Fault) -> Effect {
        let Some(slot) = self.victim(role, fault.pick) else { return none() };
        self.mark();
        slot.signal(Signal::SIGSTOP);
        sleep(LEASE + Duration::from_millis(fault.for_ms)).await;
        let suspended = slot.pid().is_some_and(is_stopped);
        slot.resume();
        Ok((suspended, slot.name.clone()))
    }

    /// A process acts at a named point; another starts in its place, unless it continues.
    pub(super) async fn point(&self, point: &str, act: Act, fault: Fault) -> Effect {
        let role = if point == "after_append" { "serve" } else { "work" };
        let Some(mut slot) = self.victim(role, fault.pick) else { return none() };
        slot.stop().await;
        let folds = point == "after_fold";
        slot.start(&self.world, &armed(point, if folds { 1 } else { fault.pick % 12 + 1 }, act))?;
        if folds {
            // The owner of each shard folds the counts of a serve process that has ended. This worker has to own one by then.
            sleep(LEASE).await;
            self.end("serve", fault, true).await?;
        }
        let reached = eventually(TO_POINT, async || has_reached(&mut slot, act)).await;
        self.mark();
        self.resume_or_restart(&mut slot, fault).await?;
        Ok((reached, slot.name.clone()))
    }

    /// Resumes a suspended process, once other workers own its shards. Starts any other one again: it ended, or would
    /// reach its point later, when no fault resumes it.
    async fn resume_or_restart(&self, slot: &mut Slot, fault: Fault) -> anyhow::Result<()> {
        if slot.pid().is_some_and(is_stopped) {
            sleep(LEASE + Duration::from_millis(1_000 + fault.for_ms / 2)).await;
            slot.resume();
            return Ok(());
        }
        slot.kill().await;
        slot.start(&self.world, &Start::default())
    }

    /// A sink is added, and workers act at a point while they start it.
    pub(super) async fn sink_start(&self, act: Act, fault: Fault) -> Effect {
        let mut slots = self.wanted_workers().await;
        if slots.len() < 2 {
            return none();
        }
        // No running worker may start the sink before a worker with the point does.
        for slot in &mut slots {
            slot.kill().await;
        }
        if !self.world.add_sink().await? {
            return Ok((false, "the manifest with one more sink was not registered".to_owned()));
        }
        // One worker starts later, and finds the steps that the others began.
        let (late, early) = slots.split_at_mut(1);
        for slot in &mut *early {
            slot.start(&self.world, &armed("before_sink_started", 1, act))?;
        }
        eventually(TO_POINT, async || early.iter_mut().any(|slot| has_reached(slot, act))).await;
        for slot in late {
            slot.start(&self.world, &Start::default())?;
        }
        let names: Vec<String> =
            early.iter_mut().filter_map(|slot| has_reached(slot, act).then(|| slot.name.clone())).collect();
        for slot in early {
            self.resume_or_restart(slot, fault).await?;
        }
        Ok((!names.is_empty(), names.join(", ")))
    }

    /// One worker, then as many as there can be, then the usual number.
    pub(super) async fn scale(&self, fault: Fault) -> Effect {
        let mut changed = self.world.scale(1).await?;
        sleep(Duration::from_millis(fault.for_ms)).await;
        changed += self.world.scale(WORKERS).await?;
        sleep(Duration::from_millis(fault.for_ms)).await;
        changed += self.world.scale(USUAL_WORKERS).await?;
        Ok((changed > 0, format!("{changed} processes started or ended")))
    }

    /// All processes, one after the other, change to the other of two builds.
    pub(super) async fn upgrade(&self) -> Effect {
        self.world.other_build.fetch_xor(true, Ordering::Relaxed);
        let mut rolled = 0;
        for slot in self.world.serves.iter().chain(&self.world.workers) {
            let mut slot = slot.lock().await;
            if slot.is_wanted() {
                rolled += usize::from(slot.stop().await);
                slot.start(&self.world, &Start::default())?;
                sleep(Duration::from_millis(100)).await;
            }
        }
        Ok((rolled > 0, format!("{rolled} processes rolled")))
    }
}

/// A start of a process that acts so when it passes a point for the n-th time.
pub(super) fn armed(point: &str, n: u64, act: Act) -> Start {
    let act = match act {
        Act::Die => "kill",
        Act::Stop => "stop",
        Act::Term => "term",
    };
    Start { environment: vec![("MILLRACE_FAULT", format!("{point}:{n}:{act}"))], ..Start::default() }
}

/// Whether a process has acted at its point.
pub(super) fn has_reached(slot: &mut Slot, act: Act) -> bool {
    match act {
        Act::Die => slot.ended().is_some_and(|status| status.signal() == Some(9)),
        Act::Stop => slot.pid().is_some_and(is_stopped),
        Act::Term => slot.ended().is_some_and(|status| status.success()),
    }
}

fn none() -> Effect {
    Ok((false, "no process was free".to_owned()))
}
