//! Publishers: fetch the row behind the cursor, append it.

use crate::{
    protocol::Protocol,
    state::{Cursor, Notice, Own, Row, State, Worker},
    steps,
};

impl Protocol {
    /// Reads the cursor and the next row behind it, from memory where it is there, else from the log. The publisher may
    /// hold it for long before it appends it.
    pub(crate) fn fetch(&self, state: &mut State, worker: u8, shard: u8, sink: u8) -> bool {
        let next = self.next_notice(state, &state.workers[usize::from(worker)], shard, sink);
        self.publisher(state, worker, shard, sink, next);
        next.is_some()
    }

    /// The position of the cursor, and the notification of the next row behind it.
    pub(crate) fn next_notice(&self, state: &State, it: &Worker, shard: u8, sink: u8) -> Option<(u8, Notice)> {
        let own = it.owns[usize::from(shard)].as_ref()?;
        let watermarks = own.watermarks?;
        let cursor = cursor_of(state, it.active[usize::from(sink)], sink)?;
        let at = cursor.at[usize::from(shard)];
        let below = |row: &&Row| row.seq > at && steps::may_publish(self.config.guards, row.seq, watermarks[0]);
        let log = &state.postgres.shards[usize::from(shard)].log;
        let from_memory = own.recent.first().is_some_and(|first| first.seq <= at + 1);
        let row = if from_memory { own.recent.iter().find(below) } else { log.iter().find(below) };
        row.map(|row| {
            let Row { seq, alert, total_alert, before, .. } = *row;
            (at, Notice { shard, seq, record: row.input.record, alert, total_alert, before })
        })
    }

    /// One script: appends and moves the cursor, only if the cursor is where the publisher read it.
    pub(crate) fn publish(&self, state: &mut State, worker: u8, shard: u8, sink: u8, answered: bool) -> bool {
        let it = &state.workers[usize::from(worker)];
        let own: Option<&Own> = it.owns[usize::from(shard)].as_ref();
        let Some((at, notice)) = own.and_then(|own| own.publishers[usize::from(sink)]) else { return false };
        let target = it.active[usize::from(sink)];
        if answered {
            self.publisher(state, worker, shard, sink, None);
        }
        let is_unmoved = |cursor: &Cursor| steps::is_unmoved(self.config.guards, cursor.at[usize::from(shard)], at);
        let unmoved = cursor_of(state, target, sink).is_some_and(is_unmoved);
        let Some((out, _)) = target.filter(|_| unmoved) else { return answered };
        let out = &mut state.redis.outs[usize::from(out)];
        if let Some(cursor) = &mut out.cursor {
            cursor.at[usize::from(shard)] = notice.seq;
        }
        out.notices.push((sink, notice));
        if let Err(place) = state.observer.seen.binary_search(&notice) {
            state.observer.seen.insert(place, notice);
        }
        true
    }

    fn publisher(&self, state: &mut State, worker: u8, shard: u8, sink: u8, holds: Option<(u8, Notice)>) {
        if let Some(own) = &mut state.workers[usize::from(worker)].owns[usize::from(shard)] {
            own.publishers[usize::from(sink)] = holds;
        }
    }
}

/// The cursor of a sink's generation; `None`: it is missing, retired, or of another generation.
pub(crate) fn cursor_of(state: &State, target: Option<(u8, u8)>, sink: u8) -> Option<&Cursor> {
    let (out, generation) = target?;
    let cursor = state.redis.outs[usize::from(out)].cursor.as_ref()?;
    (cursor.sink == sink && cursor.generation == generation && !cursor.retired).then_some(cursor)
}
