//! Clients and serve: append, answer, send again, note the counts.

use crate::{
    guards::Guard,
    protocol::Protocol,
    state::{Producer, Serve, State},
    steps,
};

impl Protocol {
    /// The records that a client sends next, in one request.
    fn next_of(&self, state: &State, client: u8) -> Option<Vec<u8>> {
        let of = &state.clients[usize::from(client)];
        self.request_at(client, of.done).filter(|_| of.waits == 0)
    }

    /// The records of a client's request that begins there.
    fn request_at(&self, client: u8, from: u8) -> Option<Vec<u8>> {
        let rest = self.config.clients[usize::from(client)].get(usize::from(from)..)?;
        let records = rest[..rest.len().min(self.config.request)].to_vec();
        (!records.is_empty()).then_some(records)
    }

    pub(crate) fn shard_of(&self, record: u8) -> usize {
        usize::from(self.config.records[usize::from(record)].shard)
    }

    /// One script: gives offsets and appends the records of a request as one entry. Returns their appends, and the count of
    /// the producer.
    ///
    /// Where Redis holds a lower count than the producer knows, it was rewound: the offsets of the records that it lost are
    /// not given again.
    fn append(&self, state: &mut State, client: u8, records: &[u8]) -> (u16, u8) {
        let input = &mut state.redis.inputs[self.shard_of(records[0])];
        let serve = state.serve.get(usize::from(client));
        let producer = serve.map(|serve| usize::from(serve.producer));
        if let (Some(serve), Some(producer)) = (serve, producer) {
            steps::raise_in_append(self.config.guards, input, producer, serve.appended);
        }
        input.last += 1;
        let mut uids = 0;
        for (index, record) in (0..).zip(records) {
            let uid = state.observer.appended;
            state.observer.appended += 1;
            uids |= 1 << uid;
            steps::append(input, producer, (input.last, index), (uid, *record, 0));
        }
        (uids, serve.map_or(0, |serve| input.by[usize::from(serve.producer)]))
    }

    /// Appends, and answers in the same step, unless losses are counted: then the time in between matters.
    pub(crate) fn send(&self, state: &mut State, client: u8) -> bool {
        let Some(records) = self.next_of(state, client) else { return false };
        let (uids, answer) = self.append(state, client, &records);
        let of = &mut state.clients[usize::from(client)];
        if self.config.count {
            (of.waits, of.answer) = (uids, answer);
        } else {
            of.done += records.len() as u8;
            state.observer.acknowledged |= uids;
        }
        true
    }

    pub(crate) fn answered(&self, state: &mut State, client: u8) -> bool {
        let of = &mut state.clients[usize::from(client)];
        let (uids, answer) = (std::mem::take(&mut of.waits), std::mem::take(&mut of.answer));
        if uids == 0 {
            return false;
        }
        of.done += uids.count_ones() as u8;
        state.observer.acknowledged |= uids;
        confirm(&mut state.serve[usize::from(client)], answer);
        true
    }

    /// The client gets no answer, and sends again. `effect`: whether the append took effect.
    pub(crate) fn send_unknown(&self, state: &mut State, client: u8, effect: bool) -> bool {
        let Some(records) = self.next_of(state, client) else { return false };
        if effect {
            self.append(state, client, &records);
        }
        true
    }

    /// The client sends its last answered request again, and gets an answer.
    pub(crate) fn repeat(&self, state: &mut State, client: u8) -> bool {
        let of = &state.clients[usize::from(client)];
        if of.waits != 0 || of.done == 0 {
            return false;
        }
        let from = of.done.saturating_sub(self.config.request as u8);
        let Some(records) = self.request_at(client, from) else { return false };
        let (uids, answer) = self.append(state, client, &records);
        state.observer.acknowledged |= uids;
        if let Some(serve) = state.serve.get_mut(usize::from(client)) {
            confirm(serve, answer);
        }
        true
    }

    /// A serve process notes its count in Postgres, every second; here only where it changes anything.
    pub(crate) fn note(&self, state: &mut State, client: u8) -> bool {
        let serve = &mut state.serve[usize::from(client)];
        let (name, appended) = (usize::from(serve.producer), serve.appended);
        if !self.has(Guard::NoteAgain) && std::mem::replace(&mut serve.noted, appended) == appended {
            return false;
        }
        // A note during an append shows that the producer lives, but not that its count is whole.
        let whole = state.clients[usize::from(client)].waits == 0 || !self.has(Guard::NoteAfterAnswer);
        let rewinds = self.rewinds(state);
        for row in &mut state.postgres.shards {
            let by = &mut row.producers[name];
            let rewinds = if whole { rewinds } else { by.rewinds };
            *by = Producer { appended: by.appended.max(appended), rewinds, closed: false };
        }
        if whole {
            for own in state.workers.iter_mut().flat_map(|worker| worker.owns.iter_mut().flatten()) {
                own.surplus = own.surplus.map(|left| left & !(1 << name));
            }
        }
        true
    }

    /// How often Redis was rewound, where producers can end: else nobody compares it.
    fn rewinds(&self, state: &State) -> u8 {
        if self.config.faults.end_serve > 0 { state.observer.rewound.0 } else { 0 }
    }

    /// A serve process ends without its last note. The client uses another one, which is noted before its first request.
    pub(crate) fn end_serve(&self, state: &mut State, client: u8) -> bool {
        let producer = state.serve.iter().map(|serve| serve.producer + 1).max().unwrap_or_default();
        let of = &mut state.clients[usize::from(client)];
        (of.waits, of.answer) = (0, 0);
        state.serve[usize::from(client)] = Serve { producer, ..Serve::default() };
        let rewinds = self.rewinds(state);
        for row in &mut state.postgres.shards {
            row.producers[usize::from(producer)] = Producer { appended: 0, rewinds, closed: false };
        }
        true
    }
}

/// A producer gets its count.
fn confirm(serve: &mut Serve, answer: u8) {
    serve.appended = answer.max(serve.appended);
}
