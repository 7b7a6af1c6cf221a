//! Reads of a sink's stream and cursor for comparison. It must never change anything.

use std::collections::{BTreeMap, HashMap};

use redis::{
    RedisResult, Value, cmd, pipe,
    streams::{StreamId as Ranged, StreamRangeReply},
};

use super::{Error, Streams, keys};
use crate::domain::{Seq, ShardId, StreamId};

/// A sink's cursor and the end of its stream, read in one step.
#[derive(Debug, Clone, Default)]
pub struct SinkSnapshot {
    /// The highest appended number, per shard.
    pub cursor: BTreeMap<ShardId, Seq>,
    /// The generation of the cursor; absent if there is no cursor.
    pub cursor_generation: Option<String>,
    /// The newest id of the stream when the cursor was created: entries up to it are of earlier generations.
    pub behind: Option<StreamId>,
    /// The id of the stream's newest entry; absent if it has none.
    pub newest: Option<String>,
    /// Whether entries were removed from the stream, so that it may begin anywhere.
    pub is_trimmed: bool,
}

/// An entry of a sink's stream.
#[derive(Debug, Clone)]
pub struct SinkEntry {
    /// Its id in the stream.
    pub stream_id: String,
    /// Its fields, with replacement characters for bytes that are not UTF-8.
    pub fields: HashMap<String, String>,
}

impl Streams {
    /// The cursor of a sink with the end of its stream, read in one step.
    ///
    /// # Errors
    /// When Redis is unavailable.
    pub async fn sink_snapshot(&self, stream: &str) -> Result<SinkSnapshot, Error> {
        let mut connection = self.shared(stream);
        let (cursor, newest, exists): (HashMap<String, String>, StreamRangeReply, bool) = pipe()
            .atomic()
            .hgetall(keys::cursor(stream))
            .cmd("XREVRANGE")
            .arg(stream)
            .arg("+")
            .arg("-")
            .arg("COUNT")
            .arg(1)
            .exists(stream)
            .query_async(&mut connection)
            .await
            .map_err(Error::of)?;
        let is_trimmed = if exists {
            let about: HashMap<String, Value> =
                cmd("XINFO").arg("STREAM").arg(stream).query_async(&mut connection).await.map_err(Error::of)?;
            let number = |field: &str| match about.get(field) {
                Some(Value::Int(number)) => *number,
                _ => 0,
            };
            number("entries-added") > number("length")
        } else {
            false
        };
        Ok(SinkSnapshot {
            cursor_generation: cursor.get("cursor_generation").cloned(),
            behind: cursor.get("behind").and_then(|id| id.parse().ok()),
            cursor: cursor
                .iter()
                .filter_map(|(field, n)| Some((ShardId::new(field.parse().ok()?), Seq::new(n.parse().ok()?))))
                .collect(),
            newest: newest.ids.into_iter().next().map(|entry| entry.id),
            is_trimmed,
        })
    }

    /// Entries of a sink's stream after `after` and up to `until`, at most `limit`; and whether they are complete, so
    /// that no entry after `after` was trimmed meanwhile.
    ///
    /// # Errors
    /// When Redis is unavailable.
    pub async fn sink_page(
        &self,
        stream: &str,
        after: Option<&str>,
        until: &str,
        limit: usize,
    ) -> Result<(Vec<SinkEntry>, bool), Error> {
        let mut connection = self.shared(stream);
        let from = after.map_or("-".to_owned(), |after| format!("({after}"));
        let reply: RedisResult<(StreamRangeReply, StreamRangeReply)> = pipe()
            .atomic()
            .cmd("XRANGE")
            .arg(stream)
            .arg("-")
            .arg("+")
            .arg("COUNT")
            .arg(1)
            .cmd("XRANGE")
            .arg(stream)
            .arg(from)
            .arg(until)
            .arg("COUNT")
            .arg(limit)
            .query_async(&mut connection)
            .await;
        let (oldest, page) = reply.map_err(Error::of)?;
        // If the entry `after` is trimmed, entries after it may be trimmed as well.
        let oldest = oldest.ids.first().and_then(|entry| entry.id.parse::<StreamId>().ok());
        let after = after.and_then(|after| after.parse().ok());
        let is_whole = match (after, oldest) {
            (Some(after), Some(oldest)) => oldest <= after,
            (Some(_), None) => false,
            (None, _) => true,
        };
        Ok((page.ids.into_iter().map(SinkEntry::of).collect(), is_whole))
    }
}

impl SinkEntry {
    fn of(entry: Ranged) -> Self {
        let text = |value: Value| match value {
            Value::BulkString(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            other => format!("{other:?}"),
        };
        let fields = entry.map.into_iter().map(|(field, value)| (field, text(value))).collect();
        Self { stream_id: entry.id, fields }
    }
}
