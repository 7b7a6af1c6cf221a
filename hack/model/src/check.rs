//! The properties: the design's invariants, in every state, and in final states.

use stateright::Property;

use crate::{
    protocol::Protocol,
    publish::cursor_of,
    rollup,
    state::{Batch, DeadLetterState, Holder, InputRecord, LEDGER_IDS, Notice, Postgres, Row, Shard, Stage, State},
};

/// A record id is applied at most once, over all shards.
pub const ONCE: &str = "a record id is applied at most once";
/// No effect without its record.
pub const TOTALS: &str = "totals are the sum of the log";
/// The order of processing.
pub const ORDER: &str = "per destination, records are processed in the order of their arrival";
/// The content of a sink's streams.
pub const SINK: &str = "a sink has each number once, in order, and skips none but noted gaps";
/// The ids that a reader has seen.
pub const IDS: &str = "no id of a notification is given twice";
/// Alerts of totals.
pub const TOTAL_ALERTS: &str = "a crossing of the total has one alert, of the record that made it, by its version";
/// Alerts.
pub const ALERTS: &str = "an alert is exact by its version, and versions never fall";
/// Nothing is lost.
pub const KEPT: &str = "nothing acknowledged is lost while no server was rewound";
/// Acks.
pub const ACKED: &str = "an entry is acknowledged only behind its commit";
/// Lost records, in every state.
pub const TRULY_LOST: &str = "no record counts as lost that was never missing";
/// Lost records, in the end.
pub const ALL_LOST: &str = "in the end each missing record counts as lost, and no other one";
/// The backlog, in the end.
pub const BACKLOG: &str = "in the end no record counts as waiting";
/// The ledger.
pub const NAMED: &str = "the ledger names each record and each open dead letter, and nothing else";
/// Redeliveries are recognised.
pub const TWICE: &str = "what was appended once has one outcome";
/// Redeliveries are not mistaken.
pub const DROPPED: &str = "a record that counts nowhere has an outcome with its content";
/// Dead letters.
pub const CLOSED: &str = "a dead letter is decided once";
/// Groups.
pub const SHARED: &str = "a transaction takes an id once";
/// Partitions.
pub const PERIOD: &str = "the table of periods has the partition of each record";
/// Declared rollups.
pub const ROLLUP: &str = "a rollup counts each record at most once, and all of them once it is complete";
/// States in which nothing happens by itself any more.
pub const END: &str = "in the end all is applied and published";

/// All properties.
pub(crate) fn properties() -> Vec<Property<Protocol>> {
    vec![
        Property::always(ONCE, applied_once),
        Property::always(TOTALS, |model, state: &State| {
            let value = |row: &Row| model.config.records[usize::from(row.input.record)].value;
            state.postgres.shards.iter().all(|shard| shard.total == shard.log.iter().map(value).sum::<u8>())
        }),
        Property::always(ORDER, |_, state: &State| {
            let rising = |shard: &Shard| shard.log.is_sorted_by(|a, b| a.seq < b.seq && a.input.uid < b.input.uid);
            // A rewound Redis may restore a record that Postgres lost, behind the records that came after it.
            let both = state.observer.rewound.0 > 0 && state.observer.rewound.1 > 0;
            both || state.postgres.shards.iter().all(rising)
        }),
        Property::always(SINK, each_once_in_order),
        Property::always(IDS, ids_once),
        Property::always(ALERTS, |model, state: &State| {
            let threshold = |row: &Row| state.postgres.policies.get(usize::from(row.version) - 1).copied();
            let value = |row: &Row| model.config.records[usize::from(row.input.record)].value;
            let exact = |row: &Row| threshold(row).is_some_and(|threshold| row.alert == (value(row) > threshold));
            let log_is_right =
                |shard: &Shard| shard.log.iter().all(exact) && shard.log.is_sorted_by_key(|row| row.version);
            state.postgres.shards.iter().all(log_is_right)
        }),
        Property::always(TOTAL_ALERTS, |model, state: &State| {
            state.postgres.shards.iter().all(|shard| {
                let mut total = 0;
                shard.log.iter().all(|row| {
                    let before = total;
                    total += model.config.records[usize::from(row.input.record)].value;
                    let threshold = state.postgres.policies.get(usize::from(row.version) - 1).copied();
                    threshold.is_some_and(|at| row.total_alert == (before <= at && at < total))
                })
            })
        }),
        Property::always(KEPT, |_, state: &State| {
            state.observer.rewound != (0, 0) || missing(state) & state.observer.acknowledged == 0
        }),
        Property::always(ACKED, |_, state: &State| !state.observer.acked_uncommitted),
        Property::always(NAMED, ledger_names_all),
        Property::always(TWICE, |_, state: &State| {
            let mut seen = 0_u16;
            outcomes(&state.postgres).all(|input| {
                let new = seen & 1 << input.uid == 0;
                seen |= 1 << input.uid;
                new
            })
        }),
        Property::always(DROPPED, |_, state: &State| !state.observer.dropped),
        Property::always(CLOSED, |_, state: &State| state.postgres.shards.iter().all(closed_once)),
        Property::always(SHARED, |_, state: &State| !state.observer.taken_twice),
        Property::always(PERIOD, |model, state: &State| {
            model.config.faults.clock == 0 || state.postgres.shards.iter().all(periods_are_found)
        }),
        Property::always(ROLLUP, |_, state: &State| rollup::is_exact(state)),
        Property::always(TRULY_LOST, |_, state: &State| {
            let lost: u8 = state.postgres.shards.iter().map(|shard| shard.lost).sum();
            u32::from(lost) <= state.observer.missing.count_ones()
        }),
        Property::always(ALL_LOST, |model, state: &State| is_exact(model, state) || model.continues(state)),
        Property::always(BACKLOG, |model, state: &State| nothing_waits(model, state) || model.continues(state)),
        Property::always(END, |model, state: &State| is_done(model, state) || model.continues(state)),
    ]
}

fn applied_once(model: &Protocol, state: &State) -> bool {
    let id = |row: &Row| 1_u16 << model.config.records[usize::from(row.input.record)].id;
    let mut seen = 0;
    state.postgres.shards.iter().flat_map(|shard| &shard.log).all(|row| {
        let new = seen & id(row) == 0;
        seen |= id(row);
        new
    })
}

/// What Postgres holds an outcome of.
fn outcomes(postgres: &Postgres) -> impl Iterator<Item = &InputRecord> {
    postgres.shards.iter().flat_map(|shard| {
        let rows = shard.log.iter().map(|row| &row.input);
        let noted = shard.noted.iter().map(|noted| &noted.input);
        rows.chain(noted).chain(shard.dead_letters.iter().map(|there| &there.input))
    })
}

fn ledger_names_all(model: &Protocol, state: &State) -> bool {
    let id = |input: &InputRecord| usize::from(model.config.records[usize::from(input.record)].id);
    let mut named = [Holder::Free; LEDGER_IDS];
    let holders = (0..).zip(&state.postgres.shards).flat_map(|(shard, row)| {
        let rows = row.log.iter().map(move |row| (&row.input, Holder::Record(shard, row.seq)));
        let open = row.dead_letters.iter().filter(|there| there.state == DeadLetterState::Open);
        rows.chain(open.map(move |there| (&there.input, Holder::DeadLetter(shard, there.number))))
    });
    for (input, holder) in holders {
        if std::mem::replace(&mut named[id(input)], holder) != Holder::Free {
            return false;
        }
    }
    named == state.postgres.ledger
}

/// The replay of a dead letter is decided only if that closes it, and only one of them. One of another content is that of a
/// dead letter which a rewound Postgres lost.
fn closed_once(shard: &Shard) -> bool {
    let rows = shard.log.iter().map(|row| row.input).chain(shard.noted.iter().map(|noted| noted.input));
    let all = rows.chain(shard.dead_letters.iter().map(|there| there.input));
    shard.dead_letters.iter().all(|there| {
        let replays =
            all.clone().filter(|input| (input.replay_of, input.record) == (there.number, there.input.record)).count();
        replays == usize::from(there.state == DeadLetterState::Replayed)
    })
}

fn periods_are_found(shard: &Shard) -> bool {
    shard.log.iter().all(|row| {
        let found = shard.periods.iter().filter(|(_, first)| *first <= row.seq).max();
        found.is_some_and(|(period, _)| *period == row.period)
    })
}

fn same(row: &Row, notice: &Notice) -> bool {
    let Notice { seq, record, alert, total_alert, before, .. } = *notice;
    (row.seq, row.input.record, row.alert, row.total_alert, row.before) == (seq, record, alert, total_alert, before)
}

/// Each notification that a reader saw is in the log with the same content, or in a gap; above the log's end a
/// comparison is still to come.
fn ids_once(_: &Protocol, state: &State) -> bool {
    state.observer.blind
        || state.observer.seen.iter().all(|notice| {
            let shard = &state.postgres.shards[usize::from(notice.shard)];
            let within = |(from, to): &(u8, u8)| *from < notice.seq && notice.seq <= *to;
            notice.seq > shard.top || shard.gaps.iter().any(within) || shard.log.iter().any(|row| same(row, notice))
        })
}

fn each_once_in_order(_: &Protocol, state: &State) -> bool {
    state.observer.blind
        || (0..).zip(&state.postgres.sinks).all(|(sink, _)| {
            (0..).zip(&state.postgres.shards).all(|(shard, log)| {
                let of_out = |out: &crate::state::Out| {
                    let ours = out.notices.iter().filter(|(by, notice)| *by == sink && notice.shard == shard);
                    ours.map(|(_, notice)| notice.seq).collect::<Vec<u8>>()
                };
                let mut parts: Vec<Vec<u8>> = state.redis.outs.iter().map(of_out).collect();
                parts.sort();
                let all: Vec<u8> = parts.iter().flatten().copied().collect();
                let in_order = parts.iter().all(|part| part.is_sorted_by(|a, b| a < b));
                let mut sorted = all;
                sorted.sort_unstable();
                let skipped = |pair: &[u8]| log.log.iter().any(|row| pair[0] < row.seq && row.seq < pair[1]);
                in_order && sorted.is_sorted_by(|a, b| a < b) && !sorted.windows(2).any(skipped)
            })
        })
}

/// Appends that neither server holds, nor the present owner in flight.
fn missing(state: &State) -> u16 {
    let uids = |all: u16, input: &InputRecord| all | 1 << input.uid;
    let queued = state.redis.inputs.iter().flat_map(|input| &input.entries);
    let mut held = queued.chain(outcomes(&state.postgres)).fold(0, uids);
    for (own, shard) in state.workers.iter().flat_map(|worker| worker.owns.iter().zip(&state.postgres.shards)) {
        let own = own.as_ref().filter(|own| own.fence == shard.fence);
        if let Some(Stage::Commit(Batch { records, .. }) | Stage::Write(Batch { records, .. }, _)) =
            own.map(|own| &own.stage)
        {
            held = records.iter().fold(held, uids);
        }
    }
    let all = (1_u16 << state.observer.appended) - 1;
    all & !held
}

/// Whether the number of lost records is exact. One of unknown outcome counts if Redis had counted it. A record that
/// Postgres lost and Redis restored stays counted. One of unknown outcome that is applied can hide a lost one.
fn is_exact(model: &Protocol, state: &State) -> bool {
    if !model.config.count || state.postgres.shards[0].uncertain {
        return true;
    }
    let observer = &state.observer;
    let (rewound, acknowledged, missing) = (observer.rewound, observer.acknowledged, missing(state));
    let hides = rewound.0 > 0 && !model.config.strict;
    let unknown = observer.decided & !acknowledged & !missing;
    let hidden = if hides { unknown.count_ones() } else { 0 };
    let least = (missing & acknowledged & !observer.mistaken).count_ones().saturating_sub(hidden);
    let most = if rewound.0 > 0 && rewound.1 > 0 { observer.missing } else { missing }.count_ones();
    (least..=most).contains(&u32::from(state.postgres.shards[0].lost))
}

/// Whether all offsets agree: an append compares the last two for its backlog.
fn nothing_waits(model: &Protocol, state: &State) -> bool {
    let agree = |(shard, input): (&Shard, &crate::state::Input)| {
        shard.accounted == input.appended && input.appended == input.acknowledged
    };
    !model.config.count || state.postgres.shards.iter().zip(&state.redis.inputs).all(agree)
}

fn is_done(model: &Protocol, state: &State) -> bool {
    let sent =
        state.clients.iter().zip(&model.config.clients).all(|(client, all)| usize::from(client.done) == all.len());
    let drained = state.redis.inputs.iter().all(|input| input.entries.is_empty());
    sent && drained && is_published(state) && rollup::is_built(state)
}

/// Every sink is at the end of the log. Where a server was rewound, a sink may have halted: its cursor is missing or of
/// another generation, or that of the stream that it moves away from is.
fn is_published(state: &State) -> bool {
    let rewound = state.observer.rewound != (0, 0);
    (0..).zip(&state.postgres.sinks).all(|(sink, row)| {
        let cursor = cursor_of(state, Some((row.out, row.generation)), sink).filter(|_| row.started);
        let at_end = |(shard, at): (&Shard, &u8)| shard.log.last().is_none_or(|last| last.seq <= *at);
        cursor.map_or(rewound, |cursor| state.postgres.shards.iter().zip(&cursor.at).all(at_end))
    })
}

impl Protocol {
    /// Notes which appends are missing.
    pub(crate) fn observe(&self, state: &mut State) {
        if self.config.count {
            state.observer.missing |= missing(state);
        }
    }
}
