//! Reading a shard's entries under its fence, and acknowledging them.
//!
//! Every script here compares the fence (epoch, token) beside the stream and runs with `allow-oom`, for a full Redis must
//! be able to drain. Must never take an entry without the fence being compared in the same step.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, Utc};
use millrace_crds::ADOPT;
use redis::{AsyncCommands as _, FromRedisValue, Script, Value, streams::StreamReadOptions};

use super::{Blocking, Error, Streams, keys};
use crate::domain::{Entry, Lease, Seq, Sequence, ShardId, StreamId, Watermarks};

macro_rules! fenced_script {
    ($name:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                "#!lua flags=allow-oom\n",
                include_str!("scripts/fence.lua"),
                include_str!(concat!("scripts/", $name, ".lua"))
            ))
        })
    };
}

static PREPARE: LazyLock<Script> = fenced_script!("prepare");
static CLAIM: LazyLock<Script> = fenced_script!("claim");
static READ: LazyLock<Script> = fenced_script!("read");
static ACK: LazyLock<Script> = fenced_script!("ack");
static COUNT: LazyLock<Script> = fenced_script!("count");
static FOLD: LazyLock<Script> = fenced_script!("fold");
static TELL: LazyLock<Script> = fenced_script!("tell");

/// One shard's records stream as its owner sees it.
#[derive(Debug, Clone)]
pub struct Input {
    streams: Streams,
    pipeline_id: String,
    shard: ShardId,
    stream: String,
    fence_key: String,
    consumer: String,
    /// The watermarks beside the stream, as far as this owner has read or written them.
    known: Arc<Mutex<Watermarks>>,
}

/// Pending entries taken over.
#[derive(Debug)]
pub struct Claimed {
    /// Where to go on; `None`: there are no more.
    pub next: Option<String>,
    /// Ids that were pending but whose entries are gone.
    pub gone: Vec<String>,
    /// The entries, in order.
    pub entries: Vec<Entry>,
}

/// New entries.
#[derive(Debug)]
pub struct Fresh {
    /// The group's last delivered id.
    pub last: String,
    /// The entries, in order.
    pub entries: Vec<Entry>,
}

/// A shard's stream and group are there, and the fence is set.
#[derive(Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Whether the group had to be made.
    pub made: bool,
    /// The highest committed numbers that were ever acknowledged: of records, dead letters, conflicts.
    pub watermarks: Watermarks,
}

/// What was found when a shard's entries were counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryCounts {
    /// Appended, not applied, and not in the stream; below zero where entries of others are, or applied ones came back.
    pub missing: i64,
    /// Entries in the stream.
    pub present: i64,
    /// By how much the processes' counts stood lower than is known of them: Redis went back.
    pub rewound: i64,
    /// What stood in Redis for each process asked about, in their order.
    pub stood: Vec<i64>,
    /// The stored upper bound of lost entries.
    pub told: LossBound,
    /// For how many seconds the counts have stood in Redis at least: before that they may have been gone.
    pub since: i64,
    /// Processes that Redis knows and nobody asked about, with how many entries each appended.
    pub strangers: Vec<(String, i64)>,
    /// Entries that are applied and that no process is known to have appended; `missing` takes account of them.
    pub uncounted: i64,
}

/// The upper bound of lost entries beside a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LossBound {
    /// None is stored.
    Absent,
    /// It is stored that there is none.
    Unknown,
    /// So many.
    AtMost(i64),
}

/// What a fenced step came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// Done.
    Done(T),
    /// The fence stood lower and was raised, or Redis went back: take pending entries over anew.
    Raised,
}

impl Streams {
    /// A shard's stream, for the owner called `consumer`.
    #[must_use]
    pub fn input(&self, pipeline_id: &str, shard: ShardId, consumer: &str) -> Input {
        Input {
            streams: self.clone(),
            pipeline_id: pipeline_id.to_owned(),
            shard,
            stream: keys::records(&self.pipeline, shard),
            fence_key: keys::fence(&self.pipeline, shard),
            consumer: consumer.to_owned(),
            known: Arc::default(),
        }
    }
}

impl Input {
    /// The shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    fn known(&self) -> MutexGuard<'_, Watermarks> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the fence, makes stream and group where they are missing. `adopt` is the id of the pipeline whose streams may
    /// be taken over, empty for none.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the fence stands higher, [`Error::Refused`] when the stream is another pipeline's.
    pub async fn prepare(&self, fence: &Lease, adopt: &str) -> Result<Prepared, Error> {
        *self.known() = Watermarks::default();
        let reply = self.run(&PREPARE, fence, &[adopt]).await?;
        if matches!(reply.get(2), Some(Value::Int(1))) {
            tracing::warn!(
                event = "streams.stream.adopted",
                stream = self.stream,
                from = adopt,
                to = self.pipeline_id,
                "adopted the stream of another pipeline"
            );
        }
        let mark = |index: usize| match reply.get(index) {
            Some(Value::Int(mark)) => Seq::new(*mark),
            _ => Seq::ZERO,
        };
        let watermarks = Watermarks { records: mark(3), dead_letters: mark(4), conflicts: mark(5) };
        *self.known() = watermarks;
        Ok(Prepared { made: matches!(reply.get(1), Some(Value::Int(1))), watermarks })
    }

    /// Takes over up to `count` pending entries from `start` on (`-` for the first).
    ///
    /// # Errors
    /// [`Error::Fenced`] when the fence stands higher, [`Error::NoGroup`] when the group is gone.
    pub async fn claim(&self, fence: &Lease, start: &str, count: usize) -> Result<Step<Claimed>, Error> {
        let count = count.to_string();
        let reply = self.run(&CLAIM, fence, &[&self.consumer, start, &count]).await?;
        if is(&reply, b"raised") {
            return Ok(Step::Raised);
        }
        let mut reply = reply.into_iter().skip(1);
        let next: String = text(reply.next())?;
        let gone =
            Vec::<String>::from_redis_value(reply.next().unwrap_or(Value::Nil)).map_err(redis::RedisError::from)?;
        let found = reply.next();
        let deliveries =
            Vec::<u64>::from_redis_value(reply.next().unwrap_or(Value::Nil)).map_err(redis::RedisError::from)?;
        let entries = entries(found, &deliveries)?;
        Ok(Step::Done(Claimed { next: (!next.is_empty()).then_some(next), gone, entries }))
    }

    /// Reads up to `count` new entries.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the fence stands higher, [`Error::NoGroup`] when the group is gone.
    pub async fn read(&self, fence: &Lease, count: usize) -> Result<Step<Fresh>, Error> {
        let unfenced = if crate::fault::planted("read_unfenced") { self.held().await? } else { None };
        let fence = unfenced.as_ref().unwrap_or(fence);
        let reply = self.run(&READ, fence, &[&self.consumer, &count.to_string()]).await?;
        if is(&reply, b"raised") {
            return Ok(Step::Raised);
        }
        let mut reply = reply.into_iter().skip(1);
        let last = text(reply.next())?;
        Ok(Step::Done(Fresh { last, entries: entries(reply.next(), &[])? }))
    }

    /// The fence as it stands beside the stream, whoever's it is.
    async fn held(&self) -> Result<Option<Lease>, Error> {
        let mut connection = self.streams.shared(&self.fence_key);
        let held: (Option<i64>, Option<String>) = redis::cmd("HMGET")
            .arg(&self.fence_key)
            .arg(&["epoch", "token"])
            .query_async(&mut connection)
            .await
            .map_err(Error::of)?;
        Ok(held.0.zip(held.1).map(|(epoch, token)| Lease { epoch, token }))
    }

    /// Counts what was appended by the serve processes and is neither applied nor in the stream. `known`: each process
    /// that is known to have appended, and how many at least; a Redis that went back is told so. `applied`: how many of
    /// what they appended. `folded`: how many entries were appended by processes that [`Self::fold`] removed. To be called
    /// with nothing in hand and nothing pending.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the fence stands higher.
    pub async fn count(
        &self,
        fence: &Lease,
        applied: i64,
        folded: i64,
        known: &[(String, i64)],
    ) -> Result<Step<EntryCounts>, Error> {
        let (applied, folded) = (applied.to_string(), folded.to_string());
        let known: Vec<(&str, String)> = known.iter().map(|(name, least)| (name.as_str(), least.to_string())).collect();
        let mut args = vec![applied.as_str(), folded.as_str()];
        args.extend(known.iter().flat_map(|(name, least)| [*name, least.as_str()]));
        let reply = self.run(&COUNT, fence, &args).await?;
        let number = |index: usize| match reply.get(index) {
            Some(Value::Int(number)) => *number,
            _ => 0,
        };
        if is(&reply, b"raised") {
            return Ok(Step::Raised);
        }
        let told = Vec::<i64>::from_redis_value(reply.get(4).cloned().unwrap_or(Value::Nil));
        Ok(Step::Done(EntryCounts {
            missing: number(1),
            present: number(2),
            rewound: number(3),
            stood: told.map_err(redis::RedisError::from)?,
            told: match reply.get(5) {
                Some(Value::BulkString(text)) => {
                    let most = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
                    most.map_or(LossBound::Unknown, LossBound::AtMost)
                }
                _ => LossBound::Absent,
            },
            since: number(6),
            strangers: Vec::<(String, i64)>::from_redis_value(reply.get(7).cloned().unwrap_or(Value::Nil))
                .map_err(redis::RedisError::from)?,
            uncounted: number(8),
        }))
    }

    /// Removes the counts of processes whose entries Postgres has folded into one sum.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the fence stands higher.
    pub async fn fold(&self, fence: &Lease, processes: &[String]) -> Result<(), Error> {
        let processes: Vec<&str> = processes.iter().map(String::as_str).collect();
        self.run(&FOLD, fence, &processes).await.map(|_| ())
    }

    /// Writes beside the stream how many entries were lost at most; `None`: that is not known.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn tell_most(&self, fence: &Lease, most: Option<i64>) -> Result<(), Error> {
        let most = most.map_or_else(String::new, |most| most.to_string());
        self.run(&TELL, fence, &[&most]).await.map(|_| ())
    }

    /// Acknowledges applied entries and trims what is applied; keeps the highest committed numbers beside the stream.
    /// Answers how many entries are left.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the fence stands higher, [`Error::NoGroup`] when the group is gone.
    pub async fn ack(
        &self,
        fence: &Lease,
        watermarks: Watermarks,
        duplicates: i64,
        ids: &[StreamId],
    ) -> Result<Step<i64>, Error> {
        let Watermarks { records, dead_letters, conflicts } = watermarks;
        let counts = [records.get(), dead_letters.get(), conflicts.get(), duplicates].map(|count| count.to_string());
        let args: Vec<String> = counts.into_iter().chain(ids.iter().map(ToString::to_string)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let reply = self.run(&ACK, fence, &args).await?;
        Ok(match reply.get(1) {
            Some(Value::Int(left)) => {
                let mut known = self.known();
                for sequence in [Sequence::Records, Sequence::DeadLetters, Sequence::Conflicts] {
                    known.raise(sequence, watermarks.of(sequence));
                }
                Step::Done(*left)
            }
            _ => Step::Raised,
        })
    }

    /// A connection of its own for [`Self::wait`].
    ///
    /// # Errors
    /// When Redis cannot be reached.
    pub async fn blocking(&self, longest: Duration) -> Result<Blocking, Error> {
        self.streams.blocking(&self.stream, longest).await
    }

    /// Waits up to `longest` for an entry above `last`; takes nothing.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn wait(&self, blocking: &mut Blocking, last: &str, longest: Duration) -> Result<(), Error> {
        if self.streams.is_stale(blocking, &self.stream) {
            *blocking = self.blocking(longest).await?;
        }
        let connection = &mut blocking.connection;
        let options = StreamReadOptions::default().count(1).block(longest.as_millis() as usize);
        let _: Value = connection.xread_options(&[&self.stream], &[last], &options).await.map_err(Error::of)?;
        Ok(())
    }

    /// Runs a script; what stops it becomes an error.
    async fn run(&self, script: &Script, fence: &Lease, args: &[&str]) -> Result<Vec<Value>, Error> {
        let mut call = script.key(&self.fence_key);
        call.key(&self.stream).arg(&self.pipeline_id).arg(fence.epoch).arg(&fence.token);
        let Watermarks { records, dead_letters, conflicts } = *self.known();
        call.arg(format!("{records} {dead_letters} {conflicts}"));
        for arg in args {
            call.arg(*arg);
        }
        let mut connection = self.streams.shared(&self.fence_key);
        let reply: Vec<Value> = call.invoke_async(&mut connection).await.map_err(Error::of)?;
        let says = |word: &[u8]| is(&reply, word);
        if says(b"fenced") {
            let epoch = match reply.get(1) {
                Some(Value::Int(epoch)) => *epoch,
                _ => fence.epoch,
            };
            return Err(Error::Fenced(epoch));
        }
        if says(b"refused") {
            let owner = text(reply.into_iter().nth(1))?;
            return Err(Error::Refused(format!(
                "the stream {} belongs to the pipeline with id {owner}: name this pipeline otherwise, use another Redis, or \
                 take it over with the annotation {ADOPT}: {owner}",
                self.stream
            )));
        }
        if says(b"nogroup") {
            return Err(Error::NoGroup);
        }
        Ok(reply)
    }
}

fn is(reply: &[Value], word: &[u8]) -> bool {
    matches!(reply.first(), Some(Value::BulkString(text)) if text == word)
}

fn text(value: Option<Value>) -> Result<String, Error> {
    Ok(String::from_redis_value(value.unwrap_or(Value::Nil)).map_err(redis::RedisError::from)?)
}

/// Reads `[[id, [field, value, …]], …]`, with how often each was delivered; once where that is not told.
fn entries(value: Option<Value>, deliveries: &[u64]) -> Result<Vec<Entry>, Error> {
    type Item = (String, Vec<(Vec<u8>, Vec<u8>)>);
    let items = Vec::<Item>::from_redis_value(value.unwrap_or(Value::Nil)).map_err(redis::RedisError::from)?;
    Ok(items
        .into_iter()
        .enumerate()
        .filter_map(|(index, (id, fields))| entry(&id, deliveries.get(index).copied().unwrap_or(1), fields))
        .collect())
}

/// One entry from its fields. Of an entry that some other program made, all fields become the payload.
pub(super) fn entry(id: &str, deliveries: u64, fields: Vec<(Vec<u8>, Vec<u8>)>) -> Option<Entry> {
    let id: StreamId = id.parse().ok()?;
    let mut named: HashMap<&[u8], &[u8]> = HashMap::with_capacity(fields.len());
    for (name, value) in &fields {
        named.insert(name, value);
    }
    let string = |name: &str| named.get(name.as_bytes()).and_then(|value| std::str::from_utf8(value).ok());
    let received_at = string("receivedAt")
        .and_then(|micros| micros.parse().ok())
        .and_then(DateTime::<Utc>::from_timestamp_micros)
        .or_else(|| DateTime::from_timestamp_millis(i64::try_from(id.ms).ok()?))
        .filter(|time| (0..=253_402_300_799).contains(&time.timestamp()))
        .unwrap_or_default();
    Some(Entry {
        id,
        deliveries,
        received_at,
        traceparent: string("traceparent").filter(|text| text.len() <= 64 && !text.contains('\0')).map(str::to_owned),
        marked: named.contains_key(b"serve".as_slice()),
        replay_of: string("replayOf").and_then(|dead_letter| dead_letter.parse().ok()),
        payload: match named.get(b"record".as_slice()) {
            Some(record) => record.to_vec(),
            None => other(&fields),
        },
    })
}

/// The fields of an entry without a record, as a JSON object for a person to read.
fn other(fields: &[(Vec<u8>, Vec<u8>)]) -> Vec<u8> {
    let object: serde_json::Map<_, _> = fields
        .iter()
        .map(|(name, value)| (String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into()))
        .collect();
    serde_json::Value::Object(object).to_string().into_bytes()
}
