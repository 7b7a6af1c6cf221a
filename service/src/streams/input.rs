//! The input stream of a shard as its owner uses it: read, reclaim, acknowledge, reconcile the counts.
//!
//! Every script here compares the lease beside the stream and runs with `allow-oom`, because a full Redis must be able to
//! drain. Must never read an entry without a comparison of the lease in the same step.

use std::{
    sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use millrace_crds::ADOPT;
use redis::{AsyncCommands as _, FromRedisValue, Script, ToRedisArgs, Value, streams::StreamReadOptions};

use super::{
    Blocking, Error, Streams,
    call::Call,
    entry::entries,
    facts::{READS, acks, facts_of},
    keys,
};
use crate::domain::{Entry, Lease, Offset, Seq, Sequence, ShardId, StreamId, Watermarks};

/// Number of bytes after which no further step is read: four large entries.
const READ_BYTES: usize = 256 << 10;

macro_rules! fenced_script {
    ($name:literal) => {
        LazyLock::new(|| {
            Script::new(concat!(
                "#!lua flags=allow-oom\n",
                include_str!("scripts/fence.lua"),
                include_str!("scripts/measure.lua"),
                include_str!(concat!("scripts/", $name, ".lua"))
            ))
        })
    };
}
pub(super) use fenced_script;

static PREPARE: LazyLock<Script> = fenced_script!("prepare");
static CLAIM: LazyLock<Script> = fenced_script!("claim");
static TURN: LazyLock<Script> = fenced_script!("turn");

/// The input stream of one shard for its owner.
#[derive(Debug, Clone)]
pub struct Input {
    streams: Streams,
    pipeline_id: String,
    shard: ShardId,
    stream: String,
    fence_key: String,
    consumer: String,
    /// What this owner has read or written last beside the stream.
    known: Arc<Mutex<Acknowledged>>,
}

/// What is acknowledged of a shard, as it is stored beside the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Acknowledged {
    /// The highest acknowledged numbers.
    pub watermarks: Watermarks,
    /// All records up to it are applied or lost.
    pub offset: Offset,
}

/// Pending entries that were reclaimed.
#[derive(Debug)]
pub struct Claimed {
    /// Where to continue; `None`: there are no more.
    pub next: Option<String>,
    /// Number of pending entries that are deleted.
    pub deleted: u64,
    /// The entries, in order.
    pub entries: Vec<Entry>,
}

/// The result of a read.
#[derive(Debug)]
pub enum Read {
    /// New entries, in order; at least one.
    Entries(Vec<Entry>),
    /// There are none.
    Nothing(End),
}

/// The state of a stream that was read to its end.
#[derive(Debug, PartialEq, Eq)]
pub struct End {
    /// The group's last delivered id.
    pub last: String,
    /// The offset of the last appended record.
    pub appended: Offset,
    /// Number of delivered entries that are not acknowledged.
    pub pending: u64,
}

/// A prepared shard: stream and group exist, and the lease is set.
#[derive(Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Whether the group had to be created.
    pub created: bool,
    /// What is acknowledged.
    pub acknowledged: Acknowledged,
}

/// The result of a step that compares the lease.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<T> {
    /// Done.
    Done(T),
    /// The lease was lower and was raised, or Redis was rewound: pending entries have to be reclaimed first.
    Raised,
}

impl Streams {
    /// A shard's input stream, for the owner called `consumer`.
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

    pub(super) fn known(&self) -> MutexGuard<'_, Acknowledged> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the lease, and creates stream and group where they are missing. `adopt` is the id of the pipeline whose streams
    /// may be adopted, empty for none.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lease beside the stream is higher, [`Error::Refused`] when the stream is another
    /// pipeline's.
    pub async fn prepare(&self, lease: &Lease, adopt: &str) -> Result<Prepared, Error> {
        let (reply, step) = self.traced(&PREPARE, "prepare", lease, &[adopt], String::new).await?;
        if matches!(reply.get(2), Some(Value::Int(1))) {
            tracing::warn!(
                event = "streams.stream.adopted",
                stream = self.stream,
                from = adopt,
                to = self.pipeline_id,
                "adopted the stream of another pipeline"
            );
        }
        let acknowledged = Acknowledged {
            watermarks: Watermarks {
                records: Seq::new(integer(&reply, 3)),
                dead_letters: Seq::new(integer(&reply, 4)),
                conflicts: Seq::new(integer(&reply, 5)),
            },
            offset: Offset::new(integer(&reply, 6)),
        };
        *self.known() = acknowledged;
        let created = integer(&reply, 1) == 1;
        step.end("done", || format!("\"created\":{created},{}", acknowledged.facts()));
        Ok(Prepared { created, acknowledged })
    }

    /// Reclaims pending entries from `start` on (`-` for the first), until they have `records` records or 256 KiB.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lease beside the stream is higher, [`Error::NoGroup`] when the group is missing,
    /// [`Error::UnknownFormat`] when an entry is of another version.
    pub async fn claim(&self, lease: &Lease, start: &str, records: usize) -> Result<Step<Claimed>, Error> {
        let [records, bytes] = [records, READ_BYTES].map(|number| number.to_string());
        let args = [&self.consumer, start, &records, &bytes];
        let from = || format!(",\"start\":\"{}\"", start.trim_start_matches('('));
        let (reply, step) = self.traced(&CLAIM, "claim", lease, &args, from).await?;
        if is(&reply, b"raised") {
            step.is("raised");
            return Ok(Step::Raised);
        }
        let mut reply = reply.into_iter().skip(1);
        let next: String = text(reply.next())?;
        let deleted = u64::from_redis_value(reply.next().unwrap_or(Value::Nil)).map_err(redis::RedisError::from)?;
        let found = reply.next();
        let deliveries =
            Vec::<u64>::from_redis_value(reply.next().unwrap_or(Value::Nil)).map_err(redis::RedisError::from)?;
        let entries = entries(found, &deliveries)?;
        step.end("done", || {
            format!("\"entries\":[{}],\"deleted\":{deleted},\"more\":{}", facts_of(&entries), !next.is_empty())
        });
        Ok(Step::Done(Claimed { next: (!next.is_empty()).then_some(next), deleted, entries }))
    }

    /// Reads new entries, until they have `records` records or 256 KiB.
    ///
    /// # Errors
    /// As those of [`Self::claim`].
    pub async fn read(&self, lease: &Lease, records: usize) -> Result<Step<Read>, Error> {
        let (reply, step) = self.traced(&TURN, "turn", lease, &self.reading(records), || READS.to_owned()).await?;
        if is(&reply, b"raised") {
            step.is("raised");
            return Ok(Step::Raised);
        }
        let read = read(reply)?;
        step.end("done", || read.facts());
        Ok(Step::Done(read))
    }

    /// Acknowledges applied entries, trims the stream, and stores what is acknowledged beside it.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lease beside the stream is higher, [`Error::NoGroup`] when the group is missing.
    pub async fn ack(&self, lease: &Lease, acknowledged: Acknowledged, ids: &[StreamId]) -> Result<Step<()>, Error> {
        let mut args = [const { String::new() }; 3].to_vec();
        args.extend(acknowledging(acknowledged, ids));
        let (reply, step) = self.traced(&TURN, "turn", lease, &args, || acks(acknowledged, ids)).await?;
        let is_raised = self.is_raised(&reply, acknowledged);
        step.is(if is_raised { "raised" } else { "done" });
        Ok(if is_raised { Step::Raised } else { Step::Done(()) })
    }

    /// Acknowledges as [`Self::ack`], then reads as [`Self::read`], in one step. The acknowledgement has taken effect also
    /// where what was read is an error.
    ///
    /// # Errors
    /// As those of [`Self::ack`].
    pub async fn ack_and_read(
        &self,
        lease: &Lease,
        acknowledged: Acknowledged,
        ids: &[StreamId],
        records: usize,
    ) -> Result<Step<Result<Read, Error>>, Error> {
        let mut args = self.reading(records).to_vec();
        args.extend(acknowledging(acknowledged, ids));
        let facts = || format!("{}{READS}", acks(acknowledged, ids));
        let (reply, step) = self.traced(&TURN, "turn", lease, &args, facts).await?;
        if self.is_raised(&reply, acknowledged) {
            step.is("raised");
            return Ok(Step::Raised);
        }
        let read = read(reply);
        if let Ok(read) = &read {
            step.end("done", || read.facts());
        }
        Ok(Step::Done(read))
    }

    /// Arguments to read.
    fn reading(&self, records: usize) -> [String; 3] {
        [self.consumer.clone(), records.to_string(), READ_BYTES.to_string()]
    }

    /// Whether an acknowledgement did not take effect, as the server was rewound. One that did is noted.
    fn is_raised(&self, reply: &[Value], acknowledged: Acknowledged) -> bool {
        if !is(reply, b"ok") {
            return true;
        }
        let mut known = self.known();
        for sequence in [Sequence::Records, Sequence::DeadLetters, Sequence::Conflicts] {
            known.watermarks.raise(sequence, acknowledged.watermarks.of(sequence));
        }
        known.offset = acknowledged.offset;
        false
    }

    /// A connection of its own for [`Self::wait`].
    ///
    /// # Errors
    /// When Redis cannot be reached.
    pub async fn blocking(&self, longest: Duration) -> Result<Blocking, Error> {
        self.streams.blocking(&self.stream, longest).await
    }

    /// Waits up to `longest` for an entry above `last`; delivers nothing to the group.
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

    /// Runs a script. Its refusals become errors.
    pub(super) async fn run(
        &self,
        script: &'static Script,
        lease: &Lease,
        args: &[impl ToRedisArgs],
    ) -> Result<Vec<Value>, Error> {
        let mut call = Call::new(script, &[&self.fence_key, &self.stream]);
        call.command.arg(&self.pipeline_id).arg(lease.epoch).arg(&lease.token);
        let Acknowledged { watermarks: Watermarks { records, dead_letters, conflicts }, offset } = *self.known();
        call.command.arg(format!("{records} {dead_letters} {conflicts}")).arg(offset.get());
        call.command.arg(args);
        let reply = call.send(&mut self.streams.shared(&self.fence_key)).await.map_err(Error::of)?;
        let is = |word: &[u8]| is(&reply, word);
        if is(b"fenced") {
            let epoch = match reply.get(1) {
                Some(Value::Int(epoch)) => *epoch,
                _ => lease.epoch,
            };
            return Err(Error::Fenced(epoch));
        }
        if is(b"refused") {
            let owner = text(reply.into_iter().nth(1))?;
            return Err(Error::Refused(format!(
                "the stream {} belongs to the pipeline with id {owner}: name this pipeline otherwise, use another Redis, or \
                 adopt it with the annotation {ADOPT}: {owner}",
                self.stream
            )));
        }
        if is(b"nogroup") {
            return Err(Error::NoGroup);
        }
        Ok(reply)
    }
}

/// Arguments to acknowledge.
fn acknowledging(Acknowledged { watermarks, offset }: Acknowledged, ids: &[StreamId]) -> impl Iterator<Item = String> {
    let Watermarks { records, dead_letters, conflicts } = watermarks;
    let numbers = [records.get(), dead_letters.get(), conflicts.get(), offset.get()];
    numbers.into_iter().map(|number| number.to_string()).chain(ids.iter().map(ToString::to_string))
}

/// The part of a reply that was read.
fn read(reply: Vec<Value>) -> Result<Read, Error> {
    let mut reply = reply.into_iter().skip(1);
    let entries = entries(reply.next(), &[])?;
    if !entries.is_empty() {
        return Ok(Read::Entries(entries));
    }
    let last = text(reply.next())?;
    let appended = text(reply.next())?.parse().map(Offset::new).unwrap_or_default();
    let pending = u64::from_redis_value(reply.next().unwrap_or(Value::Int(0))).map_err(redis::RedisError::from)?;
    Ok(Read::Nothing(End { last, appended, pending }))
}

pub(super) fn is(reply: &[Value], word: &[u8]) -> bool {
    matches!(reply.first(), Some(Value::BulkString(text)) if text == word)
}

/// The integer at an index of a reply; 0 where there is none.
pub(super) fn integer(reply: &[Value], index: usize) -> i64 {
    match reply.get(index) {
        Some(Value::Int(number)) => *number,
        _ => 0,
    }
}

fn text(value: Option<Value>) -> Result<String, Error> {
    Ok(String::from_redis_value(value.unwrap_or(Value::Nil)).map_err(redis::RedisError::from)?)
}
