//! Reading a sink's stream and cursor for comparison. Must never change anything.

use std::collections::{BTreeMap, HashMap};

use redis::{
    RedisResult, Value, cmd, pipe,
    streams::{StreamId as Ranged, StreamRangeReply},
};

use super::{Error, Streams, keys};
use crate::domain::StreamId;

/// A sink as it was at one moment: its cursor and the end of its stream belong together.
#[derive(Debug, Clone, Default)]
pub struct SinkState {
    /// Highest number appended, per shard.
    pub cursor: BTreeMap<u16, i64>,
    /// The generation for which the cursor was made; absent: there is no cursor.
    pub cursor_generation: Option<String>,
    /// The newest id of the stream when the cursor was made: entries up to it are of earlier starts.
    pub behind: Option<StreamId>,
    /// Id of the stream's newest entry; absent: it has none.
    pub newest: Option<String>,
    /// Whether entries were taken out of the stream, so that it may begin anywhere.
    pub is_trimmed: bool,
}

/// An entry of a sink's stream.
#[derive(Debug, Clone)]
pub struct SinkEntry {
    /// Its id in the stream.
    pub stream_id: String,
    /// Its fields; what is not UTF-8 is shown as replacement characters.
    pub fields: HashMap<String, String>,
}

impl Streams {
    /// The cursor of a sink with the end of its stream, read in one step.
    ///
    /// # Errors
    /// When Redis cannot be asked.
    pub async fn sink_state(&self, stream: &str) -> Result<SinkState, Error> {
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
        Ok(SinkState {
            cursor_generation: cursor.get("cursor_generation").cloned(),
            behind: cursor.get("behind").and_then(|id| id.parse().ok()),
            cursor: cursor.iter().filter_map(|(field, n)| Some((field.parse().ok()?, n.parse().ok()?))).collect(),
            newest: newest.ids.into_iter().next().map(|entry| entry.id),
            is_trimmed,
        })
    }

    /// Entries after one of a sink's stream and up to another, at most `limit`; and whether the stream still has what
    /// came after the former, or it was trimmed in between.
    ///
    /// # Errors
    /// When Redis cannot be asked.
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
        // The entry that was read last is gone: so may be some that came after it.
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
