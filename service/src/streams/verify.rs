//! Reads of a sink's stream and cursor for comparison. It must never change anything.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use redis::{Value, cmd, pipe, streams::StreamRangeReply};

use super::{Error, Streams, keys};
use crate::domain::{Seq, ShardId, StreamId};

/// A sink's cursor and the ends of its stream, read in one step.
#[derive(Debug, Clone, Default)]
pub struct SinkSnapshot {
    /// The highest appended number, per shard.
    pub cursor: BTreeMap<ShardId, Seq>,
    /// The generation of the cursor; absent if there is no cursor.
    pub cursor_generation: Option<String>,
    /// The newest id of the stream when the cursor was created: entries up to it are of earlier generations.
    pub behind: Option<StreamId>,
    /// The id of the stream's oldest entry; absent if it has none.
    pub oldest: Option<StreamId>,
    /// The id of the stream's newest entry; absent if it has none.
    pub newest: Option<StreamId>,
    /// Whether entries were removed from the stream, so that it may begin anywhere.
    pub is_trimmed: bool,
    /// The time of Redis's clock.
    pub now: DateTime<Utc>,
}

/// An entry of a sink's stream.
#[derive(Debug, Clone)]
pub struct SinkEntry {
    /// Its id in the stream.
    pub stream_id: String,
    /// Its fields, with replacement characters for bytes that are not UTF-8.
    fields: Vec<(String, String)>,
}

/// Entries of a sink's stream.
#[derive(Debug)]
pub struct SinkPage {
    /// In order.
    pub entries: Vec<SinkEntry>,
    /// The id of the stream's oldest entry, read in the same step.
    pub oldest: Option<StreamId>,
}

impl Streams {
    /// The cursor of a sink with the ends of its stream, read in one step.
    ///
    /// # Errors
    /// When Redis is unavailable.
    pub async fn sink_snapshot(&self, stream: &str) -> Result<SinkSnapshot, Error> {
        let mut connection = self.shared(stream);
        let (cursor, oldest, newest, exists): (HashMap<String, String>, StreamRangeReply, StreamRangeReply, bool) =
            pipe()
                .atomic()
                .hgetall(keys::cursor(stream))
                .cmd("XRANGE")
                .arg(&[stream, "-", "+", "COUNT", "1"])
                .cmd("XREVRANGE")
                .arg(&[stream, "+", "-", "COUNT", "1"])
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
        let (seconds, micros): (i64, u32) = cmd("TIME").query_async(&mut connection).await.map_err(Error::of)?;
        let end = |entries: StreamRangeReply| entries.ids.into_iter().next().and_then(|entry| entry.id.parse().ok());
        Ok(SinkSnapshot {
            cursor_generation: cursor.get("cursor_generation").cloned(),
            behind: cursor.get("behind").and_then(|id| id.parse().ok()),
            cursor: cursor
                .iter()
                .filter_map(|(field, n)| Some((ShardId::new(field.parse().ok()?), Seq::new(n.parse().ok()?))))
                .collect(),
            oldest: end(oldest),
            newest: end(newest),
            is_trimmed,
            now: DateTime::from_timestamp(seconds, micros.saturating_mul(1_000)).unwrap_or_default(),
        })
    }

    /// Entries of a sink's stream after `after` and up to `until`, at most `limit`.
    ///
    /// # Errors
    /// When Redis is unavailable.
    pub async fn sink_page(
        &self,
        stream: &str,
        after: StreamId,
        until: StreamId,
        limit: usize,
    ) -> Result<SinkPage, Error> {
        let mut connection = self.shared(stream);
        let (oldest, page): (StreamRangeReply, Value) = pipe()
            .atomic()
            .cmd("XRANGE")
            .arg(&[stream, "-", "+", "COUNT", "1"])
            .cmd("XRANGE")
            .arg(&[stream, &format!("({after}"), &until.to_string(), "COUNT", &limit.to_string()])
            .query_async(&mut connection)
            .await
            .map_err(Error::of)?;
        let oldest = oldest.ids.first().and_then(|entry| entry.id.parse().ok());
        let Value::Array(page) = page else { return Ok(SinkPage { entries: Vec::new(), oldest }) };
        Ok(SinkPage { entries: page.into_iter().map(SinkEntry::of).collect(), oldest })
    }
}

impl SinkEntry {
    /// A field; the last one where several have this name.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().rev().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    /// An entry of a reply: its id, and its fields' names and values in turn. The reply is moved, not copied: it is most
    /// of what a comparison reads.
    fn of(entry: Value) -> Self {
        let mut parts = array(entry).into_iter();
        let stream_id = parts.next().map(text).unwrap_or_default();
        let mut flat = parts.next().map(array).unwrap_or_default().into_iter();
        let mut fields = Vec::with_capacity(flat.len() / 2);
        while let (Some(name), Some(value)) = (flat.next(), flat.next()) {
            fields.push((text(name), text(value)));
        }
        Self { stream_id, fields }
    }
}

fn array(value: Value) -> Vec<Value> {
    match value {
        Value::Array(values) => values,
        _ => Vec::new(),
    }
}

fn text(value: Value) -> String {
    match value {
        Value::BulkString(bytes) => {
            String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
        }
        Value::SimpleString(text) => text,
        other => format!("{other:?}"),
    }
}
