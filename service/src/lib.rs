//! Millrace: streams of business records into exact totals, notifications and alerts.
//!
//! The tree shows the data's way: `accept` (HTTP in → stream), `process` (own, decide, commit), `publish` (lanes and
//! sinks), and `ask` (queries) beside it; `domain` is pure; Redis is spoken to only in `streams`, SQL stands only in `store`.

pub mod accept;
pub mod ask;
pub mod commands;
pub mod config;
pub mod domain;
pub mod fault;
pub mod http;
pub mod lifecycle;
pub mod process;
pub mod publish;
pub mod store;
pub mod streams;
pub mod telemetry;
