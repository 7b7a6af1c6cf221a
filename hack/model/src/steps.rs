//! The steps of one shard: what a script or a transaction compares at its server, and what it changes there and in its owner.
//!
//! Over numbers of any type: the checker calls them with one byte, the replay of a protocol trace with those of a real run.
//! A guard is here once. Must never look at a `uid`: only the observer may use it.

use std::ops::{Add, Sub};

use crate::{
    guards::{Guard, Guards},
    state::{Batch, Fence, Input, InputRecord, Next, Own, Stage},
};

/// A number of the protocol: an epoch, a token, a stream id, an offset, a sequence number, a version.
pub trait Number: Copy + Ord + Default + From<u8> + Add<Output = Self> + Sub<Output = Self> {}

impl<N: Copy + Ord + Default + From<u8> + Add<Output = Self> + Sub<Output = Self>> Number for N {}

/// The answer of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer<N = u8> {
    /// It took effect.
    Done,
    /// There was nothing to do.
    Nothing,
    /// The server was rewound, or did not have the owner's fence: the owner prepares again.
    Raised,
    /// The server has a higher fence, of this epoch.
    Higher(N),
}

/// The result of comparing a shard's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Comparison {
    /// It can take part in a transaction.
    Ready,
    /// Not now: it runs a newer policy version.
    OldPolicy,
    /// Another worker owns it.
    Lost,
    /// Its log is not where its owner left it.
    Changed,
}

/// The values of a shard's row that an owner compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Head<N = u8> {
    /// Of the last owner.
    pub fence: Fence<N>,
    /// The highest numbers: of records, of duplicates and conflicts, of dead letters.
    pub numbers: [N; 3],
    /// All records up to this offset are applied or lost.
    pub accounted: N,
    /// The highest id of an entry that was ever applied.
    pub applied: N,
    /// The policy version that it runs.
    pub version: N,
}

/// Whether two fences are the same.
pub fn is_same<N: Number>(guards: Guards, a: Fence<N>, b: Fence<N>) -> bool {
    a.epoch == b.epoch && (a.token == b.token || !guards.has(Guard::Token))
}

/// Compares an owner's fence with the one beside the stream, which is set where it is lower.
fn compare_fence<N: Number>(guards: Guards, input: &mut Input<N>, mine: Fence<N>) -> Answer<N> {
    if input.fence.epoch < mine.epoch {
        input.fence = mine;
        return Answer::Raised;
    }
    if is_same(guards, input.fence, mine) { Answer::Done } else { Answer::Higher(input.fence.epoch) }
}

/// Whether Redis has lost an ack of this owner.
pub fn is_rewound<N: Number>(guards: Guards, input: &Input<N>, own: &Own<N>) -> bool {
    let lower = |own: [N; 3]| input.watermarks.iter().zip(own).any(|(here, own)| *here < own);
    let other = guards.has(Guard::CompareAcknowledged) && input.acknowledged != own.acknowledged;
    guards.has(Guard::NoticeRedisRewind) && own.watermarks.is_some_and(|known| other || lower(known))
}

fn found_higher<N: Number>(guards: Guards, own: &mut Own<N>, above: N) -> Answer<N> {
    // Without the guard the owner retries without end.
    own.stage = if guards.has(Guard::RaiseEpoch) { Stage::Raise(above) } else { Stage::Prepare };
    Answer::Higher(above)
}

/// A worker takes a shard that is free.
pub fn take<N: Number>(fence: &mut Fence<N>, token: N) -> Fence<N> {
    *fence = Fence { epoch: fence.epoch + N::from(1), token };
    *fence
}

/// An owner raises its epoch above another one.
pub fn raise<N: Number>(fence: &mut Fence<N>, above: N) -> Fence<N> {
    fence.epoch = fence.epoch.max(above) + N::from(1);
    *fence
}

/// Raises the counts of a rewound Redis to the one that a producer knows, so that offsets are not given again.
pub fn raise_in_append<N: Number>(guards: Guards, input: &mut Input<N>, producer: usize, known: N) {
    let by = &mut input.by[producer];
    if guards.has(Guard::RaiseInAppend) && known > *by {
        input.appended = input.appended + known - *by;
        *by = known;
    }
}

/// Appends a record at a place: it gets the next offset, where offsets are counted. Its uid, content, and what it replays
/// are as given.
pub fn append<N: Number>(
    input: &mut Input<N>,
    producer: Option<usize>,
    (sid, index): (N, u8),
    (uid, record, replay_of): (u8, u8, u8),
) {
    if let Some(producer) = producer {
        input.appended = input.appended + N::from(1);
        input.by[producer] = input.by[producer] + N::from(1);
    }
    let offset = input.appended;
    input.entries.push(InputRecord { sid, index, offset, uid, record, replay_of });
}

/// The fence first: after it no older owner's ack moves the watermarks that this script returns.
pub fn prepare<N: Number>(guards: Guards, input: &mut Input<N>, own: &mut Own<N>) -> Answer<N> {
    if let Answer::Higher(above) = compare_fence(guards, input, own.fence) {
        return found_higher(guards, own, above);
    }
    own.acknowledged = input.acknowledged;
    if guards.has(Guard::WaitAgain) {
        own.surplus = None;
    }
    own.stage = Stage::Cursors(if guards.has(Guard::Watermark) { input.watermarks } else { Default::default() });
    if guards.has(Guard::EmptyPublishers) {
        own.recent.clear();
        own.publishers.fill(None);
    }
    Answer::Done
}

/// The numbers above which an owner continues: those of the log, or higher ones that were acknowledged or published.
pub fn skip_to<N: Number>(guards: Guards, numbers: [N; 3], least: [N; 3]) -> [N; 3] {
    let higher = |at: usize| numbers[at].max(least[at]);
    if guards.has(Guard::CompareLog) { [higher(0), higher(1), higher(2)] } else { numbers }
}

/// The owner has compared the log with the watermarks: it continues from this row, of this start of Postgres.
pub fn compared<N: Number>(guards: Guards, own: &mut Own<N>, head: Head<N>, watermarks: [N; 3], boot: N) {
    own.numbers = head.numbers;
    own.boot = boot;
    own.watermarks = Some(watermarks);
    (own.accounted, own.applied) = (head.accounted, head.applied);
    own.stage = if guards.has(Guard::PendingFirst) { Stage::Claim(N::default()) } else { Stage::Read };
}

/// The head of each script of an owner that has prepared: compares fence, watermarks and acknowledged offset.
fn enter<N: Number>(guards: Guards, input: &mut Input<N>, own: &mut Own<N>, fence: bool) -> Option<Answer<N>> {
    if fence {
        match compare_fence(guards, input, own.fence) {
            Answer::Higher(above) => return Some(found_higher(guards, own, above)),
            Answer::Raised if guards.has(Guard::ReclaimAgain) => {
                own.stage = Stage::Prepare;
                return Some(Answer::Raised);
            }
            _ => {}
        }
    }
    if is_rewound(guards, input, own) {
        own.stage = Stage::Prepare;
        return Some(Answer::Raised);
    }
    None
}

/// Reclaims pending entries above an id, of any consumer, at most as many. `Nothing`: there are none any more, and Redis
/// has an ack for all committed entries; the owner sets the watermarks again where Redis lost them.
pub fn claim<N: Number>(guards: Guards, input: &mut Input<N>, own: &mut Own<N>, above: N, most: usize) -> Answer<N> {
    if let Some(answer) = enter(guards, input, own, true) {
        return answer;
    }
    let pending = |entry: &InputRecord<N>| entry.sid > above && input.pending.contains(&entry.sid);
    let records = first_entries(most, input.entries.iter().filter(|entry| pending(entry)));
    if let Some(last) = records.last() {
        let next = Next::Claim(last.sid);
        own.stage = with_batch(guards, records, next);
        return Answer::Done;
    }
    let whole = |known: [N; 3]| known.iter().zip(own.numbers).all(|(known, number)| *known >= number);
    let stored = own.watermarks.is_some_and(whole) && own.acknowledged == own.accounted;
    own.stage = if stored || !guards.has(Guard::RestoreWatermark) {
        Stage::Read
    } else {
        Stage::Ack(Batch { records: Vec::new(), next: Next::Read })
    };
    Answer::Nothing
}

/// The records of the first entries.
fn first_entries<'a, N: Number + 'a>(
    most: usize,
    records: impl Iterator<Item = &'a InputRecord<N>>,
) -> Vec<InputRecord<N>> {
    let mut batch: Vec<InputRecord<N>> = Vec::new();
    let mut entries = 0;
    for record in records {
        entries += usize::from(batch.last().is_none_or(|last| last.sid != record.sid));
        if entries > most {
            break;
        }
        batch.push(*record);
    }
    batch
}

fn with_batch<N: Number>(guards: Guards, records: Vec<InputRecord<N>>, next: Next<N>) -> Stage<N> {
    let batch = Batch { records, next };
    if guards.has(Guard::AckAfterCommit) { Stage::Commit(batch) } else { Stage::Ack(batch) }
}

/// Reads new entries, at most as many. `Nothing`: there are none.
pub fn read<N: Number>(guards: Guards, input: &mut Input<N>, own: &mut Own<N>, most: usize) -> Answer<N> {
    if let Some(answer) = enter(guards, input, own, guards.has(Guard::FenceOnRead)) {
        return answer;
    }
    let records = first_entries(most, input.entries.iter().filter(|entry| entry.sid > input.delivered));
    let Some(last) = records.last() else { return Answer::Nothing };
    input.delivered = last.sid;
    let mut sids: Vec<N> = records.iter().map(|entry| entry.sid).collect();
    sids.dedup();
    input.pending.extend(sids);
    own.stage = with_batch(guards, records, Next::Read);
    Answer::Done
}

/// Acknowledges the entries of a batch, raises the watermarks and trims. `observe` gets each id that was pending.
pub fn ack<N: Number>(
    guards: Guards,
    input: &mut Input<N>,
    own: &mut Own<N>,
    batch: Batch<N>,
    mut observe: impl FnMut(&Input<N>, N),
) -> Answer<N> {
    if let Some(answer) = enter(guards, input, own, guards.has(Guard::FenceOnAck)) {
        return answer;
    }
    let mut all = true;
    for entry in batch.records.iter().filter(|record| record.index == 0) {
        let Some(at) = input.pending.iter().position(|sid| *sid == entry.sid) else {
            all = false;
            continue;
        };
        input.pending.remove(at);
        observe(input, entry.sid);
    }
    if !all && guards.has(Guard::NoticeRedisRewind) {
        own.stage = Stage::Prepare;
        return Answer::Raised;
    }
    // By the group: up to the lowest pending id, else just above the last delivered one.
    let keep = input.pending.iter().copied().min().unwrap_or(input.delivered + N::from(1));
    input.entries.retain(|entry| entry.sid >= keep);
    for (watermark, number) in input.watermarks.iter_mut().zip(own.numbers) {
        *watermark = number.max(*watermark);
    }
    input.acknowledged = own.accounted;
    own.watermarks = Some(input.watermarks);
    own.acknowledged = own.accounted;
    let next = batch.next;
    own.stage = match next {
        _ if !guards.has(Guard::AckAfterCommit) && !batch.records.is_empty() => Stage::Commit(batch),
        Next::Claim(above) => Stage::Claim(above),
        Next::Read => Stage::Read,
    };
    Answer::Done
}

/// Whether the locked row of a shard is as its owner left it.
pub fn compare_row<N: Number>(
    guards: Guards,
    head: &Head<N>,
    own: &Own<N>,
    is_restarted: bool,
    version: N,
) -> Comparison {
    if guards.has(Guard::FenceOnWrite) && !is_same(guards, head.fence, own.fence) {
        return Comparison::Lost;
    }
    let numbers = (own.numbers, own.accounted) != (head.numbers, head.accounted);
    if is_restarted && guards.has(Guard::CompareAgain)
        || numbers && guards.has(Guard::CompareNumbers)
        || own.applied != head.applied && guards.has(Guard::CompareApplied)
    {
        return Comparison::Changed;
    }
    if guards.has(Guard::PolicyVersion) && head.version > version { Comparison::OldPolicy } else { Comparison::Ready }
}

/// The stage behind the commit of a batch.
pub fn after_commit<N: Number>(guards: Guards, batch: Batch<N>) -> Stage<N> {
    match batch.next {
        _ if guards.has(Guard::AckAfterCommit) => Stage::Ack(batch),
        Next::Claim(above) => Stage::Claim(above),
        Next::Read => Stage::Read,
    }
}

/// The applied entry behind a batch that ends with this one.
pub fn applied<N: Number>(guards: Guards, before: N, last: N) -> N {
    if guards.has(Guard::AppliedNeverFalls) { before.max(last) } else { last }
}

/// The accounted offset behind a record, and the number of lost records before it: offsets that are missing, as the stream
/// has all records in order. A rewound Redis gives offsets again: new records with such an offset count as the next ones.
pub fn account<N: Number>(guards: Guards, accounted: N, offset: N, is_redelivered: bool) -> (N, N) {
    if offset > accounted {
        (offset, offset - accounted - N::from(1))
    } else if !is_redelivered && guards.has(Guard::CountOldOffsets) {
        (accounted + N::from(1), N::default())
    } else {
        (accounted, N::default())
    }
}

/// The rest of the stream is lost: the number of lost records, where the owner still has the shard and its account.
pub fn lose<N: Number>(guards: Guards, head: &mut Head<N>, own: &mut Own<N>, appended: N) -> Option<N> {
    if !is_same(guards, head.fence, own.fence) || head.accounted != own.accounted {
        return None;
    }
    let lost = appended - head.accounted;
    head.accounted = appended;
    own.accounted = appended;
    own.stage = Stage::Ack(Batch { records: Vec::new(), next: Next::Read });
    Some(lost)
}

/// Whether a publisher's script appends: the cursor is where the publisher read it.
pub fn is_unmoved<N: Number>(guards: Guards, cursor: N, at: N) -> bool {
    cursor == at || !guards.has(Guard::CompareInAppend)
}

/// Whether a publisher may publish a number: it is not above the watermark.
pub fn may_publish<N: Number>(guards: Guards, number: N, watermark: N) -> bool {
    number <= watermark || !guards.has(Guard::BelowWatermark)
}
