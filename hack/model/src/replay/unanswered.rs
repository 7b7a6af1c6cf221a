//! Steps without an answer, as they took effect: each is judged as its owner was when it was sent, as that may have prepared
//! again since. Must never change an owner, and must fail where it would change nothing: such a step explains none.

use super::{
    order::cursor,
    shard::{Held, N, Shard, Why, ensure},
    trace::{Acks, Answered, Beside, Number, Sent, Step, Word},
};
use crate::{
    state::{Batch, Fence, InputRecord, Next, Stage},
    steps::{self, Answer},
};

impl Shard {
    /// Lets a step without an answer take effect before another one, which shows it, if it can.
    pub(super) fn take_unanswered(&mut self, step: &Step, shows: &Step) -> Result<(), Why> {
        match &step.sent {
            Sent::Take { token } => {
                let epoch = Number(self.head.fence.epoch + 1);
                self.taken(token.0, step.process, &Answered { epoch, ..Answered::default() })
            }
            Sent::Raise { token, above, .. } => {
                self.fenced_write(token.0)?;
                steps::raise(&mut self.head.fence, above.0);
                Ok(())
            }
            Sent::Release { token, .. } => {
                self.fenced_write(token.0)?;
                self.released(token.0)
            }
            Sent::Policy { version, .. } => {
                // It may have come before a fence that was set since.
                ensure!(version.0 > self.head.version, "the shard runs no lower version");
                self.head.version = version.0;
                Ok(())
            }
            Sent::Account { .. }
            | Sent::Compare { .. }
            | Sent::Left { .. }
            | Sent::Reconcile { .. }
            | Sent::Claim { .. } => Err("it has no effect".to_owned()),
            Sent::Skip { token, .. } | Sent::Lose { token, .. } | Sent::Commit { token, .. } => {
                self.row_unanswered(token.0, step)
            }
            Sent::Prepare { token, epoch } => {
                ensure!(self.input.fence.epoch < epoch.0, "Redis has epoch {}", self.input.fence.epoch);
                self.input.fence = Fence { epoch: epoch.0, token: token.0 };
                Ok(())
            }
            Sent::Turn { token, epoch, known, acks, reads } => {
                if let Some(acks) = acks {
                    self.ack_unanswered(Fence { epoch: epoch.0, token: token.0 }, known, acks)?;
                }
                ensure!(acks.is_some() || !self.may_be_delivered, "a read is open already");
                self.may_be_delivered |= reads;
                Ok(())
            }
            Sent::Append { producer, known, counts } => {
                let ids = step.answer.as_ref().map(|answer| answer.ids.clone()).unwrap_or_default();
                let answer = Answered { result: Word::Done, ids, ..Answered::default() };
                self.appended(producer, known.0, counts, &answer)
            }
            Sent::Start { .. } => self.take(step, &Answered::default()),
            Sent::Publish { after, upto, .. } => {
                // A full stream takes a part: the next step shows where that ends.
                let there = found_cursor(step, shows).filter(|there| there > after && there < upto);
                self.published(step, &Answered { cursor: there.unwrap_or(*upto), ..Answered::default() })
            }
        }
    }

    /// It may have come before a fence and a policy that were set since: its values show that no other write did.
    fn row_unanswered(&mut self, token: N, step: &Step) -> Result<(), Why> {
        let (before, since) = (self.owner_of(token)?, self.head);
        self.head.fence = before.own.fence;
        if let Sent::Commit { version, .. } = &step.sent {
            self.head.version = version[0].0;
        }
        match &step.sent {
            Sent::Skip { numbers, .. } => {
                let least = numbers.map(|number| number.0);
                self.head.numbers = steps::skip_to(self.guards(), self.head.numbers, least);
            }
            Sent::Lose { accounted, appended, .. } => {
                let mut held = before.clone();
                (held.own.accounted, held.own.stage) = (accounted.0, Stage::Lose(appended.0));
                self.owners.insert(token, held);
                self.lost(token, appended.0)?;
            }
            Sent::Commit { before: values, entries, .. } => {
                let mut held = before.clone();
                if !matches!(held.own.stage, Stage::Commit(_)) {
                    let records = self.records_of(entries, |entry| self.input.pending.contains(&entry.sid));
                    let own = &mut held.own;
                    own.stage = Stage::Commit(Batch { records, next: Next::Read });
                    own.numbers = values.numbers.map(|number| number.0);
                    (own.accounted, own.applied) = (values.accounted.0, values.applied.0);
                    own.boot = values.server.0;
                    self.owners.insert(token, held);
                }
                self.committed(&step.sent)?;
            }
            _ => {}
        }
        self.head.fence = since.fence;
        self.head.version = self.head.version.max(since.version);
        self.owners.insert(token, before);
        Ok(())
    }

    fn ack_unanswered(&mut self, fence: Fence<N>, known: &Beside, acks: &Acks) -> Result<(), Why> {
        let before = self.owner_of(fence.token)?;
        let mut held = Held { rest: Vec::new(), claimed_all: false, ..before.clone() };
        let own = &mut held.own;
        own.fence = fence;
        (own.watermarks, own.acknowledged) = (Some(known.numbers.map(|number| number.0)), known.offset.0);
        (own.numbers, own.accounted) = (acks.beside.numbers.map(|number| number.0), acks.beside.offset.0);
        if !matches!(own.stage, Stage::Ack(_)) {
            let records = self.records_of(&acks.ids, |_| true);
            own.stage = Stage::Ack(Batch { records, next: Next::Read });
        }
        self.owners.insert(fence.token, held);
        let found = self.acked(fence.token, acks)?;
        ensure!(found == Answer::Done, "it was refused: {found:?}");
        self.owners.insert(fence.token, before);
        Ok(())
    }

    /// Records of entries of the stream.
    fn records_of(&self, ids: &[Number], test: impl Fn(&InputRecord<N>) -> bool) -> Vec<InputRecord<N>> {
        let there = |entry: &&InputRecord<N>| ids.contains(&Number(entry.sid)) && test(entry);
        self.input.entries.iter().filter(there).copied().collect()
    }
}

/// The cursor that a publisher's step found.
fn found_cursor(step: &Step, shows: &Step) -> Option<Number> {
    match (&shows.sent, &shows.answer) {
        _ if cursor(step) != cursor(shows) => None,
        (_, Some(answer)) if answer.result == Word::Moved => Some(answer.cursor),
        (Sent::Publish { after, .. }, _) => Some(*after),
        _ => None,
    }
}
