//! Start and end of a process: ownership of its tasks, and the order of its stop.
//!
//! No task without an owner: each is spawned by [`Lifecycle::spawn`], and the process ends with failure when one fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::board::Board;

/// Two stop signals, and the tasks that the process waits for.
#[derive(Debug, Clone)]
pub struct Lifecycle {
    /// Cancelled first: tasks take nothing new and finish their work.
    pub soft: CancellationToken,
    /// Cancelled on a second signal or after a timeout: tasks are dropped. Parent of `soft`.
    pub hard: CancellationToken,
    tracker: TaskTracker,
    /// Names of running tasks; two of one name are one element until either ends.
    running: Arc<Mutex<BTreeSet<&'static str>>>,
    failure: Arc<Mutex<Option<String>>>,
    /// Heartbeats of the loops.
    pub heartbeats: Heartbeats,
    /// Current problems of the process.
    pub board: Board,
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
            running: Arc::default(),
            failure: Arc::default(),
            heartbeats: Heartbeats::default(),
            board: Board::default(),
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
        lock(&self.running).insert(name);
        self.tracker.spawn(async move {
            let abort = running.abort_handle();
            let outcome = tokio::select! {
                outcome = running => outcome,
                () = this.hard.cancelled() => { abort.abort(); return; }
            };
            lock(&this.running).remove(name);
            let failure = match outcome {
                Ok(Ok(())) if this.soft.is_cancelled() => return,
                Ok(Ok(())) => "ended early".to_owned(),
                Ok(Err(error)) => format!("{error:#}"),
                Err(error) => error.to_string(),
            };
            tracing::error!(
                event = "lifecycle.task.failed",
                task = name,
                failure,
                "a task ended with a failure; the process stops"
            );
            lock(&this.failure).get_or_insert(format!("{name}: {failure}"));
            this.soft.cancel();
        });
    }

    /// Runs `start`, then until a stop is requested, which may be during the start.
    ///
    /// # Errors
    /// The error of the start, or as [`Self::run`].
    pub async fn run_from(
        self,
        start: impl Future<Output = anyhow::Result<()>>,
        longest_stop: Duration,
    ) -> anyhow::Result<()> {
        let soft = self.soft.clone();
        let running = self.run(longest_stop);
        tokio::pin!(running);
        let started = tokio::select! {
            started = start => started,
            ended = &mut running => return ended,
        };
        match started {
            // The stop interrupted the start: no failure.
            Err(error) if !soft.is_cancelled() => Err(error),
            _ => running.await,
        }
    }

    /// Waits for SIGTERM, SIGINT or a failed task, then until all tasks have ended.
    ///
    /// # Errors
    /// The first failure of a task; or that tasks were dropped, by a second signal or after `longest_stop`.
    pub async fn run(self, longest_stop: Duration) -> anyhow::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};
        let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let next = async || {
            tokio::select! { _ = term.recv() => "SIGTERM", _ = int.recv() => "SIGINT" }
        };
        self.run_with(next, longest_stop).await
    }

    async fn run_with(self, mut next: impl AsyncFnMut() -> &'static str, longest_stop: Duration) -> anyhow::Result<()> {
        tokio::select! {
            signal = next() => {
                tracing::info!(event = "lifecycle.process.stopping", signal, "the process stops");
                self.soft.cancel();
            }
            () = self.soft.cancelled() => {}
        }
        self.tracker.close();
        let dropped = tokio::select! {
            () = self.tracker.wait() => None,
            signal = next() => Some(format!("a second signal ({signal})")),
            () = tokio::time::sleep(longest_stop) => Some(format!("{longest_stop:?} that were not enough to stop in order")),
        };
        let dropped = dropped.map(|cause| {
            let tasks = lock(&self.running).iter().copied().collect::<Vec<_>>().join(", ");
            tracing::warn!(
                event = "lifecycle.process.aborted",
                tasks,
                cause,
                "the process ends without waiting for its tasks"
            );
            format!("dropped {tasks} after {cause}")
        });
        self.hard.cancel();
        // A dropped task ends at its next await; a task without one ends with the process.
        let _ = tokio::time::timeout(Duration::from_secs(1), self.tracker.wait()).await;
        match lock(&self.failure).take().or(dropped) {
            Some(failure) => Err(anyhow::anyhow!(failure)),
            None => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Heartbeats of all loops: each loop records one at every completed pass.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats(Arc<Mutex<BTreeMap<String, Arc<Heartbeat>>>>);

/// The heartbeat of one loop.
#[derive(Debug)]
pub struct Heartbeat {
    longest: Duration,
    registered: Instant,
    /// Milliseconds from the registration to the last pass, plus 1; 0: no pass yet.
    last_ms: AtomicU64,
}

impl Heartbeat {
    /// Records that the loop completed a pass.
    pub fn record(&self) {
        self.last_ms.store(self.registered.elapsed().as_millis() as u64 + 1, Ordering::Relaxed);
    }

    fn is_stalled(&self) -> bool {
        let (now, last) = (self.registered.elapsed().as_millis() as u64 + 1, self.last_ms.load(Ordering::Relaxed));
        last == 0 || now.saturating_sub(last) > self.longest.as_millis() as u64
    }
}

impl Heartbeats {
    /// Registers a loop that completes a pass at least every `longest` while it is healthy. Until its first pass it is
    /// stalled.
    #[must_use]
    pub fn register(&self, name: impl Into<String>, longest: Duration) -> Arc<Heartbeat> {
        let heartbeat = Arc::new(Heartbeat { longest, registered: Instant::now(), last_ms: AtomicU64::new(0) });
        self.lock().insert(name.into(), Arc::clone(&heartbeat));
        heartbeat
    }

    /// Removes a loop that ended in order.
    pub fn remove(&self, name: &str) {
        self.lock().remove(name);
    }

    /// Names of the stalled loops; empty: ready. Before the first registration it is `start`.
    #[must_use]
    pub fn stalled(&self) -> Vec<String> {
        let loops = self.lock();
        if loops.is_empty() {
            return vec!["start".to_owned()];
        }
        loops.iter().filter(|(_, heartbeat)| heartbeat.is_stalled()).map(|(name, _)| name.clone()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<Heartbeat>>> {
        lock(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use anyhow::bail;
    use tokio::sync::mpsc;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    /// Runs with signals from a channel: real ones would reach all tests of the process.
    async fn run(lifecycle: Lifecycle, signals: &[&'static str], longest_stop: Duration) -> anyhow::Result<()> {
        let (sender, mut receiver) = mpsc::unbounded_channel();
        signals.iter().for_each(|signal| sender.send(*signal).unwrap());
        lifecycle.run_with(async || receiver.recv().await.unwrap(), longest_stop).await
    }

    #[tokio::test]
    async fn a_failed_task_stops_the_others_and_the_process_fails() {
        type Way = (&'static str, fn(&Lifecycle));
        let ways: [Way; 3] = [
            ("publisher: no route", |lifecycle| lifecycle.spawn("publisher", async { bail!("no route") })),
            ("publisher: ended early", |lifecycle| lifecycle.spawn("publisher", async { Ok(()) })),
            ("boom", |lifecycle| lifecycle.spawn("publisher", async { panic!("boom") })),
        ];
        for (message, fail) in ways {
            let lifecycle = Lifecycle::new();
            let (soft, drained) = (lifecycle.soft.clone(), Arc::new(AtomicU64::new(0)));
            let counter = Arc::clone(&drained);
            lifecycle.spawn("shard", async move {
                soft.cancelled().await;
                counter.store(1, Ordering::SeqCst);
                Ok(())
            });
            fail(&lifecycle);
            let failure = run(lifecycle, &[], LONG).await.unwrap_err().to_string();
            assert!(failure.contains(message), "{failure}");
            assert_eq!(drained.load(Ordering::SeqCst), 1, "the other task finished its work");
        }
    }

    #[tokio::test]
    async fn a_signal_stops_in_order() {
        let lifecycle = Lifecycle::new();
        let soft = lifecycle.soft.clone();
        lifecycle.spawn("shard", async move {
            soft.cancelled().await;
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(())
        });
        run(lifecycle, &["SIGTERM"], LONG).await.unwrap();
    }

    #[tokio::test]
    async fn a_second_signal_drops_what_still_runs() {
        let lifecycle = Lifecycle::new();
        let hard = lifecycle.hard.clone();
        lifecycle.spawn("shard", pending());
        let failure = run(lifecycle, &["SIGTERM", "SIGINT"], LONG).await.unwrap_err().to_string();
        assert_eq!(failure, "dropped shard after a second signal (SIGINT)");
        assert!(hard.is_cancelled());
    }

    #[tokio::test]
    async fn a_stop_that_takes_too_long_is_cut() {
        let lifecycle = Lifecycle::new();
        lifecycle.spawn("publisher", pending());
        lifecycle.soft.cancel();
        let failure = run(lifecycle, &[], Duration::from_millis(20)).await.unwrap_err().to_string();
        assert!(failure.starts_with("dropped publisher after 20ms"), "{failure}");
    }

    #[tokio::test]
    async fn a_hard_stop_is_a_soft_stop_too() {
        let lifecycle = Lifecycle::new();
        lifecycle.hard.cancel();
        assert!(lifecycle.soft.is_cancelled());
    }

    #[test]
    fn heartbeats_name_the_stalled_loops() {
        let heartbeats = Heartbeats::default();
        assert_eq!(heartbeats.stalled(), ["start"], "nothing moves yet");
        let moving = heartbeats.register("moving", LONG);
        assert_eq!(heartbeats.stalled(), ["moving"], "it did no pass yet");
        moving.record();
        let _stalled = heartbeats.register("stalled", Duration::ZERO);
        std::thread::sleep(Duration::from_millis(3));
        assert_eq!(heartbeats.stalled(), ["stalled"]);
        heartbeats.remove("stalled");
        assert!(heartbeats.stalled().is_empty());
    }
}
