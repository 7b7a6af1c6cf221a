//! Waiting for outcomes: one poller for all who wait, which asks Postgres only while somebody does.
//!
//! Must never ask once per waiter, and must never keep a request longer than it asked for.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::sync::{Notify, oneshot};
use tokio_util::sync::CancellationToken;

use crate::{
    lifecycle::Heartbeat,
    store::{self, Applied, Awaited, Store},
};

/// Pause between two questions.
const PAUSE: Duration = Duration::from_millis(10);
/// Longest pause while Postgres cannot be asked.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    /// No poller comes any more.
    closed: bool,
    by_ticket: HashMap<u64, (Awaited, oneshot::Sender<Applied>)>,
}

/// All who wait in this process.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    waiting: Mutex<Waiting>,
    came: Notify,
}

/// Takes the waiter off the list however its wait ends.
struct Ticket<'a>(&'a Waiters, u64);

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.0.lock().by_ticket.remove(&self.1);
    }
}

impl Waiters {
    fn lock(&self) -> std::sync::MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The outcome of the entry; `None` after a timeout, or when the process stops.
    pub(super) async fn wait(&self, entry: Awaited, longest: Duration) -> Option<Applied> {
        let (sender, receiver) = oneshot::channel();
        let ticket = {
            let mut waiting = self.lock();
            if waiting.closed {
                return None;
            }
            let ticket = waiting.next;
            waiting.next += 1;
            waiting.by_ticket.insert(ticket, (entry, sender));
            Ticket(self, ticket)
        };
        self.came.notify_one();
        let applied = tokio::time::timeout(longest, receiver).await.ok().and_then(Result::ok);
        drop(ticket);
        applied
    }

    /// Answers waiters until `stop`; then it answers the others as after a timeout.
    pub(super) async fn poll(&self, store: &Store, stop: &CancellationToken, heartbeat: &Heartbeat) {
        let mut pause = PAUSE;
        loop {
            heartbeat.record();
            let batch: Vec<(u64, Awaited)> = {
                let waiting = self.lock();
                waiting.by_ticket.iter().map(|(ticket, (entry, _))| (*ticket, entry.clone())).collect()
            };
            if batch.is_empty() {
                tokio::select! {
                    () = self.came.notified() => continue,
                    // A pass now and then shows that this loop moves.
                    () = tokio::time::sleep(LONGEST_PAUSE) => continue,
                    () = stop.cancelled() => break,
                }
            }
            let entries: Vec<Awaited> = batch.iter().map(|(_, entry)| entry.clone()).collect();
            let answer = tokio::select! {
                answer = store::within(store.outcomes_of(&entries)) => answer,
                () = stop.cancelled() => break,
            };
            match answer {
                Ok(applied) => {
                    pause = PAUSE;
                    let mut waiting = self.lock();
                    for (index, applied) in applied {
                        if let Some((_, sender)) =
                            batch.get(index).and_then(|(ticket, _)| waiting.by_ticket.remove(ticket))
                        {
                            // A receiver that is gone stopped waiting in this moment.
                            let _ = sender.send(applied);
                        }
                    }
                }
                Err(error) => {
                    if pause == PAUSE {
                        tracing::warn!(event = "accept.outcomes.unavailable", %error, "Postgres cannot be asked for outcomes; requests with Prefer: wait are answered 202");
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => break,
            }
        }
        let mut waiting = self.lock();
        waiting.closed = true;
        waiting.by_ticket.clear();
    }
}
