//! The purge of a pipeline: removes its streams, and the keys beside them.
//!
//! It must never remove a stream of another pipeline: the script compares the id beside the stream first.

use std::sync::LazyLock;

use redis::{Script, Value, from_redis_value};

use super::{Error, Streams, keys};
use crate::domain::{ShardId, SinkStream};

static PURGE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/purge.lua")));

/// A stream of a pipeline, and the key beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holding {
    /// The stream's key.
    pub stream: String,
    /// The key beside it: the fence or the cursor.
    beside: String,
    /// The sink of the stream; `None` for an input stream.
    sink: Option<String>,
    /// The id of its pipeline; `None` if no key holds it.
    pub pipeline_id: Option<String>,
    /// Number of its entries.
    pub entries: u64,
    /// Whether any of the two keys exists.
    pub is_there: bool,
}

/// The result of a removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removed {
    /// The stream was removed, with this number of entries.
    Gone(u64),
    /// The owner of the stream is unknown, so it was left.
    Left,
}

impl Streams {
    /// The input streams of `shards` shards and the streams of sinks, with their current state.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn holdings(&self, shards: u16, sinks: &[SinkStream]) -> Result<Vec<Holding>, Error> {
        let records = ShardId::all(shards)
            .map(|shard| (keys::records(&self.pipeline, shard), keys::fence(&self.pipeline, shard), None));
        let sinks =
            sinks.iter().map(|SinkStream { stream, sink }| (stream.clone(), keys::cursor(stream), Some(sink.clone())));
        let mut holdings = Vec::new();
        for (stream, beside, sink) in records.chain(sinks) {
            let (pipeline_id, is_beside, is_stream, entries): (Option<String>, bool, bool, u64) = redis::pipe()
                .hget(&beside, "pipeline")
                .exists(&beside)
                .exists(&stream)
                .xlen(&stream)
                .query_async(&mut self.shared(&stream))
                .await
                .map_err(Error::of)?;
            holdings.push(Holding { stream, beside, sink, pipeline_id, entries, is_there: is_beside || is_stream });
        }
        Ok(holdings)
    }

    /// Removes a stream and the key beside it, if it belongs to this pipeline, or to the pipeline with the id `adopt`.
    ///
    /// # Errors
    /// [`Error::Refused`] when it belongs to another pipeline; or when Redis does not answer.
    pub async fn remove(&self, holding: &Holding, pipeline_id: &str, adopt: &str) -> Result<Removed, Error> {
        let mut call = PURGE.key(&holding.beside);
        call.key(&holding.stream).arg(pipeline_id).arg(holding.sink.as_deref().unwrap_or_default()).arg(adopt);
        let reply: Vec<Value> = call.invoke_async(&mut self.shared(&holding.stream)).await.map_err(Error::of)?;
        let mut reply = reply.into_iter();
        let word: String = from_redis_value(reply.next().unwrap_or(Value::Nil)).map_err(redis::RedisError::from)?;
        let rest = reply.next().unwrap_or(Value::Nil);
        match word.as_str() {
            "ok" => Ok(Removed::Gone(from_redis_value(rest).map_err(redis::RedisError::from)?)),
            "other" => {
                let id: String = from_redis_value(rest).map_err(redis::RedisError::from)?;
                Err(Error::Refused(format!("the stream {} belongs to the pipeline with id {id}", holding.stream)))
            }
            _ => Ok(Removed::Left),
        }
    }
}
