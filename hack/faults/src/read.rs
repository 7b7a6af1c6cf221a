//! Reads every output stream as a downstream consumer does: as a member of a group, from the first entry on.
//!
//! Must never miss an entry, and hands each on once: it recognises by its stream id an entry that the group delivers
//! again after a broken connection or a rewind of Redis. An entry that is appended again after that has a higher id,
//! and is handed on.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use redis::{Value, aio::MultiplexedConnection};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    check::digest,
    world::{SINKS, redis as server, stream},
};

/// The consumer group's name.
const GROUP: &str = "downstream";
/// Entries of one read.
const COUNT: usize = 500;

/// An entry of a sink's stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Entry {
    /// Its fields.
    pub(crate) id: String,
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) data: String,
}

impl Entry {
    /// Shard and number of ids such as `0-1`, `0-1-alert`, `0-1-total-key`, `0-d1`, `0-c1`.
    pub(crate) fn place(&self) -> Option<(usize, i64)> {
        let (shard, rest) = self.id.split_once('-')?;
        let rest = rest.split_once("-total-").map_or(rest, |(number, _)| number);
        let number = rest.trim_start_matches(['d', 'c']).trim_end_matches("-alert");
        Some((shard.parse().ok()?, number.parse().ok()?))
    }
}

/// The entries that one sink's reader has read.
#[derive(Debug, Default)]
struct Sink {
    read: Mutex<Vec<Entry>>,
}

/// The readers of all sinks.
#[derive(Debug)]
pub(crate) struct Readers {
    sinks: Vec<Arc<Sink>>,
    _tasks: JoinSet<()>,
}

impl Readers {
    /// Creates the groups before anything is published, and reads.
    pub(crate) async fn start(port: u16) -> anyhow::Result<Self> {
        let (mut sinks, mut tasks) = (Vec::new(), JoinSet::new());
        let mut connection = server::connect(port).await?;
        for (name, _) in SINKS {
            make_group(&mut connection, &stream(name)).await?;
            let sink = Arc::new(Sink::default());
            tasks.spawn_local(read(port, stream(name), Arc::clone(&sink)));
            sinks.push(sink);
        }
        Ok(Self { sinks, _tasks: tasks })
    }

    /// The entries of each sink since the last call.
    pub(crate) fn take(&self) -> Vec<Vec<Entry>> {
        let take = |sink: &Arc<Sink>| std::mem::take(&mut *sink.read.lock().unwrap_or_else(PoisonError::into_inner));
        self.sinks.iter().map(take).collect()
    }
}

async fn make_group(connection: &mut MultiplexedConnection, stream: &str) -> redis::RedisResult<()> {
    let made = redis::cmd("XGROUP").arg(&["CREATE", stream, GROUP, "0", "MKSTREAM"]).query_async(connection).await;
    match made {
        Err(error) if error.code() == Some("BUSYGROUP") => Ok(()),
        made => made,
    }
}

async fn read(port: u16, stream: String, sink: Arc<Sink>) {
    let mut last = (0, 0);
    loop {
        if let Ok(mut connection) = server::connect(port).await {
            let _ = follow(&mut connection, &stream, &sink, &mut last).await;
        }
        sleep(Duration::from_millis(100)).await;
    }
}

/// Reads over one connection until it breaks: pending entries of this reader first, then new ones.
async fn follow(
    connection: &mut MultiplexedConnection,
    stream: &str,
    sink: &Sink,
    last: &mut (u64, u64),
) -> redis::RedisResult<()> {
    let (mut from, count) = ("0", COUNT.to_string());
    loop {
        let words = ["GROUP", GROUP, "reader", "COUNT", &count, "STREAMS", stream, from];
        let reply = redis::cmd("XREADGROUP").arg(&words).query_async::<Value>(connection).await;
        let entries = match reply {
            Ok(reply) => entries(reply),
            Err(error) if error.code() == Some("NOGROUP") => {
                make_group(connection, stream).await?;
                continue;
            }
            Err(error) => return Err(error),
        };
        if entries.is_empty() {
            if from == ">" {
                sleep(Duration::from_millis(20)).await;
            }
            from = ">";
            continue;
        }
        let mut ack = redis::cmd("XACK");
        ack.arg(stream).arg(GROUP);
        for (id, entry) in entries {
            ack.arg(&id);
            let place = id.split_once('-').and_then(|(ms, n)| Some((ms.parse().ok()?, n.parse().ok()?)));
            let place: (u64, u64) = place.unwrap_or_default();
            if place > *last {
                *last = place;
                sink.read.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
            }
        }
        ack.query_async::<()>(connection).await?;
    }
}

/// All entries of a stream, each with a digest of its data in place of the data.
pub(crate) async fn whole_stream(port: u16, sink: &str) -> anyhow::Result<Vec<(Entry, u32)>> {
    let (mut connection, stream, mut from) = (server::connect(port).await?, stream(sink), "-".to_owned());
    let mut whole = Vec::new();
    loop {
        let words = ["XRANGE", &stream, &from, "+", "COUNT", "2000"];
        let page: Value = redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await?;
        // In the form of XREAD: entries below a stream's name.
        let page = entries(Value::Array(vec![Value::Array(vec![Value::Nil, page])]));
        let Some((last, _)) = page.last() else { return Ok(whole) };
        from = format!("({last}");
        whole.extend(page.into_iter().map(|(_, entry)| {
            let digest = digest(&entry.data);
            (Entry { data: String::new(), ..entry }, digest)
        }));
    }
}

/// Ids and entries of a reply; deleted entries have no fields and are left out.
fn entries(reply: Value) -> Vec<(String, Entry)> {
    let mut found = Vec::new();
    let Value::Array(streams) = reply else { return found };
    for stream in streams {
        let Value::Array(parts) = stream else { continue };
        let Some(Value::Array(entries)) = parts.into_iter().nth(1) else { continue };
        for entry in entries {
            let Value::Array(parts) = entry else { continue };
            let [id, fields]: [Value; 2] = match parts.try_into() {
                Ok(parts) => parts,
                Err(_) => continue,
            };
            let mut one = Entry::default();
            let Value::Array(fields) = fields else { continue };
            for pair in fields.chunks_exact(2) {
                let text = |value: &Value| redis::from_redis_value_ref::<String>(value).unwrap_or_default();
                match text(&pair[0]).as_str() {
                    "id" => one.id = text(&pair[1]),
                    "type" => one.kind = text(&pair[1]),
                    "source" => one.source = text(&pair[1]),
                    "data" => one.data = text(&pair[1]),
                    _ => {}
                }
            }
            found.push((redis::from_redis_value_ref(&id).unwrap_or_default(), one));
        }
    }
    found
}
