//! Steps of a trace in Postgres: each is judged by the model's step and by the values before it.

use super::{
    shard::{Held, N, Shard, Why, ensure},
    trace::{Answered, Number, Progress, Sent, Word},
};
use crate::{
    state::{Batch, Fence, InputRecord, Own, Stage},
    steps::{self, Comparison, Head},
};

impl Shard {
    /// A worker has taken the shard; the lease of the owner before may run out at any time.
    pub(super) fn taken(&mut self, token: N, process: usize, answer: &Answered) -> Result<(), Why> {
        if answer.result == Word::None {
            return Ok(());
        }
        let mut fence = self.head.fence;
        let taken = steps::take(&mut fence, token);
        if self.is_fence_known {
            ensure!(taken.epoch == answer.epoch.0, "the epoch before is {}", self.head.fence.epoch);
        }
        let fence = Fence { epoch: answer.epoch.0, token };
        (self.head.fence, self.is_fence_known) = (fence, true);
        self.new_owner(fence, process);
        Ok(())
    }

    /// Whether a write under the fence of a token takes effect.
    pub(super) fn fenced_write(&mut self, token: N) -> Result<(), Why> {
        let fence = self.owner(token)?.own.fence;
        if !self.is_fence_known {
            (self.head.fence, self.is_fence_known) = (fence, true);
        }
        let there = self.head.fence;
        ensure!(steps::is_same(self.guards(), there, fence), "Postgres has epoch {}", there.epoch);
        Ok(())
    }

    pub(super) fn raised(&mut self, token: N, above: N, answer: &Answered) -> Result<(), Why> {
        self.fenced_write(token)?;
        let mut held = self.owner_of(token)?;
        let is_next = held.own.stage == Stage::Raise(above);
        ensure!(is_next, "its next step is {:?}", held.own.stage);
        let fence = steps::raise(&mut self.head.fence, above);
        ensure!(fence.epoch == answer.now.0, "the raised epoch is {}", fence.epoch);
        held.own = Own { fence, stage: Stage::Prepare, ..held.own };
        self.owners.insert(token, held);
        Ok(())
    }

    /// A released row has no owner: its fence is nobody's.
    pub(super) fn released(&mut self, token: N) -> Result<(), Why> {
        if self.fenced_write(token).is_ok() {
            self.head.fence.token = 0;
        }
        Ok(())
    }

    pub(super) fn policy(&mut self, token: N, version: N) -> Result<(), Why> {
        self.fenced_write(token)?;
        self.head.version = self.head.version.max(version);
        Ok(())
    }

    pub(super) fn account(&mut self, token: N, answer: &Answered) -> Result<(), Why> {
        self.fenced_write(token)?;
        let accounted = answer.accounted.0;
        // An account that is not open begins at the acknowledged offset.
        if self.is_head_known && self.head.accounted > 0 {
            ensure!(accounted == self.head.accounted, "the account is at {}", self.head.accounted);
        }
        self.head.accounted = accounted;
        Ok(())
    }

    pub(super) fn compared(&mut self, token: N, answer: &Answered) -> Result<(), Why> {
        let mut held = self.owner_of(token)?;
        let Stage::Cursors(watermarks) = held.own.stage else {
            return Err(format!("its next step is {:?}", held.own.stage));
        };
        let found = Head {
            numbers: answer.numbers.map(|number| number.0),
            accounted: answer.accounted.0,
            applied: answer.applied.0,
            ..self.head
        };
        if self.is_head_known {
            ensure!(found == self.head, "the row has {}", row(&self.head));
        }
        (self.head, self.is_head_known) = (found, true);
        let highest: Vec<N> = watermarks.iter().zip(found.numbers).map(|(here, number)| number.min(*here)).collect();
        let least = steps::skip_to(self.guards(), found.numbers, watermarks);
        ensure!(least == found.numbers, "the log is below the watermarks {watermarks:?}, and no number was skipped");
        let watermarks = [highest[0], highest[1], highest[2]];
        steps::compared(self.guards(), &mut held.own, found, watermarks, answer.server.0);
        held.publishable = highest_of(held.publishable, watermarks);
        self.owners.insert(token, held);
        Ok(())
    }

    pub(super) fn skipped(&mut self, token: N, least: [N; 3], answer: &Answered) -> Result<(), Why> {
        self.fenced_write(token)?;
        let numbers = answer.numbers.map(|number| number.0);
        if self.is_head_known {
            let skipped = steps::skip_to(self.guards(), self.head.numbers, least);
            ensure!(skipped == numbers, "the numbers behind it are {skipped:?}");
        }
        self.head.numbers = numbers;
        Ok(())
    }

    pub(super) fn lost(&mut self, token: N, appended: N) -> Result<(), Why> {
        self.fenced_write(token)?;
        let mut held = self.owner_of(token)?;
        let is_next = held.own.stage == Stage::Lose(appended);
        ensure!(is_next, "its next step is {:?}", held.own.stage);
        let lost = steps::lose(self.guards(), &mut self.head, &mut held.own, appended);
        ensure!(lost.is_some(), "the account is at {}", self.head.accounted);
        self.owners.insert(token, held);
        Ok(())
    }

    /// A shard has left a transaction.
    pub(super) fn left(&mut self, token: N, version: N, own: &Progress, word: Word) -> Result<(), Why> {
        let mut held = self.owner_of(token)?;
        ensure!(is_left(&held.own, own), "its owner has left the log at {:?}", held.own.numbers);
        let is_known = self.is_fence_known && self.is_head_known;
        let found = steps::compare_row(self.guards(), &self.head, &held.own, false, version);
        match word {
            Word::Fenced => {
                ensure!(found == Comparison::Lost || !is_known, "it is its owner");
                held.own.stage = Stage::Prepare;
            }
            Word::OldPolicy => ensure!(found == Comparison::OldPolicy || !is_known, "it runs no newer version"),
            // A restart of Postgres shows only here.
            _ => held.own.stage = Stage::Prepare,
        }
        self.owners.insert(token, held);
        Ok(())
    }

    /// The commit of a shard's batch, or of its first entries.
    pub(super) fn committed(&mut self, sent: &Sent) -> Result<(), Why> {
        let Sent::Commit { token, version, before, after, entries, .. } = sent else { return Ok(()) };
        let (before_head, after_head) = (self.with(before, version[0].0), self.with(after, version[1].0));
        self.fenced_write(token.0)?;
        if !self.is_head_known {
            (self.head, self.is_head_known) = (Head { fence: self.head.fence, ..before_head }, true);
        }
        let found = Head { fence: self.head.fence, version: self.head.version, ..before_head };
        ensure!(found == self.head, "the row has {}", row(&self.head));
        let mut held = self.owner_of(token.0)?;
        let is_restarted = held.own.boot != before.server.0;
        let compared = steps::compare_row(self.guards(), &self.head, &held.own, is_restarted, version[1].0);
        ensure!(compared == Comparison::Ready, "its row is {compared:?}");
        let Stage::Commit(batch) = held.own.stage.clone() else {
            return Err(format!("its next step is {:?}", held.own.stage));
        };
        let mut ids: Vec<N> = entries.iter().map(|id| id.0).collect();
        ids.sort_unstable();
        ids.dedup();
        let batch = split(&mut held, batch, &ids)?;
        self.check_outcome(&after_head, &batch)?;
        self.head = Head { fence: self.head.fence, ..after_head };
        let own = &mut held.own;
        (own.numbers, own.accounted, own.applied) = (after_head.numbers, after_head.accounted, after_head.applied);
        own.stage = steps::after_commit(self.guards(), batch);
        self.owners.insert(token.0, held);
        Ok(())
    }

    /// Whether the row has these values, or may have them.
    pub(super) fn is_at(&self, progress: &Progress) -> bool {
        !self.is_head_known || self.with(progress, self.head.version) == self.head
    }

    fn with(&self, progress: &Progress, version: N) -> Head<N> {
        Head {
            fence: self.head.fence,
            numbers: progress.numbers.map(|number| number.0),
            accounted: progress.accounted.0,
            applied: progress.applied.0,
            version,
        }
    }

    /// Whether a batch can have led to a row.
    fn check_outcome(&self, after: &Head<N>, batch: &Batch<N>) -> Result<(), Why> {
        let guards = self.guards();
        let last = batch.records.last().map_or(0, |record| record.sid);
        let applied = steps::applied(guards, self.head.applied, last);
        ensure!(after.applied == applied, "the applied entry behind it is another");
        let rises = self.head.numbers.iter().zip(after.numbers).all(|(before, after)| *before <= after);
        ensure!(rises && after.version >= self.head.version, "a number falls");
        let outcomes: N = self.head.numbers.iter().zip(after.numbers).map(|(before, after)| after - before).sum();
        ensure!(outcomes <= batch.records.len() as N, "{outcomes} outcomes of {} records", batch.records.len());
        let numbered = batch.records.iter().filter(|record| record.offset > 0);
        let accounted = numbered.fold(self.head.accounted, |accounted, record| {
            steps::account(guards, accounted, record.offset, record.offset <= accounted).0
        });
        // Behind a rewind of Redis new records with old offsets count as the next ones.
        let is_right = if self.was_rewound { after.accounted >= accounted } else { after.accounted == accounted };
        ensure!(is_right, "the account behind it is {accounted}");
        Ok(())
    }
}

/// A row, for a reason.
fn row(head: &Head<N>) -> String {
    let [epoch, accounted, applied] = [head.fence.epoch, head.accounted, head.applied].map(Number);
    format!("epoch {epoch:?}, numbers {:?}, account {accounted:?}, applied entry {applied:?}", head.numbers)
}

/// Whether an owner has left the log there.
fn is_left(own: &Own<N>, left: &Progress) -> bool {
    own.numbers == left.numbers.map(|number| number.0)
        && (own.accounted, own.applied) == (left.accounted.0, left.applied.0)
}

pub(super) fn highest_of(a: [N; 3], b: [N; 3]) -> [N; 3] {
    [a[0].max(b[0]), a[1].max(b[1]), a[2].max(b[2])]
}

/// Takes the first entries of a batch, which are those of a commit; an owner may have read more.
fn split(held: &mut Held, batch: Batch<N>, ids: &[N]) -> Result<Batch<N>, Why> {
    let mut records: Vec<InputRecord<N>> = batch.records;
    let mut sids: Vec<N> = records.iter().map(|record| record.sid).collect();
    sids.dedup();
    let first = sids.get(..ids.len()).is_some_and(|first| first == ids);
    ensure!(first && !ids.is_empty(), "its batch begins with other entries");
    let last = ids.last().copied().unwrap_or_default();
    held.rest = records.split_off(records.iter().take_while(|record| record.sid <= last).count());
    Ok(Batch { records, next: batch.next })
}
