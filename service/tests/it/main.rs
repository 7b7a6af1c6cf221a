//! Whole processes against real servers, each guarantee by a test that names it. Run with the feature `fault-points`.
//!
//! Tests run in parallel; each has its own database and its own prefix of Redis keys. A test waits for conditions,
//! never for a fixed time in their place.
#![cfg(feature = "fault-points")]
#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod access;
mod archive;
mod console;
mod counts;
mod crash;
mod dead_letters;
mod entries;
mod expired;
mod export;
mod failover;
mod group;
mod harness;
mod health;
mod history;
mod http;
mod https;
mod identity;
mod inject;
mod keys;
mod limits;
mod many;
mod oidc;
mod outage;
mod outcome;
mod pods;
mod points;
mod poison;
mod policy;
mod poolers;
mod query;
mod rate_limits;
mod recovery;
mod recreated;
mod refuse;
mod refusing;
mod restricted;
mod retention;
mod reversals;
mod rewinds;
mod roles;
mod rollups;
mod secrets;
mod security;
mod send;
mod share;
mod sinks;
mod standby;
mod start;
mod stress;
mod take;
mod tls;
mod together;
mod total_alerts;
mod verify;
mod webhooks;
