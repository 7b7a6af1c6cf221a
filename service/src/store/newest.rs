//! The server that connections lead to.
//!
//! It must never let a connection to a replaced server be used again.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A server, identified by its start time in microseconds. A server that was restored, or replaced another one,
/// differs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Server(pub(super) i64);

/// The server of the newest connection, and when it was first seen.
#[derive(Debug, Default)]
pub(super) struct NewestServer(pub(super) Mutex<(Server, Option<Instant>)>);

impl NewestServer {
    pub(super) fn get(&self) -> (Server, Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn see(&self, server: Server) {
        let mut newest = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if newest.0 != server {
            *newest = (server, Some(Instant::now()));
        }
    }

    /// Ends the connections that are older than this call, each before its next use.
    pub(super) fn renew(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1 = Some(Instant::now());
    }

    /// Whether a connection of this age leads to the newest server. An older one leads to a replaced server, which may
    /// still run and return outdated rows.
    pub(super) fn is_of(&self, age: Duration) -> bool {
        self.get().1.is_none_or(|since| age <= since.elapsed())
    }
}
