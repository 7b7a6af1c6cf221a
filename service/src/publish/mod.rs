//! Lanes: one per shard and sink, from the log to where it goes.
//!
//! Must never delay the processing or another sink, and must never publish what is not committed and acknowledged: its
//! numbers may be given again.

mod feed;
mod keeper;
mod lane;
pub mod render;

pub use feed::Feed;
pub use keeper::{ActiveSink, Keeper};
pub use lane::Lane;
