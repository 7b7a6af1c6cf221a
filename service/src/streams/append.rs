//! Appending records to the input stream of a shard: one script, all or none.

use std::sync::LazyLock;

use redis::{AsyncCommands as _, ErrorKind, RedisError, Script, Value};

use super::{
    Error, Streams,
    call::{self, Call},
    entry::{FORMAT, Outgoing, pack},
    keys,
};
use crate::{
    domain::{ShardId, StreamPosition},
    protocol_trace,
};

/// Why records were not appended, or may not have been. In every case but [`AppendError::Unknown`] none was.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// Redis is at its memory limit.
    #[error("redis is full")]
    Full,
    /// The shard's backlog is at its limit.
    #[error("the shard's backlog is at its limit: there is room for {room} records")]
    Backlog {
        /// Number of records that there is room for.
        room: u64,
    },
    /// Redis cannot be reached, or does not accept writes now.
    #[error("{}", unavailable(.0))]
    Unavailable(RedisError),
    /// The command was sent and no answer came: all may have been appended, or none.
    #[error("the outcome is unknown: {0}")]
    Unknown(RedisError),
    /// The stream belongs to another pipeline.
    #[error("the stream of shard {0} belongs to another pipeline")]
    Refused(ShardId),
    /// The stream has given its last possible id: another program has appended an entry with an id of its choice.
    #[error("the stream of shard {0} has no ids left")]
    Exhausted(ShardId),
}

fn unavailable(error: &RedisError) -> String {
    match Error::from(error.clone()) {
        denied @ Error::Denied(_) => denied.to_string(),
        _ => format!("redis is unavailable: {error}"),
    }
}

impl AppendError {
    /// Classes an error by whether the script can have run.
    fn of(error: RedisError) -> Self {
        match error.kind() {
            _ if error.code() == Some("OOM") => Self::Full,
            // Any reply of the server: a script that may not write is refused before its first command, and the first
            // XADD is the only one whose error is returned, so a reply with an error means that nothing was appended.
            ErrorKind::Server(_) | ErrorKind::Extension => Self::Unavailable(error),
            // With these no connection is made.
            ErrorKind::AuthenticationFailed
            | ErrorKind::InvalidClientConfig
            | ErrorKind::Client
            | ErrorKind::RESP3NotSupported => Self::Unavailable(error),
            _ if error.is_connection_refusal() => Self::Unavailable(error),
            _ => Self::Unknown(error),
        }
    }

    fn unknown(detail: &'static str) -> Self {
        Self::Unknown(RedisError::from((ErrorKind::UnexpectedReturnType, detail)))
    }
}

/// Records that were appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Appended {
    /// Their places, in order.
    pub(super) positions: Vec<StreamPosition>,
    /// Number of records that the producer has ever appended to this shard, as Redis counts.
    pub(super) count: i64,
    /// The shard after it.
    pub(super) ends: Ends,
}

/// The numbers of a shard's records, as Redis counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ends {
    /// Number of records that were appended.
    pub(super) appended: i64,
    /// Number of those that are acknowledged.
    pub(super) acknowledged: i64,
}

impl Ends {
    /// Number of records that wait.
    pub(super) fn backlog(self) -> u64 {
        u64::try_from(self.appended - self.acknowledged).unwrap_or(0)
    }
}

/// The settings of an append.
#[derive(Debug, Clone, Copy)]
pub(super) struct AppendAs<'a> {
    /// Id of the pipeline.
    pub(super) pipeline_id: &'a str,
    /// Maximum number of records that may wait in the shard after it.
    pub(super) backlog_limit: u64,
    /// Name of the producer.
    pub(super) producer: &'a str,
    /// Number of records that it is known to have appended to the shard. A rewound Redis counts fewer, and continues from
    /// this number.
    pub(super) known: i64,
}

static APPEND: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/append.lua")));

impl Streams {
    /// Appends records to a shard's stream, in order, all or none. Returns when Redis has them on disk (with
    /// `appendfsync always`).
    ///
    /// # Errors
    /// [`AppendError`]: but for `Unknown`, nothing was appended.
    pub(super) async fn append(
        &self,
        shard: ShardId,
        settings: AppendAs<'_>,
        records: &[&Outgoing],
    ) -> Result<Appended, AppendError> {
        let entries = pack(records.iter().copied());
        let stream = keys::records(&self.pipeline, shard);
        let mut call = Call::new(&APPEND, &[&stream, &keys::fence(&self.pipeline, shard)]);
        call.command
            .arg(settings.pipeline_id)
            .arg(settings.backlog_limit)
            .arg(settings.producer)
            .arg(settings.known)
            .arg(FORMAT)
            .arg(records.len());
        for entry in &entries {
            call.command.arg(entry.count).arg(&entry.bytes);
        }
        let step = protocol_trace::begin(shard.get(), "append", || {
            let counts = entries.iter().map(|entry| entry.count.to_string()).collect::<Vec<_>>().join(",");
            format!("\"producer\":\"{}\",\"known\":{},\"counts\":[{counts}]", settings.producer, settings.known)
        });
        let mut redis = self.shared(&stream);
        let mut answer: Result<Vec<Value>, RedisError> = call.command.query_async(&mut redis).await;
        if answer.as_ref().is_err_and(call::is_not_loaded) {
            // Only the append itself can have an unknown outcome.
            call.load(&mut redis).await.map_err(AppendError::Unavailable)?;
            answer = call.command.query_async(&mut redis).await;
        }
        let answer = answer.map_err(AppendError::of)?;
        let word = match answer.first() {
            Some(Value::BulkString(word)) => word.as_slice(),
            _ => b"",
        };
        match word {
            b"ok" => {
                let counts = entries.iter().map(|entry| entry.count);
                // An answer of another form is no proof that the records were appended.
                let appended = appended(&answer[1..], counts)
                    .ok_or_else(|| AppendError::unknown("the append returned other than ids"))?;
                let first = |position: &&StreamPosition| position.index == 0;
                let ids = || appended.positions.iter().filter(first).map(|position| position.entry);
                step.end("done", || format!("\"count\":{},\"ids\":[{}]", appended.count, protocol_trace::list(ids())));
                Ok(appended)
            }
            b"refused" => Err(AppendError::Refused(shard)),
            b"exhausted" => Err(AppendError::Exhausted(shard)),
            b"backlog" => {
                step.is("refused");
                let room = match answer.get(1) {
                    Some(Value::Int(room)) => room.unsigned_abs(),
                    _ => 0,
                };
                Err(AppendError::Backlog { room })
            }
            // The last ids went to the first entries; when they are sent again they are duplicates.
            b"part" => Err(AppendError::unknown("the append ended between two entries")),
            _ => Err(AppendError::unknown("the append returned an unknown word")),
        }
    }

    /// Number of records that a producer has ever appended to a shard, as Redis counts.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub(super) async fn appended_by(&self, shard: ShardId, producer: &str) -> Result<i64, Error> {
        let fence = keys::fence(&self.pipeline, shard);
        let held: Option<i64> = self.shared(&fence).hget(&fence, format!("by:{producer}")).await?;
        Ok(held.unwrap_or(0))
    }

    /// The numbers of a shard's records. In an empty stream all are acknowledged, whatever the counters hold.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub(super) async fn ends(&self, shard: ShardId) -> Result<Ends, Error> {
        let (stream, fence) = (keys::records(&self.pipeline, shard), keys::fence(&self.pipeline, shard));
        let mut redis = self.shared(&stream);
        let (appended, acknowledged): (Option<i64>, Option<i64>) =
            redis.hmget(&fence, &["appended", "acknowledged"]).await?;
        let waiting: u64 = redis.xlen(&stream).await?;
        let appended = appended.unwrap_or(0);
        let acknowledged = if waiting == 0 { appended } else { acknowledged.unwrap_or(0) };
        Ok(Ends { appended, acknowledged })
    }
}

fn appended(answer: &[Value], counts: impl ExactSizeIterator<Item = usize>) -> Option<Appended> {
    let text = |value: &Value| match value {
        Value::BulkString(text) => String::from_utf8(text.clone()).ok(),
        _ => None,
    };
    let ([count, appended, acknowledged], ids) = answer.split_first_chunk()?;
    if ids.len() != counts.len() {
        return None;
    }
    let mut positions = Vec::new();
    for (id, records) in ids.iter().zip(counts) {
        let entry = text(id)?.parse().ok()?;
        positions.extend((0..records).map(|index| StreamPosition { entry, index: index as u16 }));
    }
    let ends = Ends { appended: text(appended)?.parse().ok()?, acknowledged: text(acknowledged)?.parse().ok()? };
    Some(Appended { positions, count: text(count)?.parse().ok()?, ends })
}
