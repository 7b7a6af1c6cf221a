//! Millrace: streams of business records into exact totals, notifications and alerts.
//!
//! The tree shows the data's way: `accept` (HTTP in → stream), `worker` (own, decide, commit), `publish` (publishers and
//! sinks), and `query` (queries) beside it; `domain` is pure; Redis is spoken to only in `streams`, SQL stands only in `store`.

/// Prints a line for the person at the terminal; one who has gone away, as `head` does, is no error.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

pub mod accept;
pub mod commands;
pub mod config;
pub mod domain;
pub mod fault;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
pub mod http;
pub mod lifecycle;
mod listen;
pub mod publish;
pub mod query;
pub mod status;
pub mod store;
pub mod streams;
pub mod telemetry;
pub mod worker;
