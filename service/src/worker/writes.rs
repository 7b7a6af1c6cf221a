//! Since when Postgres takes this worker's writes.
//!
//! A serve process whose last note is old is dead, or could not write. It counts as dead only while the worker that judges
//! it could write itself.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A write that takes longer met a lock, and others may wait still.
const SLOW: Duration = Duration::from_secs(1);
/// How long writes must be taken until a process that noted nothing is dead: longer than the process that waited for the
/// same Postgres needs for its next note.
const STEADY: Duration = Duration::from_secs(6);

/// Since when Postgres has taken writes without a break; not at first.
#[derive(Debug, Default)]
pub struct Writes(Mutex<Option<Instant>>);

impl Writes {
    /// A write that began at `began` was taken.
    pub(super) fn taken(&self, began: Instant) {
        let mut since = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if since.is_none() || began.elapsed() > SLOW {
            *since = Some(Instant::now());
        }
    }

    /// A write was not taken.
    pub(super) fn refused(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Whether whoever lives has had time to write.
    pub(super) fn are_steady(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|since| since.elapsed() > STEADY)
    }
}
