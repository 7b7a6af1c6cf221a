//! What Redis promises, how much is queued, and where the sinks' cursors stand.
//!
//! Only reads: every script is flagged `no-writes`, so it also runs when Redis is full.

use std::{
    collections::{BTreeSet, HashMap},
    sync::LazyLock,
};

use futures::future::try_join_all;
use redis::{AsyncCommands, Script};

use super::{Error, Streams, connect::Queries, keys};
use crate::domain::{Seq, ShardId, Watermarks};

/// How much a shard's stream holds that is not applied.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backlog {
    /// The shard.
    pub shard: ShardId,
    /// Entries that were not delivered yet.
    pub queued: u64,
    /// Entries that were delivered and not acknowledged.
    pub pending: u64,
    /// Age of the oldest of them in milliseconds, by Redis's clock; 0 when there is none.
    pub lag_ms: u64,
    /// What the last acknowledgement knew to be committed; `None` before the first.
    pub committed: Option<Committed>,
    /// The id of the pipeline that the stream belongs to; `None` before the first entry and the first owner.
    pub pipeline_id: Option<String>,
    /// How many entries were lost at most, as its owner counted; `None`: not known, or not counted yet.
    pub lost_at_most: Option<i64>,
}

/// What stands beside a sink's stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The id of the pipeline that it belongs to; `None`: there is no cursor.
    pub pipeline_id: Option<String>,
    /// Shard → highest number appended.
    pub numbers: HashMap<ShardId, Seq>,
}

/// What stands beside a stream of its commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed {
    /// The highest acknowledged numbers.
    pub watermarks: Watermarks,
    /// Duplicates have no numbers: their count.
    pub duplicates: i64,
}

/// Settings of Redis that decide what a crash may cost; `unknown` where the server does not tell.
#[derive(Debug, Clone)]
pub struct RedisPromises {
    /// `appendonly`.
    pub appendonly: String,
    /// `appendfsync`.
    pub appendfsync: String,
    /// `maxmemory-policy`.
    pub maxmemory_policy: String,
    /// `redis_version`.
    pub version: String,
}

/// One shard in one step, so that the group and what stands beside the stream are of one moment. Redis cannot tell the
/// lag of a group that was made in the middle of a stream, or after a deletion: then it is counted, up to 100,000.
static BACKLOG: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "#!lua flags=no-writes
local time = redis.call('TIME')
local marks = redis.call('HMGET', KEYS[2], 'records', 'deadLetters', 'conflicts', 'duplicates', 'pipeline',
  'lostAtMost')
local queued, pending, oldest, last, found = 0, 0, false, '0-0', false
if redis.call('EXISTS', KEYS[1]) == 1 then
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do
    local group = {}
    for i = 1, #flat, 2 do group[flat[i]] = flat[i + 1] end
    if group['name'] == ARGV[1] then
      found, pending, queued, last = true, group['pending'], group['lag'], group['last-delivered-id']
    end
  end
  if not found then queued = redis.call('XLEN', KEYS[1]) end
  if not queued then
    queued = 0
    local from = last
    repeat
      local page = redis.call('XRANGE', KEYS[1], '(' .. from, '+', 'COUNT', 1000)
      queued = queued + #page
      if #page > 0 then from = page[#page][1] end
    until #page < 1000 or queued >= 100000
  end
  -- What was trimmed unread stays in the group's lag for ever; what is not there waits for nobody.
  queued = math.max(0, math.min(queued, redis.call('XLEN', KEYS[1]) - (found and pending or 0)))
  if pending > 0 then
    oldest = redis.call('XPENDING', KEYS[1], ARGV[1])[2]
  elseif queued > 0 then
    local first = redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', 1)[1]
    if first then oldest = first[1] end
  end
end
return {{time[1], time[2], queued, pending, oldest}, {marks[1], marks[2], marks[3], marks[4]}, {marks[5], marks[6]}}",
    )
});

type Answer = (
    (u64, u64, u64, u64, Option<String>),
    (Option<i64>, Option<i64>, Option<i64>, Option<i64>),
    (Option<String>, Option<String>),
);

impl Streams {
    /// What is queued in each shard.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn backlog(&self, shards: u16) -> Result<Vec<Backlog>, Error> {
        let queries = &self.queries().await?;
        try_join_all(ShardId::all(shards).map(|shard| async move {
            let key = keys::records(&self.pipeline, shard);
            let answer: Answer = BACKLOG
                .key(&key)
                .key(keys::fence(&self.pipeline, shard))
                .arg(keys::GROUP)
                .invoke_async(&mut queries.of(&key)?)
                .await
                .map_err(|error| Error::of(error).on(&key))?;
            Ok(backlog(shard, answer))
        }))
        .await
    }

    /// The cursors of sinks' streams, with whose they are.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn sink_cursors(&self, streams: &[String]) -> Result<Vec<Cursor>, Error> {
        let queries = &self.queries().await?;
        try_join_all(streams.iter().map(|stream| async move {
            let key = keys::cursor(stream);
            let fields: HashMap<String, String> =
                queries.of(&key)?.hgetall(&key).await.map_err(|error| Error::of(error).on(&key))?;
            let numbers = fields
                .iter()
                .filter_map(|(shard, n)| Some((ShardId::new(shard.parse().ok()?), Seq::new(n.parse().ok()?))))
                .collect();
            Ok(Cursor { pipeline_id: fields.get("pipeline").cloned(), numbers })
        }))
        .await
    }

    /// Why a server takes no entries now, as far as it tells; `None`: all take them.
    ///
    /// # Errors
    /// When Redis does not answer. A server that refuses to tell is not an error.
    pub async fn takes_no_writes(&self) -> Result<Option<String>, Error> {
        let told = infos(&self.queries().await?, &["memory", "replication", "persistence"]).await?;
        // Managed servers may refuse INFO.
        Ok(told.iter().flatten().find_map(|info| refuses_writes(info)))
    }

    /// What the servers promise.
    ///
    /// # Errors
    /// When Redis does not answer. A server that refuses to tell is not an error.
    pub async fn promises(&self) -> Result<RedisPromises, Error> {
        let mut settings: [BTreeSet<String>; 3] = Default::default();
        let queries = self.queries().await?;
        for mut connection in queries.each() {
            for (setting, values) in ["appendonly", "appendfsync", "maxmemory-policy"].iter().zip(&mut settings) {
                let told: Result<HashMap<String, String>, _> =
                    redis::cmd("CONFIG").arg("GET").arg(setting).query_async(&mut connection).await;
                match told {
                    Ok(told) => values.extend(told.into_values()),
                    // Managed servers refuse CONFIG.
                    Err(error) if error.code().is_some() => {}
                    Err(error) => return Err(Error::of(error)),
                }
            }
        }
        let infos = infos(&queries, &["server"]).await?;
        let versions =
            infos.iter().flatten().filter_map(|info| field(info, "redis_version").map(str::to_owned)).collect();
        // A cluster's servers may differ.
        let said = |values: BTreeSet<String>| match values.is_empty() {
            true => "unknown".to_owned(),
            false => values.into_iter().collect::<Vec<_>>().join(", "),
        };
        let [appendonly, appendfsync, maxmemory_policy] = settings.map(said);
        Ok(RedisPromises { appendonly, appendfsync, maxmemory_policy, version: said(versions) })
    }
}

/// What each server that takes writes answers to `INFO`; `None`: it refuses to tell.
async fn infos(queries: &Queries, sections: &[&str]) -> Result<Vec<Option<String>>, Error> {
    let mut infos = Vec::new();
    for mut connection in queries.each() {
        let told: Result<String, _> = redis::cmd("INFO").arg(sections).query_async(&mut connection).await;
        infos.push(match told {
            Ok(info) => Some(info),
            Err(error) if error.code().is_some() => None,
            Err(error) => return Err(Error::of(error)),
        });
    }
    Ok(infos)
}

fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// What `INFO` says against writing.
fn refuses_writes(info: &str) -> Option<String> {
    let field = |name: &str| field(info, name);
    let number = |name: &str| field(name).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    let (used, most) = (number("used_memory"), number("maxmemory"));
    if most > 0 && used >= most && field("maxmemory_policy") == Some("noeviction") {
        return Some(format!("it is full: {used} bytes are used and its maxmemory is {most}"));
    }
    if field("role") == Some("slave") {
        return Some("it is a replica, which takes no writes: give the URL of its primary".to_owned());
    }
    if field("aof_last_write_status").is_some_and(|status| status != "ok") {
        return Some("it cannot write its log: its disk may be full".to_owned());
    }
    None
}

fn backlog(shard: ShardId, answer: Answer) -> Backlog {
    let ((seconds, micros, queued, pending, oldest), marks, (pipeline_id, lost_at_most)) = answer;
    let (records, dead_letters, conflicts, duplicates) = marks;
    let now_ms = seconds.saturating_mul(1000).saturating_add(micros / 1000);
    let oldest_ms = oldest.and_then(|id| id.split_once('-').and_then(|(ms, _)| ms.parse::<u64>().ok()));
    let marked = [records, dead_letters, conflicts, duplicates].iter().any(Option::is_some);
    let committed = marked.then(|| Committed {
        watermarks: Watermarks {
            records: Seq::new(records.unwrap_or_default()),
            dead_letters: Seq::new(dead_letters.unwrap_or_default()),
            conflicts: Seq::new(conflicts.unwrap_or_default()),
        },
        duplicates: duplicates.unwrap_or_default(),
    });
    let lag_ms = oldest_ms.map_or(0, |ms| now_ms.saturating_sub(ms));
    let lost_at_most = lost_at_most.and_then(|most| most.parse().ok());
    Backlog { shard, queued, pending, lag_ms, committed, pipeline_id, lost_at_most }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn streams() -> (Streams, redis::aio::MultiplexedConnection, String) {
        let url = crate::streams::testing::url();
        let name = format!("info-{:016x}", rand::random::<u64>());
        let streams = Streams::connect(&url, &name).expect("URL");
        let connection = streams.queries().await.expect("a Redis for the tests").each().next().expect("a server");
        (streams, connection, name)
    }

    #[tokio::test]
    async fn a_backlog_is_what_is_queued_and_what_is_pending() {
        let (streams, mut redis, name) = streams().await;
        let (key, fence) = (keys::records(&name, ShardId::new(1)), keys::fence(&name, ShardId::new(1)));
        let mut ids = Vec::new();
        for n in 0..5 {
            ids.push(redis.xadd::<_, _, _, _, String>(&key, "*", &[("record", n)]).await.expect("XADD"));
        }
        let all = streams.backlog(3).await.expect("backlog");
        assert_eq!((all[1].queued, all[1].pending, &all[1].committed), (5, 0, &None), "without a group all is queued");
        assert_eq!(all[2], Backlog { shard: ShardId::new(2), ..Backlog::default() }, "without a stream nothing is");

        let () = redis.xgroup_create(&key, keys::GROUP, "0").await.expect("XGROUP");
        let () = redis::cmd("XREADGROUP")
            .arg(&["GROUP", keys::GROUP, "w", "COUNT", "2", "STREAMS", &key, ">"])
            .query_async(&mut redis)
            .await
            .expect("XREADGROUP");
        let () = redis.hset_multiple(&fence, &[("records", "7"), ("deadLetters", "1")]).await.expect("HSET");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let shard = streams.backlog(2).await.expect("backlog").remove(1);
        assert_eq!((shard.queued, shard.pending), (3, 2));
        assert!(shard.lag_ms >= 5, "the oldest pending entry is {} ms old", shard.lag_ms);
        assert_eq!(
            shard.committed,
            Some(Committed {
                watermarks: Watermarks { records: Seq::new(7), dead_letters: Seq::new(1), conflicts: Seq::ZERO },
                duplicates: 0
            })
        );

        // A deletion ahead of the group: Redis no longer knows the lag.
        let () = redis.xdel(&key, &[&ids[3]]).await.expect("XDEL");
        let shard = streams.backlog(2).await.expect("backlog").remove(1);
        assert_eq!((shard.queued, shard.pending), (2, 2));
        let () = redis.del(&[key, fence]).await.expect("DEL");
    }

    #[test]
    fn a_server_that_takes_no_writes_says_why() {
        let info = |used: u64, role: &str, status: &str| {
            format!(
                "# Memory\r\nused_memory:{used}\r\nmaxmemory:100\r\nmaxmemory_policy:noeviction\r\n# Replication\r\n\
                 role:{role}\r\n# Persistence\r\naof_last_write_status:{status}\r\n"
            )
        };
        assert_eq!(refuses_writes(&info(99, "master", "ok")), None);
        assert_eq!(refuses_writes(""), None);
        for (info, said) in [
            (info(100, "master", "ok"), "full"),
            (info(1, "slave", "ok"), "replica"),
            (info(1, "master", "err"), "log"),
        ] {
            assert!(refuses_writes(&info).is_some_and(|why| why.contains(said)), "{info}");
        }
    }

    #[tokio::test]
    async fn cursors_hold_only_shards() {
        let (streams, mut redis, name) = streams().await;
        let stream = format!("{name}.alerts");
        let key = keys::cursor(&stream);
        let () = redis.hset_multiple(&key, &[("0", "12"), ("sink", "alerts"), ("3", "4")]).await.expect("HSET");
        let cursors = streams.sink_cursors(&[stream, format!("{name}.none")]).await.expect("cursors");
        let cursors: Vec<_> = cursors.into_iter().map(|cursor| cursor.numbers).collect();
        assert_eq!(
            cursors,
            [HashMap::from([(ShardId::new(0), Seq::new(12)), (ShardId::new(3), Seq::new(4))]), HashMap::new()]
        );
        assert_ne!(streams.promises().await.expect("promises").version, "unknown");
        let () = redis.del(key).await.expect("DEL");
    }
}
