//! Appending records: one script a shard, all or none.

use std::sync::{Arc, LazyLock};

use chrono::{DateTime, Utc};
use redis::{AsyncCommands as _, ErrorKind, RedisError, Script, ServerErrorKind};

use super::{Error, Streams, keys};
use crate::domain::{DeadLetterId, ShardId, StreamId};

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
    pub replay_of: Option<DeadLetterId>,
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
    #[error("{}", why_away(.0))]
    Away(RedisError),
    /// The command was sent and no answer came: all may have been appended, or none.
    #[error("the outcome is unknown: {0}")]
    Unknown(RedisError),
    /// The stream belongs to another pipeline.
    #[error("the stream of shard {0} belongs to another pipeline")]
    Refused(ShardId),
    /// The stream has given out its last possible id: someone has written an entry with one of their own choice.
    #[error("the stream of shard {0} has no ids left")]
    Exhausted(ShardId),
}

fn why_away(error: &RedisError) -> String {
    match Error::from(error.clone()) {
        denied @ Error::Denied(_) => denied.to_string(),
        _ => format!("redis is away: {error}"),
    }
}

impl AppendError {
    /// Classes an error by whether the script can have run.
    fn of(error: RedisError) -> Self {
        match error.kind() {
            _ if error.code() == Some("OOM") => Self::Full,
            // Any reply of the server: a script that may not write is refused before its first command, and the first
            // XADD is the only one whose error is passed on, so a reply with an error means that nothing was appended.
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

/// What was appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appended {
    /// The entries' ids.
    pub ids: Vec<StreamId>,
    /// How many entries the process has appended to this shard, ever, as Redis knows now; 0 where no process was named.
    pub count: i64,
}

/// The process that appends. A rewound Redis holds a lower count, and takes over this one.
#[derive(Debug, Clone, Copy, Default)]
pub struct By<'a> {
    /// Its name.
    pub process: &'a str,
    /// Entries that it knows to have appended to the shard.
    pub appended: i64,
}

/// Without `allow-oom`, a full Redis refuses it before the first write.
static APPEND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"#!lua
local stream, fence = KEYS[1], KEYS[2]
local pipeline, limit, n, by = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local owner = redis.call('HGET', fence, 'pipeline')
if owner and owner ~= pipeline then return {'REFUSED'} end
if redis.call('XLEN', stream) + n > limit then return {'BACKLOG'} end
if not owner then redis.call('HSET', fence, 'pipeline', pipeline) end
local function count(more)
    if by == '' then return '0' end
    local held, known = tonumber(redis.call('HGET', fence, 'by:' .. by) or '0'), tonumber(ARGV[5])
    if held < known then
        held = known
        redis.call('HDEL', fence, 'credit')
    end
    held = string.format('%.0f', held + more)
    redis.call('HSET', fence, 'by:' .. by, held)
    return held
end
local ids, last = {}, '18446744073709551615-18446744073709551615'
for i = 0, n - 1 do
    local at = 6 + i * 5
    local fields = {'record', ARGV[at], 'receivedAt', ARGV[at + 1]}
    for k, name in ipairs({'traceparent', 'serve', 'replayOf'}) do
        local value = ARGV[at + 1 + k]
        if value ~= '' then
            fields[#fields + 1] = name
            fields[#fields + 1] = value
        end
    end
    local id = redis.pcall('XADD', stream, '*', unpack(fields))
    if type(id) == 'table' and id.err then
        if i > 0 then
            count(i)
            return {'PART'}
        end
        local about = redis.pcall('XINFO', 'STREAM', stream)
        for k = 1, #about, 2 do
            if about[k] == 'last-generated-id' and about[k + 1] == last then return {'EXHAUSTED'} end
        end
        -- Versions before 7.2 do not name the command.
        if string.find(id.err, 'user executing the script', 1, true) then
            return redis.error_reply(id.err .. ': XADD ' .. stream)
        end
        return id
    end
    ids[i + 1] = id
end
ids[n + 1] = count(n)
return ids
",
    )
});

impl Streams {
    /// Appends entries to a shard's stream, in order, all or none; answers their ids when Redis has them on disk (with
    /// `appendfsync always`). `limit` is the most entries that the stream may then hold; `by`, the process that they are
    /// counted for.
    ///
    /// # Errors
    /// [`AppendError`]: but for `Unknown`, nothing was appended.
    pub async fn append(
        &self,
        shard: ShardId,
        pipeline_id: &str,
        limit: u64,
        by: Option<By<'_>>,
        entries: &[Outgoing],
    ) -> Result<Appended, AppendError> {
        let By { process, appended } = by.unwrap_or_default();
        if entries.is_empty() {
            return Ok(Appended { ids: Vec::new(), count: appended });
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
            .arg(entries.len())
            .arg(process)
            .arg(appended);
        for entry in entries {
            command
                .arg(&entry.record)
                .arg(entry.received_at.timestamp_micros())
                .arg(entry.traceparent.as_deref().unwrap_or_default())
                .arg(entry.serve.as_deref().unwrap_or_default())
                .arg(entry.replay_of.map(|dead_letter| dead_letter.to_string()).unwrap_or_default());
        }
        let mut redis = self.shared(&keys::records(&self.pipeline, shard));
        let mut answer: Result<Vec<String>, RedisError> = command.query_async(&mut redis).await;
        if matches!(&answer, Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)) {
            // Only the append itself can have an unknown outcome.
            APPEND.load_async(&mut redis).await.map_err(AppendError::Away)?;
            answer = command.query_async(&mut redis).await;
        }
        let mut answer = answer.map_err(AppendError::of)?;
        match answer.first().map(String::as_str) {
            Some("REFUSED") => return Err(AppendError::Refused(shard)),
            Some("BACKLOG") => return Err(AppendError::Backlog),
            Some("EXHAUSTED") => return Err(AppendError::Exhausted(shard)),
            // The last ids went to the first entries; when they are sent again they are duplicates.
            Some("PART") => {
                return Err(AppendError::Unknown(RedisError::from((
                    ErrorKind::UnexpectedReturnType,
                    "the append broke off between two entries",
                ))));
            }
            _ => {}
        }
        let count = answer.pop().and_then(|count| count.parse().ok());
        let ids: Option<Vec<StreamId>> = answer.iter().map(|id| id.parse().ok()).collect();
        // An answer of another form is no proof that the entries are there.
        let ids = ids.filter(|ids| ids.len() == entries.len());
        ids.zip(count).map(|(ids, count)| Appended { ids, count }).ok_or_else(|| {
            AppendError::Unknown(RedisError::from((
                ErrorKind::UnexpectedReturnType,
                "the append answered other than ids",
            )))
        })
    }

    /// How many entries a process has appended to a shard, ever, as Redis knows now.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn appended_by(&self, shard: ShardId, process: &str) -> Result<i64, Error> {
        let fence = keys::fence(&self.pipeline, shard);
        let held: Option<i64> = self.shared(&fence).hget(&fence, format!("by:{process}")).await?;
        Ok(held.unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::Seq;

    fn entry(record: &str) -> Outgoing {
        Outgoing {
            record: record.to_owned(),
            received_at: DateTime::from_timestamp_micros(1_700_000_000_000_001).expect("a time"),
            traceparent: None,
            serve: Some("s1".into()),
            replay_of: None,
        }
    }

    fn streams() -> Streams {
        let url = crate::streams::testing::url();
        Streams::connect(&url, &format!("append-{:016x}", rand::random::<u64>())).expect("a URL of Redis")
    }

    async fn read(streams: &Streams, shard: ShardId) -> Vec<Vec<(String, String)>> {
        let key = keys::records(&streams.pipeline, shard);
        let range: redis::streams::StreamRangeReply = streams.shared(&key).xrange_all(&key).await.expect("readable");
        let fields = |entry: redis::streams::StreamId| {
            let mut fields: Vec<(String, String)> = entry
                .map
                .into_iter()
                .map(|(name, value)| (name, redis::from_redis_value(value).expect("a text")))
                .collect();
            fields.sort();
            fields
        };
        range.ids.into_iter().map(fields).collect()
    }

    async fn clean(streams: &Streams, shard: ShardId) {
        let keys = [keys::records(&streams.pipeline, shard), keys::fence(&streams.pipeline, shard)];
        let _: () = streams.shared(&keys[0]).del(&keys).await.expect("deleted");
    }

    #[tokio::test]
    async fn entries_are_appended_in_order_with_what_is_known_of_them() {
        let streams = streams();
        let replay = Outgoing {
            traceparent: Some("00-trace".to_owned()),
            serve: None,
            replay_of: Some(DeadLetterId { shard: ShardId::new(3), seq: Seq::new(12) }),
            ..entry("b")
        };
        let ids = streams.append(ShardId::new(3), "id", 10, None, &[entry("a"), replay]).await.expect("appended").ids;
        assert!(ids.len() == 2 && ids[0] < ids[1], "{ids:?}");
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let received = pair("receivedAt", "1700000000000001");
        assert_eq!(
            read(&streams, ShardId::new(3)).await,
            [
                vec![received.clone(), pair("record", "a"), pair("serve", "s1")],
                vec![received, pair("record", "b"), pair("replayOf", "3-d12"), pair("traceparent", "00-trace")],
            ]
        );
        assert!(streams.append(ShardId::new(3), "id", 10, None, &[]).await.expect("nothing to do").ids.is_empty());
        clean(&streams, ShardId::new(3)).await;
    }

    #[tokio::test]
    async fn past_the_limit_none_is_appended() {
        let streams = streams();
        streams.append(ShardId::new(0), "id", 3, None, &[entry("a"), entry("b")]).await.expect("below the limit");
        let two = [entry("c"), entry("d")];
        assert!(matches!(streams.append(ShardId::new(0), "id", 3, None, &two).await, Err(AppendError::Backlog)));
        assert_eq!(read(&streams, ShardId::new(0)).await.len(), 2);
        streams.append(ShardId::new(0), "id", 3, None, &two[..1]).await.expect("at the limit");
        clean(&streams, ShardId::new(0)).await;
    }

    #[tokio::test]
    async fn redis_counts_what_a_process_appends_and_is_told_where_it_forgot() {
        let streams = streams();
        let append = async |known, entries: &[Outgoing]| {
            streams
                .append(ShardId::new(0), "id", 100, Some(By { process: "p", appended: known }), entries)
                .await
                .expect("appended")
                .count
        };
        assert_eq!(append(0, &[entry("a"), entry("b")]).await, 2);
        // One whose answer never came is among them.
        assert_eq!(append(1, &[entry("c")]).await, 3);
        let fence = keys::fence(&streams.pipeline, ShardId::new(0));
        let _: () = streams.shared(&fence).hset(&fence, "by:p", 1).await.expect("gone back");
        assert_eq!(append(3, &[entry("d")]).await, 4);
        assert_eq!(streams.appended_by(ShardId::new(0), "p").await.expect("told"), 4);
        assert_eq!(streams.appended_by(ShardId::new(0), "another").await.expect("told"), 0);
        clean(&streams, ShardId::new(0)).await;
    }

    #[tokio::test]
    async fn a_stream_without_ids_takes_nothing_and_says_so() {
        let streams = streams();
        for (shard, id) in
            [(0, "18446744073709551615-18446744073709551615"), (1, "18446744073709551615-18446744073709551614")]
        {
            let fields = [("record", "theirs")];
            let key = keys::records(&streams.pipeline, ShardId::new(shard));
            let _: String = streams.shared(&key).xadd(&key, id, &fields).await.expect("an id of their choice");
        }
        let two = [entry("a"), entry("b")];
        let refused = streams.append(ShardId::new(0), "id", 9, None, &two).await;
        assert!(matches!(refused, Err(AppendError::Exhausted(shard)) if shard == ShardId::new(0)));
        assert_eq!(read(&streams, ShardId::new(0)).await.len(), 1);
        // One id was left.
        assert!(matches!(streams.append(ShardId::new(1), "id", 9, None, &two).await, Err(AppendError::Unknown(_))));
        let refused = streams.append(ShardId::new(1), "id", 9, None, &two).await;
        assert!(matches!(refused, Err(AppendError::Exhausted(shard)) if shard == ShardId::new(1)));
        assert_eq!(read(&streams, ShardId::new(1)).await.len(), 2);
        clean(&streams, ShardId::new(0)).await;
        clean(&streams, ShardId::new(1)).await;
    }

    #[tokio::test]
    async fn a_stream_of_another_pipeline_is_left_alone() {
        let streams = streams();
        streams.append(ShardId::new(0), "mine", 3, None, &[entry("a")]).await.expect("appended");
        let refused = streams.append(ShardId::new(0), "other", 3, None, &[entry("b")]).await;
        assert!(matches!(refused, Err(AppendError::Refused(shard)) if shard == ShardId::new(0)));
        assert_eq!(read(&streams, ShardId::new(0)).await.len(), 1);
        clean(&streams, ShardId::new(0)).await;
    }

    #[tokio::test]
    async fn a_redis_that_cannot_be_reached_has_taken_nothing() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
        let streams = Streams::connect(&format!("redis://{closed}"), "x").expect("a URL of Redis");
        assert!(matches!(
            streams.append(ShardId::new(0), "id", 3, None, &[entry("a")]).await,
            Err(AppendError::Away(_))
        ));
    }

    #[tokio::test]
    async fn an_answer_that_never_came_leaves_the_outcome_unknown() {
        // Answers the handshake's commands, then drops the connection at the append.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let server = tokio::spawn(async move {
            use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
            let (mut socket, _) = listener.accept().await.expect("a client");
            let mut buffer = vec![0; 64 * 1024];
            loop {
                let n = socket.read(&mut buffer).await.expect("readable");
                let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
                if n == 0 || text.contains("EVALSHA") {
                    return;
                }
                let commands = text.matches('*').count();
                socket.write_all("+OK\r\n".repeat(commands).as_bytes()).await.expect("writable");
            }
        });
        let streams = Streams::connect(&format!("redis://{address}"), "x").expect("a URL of Redis");
        let answer = streams.append(ShardId::new(0), "id", 3, None, &[entry("a")]).await;
        assert!(matches!(answer, Err(AppendError::Unknown(_))), "{answer:?}");
        server.await.expect("the server ended in order");
    }
}
