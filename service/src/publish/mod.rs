//! Publishers: one per shard and sink, from the log to where it goes.
//!
//! Must never delay the processing or another sink, and must never publish what is not committed and acknowledged: its
//! numbers may be given again.

mod floor;
mod lag;
mod outcomes;
mod publisher;
mod recent_commits;
pub mod render;
mod resume;
mod sink;
mod sink_reconciler;
mod state;
mod webhook;

pub use floor::{Floor, floors};
pub use lag::{SinkPosition, sink_lag, webhook_cursor};
pub use recent_commits::RecentCommits;
pub use resume::{ResumeError, ResumeFrom, find_sink, has_cursor, is_halted, resume_sink};
pub use sink::{ActiveSink, Publisher, Target, WebhookTarget};
pub use sink_reconciler::SinkReconciler;
pub use webhook::WebhookSecrets;
