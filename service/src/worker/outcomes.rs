//! Reports of the outcomes of a commit: metrics, log lines, and the committed rows for the publishers.

use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use tracing::field::display;

use super::ready::Taken;
use crate::{
    domain::{Decision, Item, Policy, RecordId, ShardId},
    store::LogRow,
    telemetry::{limits, metrics as names, trace},
};

/// The decision of some records of a shard.
#[derive(Debug)]
pub(super) struct Decided {
    pub(super) shard: ShardId,
    /// Index in the batch of the shard of the first of them.
    pub(super) from: usize,
    pub(super) decision: Decision,
}

/// Counts and logs what was committed.
pub(super) fn report(shards: &[Taken], decided: &[Decided], policy: &Policy, now: DateTime<Utc>, took: Duration) {
    let records = decided.iter().map(|decided| decided.decision.outcomes()).sum::<usize>();
    metrics::histogram!(names::BATCH_RECORDS).record(records as f64);
    metrics::histogram!(names::COMMIT_SECONDS).record(took.as_secs_f64());
    for Decided { shard, from, decision, .. } in decided {
        let Some(taken) = shards.iter().find(|taken| taken.ready.shard == *shard) else { continue };
        count(&taken.batch.items[*from..], decision, now);
        log(*shard, &taken.batch.items[*from..], decision, policy);
    }
}

fn count(batch: &[Item], decision: &Decision, now: DateTime<Utc>) {
    let seconds = metrics::histogram!(names::PROCESS_SECONDS);
    for new in &decision.records {
        let took = (now - batch[new.item].input.received_at).to_std().unwrap_or_default();
        seconds.record(took.as_secs_f64());
    }
    for (name, n) in [
        (names::PROCESSED, decision.records.len()),
        (names::DUPLICATES, decision.duplicates.len()),
        (names::CONFLICTS, decision.conflicts.len()),
        (names::ALERTS, decision.alerts as usize),
        (names::TOTAL_ALERTS, decision.total_alerts as usize),
        (names::REDELIVERED, decision.redelivered),
    ] {
        metrics::counter!(name).increment(n as u64);
    }
    for dead_letter in &decision.dead_letters {
        metrics::counter!(names::DEAD_LETTERS, "reason" => dead_letter.reason.as_str()).increment(1);
    }
}

/// Logs outcomes that a person may have to look at. Any client can cause any number of them, so lines are limited.
fn log(shard: ShardId, batch: &[Item], decision: &Decision, policy: &Policy) {
    let (shard, now) = (shard.get(), Instant::now());
    let trace_id = |item: usize| batch[item].input.traceparent.as_deref().and_then(trace::id).map(display);
    for dead_letter in &decision.dead_letters {
        let limit =
            if dead_letter.reason.is_fault() { &limits::DEAD_LETTERED_BY_FAULT } else { &limits::DEAD_LETTERED };
        if limit.allows(now) {
            let record_id = dead_letter.record_id.as_ref().map(RecordId::as_str);
            tracing::warn!(
                event = "worker.record.dead_lettered",
                shard,
                n = dead_letter.seq.get(),
                record_id,
                trace_id = trace_id(dead_letter.item),
                reason = dead_letter.reason.as_str(),
                "a record became a dead letter"
            );
        }
    }
    for conflict in &decision.conflicts {
        if limits::CONFLICTED.allows(now) {
            let record_id = conflict.record.record_id.as_str();
            tracing::warn!(
                event = "worker.record.conflicted",
                shard,
                n = conflict.seq.get(),
                record_id,
                trace_id = trace_id(conflict.item),
                "a record conflicts with another of the same id"
            );
        }
    }
    if decision.without_threshold == 0 {
        return;
    }
    for new in &decision.records {
        let unit = new.record.unit.as_str();
        if policy.lacks_threshold(unit) && limits::UNITS.is_first(unit) {
            tracing::warn!(
                event = "worker.unit.without_threshold",
                shard,
                seq = new.seq.get(),
                unit,
                "a record's unit has no threshold, other units have one"
            );
        }
    }
}

fn takes_rest(item: &Item) -> bool {
    item.record.as_ref().is_ok_and(|parsed| parsed.takes_rest)
}

/// The committed rows of a shard, in order.
pub(super) fn rows(batch: &[Item], decided: Vec<Decided>, processed_at: DateTime<Utc>) -> Vec<LogRow> {
    let mut rows = Vec::new();
    for Decided { from, decision, .. } in decided {
        rows.extend(decision.records.into_iter().map(|new| {
            let item = &batch[from + new.item];
            let input = &item.input;
            LogRow {
                seq: new.seq,
                record: new.record,
                received_at: input.received_at,
                processed_at,
                previous: new.previous,
                threshold: new.threshold,
                total_alerts: new.total_alerts,
                traceparent: input.traceparent.clone(),
                // The payload of a reversal of what remains has no value.
                json: (input.is_canonical && !takes_rest(item)).then(|| input.payload.clone()),
            }
        }));
    }
    rows
}
