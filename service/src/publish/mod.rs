//! Publishers: one per shard and sink, from the log to where it goes.
//!
//! Must never delay the processing or another sink, and must never publish what is not committed and acknowledged: its
//! numbers may be given again.

mod lag;
mod publisher;
mod recent_commits;
pub mod render;
mod sink_reconciler;

pub use lag::{SinkPosition, sink_lag};
pub use publisher::Publisher;
pub use recent_commits::RecentCommits;
pub use sink_reconciler::{ActiveSink, SinkReconciler};
