//! Load: several clients over HTTP, and the answers that they got.

mod client;
pub(crate) mod history;
pub(crate) mod record;
mod send;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use tokio::task::JoinSet;

use client::Client;
use history::History;
use record::{AUTHORS, Code, Content, LARGE};

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

    /// Sends a large batch in one request, again until it is accepted. One is sent at a time.
    pub(crate) async fn send_large(self: &Arc<Self>, codes: Vec<Code>) {
        Client::new(self, LARGE, 0).large(codes).await;
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
