//! The body of a delivery.

use std::fmt::Write as _;

use crate::{
    domain::{Seq, ShardId},
    publish::render,
    streams::Notice,
};

/// What the bodies of a delivery have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct Frame<'a> {
    pub(super) source: &'a str,
    pub(super) kind: &'a str,
    pub(super) shard: ShardId,
    /// The number of the outcome before of the same destination.
    pub(super) previous: Option<Seq>,
    /// Everything up to this number is delivered, failed for good, or not of the sink.
    pub(super) through: Seq,
}

/// The body of one attempt.
pub(super) fn of(frame: Frame<'_>, notice: &Notice) -> String {
    let Frame { source, kind, shard, previous, through } = frame;
    let mut body = String::with_capacity(notice.data.len() + source.len() + 250);
    let previous = render::number(previous);
    // None of these texts has a character that JSON escapes; the data is JSON.
    let _ = write!(
        body,
        r#"{{"id":"{}","source":"{source}","type":"{kind}","timestamp":"{}","shard":{shard},"seq":{},"previousSeq":{previous},"deliveredThrough":{through},"data":{}}}"#,
        notice.id, notice.time, notice.seq, notice.data
    );
    body
}
