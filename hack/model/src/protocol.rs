//! The model: which steps there are, and which properties hold. The steps themselves are in the other files.

use stateright::{Model, Property};

use crate::{
    check,
    config::{Config, Faults, THRESHOLDS},
    guards::Guard,
    normalise::normalise,
    own::newest,
    state::{
        Client, Cursor, Input, Observer, Out, Policy, Postgres, Producer, Redis, Serve, Shard, SinkRow, Stage, State,
        Worker,
    },
};

/// A step. The numbers are the worker's, then the shard's, then the sink's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// A client sends its next record.
    Send(u8),
    /// A client gets the answer that is on its way.
    Answered(u8),
    /// A client's serve process notes its count in Postgres.
    Note(u8),
    /// A worker takes a free shard.
    Take(u8, u8),
    /// An owner does the step of its stage: one script or one transaction.
    Work(u8, u8),
    /// A worker commits the batches in flight of all its shards in one transaction.
    Group(u8),
    /// An owner begins to reconcile the counts of both servers.
    Reconcile(u8, u8),
    /// An owner finds by its connections that Postgres was restarted.
    Reconnect(u8, u8),
    /// An owner finds at a renewal that it has lost the shard.
    Drop(u8, u8),
    /// A worker reads the newest policy.
    Follow(u8),
    /// A publisher reads the cursor, and the row behind it.
    Fetch(u8, u8, u8),
    /// A publisher appends the row that it fetched.
    Publish(u8, u8, u8),
    /// A discard of a dead letter continues.
    ContinueDiscard(u8),
    /// A worker does a step of the build of a shard's rollup; its position moves with it (true) or not.
    Build(u8, bool),
    /// A worker looks at the sinks, or continues with the start of one.
    ReconcileSinks(u8),
    /// Fault: a request's outcome is unknown; it took effect (true) or not.
    Unknown(u8, bool),
    /// Fault: a client repeats an answered request.
    Repeat(u8),
    /// Fault: a client's serve process ends without its last note.
    EndServe(u8),
    /// Fault: a worker starts again.
    Crash(u8),
    /// Fault: a shard's lease runs out.
    Expire(u8),
    /// Fault: as `Work`, but the owner does not get an answer; it took effect (true) or not.
    WorkUnanswered(u8, u8, bool),
    /// Fault: as `Group`, but the owners do not get an answer; it took effect (true) or not.
    GroupUnanswered(u8, bool),
    /// Fault: as `Publish`, but the publisher does not get the answer.
    PublishUnanswered(u8, u8, u8),
    /// From here on Redis may lose writes.
    Sync,
    /// Fault: Redis lost its writes since then: all (0), those of the input streams (1), or of the sinks' streams (2).
    RedisRewind(u8),
    /// Postgres may be rewound to this state.
    Backup,
    /// Fault: Postgres was rewound.
    PostgresRewind,
    /// A policy is registered.
    Register,
    /// The first sink is given another stream.
    Retarget,
    /// Another sink is started, from the current end of the log.
    Start,
    /// An administrator replays a dead letter of a shard.
    Replay(u8, u8),
    /// An administrator discards a dead letter of a shard.
    Discard(u8, u8),
    /// Records that were refused are accepted from here on.
    Admit,
    /// Postgres's clock moves to another period.
    Clock,
}

/// The protocol at some size.
#[derive(Debug, Clone)]
pub struct Protocol {
    /// The size, the faults, the guards.
    pub config: Config,
}

impl Protocol {
    /// The protocol at this size.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self { config }
    }

    pub(crate) fn has(&self, guard: Guard) -> bool {
        self.config.guards.has(guard)
    }

    fn apply(&self, state: &mut State, action: Action) -> bool {
        if let Some(left) = left_of(&mut state.left, action) {
            *left -= 1;
            let left = &mut state.left;
            if self.config.faults.together > 0 {
                left.together -= 1;
                if left.together == 0 {
                    // One form for all states in which no fault is left.
                    *left = Faults::default();
                }
            }
            if left.redis_rewind == 0 && !matches!(action, Action::RedisRewind(_)) {
                state.synced = None;
                state.observer.synced_unreconciled = false;
            }
            if left.postgres_rewind == 0 && action != Action::PostgresRewind {
                state.backup = None;
            }
        }
        match action {
            Action::Send(client) => self.send(state, client),
            Action::Answered(client) => self.answered(state, client),
            Action::Note(client) => self.note(state, client),
            Action::Take(worker, shard) => self.take(state, worker, shard),
            Action::Work(worker, shard) => self.work(state, worker, shard),
            Action::Group(worker) => {
                let shards = in_flight(state, worker);
                self.commit(state, usize::from(worker), &shards)
            }
            Action::ContinueDiscard(at) => self.continue_discard(state, at),
            Action::Reconcile(worker, shard) => self.begin_reconcile(state, worker, shard),
            Action::Reconnect(worker, shard) => self.reconnect(state, worker, shard),
            Action::Drop(worker, shard) => self.drop_lost(state, worker, shard),
            Action::Follow(worker) => self.follow(state, worker),
            Action::Fetch(worker, shard, sink) => self.fetch(state, worker, shard, sink),
            Action::Publish(worker, shard, sink) => self.publish(state, worker, shard, sink, true),
            Action::Build(shard, moves) => self.build(state, shard, moves),
            Action::ReconcileSinks(worker) => self.reconcile_sinks(state, worker),
            Action::Unknown(client, effect) => self.send_unknown(state, client, effect),
            Action::Repeat(client) => self.repeat(state, client),
            Action::EndServe(client) => self.end_serve(state, client),
            Action::Crash(worker) => self.crash(state, worker),
            Action::Expire(shard) => self.expire(state, shard),
            Action::WorkUnanswered(worker, shard, effect) => self.work_unanswered(state, worker, shard, effect),
            Action::GroupUnanswered(worker, effect) => {
                let shards = in_flight(state, worker);
                self.commit_unanswered(state, usize::from(worker), &shards, effect)
            }
            Action::PublishUnanswered(worker, shard, sink) => self.publish(state, worker, shard, sink, false),
            Action::Sync => self.sync(state),
            Action::RedisRewind(part) => self.redis_rewind(state, part),
            Action::Backup => self.backup(state),
            Action::PostgresRewind => self.postgres_rewind(state),
            Action::Register => self.register(state),
            Action::Retarget => self.retarget(state),
            Action::Start => self.start(state),
            Action::Replay(shard, number) => self.replay(state, shard, number),
            Action::Discard(shard, number) => self.discard(state, shard, number),
            Action::Admit => !std::mem::replace(&mut state.admits, true),
            Action::Clock => {
                state.clock = 1 - state.clock;
                true
            }
        }
    }

    /// Actions that are no faults.
    fn steps(&self, state: &State, actions: &mut Vec<Action>) {
        // Each action costs a copy of the state: impossible ones are left out where that is cheap to find.
        for ((client, of), all) in (0..).zip(&state.clients).zip(&self.config.clients) {
            if self.config.count {
                actions.push(Action::Note(client));
            }
            if of.waits != 0 {
                actions.push(Action::Answered(client));
            } else if usize::from(of.done) < all.len() {
                actions.push(Action::Send(client));
            }
        }
        actions.extend((0..state.discards.len() as u8).map(Action::ContinueDiscard));
        self.builds(actions);
        for (worker, it) in (0..).zip(&state.workers) {
            if self.config.shards > 1 && in_flight(state, worker).len() > 1 {
                actions.push(Action::Group(worker));
            }
            for (shard, own) in (0..).zip(&it.owns) {
                let Some(own) = own else {
                    if state.postgres.shards[usize::from(shard)].free {
                        actions.push(Action::Take(worker, shard));
                    }
                    continue;
                };
                if own.stage != Stage::Read || self.has_something_to_read(state, usize::from(shard), own) {
                    actions.push(Action::Work(worker, shard));
                }
                if !self.is_owner(state, usize::from(shard), own.fence) {
                    actions.push(Action::Drop(worker, shard));
                }
                if self.may_count(own) {
                    actions.push(Action::Reconcile(worker, shard));
                }
                if self.config.count && own.boot != state.observer.rewound.1 {
                    actions.push(Action::Reconnect(worker, shard));
                }
                for (sink, publisher) in (0..).zip(&own.publishers) {
                    if publisher.is_some() {
                        actions.push(Action::Publish(worker, shard, sink));
                    } else if self.next_notice(state, it, shard, sink).is_some() {
                        actions.push(Action::Fetch(worker, shard, sink));
                    }
                }
            }
            if it.policy != newest(state) {
                actions.push(Action::Follow(worker));
            }
            if self.config.faults.retarget + self.config.faults.start > 0 {
                actions.push(Action::ReconcileSinks(worker));
            }
        }
    }

    fn faults(&self, state: &State, actions: &mut Vec<Action>) {
        let left = state.left;
        for client in 0..state.clients.len() as u8 {
            if left.unknown > 0 {
                actions.extend([Action::Unknown(client, true), Action::Unknown(client, false)]);
            }
            if left.repeat > 0 {
                actions.push(Action::Repeat(client));
            }
            if left.end_serve > 0 {
                actions.push(Action::EndServe(client));
            }
        }
        for (worker, it) in (0..).zip(&state.workers) {
            if left.crash > 0 && it.owns.iter().any(Option::is_some) {
                actions.push(Action::Crash(worker));
            }
            if left.answer_lost > 0 && self.config.shards > 1 && in_flight(state, worker).len() > 1 {
                actions.extend([true, false].map(|effect| Action::GroupUnanswered(worker, effect)));
            }
            for (shard, own) in (0..).zip(&it.owns) {
                let Some(own) = own.as_ref().filter(|_| left.answer_lost > 0) else { continue };
                actions.extend([true, false].map(|effect| Action::WorkUnanswered(worker, shard, effect)));
                for (sink, _) in (0..).zip(&own.publishers).filter(|(_, publisher)| publisher.is_some()) {
                    actions.push(Action::PublishUnanswered(worker, shard, sink));
                }
            }
        }
        if left.expire > 0 {
            let held = (0..).zip(&state.postgres.shards).filter(|(_, shard)| !shard.free);
            actions.extend(held.map(|(shard, _)| Action::Expire(shard)));
        }
        if left.redis_rewind > 0 {
            match state.synced {
                None => actions.push(Action::Sync),
                Some(_) if self.config.parts => actions.extend([0, 1, 2].map(Action::RedisRewind)),
                Some(_) => actions.push(Action::RedisRewind(0)),
            }
        }
        if left.postgres_rewind > 0 {
            actions.push(if state.backup.is_none() { Action::Backup } else { Action::PostgresRewind });
        }
        for (shard, row) in (0..).zip(&state.postgres.shards) {
            let numbers = row.dead_letters.iter().map(|there| there.number);
            if left.replay > 0 {
                actions.extend(numbers.clone().map(|number| Action::Replay(shard, number)));
            }
            if left.discard > 0 {
                actions.extend(numbers.map(|number| Action::Discard(shard, number)));
            }
        }
        for (left, action) in [
            (left.policy, Action::Register),
            (left.retarget, Action::Retarget),
            (left.start, Action::Start),
            (left.admit, Action::Admit),
            (left.clock, Action::Clock),
        ] {
            if left > 0 {
                actions.push(action);
            }
        }
    }

    /// Whether anything happens by itself from here on.
    pub(crate) fn continues(&self, state: &State) -> bool {
        let mut actions = Vec::new();
        self.steps(state, &mut actions);
        actions.into_iter().any(|action| self.next_state(state, action).is_some())
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let Config { workers, shards, .. } = self.config;
        let each = usize::from(shards);
        let zeros = vec![0; each];
        let sink = SinkRow { out: 0, generation: 0, started: true, old: None, placed: true, after: zeros.clone() };
        let cursor = Cursor { sink: 0, generation: 0, retired: false, at: zeros.clone() };
        let sinks = if self.config.count { Vec::new() } else { vec![sink] };
        let worker = Worker {
            policy: Policy { version: 1, threshold: THRESHOLDS[0], boot: 0 },
            owns: vec![None; each],
            transactions: Vec::new(),
            active: vec![Some((0, 0)); sinks.len()],
            plan: None,
        };
        let clients = self.config.clients.len();
        // The serve processes from the start live; others come for those that end.
        let living = if self.config.count { clients } else { 0 };
        let producers = if self.config.count { clients + usize::from(self.config.faults.end_serve) } else { 0 };
        let of = |name| Producer { closed: name >= living, ..Producer::default() };
        let serve = |producer| Serve { producer, ..Serve::default() };
        let producers: Vec<Producer> = (0..producers).map(of).collect();
        let input = Input { by: vec![0; producers.len()], ..Input::default() };
        let shard = Shard { free: true, version: 1, producers, ..Shard::default() };
        let postgres =
            Postgres { shards: vec![shard; each], ledger: Default::default(), policies: vec![THRESHOLDS[0]], sinks };
        let mut outs = vec![Out { cursor: Some(cursor), notices: Vec::new() }];
        if self.config.faults.retarget + self.config.faults.start > 0 {
            outs.resize(3, Out::default());
        }
        vec![State {
            postgres,
            redis: Redis { inputs: vec![input; each], outs },
            backup: None,
            synced: None,
            workers: vec![worker; usize::from(workers)],
            clients: vec![Client::default(); clients],
            discards: Vec::new(),
            clock: 0,
            admits: false,
            serve: (0..living as u8).map(serve).collect(),
            left: self.config.faults,
            observer: Observer { unreconciled: vec![false; each], ..Observer::default() },
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        self.steps(state, actions);
        self.faults(state, actions);
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        if !self.apply(&mut state, action) {
            return None;
        }
        self.observe(&mut state);
        normalise(&mut state);
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        check::properties()
    }
}

/// How often the fault of an action may still happen; `None`: the action is no fault.
fn left_of(left: &mut Faults, action: Action) -> Option<&mut u8> {
    Some(match action {
        Action::Unknown(..) => &mut left.unknown,
        Action::Repeat(_) => &mut left.repeat,
        Action::EndServe(_) => &mut left.end_serve,
        Action::Crash(_) => &mut left.crash,
        Action::Expire(_) => &mut left.expire,
        Action::WorkUnanswered(..) | Action::GroupUnanswered(..) | Action::PublishUnanswered(..) => {
            &mut left.answer_lost
        }
        Action::RedisRewind(_) => &mut left.redis_rewind,
        Action::PostgresRewind => &mut left.postgres_rewind,
        Action::Register => &mut left.policy,
        Action::Retarget => &mut left.retarget,
        Action::Start => &mut left.start,
        Action::Replay(..) => &mut left.replay,
        Action::Discard(..) => &mut left.discard,
        Action::Admit => &mut left.admit,
        Action::Clock => &mut left.clock,
        _ => return None,
    })
}

/// The shards of a worker whose batches wait for a transaction.
fn in_flight(state: &State, worker: u8) -> Vec<usize> {
    let owns = state.workers[usize::from(worker)].owns.iter().enumerate();
    let waits = owns.filter(|(_, own)| matches!(own.as_ref().map(|own| &own.stage), Some(Stage::Commit(_))));
    waits.map(|(shard, _)| shard).collect()
}
