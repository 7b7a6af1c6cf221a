//! Load: several clients over HTTP, and the answers that they got.

mod client;
pub(crate) mod history;
pub(crate) mod reads;
pub(crate) mod record;
mod send;

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use tokio::task::JoinSet;

use crate::world::eventually;
use client::Client;
use history::{History, MANY, UNORDERED, VARIED};
use record::{AUTHORS, CLIENTS, COLLIDE, Code, Content, DECIDED, LARGE};

/// The administrator's key of the pipeline.
pub(crate) const KEY: &str = "mk_fault-campaign-0123456789-abcdef";

/// A switch that changes the requests of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mode(u32);

impl Mode {
    /// Half of all entries are duplicates.
    pub(crate) const DUPLICATES: Self = Self(1);
    /// The same ids are sent five times at once.
    pub(crate) const HERD: Self = Self(2);
    /// One key gets many records.
    pub(crate) const HOT: Self = Self(4);
    /// Poison is first, in the middle or last in each batch.
    pub(crate) const POISON: Self = Self(8);
    /// Connections are cut during an upload.
    pub(crate) const CUT: Self = Self(16);
}

/// The clients and their history.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) seed: u64,
    /// URLs of the serve processes.
    urls: Vec<String>,
    /// Records a second, over all clients.
    rate: f64,
    http: reqwest::Client,
    history: Mutex<History>,
    modes: AtomicU32,
    over: AtomicBool,
    gives_up: AtomicBool,
    /// How many faults hold the load, and how many clients wait for the answers to a request.
    holds: AtomicU32,
    requests: AtomicU32,
}

/// The load is held until this is dropped: clients begin no request.
#[derive(Debug)]
pub(crate) struct Held(Arc<Load>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.holds.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Load {
    /// Load on these serve processes.
    pub(crate) fn new(seed: u64, urls: Vec<String>, rate: f64) -> Arc<Self> {
        Arc::new(Self {
            seed,
            urls,
            rate,
            http: reqwest::Client::new(),
            history: Mutex::default(),
            modes: AtomicU32::new(0),
            over: AtomicBool::new(false),
            gives_up: AtomicBool::new(false),
            holds: AtomicU32::new(0),
            requests: AtomicU32::new(0),
        })
    }

    /// The sent entries and their answers.
    pub(crate) fn history(&self) -> MutexGuard<'_, History> {
        self.history.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Switches a mode.
    pub(crate) fn set(&self, mode: Mode, on: bool) {
        if on {
            self.modes.fetch_or(mode.0, Ordering::Relaxed);
        } else {
            self.modes.fetch_and(!mode.0, Ordering::Relaxed);
        }
    }

    fn has(&self, mode: Mode) -> bool {
        self.modes.load(Ordering::Relaxed) & mode.0 != 0
    }

    /// Holds the load, and waits until each client has the answers to its request. `None`: one had not in time.
    pub(crate) async fn hold(self: &Arc<Self>, timeout: Duration) -> Option<Held> {
        self.holds.fetch_add(1, Ordering::Relaxed);
        let held = Held(Arc::clone(self));
        eventually(timeout, async || self.requests.load(Ordering::Relaxed) == 0).await.then_some(held)
    }

    fn is_held(&self) -> bool {
        self.holds.load(Ordering::Relaxed) > 0
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn gives_up(&self) -> bool {
        self.gives_up.load(Ordering::Relaxed)
    }

    /// Starts the clients of a round.
    pub(crate) fn start(self: &Arc<Self>, round: u64) -> JoinSet<()> {
        self.over.store(false, Ordering::Relaxed);
        self.gives_up.store(false, Ordering::Relaxed);
        let mut clients = JoinSet::new();
        for author in 0..AUTHORS {
            clients.spawn_local(Client::new(self, author, round).run());
        }
        clients
    }

    /// New records for one large batch of one shard. None of them is poison for another reason.
    pub(crate) fn begin_large(&self, records: usize) -> Vec<Code> {
        let mut history = self.history();
        let codes = std::iter::repeat_with(|| history.begin(LARGE));
        codes.filter(|code| !Content::of(self.seed, *code).is_poison()).take(records).collect()
    }

    /// New ids that are sent to many destinations.
    pub(crate) fn begin_colliding(&self, ids: usize) -> Vec<Code> {
        self.begin_unordered(COLLIDE, ids)
    }

    /// New pairs of records: one that becomes a dead letter, and one that makes its total large enough.
    pub(crate) fn begin_pairs(&self, pairs: usize) -> Vec<(Code, Code)> {
        self.begin_unordered(DECIDED, 2 * pairs).chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()
    }

    fn begin_unordered(&self, author: u16, records: usize) -> Vec<Code> {
        let mut history = self.history();
        let codes: Vec<Code> = (0..records).map(|_| history.begin(author)).collect();
        codes.iter().for_each(|code| history.flag(*code, UNORDERED, true));
        codes
    }

    /// The newest accepted records of the clients, at most `most`, each of which was sent with one content.
    pub(crate) fn newest(&self, most: usize) -> Vec<Code> {
        let mut history = self.history();
        let mut codes = Vec::new();
        for author in 0..CLIENTS {
            let newest = (0..history.count(author)).rev().map(|n| Code::new(author, n));
            let accepted = |code: &Code| {
                history.known(*code).is_some_and(|known| known.taken > 0 && !known.is(VARIED) && !known.is(MANY))
            };
            codes.extend(newest.filter(accepted).take(most / usize::from(CLIENTS)));
        }
        codes
    }

    /// Sends records in one request, again until each is accepted.
    pub(crate) async fn send(self: &Arc<Self>, codes: Vec<Code>) {
        Client::new(self, LARGE, 0).large(codes).await;
    }

    /// Sends a record of no client, alone. Returns the status; `None`: there was no answer.
    pub(crate) async fn send_unknown(&self, id: &str) -> Option<u16> {
        let record = serde_json::json!({"recordId": id, "time": "2026-01-31T12:00:00Z", "sourceId": "disk",
            "destinationId": id, "type": "positive", "value": "1", "unit": "EUR", "reference": "bit"});
        let request = self.http.post(format!("{}/records", self.urls[0])).bearer_auth(KEY);
        let request = request.header("content-type", "application/json").body(record.to_string());
        Some(request.timeout(Duration::from_secs(5)).send().await.ok()?.status().as_u16())
    }

    /// Requests an action of an administrator once. Returns the status; `None`: there was no answer.
    pub(crate) async fn act(&self, serve: usize, path: &str) -> Option<u16> {
        let url = format!("{}{path}", self.urls[serve % self.urls.len()]);
        let request = self.http.post(url).bearer_auth(KEY).timeout(Duration::from_secs(5));
        Some(request.send().await.ok()?.status().as_u16())
    }

    /// No more new requests; each client finishes those in flight.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    /// Clients stop repeating entries that are not accepted.
    pub(crate) fn give_up(&self) {
        self.gives_up.store(true, Ordering::Relaxed);
    }
}
