//! An applier: takes ready entries of several shards, decides them, and commits them in one transaction. A record with a
//! data error is isolated by halves, under savepoints.
//!
//! Must never take an error for a data error that the data did not cause: for all others the shard backs off, and counts
//! no attempt.

use std::{
    collections::BTreeMap,
    ops::Range,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};
use sha2::{Digest as _, Sha256};
use tracing::Instrument as _;

use super::{
    Context,
    outcomes::{self, Decided},
    parse,
    ready::{Applied, Group, Noted, Taken},
    shard::{Error, current},
};
use crate::{
    domain::{self, DeadLetterReason, Item, Policy, Refusal, ShardId},
    fault,
    store::{self, AfterCommit, DecidedPart, GroupCommit, LeftOut, Part},
    telemetry::{limits, trace},
};

/// Notes without an outcome after which a record becomes a dead letter.
const ATTEMPTS: i32 = 3;
/// Pause before a group is decided again because others took one of its ids.
const RACED: Duration = Duration::from_millis(2);

/// Why a group was not committed.
enum Failure {
    /// A data error.
    Data(Refusal),
    /// An error that the data did not cause.
    Other(store::Error),
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        match &error {
            store::Error::Sql(sqlx::Error::Database(database)) if error.is_data_error() => {
                let state = database.code().unwrap_or_default().into_owned();
                let detail = format!("Postgres refuses it with SQLSTATE {state}");
                Self::Data(Refusal::new(DeadLetterReason::RefusedByStore, detail))
            }
            _ => Self::Other(error),
        }
    }
}

/// How the records of a group are decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Care {
    /// All at once.
    Together,
    /// Piece by piece, each under a savepoint.
    Isolate,
    /// As in `Isolate`, record by record, each noted first.
    Note,
}

/// The result of one transaction.
struct Committed {
    after: BTreeMap<ShardId, AfterCommit>,
    decided: Vec<Decided>,
    /// Shards that took no part, and why.
    left: BTreeMap<ShardId, LeftOut>,
    policy_version: i64,
    processed_at: DateTime<Utc>,
}

/// Applies ready entries until the process ends.
pub(super) async fn run(context: Arc<Context>) {
    let applier = Applier { context };
    loop {
        let group = applier.context.ready.take(applier.context.options.batch).await;
        applier.apply(group).await;
    }
}

struct Applier {
    context: Arc<Context>,
}

impl Applier {
    async fn apply(&self, Group { mut shards, is_alone }: Group) {
        let mut care = if shards.iter().any(|taken| taken.batch.is_candidate()) { Care::Note } else { Care::Together };
        let mut has_raced = false;
        loop {
            let error = match self.attempt(&mut shards, care, is_alone).await {
                Ok(committed) => return self.answer(shards, committed, is_alone),
                Err(Failure::Data(_)) if care == Care::Together => {
                    care = Care::Isolate;
                    continue;
                }
                Err(Failure::Data(refusal)) => store::Error::Refused(refusal.detail),
                Err(Failure::Other(store::Error::Raced)) => {
                    tracing::debug!(
                        event = "worker.group.raced",
                        shards = shards.len(),
                        "another transaction took an id first; the group is decided again"
                    );
                    if has_raced && shards.len() > 1 {
                        for taken in shards {
                            Box::pin(self.apply(Group { shards: vec![taken], is_alone })).await;
                        }
                        return;
                    }
                    has_raced = true;
                    tokio::time::sleep(RACED).await;
                    continue;
                }
                Err(Failure::Other(error)) => error,
            };
            let error = Arc::new(error);
            shards.into_iter().for_each(|taken| taken.failed(Error::Group(Arc::clone(&error))));
            return;
        }
    }

    /// Decides and commits in one transaction.
    async fn attempt(&self, shards: &mut [Taken], care: Care, waits: bool) -> Result<Committed, Failure> {
        // A record that is noted is decided alone: a crash is due to that one.
        let (_alone, _together) = match care {
            Care::Note => (Some(self.context.deciding.write().await), None),
            _ => (None, Some(self.context.deciding.read().await)),
        };
        let records = shards.iter().map(|taken| taken.batch.items.len()).sum::<usize>();
        let span = tracing::info_span!("process.batch.commit", shards = shards.len(), records);
        let items = || shards.iter().flat_map(|taken| &taken.batch.items);
        let traceparents = || items().filter_map(|item| item.input.traceparent.as_deref());
        trace::link(&span, traceparents().take(trace::MOST_TRACED));
        let _traced = trace::children(|| tracing::info_span!("process.record.commit"), traceparents());
        let committed = store::within(self.commit(shards, care, waits)).instrument(span).await;
        if care == Care::Note && committed.is_err() {
            self.withdraw_notes(shards).await;
        }
        committed
    }

    async fn commit(&self, shards: &mut [Taken], care: Care, waits: bool) -> Result<Committed, Failure> {
        let started = Instant::now();
        let context = &self.context;
        let manifest = context.active_manifest.borrow().clone();
        let (policy, spec) = (&manifest.policy, &manifest.manifest.spec);
        let names: Vec<ShardId> = shards.iter().map(|taken| taken.ready.shard).collect();
        let mut commit = context.store.begin_group(&names, spec.shards, waits).await?;
        let mut committed = Committed {
            after: BTreeMap::new(),
            decided: Vec::new(),
            left: BTreeMap::new(),
            policy_version: policy.version,
            processed_at: commit.now,
        };
        for taken in shards.iter() {
            let ready = &taken.ready;
            if let Err(why) = commit.compare(ready.shard, &current(&ready.lease), &ready.left, policy.version) {
                committed.left.insert(ready.shard, why);
            }
        }
        if committed.left.len() == shards.len() {
            return Ok(committed);
        }
        commit.set_period(spec.retention.unwrap_or_default().partition);
        let ready = shards.iter_mut().filter(|taken| !committed.left.contains_key(&taken.ready.shard));
        let mut ready: Vec<&mut Taken> = ready.collect();
        if care == Care::Together {
            committed.decided = decide(&mut commit, &whole(&ready), policy).await?;
        } else {
            for taken in &mut ready {
                let all = 0..taken.batch.items.len();
                committed.decided.extend(match care {
                    Care::Note => self.note(&mut commit, taken, policy).await?,
                    _ => self.isolate(&mut commit, taken, all, policy).await?,
                });
            }
        }
        committed.after = commit.finish(policy.version, context.options.lease.as_millis() as i64).await?;
        if care == Care::Note {
            for taken in ready {
                for entry in &taken.batch.entries {
                    // A note that stays is overwritten, or ignored: its entry is not delivered again.
                    let _ = context.store.delete_attempts(taken.ready.shard, entry.id).await;
                }
            }
        }
        outcomes::report(shards, &committed.decided, policy, committed.processed_at, started.elapsed());
        Ok(committed)
    }

    /// Decides some records of a shard, each piece under a savepoint. A record that has a data error alone becomes a dead
    /// letter.
    async fn isolate(
        &self,
        commit: &mut GroupCommit,
        taken: &mut Taken,
        records: Range<usize>,
        policy: &Policy,
    ) -> Result<Vec<Decided>, Failure> {
        let shard = taken.ready.shard;
        let mut decided = Vec::new();
        // The next piece is the last one.
        let mut pieces = vec![records];
        while let Some(piece) = pieces.pop().filter(|piece| !piece.is_empty()) {
            commit.set_savepoint().await?;
            let part = Part { shard, batch: &taken.batch.items[piece.clone()] };
            match decide(commit, &[part], policy).await {
                Ok(done) => {
                    commit.end_savepoint(true).await?;
                    decided.extend(done.into_iter().map(|done| Decided { from: piece.start, ..done }));
                }
                Err(Failure::Data(refusal)) => {
                    commit.end_savepoint(false).await?;
                    self.context.ready.set_alone(shard);
                    if piece.len() > 1 {
                        let middle = piece.start + piece.len() / 2;
                        pieces.extend([middle..piece.end, piece.start..middle]);
                    } else {
                        set_isolated(shard, &mut taken.batch.items[piece.start], refusal)?;
                        pieces.push(piece);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(decided)
    }

    /// Decides an entry that was delivered often, record by record. Each is noted first, so that the note remains if the
    /// worker crashes at it.
    async fn note(
        &self,
        commit: &mut GroupCommit,
        taken: &mut Taken,
        policy: &Policy,
    ) -> Result<Vec<Decided>, Failure> {
        let (store, shard) = (&self.context.store, taken.ready.shard);
        let Some(entry) = taken.batch.entries.front().copied() else { return Ok(Vec::new()) };
        let noted = store.noted_index(shard, entry.id).await?;
        if limits::POISON_CANDIDATE.allows(Instant::now()) {
            tracing::warn!(
                event = "worker.entry.poison_candidate",
                shard = shard.get(),
                stream_id = %entry.id,
                records = entry.records,
                noted,
                "an entry was delivered several times; its records are decided one by one"
            );
        }
        // The records before the noted one were decided, or no note of it would stand.
        let first = usize::from(noted.unwrap_or_default()).min(entry.records);
        for item in &mut taken.batch.items[..first] {
            parse::read_late(item);
        }
        let mut decided = self.isolate(commit, taken, 0..first, policy).await?;
        for index in first..entry.records {
            let item = &mut taken.batch.items[index];
            let attempts = match entry.noted.filter(|noted| noted.index == index) {
                Some(noted) => noted.attempts,
                None => {
                    let digest = Sha256::digest(&item.input.payload);
                    store.note_attempt(shard, item.input.position, &digest).await?
                }
            };
            taken.batch.entries[0].noted = Some(Noted { index, attempts });
            parse::read_late(item);
            if attempts > ATTEMPTS {
                let detail = format!("a worker ended {ATTEMPTS} times while it decided this record");
                let crashed = Refusal::new(DeadLetterReason::CrashedWorker, detail);
                item.isolated = Some(item.isolated.take().unwrap_or(crashed));
            }
            decided.extend(self.isolate(commit, taken, index..index + 1, policy).await?);
        }
        Ok(decided)
    }

    /// Withdraws the notes of records that were not decided for a reason outside of them: a note must count no crash that
    /// the record did not cause.
    async fn withdraw_notes(&self, shards: &mut [Taken]) {
        for taken in shards {
            let shard = taken.ready.shard;
            for entry in taken.batch.entries.iter_mut().filter(|entry| entry.noted.is_some()) {
                if store::within(self.context.store.withdraw_attempt(shard, entry.id)).await.is_ok() {
                    entry.noted = None;
                }
            }
        }
    }

    fn answer(&self, shards: Vec<Taken>, mut committed: Committed, has_waited: bool) {
        for taken in shards {
            let shard = taken.ready.shard;
            let error = match committed.left.remove(&shard) {
                // Its row is missing.
                Some(LeftOut::Locked) if has_waited => Error::Store(store::Error::Fenced),
                Some(LeftOut::Locked) => {
                    self.context.ready.set_alone(shard);
                    Error::Locked
                }
                Some(LeftOut::Fenced) => Error::Store(store::Error::Fenced),
                Some(LeftOut::OldPolicy(version)) => Error::Store(store::Error::OldPolicy(version)),
                Some(LeftOut::Changed) => Error::LogChanged,
                None => {
                    let Some(after) = committed.after.remove(&shard) else { continue };
                    let ids = taken.batch.entries.iter().map(|entry| entry.id).collect();
                    let (of_shard, others) = committed.decided.into_iter().partition(|decided| decided.shard == shard);
                    committed.decided = others;
                    let rows = outcomes::rows(&taken.batch.items, of_shard, committed.processed_at);
                    taken.applied(Applied { ids, after, policy_version: committed.policy_version, rows });
                    continue;
                }
            };
            taken.failed(error);
        }
    }
}

/// The whole batches of shards.
fn whole<'a>(shards: &'a [&mut Taken]) -> Vec<Part<'a>> {
    shards.iter().map(|taken| Part { shard: taken.ready.shard, batch: &taken.batch.items }).collect()
}

/// Decides batches over one map of ids, and writes the decisions.
async fn decide(commit: &mut GroupCommit, parts: &[Part<'_>], policy: &Policy) -> Result<Vec<Decided>, Failure> {
    let mut known = commit.known(parts, policy).await?;
    let mut decide = || {
        let decided = parts.iter().map(|part| {
            let parsed = part.batch.iter().filter(|item| item.isolated.is_none());
            fault::deciding(parsed.filter_map(|item| Some(item.record.as_ref().ok()?.record.record_id.as_str())));
            let of_shard = known.shards.remove(&part.shard).unwrap_or_default();
            let position = commit.shard(part.shard).position;
            domain::decide(part.batch, of_shard, &mut known.ids, policy, position)
        });
        decided.collect::<Vec<_>>()
    };
    let decisions = catch_unwind(AssertUnwindSafe(&mut decide)).map_err(|_| {
        let detail = "deciding it panicked; the log shows where";
        Failure::Data(Refusal::new(DeadLetterReason::Panicked, detail))
    })?;
    let written: Vec<DecidedPart<'_>> =
        parts.iter().zip(&decisions).map(|(part, decision)| DecidedPart { part: *part, decision }).collect();
    commit.write(&written, &known.ids, policy).await?;
    let decided = parts.iter().zip(decisions);
    Ok(decided.map(|(part, decision)| Decided { shard: part.shard, from: 0, decision }).collect())
}

/// Marks a record that has a data error alone. Isolated once, it keeps its id. Isolated twice, it is stored as bytes.
fn set_isolated(shard: ShardId, item: &mut Item, refusal: Refusal) -> Result<(), Failure> {
    if limits::ISOLATED.allows(Instant::now()) {
        tracing::warn!(
            event = "worker.record.isolated",
            shard = shard.get(),
            position = %item.input.position,
            reason = refusal.reason.as_str(),
            detail = refusal.detail,
            "a record with a data error was isolated"
        );
    }
    if item.isolated.is_some() {
        if item.record.is_err() {
            let detail = format!("a dead letter was refused: {}", refusal.detail);
            return Err(Failure::Other(store::Error::Refused(detail)));
        }
        item.record = Err(parse::unread());
    }
    item.isolated = Some(refusal);
    Ok(())
}
