//! A sink's stream and its cursor, in one hash slot. One script appends entries and moves the cursor, or does nothing.
//!
//! It must never append anything but the outcomes that follow the cursor.

use std::{
    collections::HashMap,
    sync::{Arc, LazyLock},
};

use chrono::{DateTime, Utc};
use millrace_crds::ADOPT;
use redis::{AsyncCommands as _, FromRedisValue, Script, Value};

use super::{Error, Streams, call::Call, keys};
use crate::{
    domain::{Seq, SeqRange, ShardId, ShardSeq},
    protocol_trace,
};

static PUBLISH: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/publish.lua")));
static START: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/start.lua")));
static RETIRE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/retire.lua")));

/// A sink's stream, for one generation of its cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The pipeline's id.
    pub pipeline_id: String,
    /// The sink's name.
    pub sink: String,
    /// The stream's key.
    pub stream: String,
    /// The generation of the cursor.
    pub cursor_generation: String,
    /// Maximum number of entries of the stream; 0: no bound.
    pub max_length: u64,
    /// Whether unread entries may be trimmed at `max_length`.
    pub trim_unread: bool,
}

/// An entry to be appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// Its number in the shard. Several in a row can have the same number; they are appended together.
    pub seq: Seq,
    /// `<shard>-<number>`, for its kind.
    pub id: String,
    /// When its record was received; `None` for what was refused.
    pub received_at: Option<DateTime<Utc>>,
    /// When it was committed, RFC 3339.
    pub time: String,
    /// W3C trace context of the request.
    pub traceparent: Option<Arc<str>>,
    /// JSON.
    pub data: String,
}

/// The result of publishing.
#[derive(Debug, PartialEq, Eq)]
pub enum Published {
    /// All entries were appended.
    All {
        /// Number of unread entries that `overflow: Trim` removed.
        trimmed_unread: i64,
    },
    /// The stream is at its `maxLength`. Only entries up to `cursor` were appended.
    Full {
        /// The position of the cursor now.
        cursor: Seq,
        /// A group with unacknowledged entries; `None` if there is no group.
        group: Option<String>,
    },
    /// The cursor is at another position, which is given: nothing was appended.
    Moved(Seq),
    /// The cursor is missing, retired, or of another generation: nothing was appended.
    Gone,
}

impl Streams {
    /// Appends `notices` of a shard and moves the cursor from `expected` to `new`.
    ///
    /// # Errors
    /// When Redis does not answer, or is full. The result of the next call then shows whether this one took effect.
    pub async fn publish(
        &self,
        output: &Output,
        shard: ShardId,
        kind: &str,
        range: SeqRange,
        notices: &[Notice],
    ) -> Result<Published, Error> {
        let mut call = Call::new(&PUBLISH, &[&keys::cursor(&output.stream), &output.stream]);
        call.command
            .arg(&output.pipeline_id)
            .arg(&output.sink)
            .arg(&output.cursor_generation)
            .arg(shard.get())
            .arg(range.after.get())
            .arg(range.upto.get())
            .arg(output.max_length)
            .arg(if output.trim_unread { "Trim" } else { "Wait" })
            .arg(format!("{}/{}", self.pipeline, output.pipeline_id))
            .arg(kind);
        for notice in notices {
            call.command
                .arg(notice.seq.get())
                .arg(&notice.id)
                .arg(&notice.time)
                .arg(notice.traceparent.as_deref().unwrap_or_default())
                .arg(&notice.data);
        }
        let step = protocol_trace::begin(shard.get(), "publish", || {
            let Output { sink, cursor_generation, .. } = output;
            let SeqRange { after, upto } = range;
            format!(
                "\"sink\":\"{sink}\",\"generation\":\"{cursor_generation}\",\"type\":\"{kind}\",\"after\":{after},\"upto\":{upto}"
            )
        });
        let reply = call.send(&mut self.shared(&output.stream)).await.map_err(Error::of)?;
        let word: String = at(&reply, 0)?;
        let published = match word.as_str() {
            "ok" => Published::All { trimmed_unread: at(&reply, 2)? },
            "full" => Published::Full {
                cursor: Seq::new(at(&reply, 1)?),
                group: Some(at::<String>(&reply, 2)?).filter(|group| !group.is_empty()),
            },
            "moved" => Published::Moved(Seq::new(at(&reply, 1)?)),
            _ => Published::Gone,
        };
        match &published {
            Published::All { .. } => step.end("done", || format!("\"cursor\":{}", range.upto)),
            Published::Full { cursor, .. } => step.end("done", || format!("\"cursor\":{cursor}")),
            Published::Moved(cursor) => step.end("moved", || format!("\"cursor\":{cursor}")),
            Published::Gone => step.is("gone"),
        }
        Ok(published)
    }

    /// The position of a shard's cursor; `None` if the cursor is missing, retired, or of another generation.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn cursor(&self, output: &Output, shard: ShardId) -> Result<Option<Seq>, Error> {
        let fields = ["pipeline", "sink", "cursor_generation", "retired", &shard.to_string()];
        let mut connection = self.shared(&output.stream);
        let [pipeline, sink, cursor_generation, retired, number]: [Option<String>; 5] =
            connection.hmget(keys::cursor(&output.stream), &fields).await.map_err(Error::of)?;
        let ours = pipeline.as_ref() == Some(&output.pipeline_id)
            && sink.as_ref() == Some(&output.sink)
            && cursor_generation.as_ref() == Some(&output.cursor_generation)
            && retired.is_none();
        Ok(number.filter(|_| ours).and_then(|number| number.parse().ok()).map(Seq::new))
    }

    /// Creates the cursor of a generation, with a start position per shard. Returns false if a newer generation exists.
    /// `adopt` is the id of a pipeline whose stream may be taken over; empty for none.
    ///
    /// # Errors
    /// [`Error::Refused`] when the stream belongs to another sink.
    pub async fn start_cursor(&self, output: &Output, starts: &[ShardSeq], adopt: &str) -> Result<bool, Error> {
        let mut call = START.key(keys::cursor(&output.stream));
        call.key(&output.stream).arg(&output.pipeline_id).arg(&output.sink).arg(&output.cursor_generation).arg(adopt);
        for start in starts {
            call.arg(start.shard.get()).arg(start.seq.get());
        }
        let steps = starts.iter().map(|ShardSeq { shard, seq }| {
            let Output { sink, cursor_generation, .. } = output;
            let facts = || format!("\"sink\":\"{sink}\",\"generation\":\"{cursor_generation}\",\"at\":{seq}");
            protocol_trace::begin(shard.get(), "start", facts)
        });
        let steps: Vec<protocol_trace::Step> = steps.collect();
        let mut connection = self.shared(&output.stream);
        let reply: Vec<String> = call.invoke_async(&mut connection).await.map_err(Error::of)?;
        let is_started = matches!(reply.as_slice(), [word] if word == "ok");
        steps.into_iter().for_each(|step| step.is(if is_started { "done" } else { "refused" }));
        match reply.as_slice() {
            [_, pipeline, sink] => {
                let belongs =
                    format!("the stream {} belongs to sink {sink} of the pipeline with id {pipeline}", output.stream);
                // The annotation only allows the stream of the same sink of another pipeline.
                Err(Error::Refused(if *sink == output.sink && *pipeline != output.pipeline_id {
                    format!("{belongs}; name another stream, or take it over with the annotation {ADOPT}: {pipeline}")
                } else {
                    format!("{belongs}; name another stream")
                }))
            }
            [word] => Ok(word == "ok"),
            _ => Ok(false),
        }
    }

    /// Ends a generation, and returns the final position of each shard; `None` if the cursor is missing.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn retire_cursor(&self, output: &Output) -> Result<Option<Vec<ShardSeq>>, Error> {
        let held: HashMap<String, String> = self.retire(output, "keep").await?;
        let position = |(shard, number): (&String, &String)| {
            Some(ShardSeq { shard: ShardId::new(shard.parse().ok()?), seq: Seq::new(number.parse().ok()?) })
        };
        let positions: Vec<ShardSeq> = held.iter().filter_map(position).collect();
        Ok((!held.is_empty()).then_some(positions))
    }

    /// Deletes the cursor of a generation.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn remove_cursor(&self, output: &Output) -> Result<(), Error> {
        self.retire(output, "delete").await.map(|_: HashMap<String, String>| ())
    }

    async fn retire(&self, output: &Output, what: &str) -> Result<HashMap<String, String>, Error> {
        let mut call = RETIRE.key(keys::cursor(&output.stream));
        call.arg(&output.pipeline_id).arg(&output.sink).arg(&output.cursor_generation).arg(what);
        let mut connection = self.shared(&output.stream);
        call.invoke_async(&mut connection).await.map_err(Error::of)
    }
}

fn at<T: FromRedisValue>(reply: &[Value], index: usize) -> Result<T, Error> {
    let value = reply.get(index).cloned().unwrap_or(Value::Nil);
    Ok(T::from_redis_value(value).map_err(redis::RedisError::from)?)
}
