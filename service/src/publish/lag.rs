//! Lag of sinks: committed outcomes above a sink's cursor.

use std::collections::BTreeMap;

use crate::{
    domain::{OutcomeKind, Seq, ShardId, ShardSeq},
    store::{self, ShardCounts, SinkBeginning, Store, WebhookCursor},
    streams::Cursor,
};

/// A sink and its position.
#[derive(Debug, Clone, Copy)]
pub struct SinkPosition<'a> {
    /// Its outcomes.
    pub kind: OutcomeKind,
    /// Where it began; `None` before it is added.
    pub beginning: Option<&'a SinkBeginning>,
    /// Its cursor; `None`: it has none. A cursor of another pipeline counts as none.
    pub cursor: Option<&'a Cursor>,
}

impl SinkPosition<'_> {
    /// The highest published number of a shard, or the number after which the sink begins.
    fn at(&self, shard: ShardId, pipeline_id: &str) -> Seq {
        let begins = self.beginning.and_then(|beginning| beginning.begins_after(shard)).unwrap_or_default();
        let cursor = self.cursor.filter(|cursor| cursor.pipeline_id.as_deref() == Some(pipeline_id));
        cursor.and_then(|cursor| cursor.numbers.get(&shard)).copied().unwrap_or(begins).max(begins)
    }
}

/// The lag of a sink in each shard; none of a complete one.
///
/// # Errors
/// When Postgres does not answer.
pub async fn sink_lag(
    store: &Store,
    shards: &[ShardCounts],
    sink: SinkPosition<'_>,
    pipeline_id: &str,
) -> Result<BTreeMap<ShardId, i64>, store::Error> {
    if sink.beginning.is_some_and(|beginning| beginning.completed) {
        return Ok(shards.iter().map(|shard| (shard.shard, 0)).collect());
    }
    if let OutcomeKind::Alert | OutcomeKind::TotalAlert = sink.kind {
        let place = |shard: &ShardCounts| ShardSeq { shard: shard.shard, seq: sink.at(shard.shard, pipeline_id) };
        return store
            .alerts_above(&shards.iter().map(place).collect::<Vec<_>>(), sink.kind == OutcomeKind::TotalAlert)
            .await;
    }
    let lag = |shard: &ShardCounts| {
        let highest = shard.watermarks().of(sink.kind.sequence());
        (shard.shard, highest.above(sink.at(shard.shard, pipeline_id)))
    };
    Ok(shards.iter().map(lag).collect())
}

/// The cursor of a webhook, as that of a Redis stream.
#[must_use]
pub fn webhook_cursor(cursors: &[WebhookCursor], sink: &str, pipeline_id: &str) -> Cursor {
    let numbers = cursors.iter().filter(|cursor| cursor.sink == sink).map(|cursor| (cursor.shard, cursor.cursor));
    Cursor { pipeline_id: Some(pipeline_id.to_owned()), numbers: numbers.collect() }
}
