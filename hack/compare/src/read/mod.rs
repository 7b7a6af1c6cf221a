//! The reader: a plain XREAD on the streams of both sinks, which counts every notification.
//!
//! Must never skip an entry, and never acknowledge or trim: it is no part of the pipeline.

pub(crate) mod ledger;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use hdrhistogram::Histogram;
use redis::{AsyncConnectionConfig, Value, aio::MultiplexedConnection};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

use crate::load::{open::Schedule, record::Records};
use ledger::{Counts, Ledger, Sink};

/// Most entries of each stream in one answer.
const COUNT: usize = 1_000;
/// How long XREAD waits for an entry.
const BLOCK: Duration = Duration::from_millis(500);
/// Longest time without a notification while some are missing.
const STALL: Duration = Duration::from_secs(60);
/// Longest latency of the histogram, in microseconds; a longer one counts as this.
const LONGEST: u64 = 600_000_000;

/// How far the reader is.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Progress {
    pub(crate) counts: Counts,
    /// The first answer with entries.
    pub(crate) first: Option<First>,
    /// When the last answer with entries came.
    pub(crate) last_at: Option<Instant>,
}

/// The first answer with entries.
#[derive(Debug, Clone, Copy)]
pub(crate) struct First {
    pub(crate) at: Instant,
    /// How many notifications were in it.
    pub(crate) notifications: usize,
}

/// A reader that runs; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Reader {
    progress: watch::Receiver<Progress>,
    shared: Arc<Shared>,
    task: JoinHandle<anyhow::Result<Outcome>>,
}

/// The result of a reader.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Microseconds from the planned time of each record to its notification.
    pub(crate) latency: Histogram<u64>,
}

/// State that the reader's task shares.
#[derive(Debug, Default)]
struct Shared {
    requests: AtomicU64,
    ends: AtomicBool,
    schedule: OnceLock<Schedule>,
}

impl Reader {
    /// Starts to read both streams from their begin, with notifications of these records to come.
    pub(crate) async fn start(redis_url: &str, streams: [String; 2], records: Records) -> anyhow::Result<Self> {
        let config = AsyncConnectionConfig::new().set_response_timeout(Some(Duration::from_secs(60)));
        let redis = redis::Client::open(redis_url)?.get_multiplexed_async_connection_with_config(&config).await?;
        let (updates, progress) = watch::channel(Progress::default());
        let shared = Arc::new(Shared::default());
        let streams = streams.map(|stream| Stream { stream, last_id: "0".to_owned() });
        let latency = Histogram::new_with_bounds(1, LONGEST, 3)?;
        let mut state = State { redis, streams, ledger: Ledger::new(records), latency, shared: Arc::clone(&shared) };
        let task = tokio::spawn(async move { state.run(&updates).await.map(|()| Outcome { latency: state.latency }) });
        Ok(Self { progress, shared, task })
    }

    /// Waits for so many notifications.
    ///
    /// # Errors
    /// When none comes for a minute, and when one is wrong.
    pub(crate) async fn wait_for(&mut self, wanted: Counts) -> anyhow::Result<Progress> {
        loop {
            let progress = *self.progress.borrow_and_update();
            if progress.counts.reach(wanted) {
                return Ok(progress);
            }
            match timeout(STALL, self.progress.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => {
                    (&mut self.task).await??;
                    bail!("the reader ended");
                }
                Err(_) => bail!("no notification for {} s: {} of {wanted}", STALL.as_secs(), progress.counts),
            }
        }
    }

    /// Takes latencies from here on.
    pub(crate) fn follow(&self, schedule: Schedule) {
        let _already = self.shared.schedule.set(schedule);
    }

    /// Requests that it has sent.
    pub(crate) fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Reads the rest, once no process can append any more, and checks that every notification came once.
    pub(crate) async fn finish(mut self) -> anyhow::Result<Outcome> {
        self.shared.ends.store(true, Ordering::Relaxed);
        (&mut self.task).await?
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Debug)]
struct Stream {
    stream: String,
    last_id: String,
}

#[derive(Debug)]
struct State {
    redis: MultiplexedConnection,
    streams: [Stream; 2],
    ledger: Ledger,
    latency: Histogram<u64>,
    shared: Arc<Shared>,
}

impl State {
    async fn run(&mut self, updates: &watch::Sender<Progress>) -> anyhow::Result<()> {
        loop {
            // Read before the request: what is appended after that is then no rest.
            let ends = self.shared.ends.load(Ordering::Relaxed);
            let answer = self.read().await?;
            let now = Instant::now();
            if self.note(answer, now)? {
                let counts = self.ledger.counts;
                updates.send_modify(|progress| {
                    progress.counts = counts;
                    progress.first.get_or_insert(First { at: now, notifications: counts.notifications });
                    progress.last_at = Some(now);
                });
            } else if ends {
                return self.ledger.check();
            }
        }
    }

    async fn read(&mut self) -> anyhow::Result<Value> {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(COUNT).arg("BLOCK").arg(BLOCK.as_millis() as u64).arg("STREAMS");
        for stream in &self.streams {
            command.arg(&stream.stream);
        }
        for stream in &self.streams {
            command.arg(&stream.last_id);
        }
        self.shared.requests.fetch_add(1, Ordering::Relaxed);
        Ok(command.query_async(&mut self.redis).await?)
    }

    /// Notes the entries of an answer; false: there were none.
    fn note(&mut self, answer: Value, now: Instant) -> anyhow::Result<bool> {
        let Value::Array(of_streams) = answer else { return Ok(false) };
        let schedule = self.shared.schedule.get().copied();
        for of_stream in of_streams {
            let (name, entries): (String, Vec<Value>) = redis::from_redis_value(of_stream)?;
            let at = self.streams.iter().position(|stream| stream.stream == name).context("an unknown stream")?;
            for entry in entries {
                let Entry { id, data } = Entry::parse(entry)?;
                let n = self.ledger.note(Sink::ALL[at], &data)?;
                self.streams[at].last_id = id;
                let due = schedule.filter(|_| Sink::ALL[at] == Sink::Notifications).and_then(|it| it.due(n?));
                if let Some(due) = due {
                    let micros = now.saturating_duration_since(due).as_micros() as u64;
                    self.latency.saturating_record(micros);
                }
            }
        }
        Ok(true)
    }
}

/// An entry of a sink's stream.
struct Entry {
    id: String,
    data: Vec<u8>,
}

impl Entry {
    fn parse(entry: Value) -> anyhow::Result<Self> {
        let (id, fields): (String, Vec<Value>) = redis::from_redis_value(entry)?;
        let mut fields = fields.into_iter();
        while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
            if let (Value::BulkString(name), Value::BulkString(data)) = (name, value)
                && name == b"data"
            {
                return Ok(Self { id, data });
            }
        }
        bail!("entry {id} has no data")
    }
}

#[cfg(test)]
mod tests {
    use redis::Value;

    use super::Entry;

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    #[test]
    fn an_entry_has_an_id_and_its_data_among_other_fields() {
        let fields = ["id", "3-7", "type", "record.processed", "data", "{}"].map(text).to_vec();
        let entry = Entry::parse(Value::Array(vec![text("5-0"), Value::Array(fields)])).unwrap();
        assert_eq!((entry.id.as_str(), entry.data.as_slice()), ("5-0", b"{}".as_slice()));
    }

    #[test]
    fn an_entry_without_data_is_an_error() {
        let fields = ["id", "3-7"].map(text).to_vec();
        assert!(Entry::parse(Value::Array(vec![text("5-0"), Value::Array(fields)])).is_err());
    }
}
