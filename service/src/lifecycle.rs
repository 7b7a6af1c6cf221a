//! Start and end of a process: who owns its tasks, and how it stops.
//!
//! No task without an owner: each is spawned by [`Lifecycle::spawn`], and the process ends with failure when one dies.

use std::{
    collections::BTreeMap,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Stopping in two steps, and the tasks that are to be waited for.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    /// Cancelled first: take nothing new, finish what is held.
    pub soft: CancellationToken,
    /// Cancelled on a second signal or when time is up: drop everything. Parent of `soft`.
    pub hard: CancellationToken,
    tracker: TaskTracker,
    failure: Arc<Mutex<Option<String>>>,
    /// Which loops move.
    pub vitals: Vitals,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self::new()
    }
}

impl Lifecycle {
    /// A process that runs.
    #[must_use]
    pub fn new() -> Self {
        let hard = CancellationToken::new();
        Self {
            soft: hard.child_token(),
            hard,
            tracker: TaskTracker::new(),
            failure: Arc::default(),
            vitals: Vitals::default(),
        }
    }

    /// Runs a task that this process owns. When it fails or panics, or ends before `soft` was cancelled, the process
    /// stops and ends with failure.
    pub fn spawn<F>(&self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let this = self.clone();
        let running = tokio::spawn(task);
        self.tracker.spawn(async move {
            let abort = running.abort_handle();
            let outcome = tokio::select! {
                outcome = running => outcome,
                () = this.hard.cancelled() => { abort.abort(); return; }
            };
            let failure = match outcome {
                Ok(Ok(())) if this.soft.is_cancelled() => return,
                Ok(Ok(())) => "ended early".to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(error) => error.to_string(),
            };
            tracing::error!(task = name, failure, "lifecycle.task.died");
            this.failure
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner)
                .get_or_insert(format!("{name}: {failure}"));
            this.soft.cancel();
        });
    }

    /// Waits until the process is told to stop (SIGTERM, SIGINT, or a task that died), then until all tasks have ended.
    ///
    /// # Errors
    /// What the first task that died said.
    pub async fn run(self, longest_stop: Duration) -> anyhow::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let mut next = async || {
            tokio::select! { _ = term.recv() => "SIGTERM", _ = int.recv() => "SIGINT" }
        };
        tokio::select! {
            signal = next() => {
                tracing::info!(signal, "lifecycle.process.stopping");
                self.soft.cancel();
            }
            () = self.soft.cancelled() => {}
        }
        self.tracker.close();
        tokio::select! {
            () = self.tracker.wait() => {}
            signal = next() => tracing::warn!(signal, "lifecycle.process.stopped_at_once"),
            () = tokio::time::sleep(longest_stop) => tracing::warn!("lifecycle.process.stopped_late"),
        }
        self.hard.cancel();
        let failure = self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        failure.map_or(Ok(()), |failure| Err(anyhow::anyhow!(failure)))
    }
}

/// Which loops move: each beats at every pass that did its work.
#[derive(Debug, Clone, Default)]
pub struct Vitals(Arc<Mutex<BTreeMap<String, Arc<Beat>>>>);

/// One loop's beat.
#[derive(Debug)]
pub struct Beat {
    longest: Duration,
    born: Instant,
    last_ms: AtomicU64,
}

impl Beat {
    /// Says that the loop did a pass.
    pub fn beat(&self) {
        self.last_ms.store(self.born.elapsed().as_millis() as u64, Ordering::Relaxed);
    }

    fn is_still(&self) -> bool {
        let now = self.born.elapsed().as_millis() as u64;
        now.saturating_sub(self.last_ms.load(Ordering::Relaxed)) > self.longest.as_millis() as u64
    }
}

impl Vitals {
    /// Registers a loop that beats at least every `longest` while it is well.
    #[must_use]
    pub fn register(&self, name: impl Into<String>, longest: Duration) -> Arc<Beat> {
        let beat = Arc::new(Beat { longest, born: Instant::now(), last_ms: AtomicU64::new(0) });
        self.lock().insert(name.into(), Arc::clone(&beat));
        beat
    }

    /// Forgets a loop that ended in order.
    pub fn forget(&self, name: &str) {
        self.lock().remove(name);
    }

    /// Names of loops that have stood still for too long; empty: ready.
    #[must_use]
    pub fn still(&self) -> Vec<String> {
        self.lock().iter().filter(|(_, beat)| beat.is_still()).map(|(name, _)| name.clone()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Beat>>> {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
