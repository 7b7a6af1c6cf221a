//! Since when Postgres accepts this worker's writes.
//!
//! A producer whose last note is old is dead, or could not write. It counts as dead only while the worker could write
//! itself.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A write that takes longer met a lock, and others may still wait.
const SLOW: Duration = Duration::from_secs(1);
/// How long Postgres must accept writes until a producer without a note is dead: longer than a producer that waited for the
/// same Postgres needs for its next note.
const STEADY: Duration = Duration::from_secs(6);

/// Since when Postgres has accepted writes without a break; `None` at first.
#[derive(Debug, Default)]
pub struct Writes(Mutex<Option<Instant>>);

impl Writes {
    /// Notes that a write that began at `began` was accepted.
    pub(super) fn taken(&self, began: Instant) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_none() || began.elapsed() > SLOW {
            *since = Some(Instant::now());
        }
    }

    /// Notes that a write was refused.
    pub(super) fn refused(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether every live producer has had time to write.
    pub(super) fn are_steady(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|since| since.elapsed() > STEADY)
    }
}
