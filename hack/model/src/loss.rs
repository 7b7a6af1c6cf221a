//! How an owner counts lost records: the rest at the end of the stream, and the counts of the producers.
//!
//! Must never take a record for lost that is applied, in the stream or in flight.
//!
//! The accounted offset counts a record whose producer had no answer, and of whose append Redis lost the count. Where as
//! many records are lost that their producers count, all counts agree, and nothing shows the loss.

use crate::{
    guards::Guard,
    protocol::Protocol,
    state::{Account, Input, Own, Producer, Stage, State},
    steps,
};

impl Protocol {
    /// Whether an owner does this now. Without [`Guard::BetweenBatches`] it does so with a batch in flight, too.
    pub(crate) fn may_count(&self, own: &Own) -> bool {
        let in_flight = matches!(own.stage, Stage::Commit(_)) && !self.has(Guard::BetweenBatches);
        self.config.count && (own.stage == Stage::Read || in_flight)
    }

    /// The stage after the stream was found at its end; `None`: there is nothing to do.
    pub(crate) fn after_end(&self, input: &Input, own: &Own) -> Option<Stage> {
        let pending = !input.pending.is_empty();
        if pending && !self.has(Guard::PendingFirst) {
            return Some(Stage::Claim(0));
        }
        if pending && self.has(Guard::NothingPending) {
            return Some(Stage::Prepare);
        }
        (input.appended > own.accounted).then_some(Stage::Lose(input.appended))
    }

    /// The rest of the stream is lost: one transaction under the fence. It was read with nothing in flight.
    pub(crate) fn lose(&self, state: &mut State, shard: usize, own: &mut Own, appended: u8) -> Option<bool> {
        let row = &mut state.postgres.shards[shard];
        let mut head = row.head();
        row.lost += steps::lose(self.config.guards, &mut head, own, appended)?;
        row.accounted = head.accounted;
        Some(true)
    }

    /// An owner begins to reconcile: reads the counts of Postgres. Every second; here only where it would change anything.
    pub(crate) fn begin_reconcile(&self, state: &mut State, worker: u8, shard: u8) -> bool {
        let (worker, shard) = (usize::from(worker), usize::from(shard));
        let Some(own) = &state.workers[worker].owns[shard] else { return false };
        let (row, input) = (&state.postgres.shards[shard], &state.redis.inputs[shard]);
        let dead = row.producers.iter().zip(0..).any(|(by, name)| !by.closed && self.is_dead(state, name));
        let lower = row.producers.iter().zip(&input.by).any(|(by, held)| *held < by.appended);
        let raises = lower || total(row.folded, &row.producers, &input.by) > input.appended;
        let folds = total(row.folded, &row.producers, &input.by) < input.appended;
        let all_noted = own.surplus.is_some_and(|left| left & living(state, &row.producers) == 0);
        let folds = folds || row.accounted > input.appended && (own.surplus.is_none() || all_noted);
        let surplus_ended = own.surplus.is_some() && row.accounted <= input.appended;
        let raises = raises && self.has(Guard::RaiseByNotes);
        if !(dead || raises || folds && self.has(Guard::FoldSurplus) || surplus_ended) {
            return false;
        }
        let account =
            Account { accounted: row.accounted, folded: row.folded, producers: row.producers.clone(), all_noted };
        if matches!(own.stage, Stage::Commit(_)) {
            return self.count_in_flight(state, worker, shard, account);
        }
        if let Some(own) = &mut state.workers[worker].owns[shard] {
            own.stage = Stage::Reconcile(account);
        }
        true
    }

    /// Reconciles, and judges the rest, without regard to the batch in flight.
    fn count_in_flight(&self, state: &mut State, worker: usize, shard: usize, account: Account) -> bool {
        let Some(mut own) = state.workers[worker].owns[shard].take() else { return false };
        let before = own.stage.clone();
        self.reconcile(state, shard, &mut own, account);
        let input = &state.redis.inputs[shard];
        let at_end = input.pending.is_empty() && input.last <= input.delivered;
        if own.stage == Stage::Read && at_end && input.appended > own.accounted {
            let appended = input.appended;
            self.lose(state, shard, &mut own, appended);
        }
        own.stage = before;
        state.workers[worker].owns[shard] = Some(own);
        true
    }

    /// One script: raises the counts of a rewound Redis to those of Postgres. Then the owner closes dead producers, and
    /// looks for records that no producer counts.
    pub(crate) fn reconcile(&self, state: &mut State, shard: usize, own: &mut Own, account: Account) -> Option<bool> {
        let input = &mut state.redis.inputs[shard];
        own.stage = Stage::Prepare;
        if !self.same(input.fence, own.fence) || self.rewound(input, own) {
            return Some(true);
        }
        let held = input.by.clone();
        let sum = total(account.folded, &account.producers, &held);
        if self.has(Guard::RaiseByNotes) {
            for (held, by) in input.by.iter_mut().zip(&account.producers) {
                *held = by.appended.max(*held);
            }
            input.appended = sum.max(input.appended);
        }
        let appended = input.appended;
        own.stage = Stage::Read;
        self.close_dead(state, shard, &account.producers, &held);
        if appended > sum {
            own.stage = Stage::Fold(account.folded, appended - sum);
        } else if account.accounted <= appended {
            own.surplus = None;
        } else if account.all_noted || !self.has(Guard::WaitForNotes) {
            own.stage = Stage::Fold(account.folded, account.accounted - appended);
            own.surplus = None;
        } else if own.surplus.is_none() {
            // A producer that lives may count them in its next note.
            own.surplus = Some(living(state, &account.producers));
        }
        Some(true)
    }

    /// Closes producers that ended without a last note. The counts that Redis holds are their last.
    fn close_dead(&self, state: &mut State, shard: usize, read: &[Producer], held: &[u8]) {
        for (name, (by, held)) in (0..).zip(read.iter().zip(held)) {
            if by.closed || !self.is_dead(state, name) {
                continue;
            }
            let uncertain = *held < by.appended || by.rewinds != state.observer.rewound.0;
            let row = &mut state.postgres.shards[shard];
            let there = &mut row.producers[usize::from(name)];
            if !there.closed {
                *there = Producer { appended: there.appended.max(*held), closed: true, ..*there };
                row.uncertain |= uncertain;
            }
        }
    }

    fn is_dead(&self, state: &State, producer: u8) -> bool {
        state.serve.iter().all(|serve| serve.producer != producer)
    }

    /// Adds records that no producer counts to a sum, unless another added some meanwhile.
    pub(crate) fn fold(&self, state: &mut State, shard: usize, own: &mut Own, folded: u8, more: u8) -> Option<bool> {
        let row = &mut state.postgres.shards[shard];
        if row.folded == folded && self.has(Guard::FoldSurplus) {
            row.folded += more;
        }
        own.stage = Stage::Read;
        Some(true)
    }
}

/// The records that producers have appended, as both servers count them.
fn total(folded: u8, producers: &[Producer], held: &[u8]) -> u8 {
    folded + producers.iter().zip(held).map(|(by, held)| by.appended.max(*held)).sum::<u8>()
}

/// The producers that may count more records in their next note: a rewound Postgres can lack those that live.
fn living(state: &State, producers: &[Producer]) -> u8 {
    let open = (0..).zip(producers).filter(|(_, by)| !by.closed).map(|(name, _)| name);
    open.chain(state.serve.iter().map(|serve| serve.producer)).fold(0, |all, name| all | 1 << name)
}
