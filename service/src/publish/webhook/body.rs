//! The body of a delivery.

use std::fmt::Write as _;

use super::window::Delivery;
use crate::{
    domain::{Seq, ShardId},
    publish::render,
};

/// The body of one attempt. `through`: everything up to this number is delivered, failed for good, or not of the sink.
pub(super) fn of(source: &str, kind: &str, shard: ShardId, delivery: &Delivery, through: Seq) -> String {
    let notice = &delivery.outcome.notice;
    let mut body = String::with_capacity(notice.data.len() + source.len() + 250);
    let previous = render::number(delivery.previous);
    // None of these texts has a character that JSON escapes; the data is JSON.
    let _ = write!(
        body,
        r#"{{"id":"{}","source":"{source}","type":"{kind}","timestamp":"{}","shard":{shard},"seq":{},"previousSeq":{previous},"deliveredThrough":{through},"data":{}}}"#,
        notice.id, notice.time, notice.seq, notice.data
    );
    body
}
