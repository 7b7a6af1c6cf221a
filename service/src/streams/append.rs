//! Appending records: one script a shard, all or none.

use std::sync::{Arc, LazyLock};

use chrono::{DateTime, Utc};
use redis::{ErrorKind, RedisError, Script, ServerErrorKind};

use super::{Streams, keys};
use crate::domain::{LetterId, StreamId};

/// An entry to be appended.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// The record as JSON, with its id.
    pub record: String,
    /// When it was taken.
    pub received_at: DateTime<Utc>,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// The serve process that took it: only entries marked so count as received.
    pub serve: Option<Arc<str>>,
    /// The dead letter whose replay this is.
    pub replay_of: Option<LetterId>,
}

/// Why entries were not appended, or may not have been. In every case but [`AppendError::Unknown`] none was.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// Redis is at its memory limit.
    #[error("redis is full")]
    Full,
    /// The shard's backlog is at its limit.
    #[error("the shard's backlog is at its limit")]
    Backlog,
    /// Redis cannot be reached, or does not take writes now.
    #[error("redis is away: {0}")]
    Away(RedisError),
    /// The command was sent and no answer came: all may have been appended, or none.
    #[error("the outcome is unknown: {0}")]
    Unknown(RedisError),
    /// The stream belongs to another pipeline.
    #[error("the stream of shard {0} belongs to another pipeline")]
    Refused(u16),
}

impl AppendError {
    /// Classes an error by whether the script can have run.
    fn of(error: RedisError) -> Self {
        match error.kind() {
            _ if error.code() == Some("OOM") => Self::Full,
            // Any reply of the server: a script that may not write is refused before its first command, and the first
            // XADD is the first that can fail, so a reply with an error means that nothing was appended.
            ErrorKind::Server(_) | ErrorKind::Extension => Self::Away(error),
            // These stop a connection from being made at all.
            ErrorKind::AuthenticationFailed
            | ErrorKind::InvalidClientConfig
            | ErrorKind::Client
            | ErrorKind::RESP3NotSupported => Self::Away(error),
            _ if error.is_connection_refusal() => Self::Away(error),
            _ => Self::Unknown(error),
        }
    }
}

/// Without `allow-oom`, a full Redis refuses it before the first write.
static APPEND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"#!lua
local stream, fence = KEYS[1], KEYS[2]
local pipeline, limit, n = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local owner = redis.call('HGET', fence, 'pipeline')
if owner and owner ~= pipeline then return {'REFUSED'} end
if redis.call('XLEN', stream) + n > limit then return {'BACKLOG'} end
if not owner then redis.call('HSET', fence, 'pipeline', pipeline) end
local ids = {}
for i = 0, n - 1 do
    local at = 4 + i * 5
    local fields = {'record', ARGV[at], 'receivedAt', ARGV[at + 1]}
    for k, name in ipairs({'traceparent', 'serve', 'replayOf'}) do
        local value = ARGV[at + 1 + k]
        if value ~= '' then
            fields[#fields + 1] = name
            fields[#fields + 1] = value
        end
    end
    ids[i + 1] = redis.call('XADD', stream, '*', unpack(fields))
end
return ids
",
    )
});

impl Streams {
    /// Appends entries to a shard's stream, in order, all or none; answers their ids when Redis has them on disk (with
    /// `appendfsync always`). `limit` is the most entries that the stream may then hold.
    ///
    /// # Errors
    /// [`AppendError`]: but for `Unknown`, nothing was appended.
    pub async fn append(
        &self,
        shard: u16,
        pipeline_id: &str,
        limit: u64,
        entries: &[Outgoing],
    ) -> Result<Vec<StreamId>, AppendError> {
        if entries.is_empty() {
            return Ok(Vec::new());
        }
        // Built by hand: `Script::arg` would copy every record once more.
        let mut command = redis::cmd("EVALSHA");
        command
            .arg(APPEND.get_hash())
            .arg(2)
            .arg(keys::records(&self.pipeline, shard))
            .arg(keys::fence(&self.pipeline, shard))
            .arg(pipeline_id)
            .arg(limit)
            .arg(entries.len());
        for entry in entries {
            command
                .arg(&entry.record)
                .arg(entry.received_at.timestamp_micros())
                .arg(entry.traceparent.as_deref().unwrap_or_default())
                .arg(entry.serve.as_deref().unwrap_or_default())
                .arg(entry.replay_of.map(|letter| letter.to_string()).unwrap_or_default());
        }
        let mut redis = self.shared.clone();
        let mut answer: Result<Vec<String>, RedisError> = command.query_async(&mut redis).await;
        if matches!(&answer, Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)) {
            // Only the append itself can have an unknown outcome.
            APPEND.load_async(&mut redis).await.map_err(AppendError::Away)?;
            answer = command.query_async(&mut redis).await;
        }
        let answer = answer.map_err(AppendError::of)?;
        match answer.first().map(String::as_str) {
            Some("REFUSED") => return Err(AppendError::Refused(shard)),
            Some("BACKLOG") => return Err(AppendError::Backlog),
            _ => {}
        }
        let ids: Option<Vec<StreamId>> = answer.iter().map(|id| id.parse().ok()).collect();
        // An answer of another form is no proof that the entries are there.
        ids.filter(|ids| ids.len() == entries.len()).ok_or_else(|| {
            AppendError::Unknown(RedisError::from((
                ErrorKind::UnexpectedReturnType,
                "the append answered other than ids",
            )))
        })
    }
}
