//! Millrace: streams of business records into exact totals, notifications and alerts.
//!
//! The folders follow the data: `accept` (HTTP to stream), `worker` (own, decide, commit), `publish` (publishers and
//! sinks), and `query` beside it. `domain` is pure. Only `streams` uses Redis, only `store` has SQL.

/// Prints a line on standard output; a closed one, as after `| head`, is no error.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

pub mod accept;
pub mod archive;
pub mod board;
pub mod commands;
pub mod config;
mod console;
pub mod domain;
pub mod fault;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
pub mod lifecycle;
mod listen;
pub mod protocol_trace;
pub mod publish;
pub mod query;
pub mod routes;
pub mod status;
pub mod store;
pub mod streams;
pub mod telemetry;
pub mod tls;
mod url;
pub mod webhook;
pub mod worker;
