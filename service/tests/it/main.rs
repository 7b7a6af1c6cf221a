//! Whole processes against real servers, each guarantee by a test that names it. Run with the feature `fault-points`.
//!
//! Each test has a database and a prefix of keys of its own, and they run in parallel. Must never take the time that
//! passed for a condition: conditions are waited for.
#![cfg(feature = "fault-points")]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod access;
mod crash;
mod dead_letters;
mod failover;
mod harness;
mod health;
mod history;
mod identity;
mod inject;
mod limits;
mod many;
mod outage;
mod outcome;
mod pods;
mod poison;
mod policy;
mod query;
mod recreated;
mod refuse;
mod refusing;
mod rewinds;
mod send;
mod share;
mod sinks;
mod start;
mod stress;
mod take;
mod together;
