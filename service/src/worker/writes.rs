//! Since when Postgres accepts this worker's writes.
//!
//! A producer whose last note is old is dead, or could not write. It counts as dead only while the worker could write
//! itself.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::store::Server;

/// A write that takes longer met a lock, and others may still wait.
const SLOW: Duration = Duration::from_secs(1);
/// How long a server must accept writes until a producer without a note is dead: longer than a producer needs for its next
/// note that waited five seconds for a connection to the server before it.
const STEADY: Duration = Duration::from_secs(8);

/// Since when Postgres has accepted writes without a break; `None` at first.
#[derive(Debug, Default)]
pub struct Writes(Mutex<Option<Since>>);

#[derive(Debug, Clone, Copy)]
struct Since {
    at: Instant,
    /// The server that accepts them.
    server: Server,
}

impl Writes {
    /// Notes that a write that began at `began` was accepted by this server.
    pub(super) fn taken(&self, began: Instant, server: Server) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_none_or(|since| since.server != server) || began.elapsed() > SLOW {
            *since = Some(Since { at: Instant::now(), server });
        }
    }

    /// Notes that a write was refused.
    pub(super) fn refused(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether every live producer has had time to write to this server.
    pub(super) fn are_steady(&self, server: Server) -> bool {
        let since = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        since.is_some_and(|since| since.server == server && since.at.elapsed() > STEADY)
    }
}
