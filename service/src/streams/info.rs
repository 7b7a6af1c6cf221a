//! The backlog of each shard, the cursors of the sinks, and whether servers accept entries.
//!
//! Only reads: every script is flagged `no-writes`, so it also runs when Redis is full.

use std::{collections::HashMap, sync::LazyLock};

use futures::future::try_join_all;
use redis::{AsyncCommands, Script};

use super::{Error, Streams, connect::Queries, keys};
use crate::domain::{Offset, Seq, ShardId};

/// The records of a shard that wait in its stream.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Backlog {
    /// The shard.
    pub shard: ShardId,
    /// Whether the stream has an entry.
    pub has_entries: bool,
    /// The offset of the last appended record.
    pub appended: Offset,
    /// The offset up to which records are applied or lost, as last acknowledged.
    pub acknowledged: Offset,
    /// Age of the oldest entry in milliseconds, by Redis's clock; 0 when there is none.
    pub lag_ms: u64,
    /// The id of the pipeline that the stream belongs to; `None` before the first entry and the first owner.
    pub pipeline_id: Option<String>,
}

impl Backlog {
    /// Number of records that are not acknowledged. Entries of other programs have no offset: at least 1 while there is an
    /// entry.
    #[must_use]
    pub fn records(&self) -> i64 {
        self.above(self.acknowledged).max(i64::from(self.has_entries))
    }

    /// Number of records above an offset. An empty stream has none, whatever the counters hold.
    #[must_use]
    pub fn above(&self, offset: Offset) -> i64 {
        if self.has_entries { offset.until(self.appended) } else { 0 }
    }
}

/// A sink's cursor, beside its stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The id of the pipeline that it belongs to; `None`: there is no cursor.
    pub pipeline_id: Option<String>,
    /// Shard → highest number appended.
    pub numbers: HashMap<ShardId, Seq>,
}

static BACKLOG: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/backlog.lua")));

type Answer = (u64, u64, u64, Option<String>, Option<i64>, Option<i64>, Option<String>);

impl Streams {
    /// The backlog of each shard.
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

    /// The cursors of sinks' streams, with their owners.
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

    /// Why a server accepts no entries now, as far as it shows that; `None`: all accept them.
    ///
    /// # Errors
    /// When Redis does not answer. A server that refuses the command is not an error.
    pub async fn takes_no_writes(&self) -> Result<Option<String>, Error> {
        let told = infos(&self.queries().await?, &["memory", "replication", "persistence"]).await?;
        // Managed servers may refuse INFO.
        Ok(told.iter().flatten().find_map(|info| refuses_writes(info)))
    }
}

/// The answer to `INFO` of each server that accepts writes; `None`: it refuses the command.
pub(super) async fn infos(queries: &Queries, sections: &[&str]) -> Result<Vec<Option<String>>, Error> {
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

pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Why a server refuses writes, by its `INFO`.
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
    let (seconds, micros, entries, oldest, appended, acknowledged, pipeline_id) = answer;
    let now_ms = seconds.saturating_mul(1000).saturating_add(micros / 1000);
    let oldest_ms = oldest.and_then(|id| id.split_once('-').and_then(|(ms, _)| ms.parse::<u64>().ok()));
    Backlog {
        shard,
        has_entries: entries > 0,
        appended: Offset::new(appended.unwrap_or_default()),
        acknowledged: Offset::new(acknowledged.unwrap_or_default()),
        lag_ms: oldest_ms.map_or(0, |ms| now_ms.saturating_sub(ms)),
        pipeline_id,
    }
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
    async fn a_backlog_is_counted_in_records_by_offsets() {
        let (streams, mut redis, name) = streams().await;
        let (key, fence) = (keys::records(&name, ShardId::new(1)), keys::fence(&name, ShardId::new(1)));
        for n in 0..5 {
            let _: String = redis.xadd(&key, "*", &[("records", n)]).await.expect("XADD");
        }
        let () = redis.hset_multiple(&fence, &[("appended", "40"), ("acknowledged", "9")]).await.expect("HSET");
        let all = streams.backlog(3).await.expect("backlog");
        assert_eq!((all[1].records(), all[1].above(Offset::new(39))), (31, 1));
        assert_eq!(all[2], Backlog { shard: ShardId::new(2), ..Backlog::default() }, "without a stream there is none");

        let () = redis.xgroup_create(&key, keys::GROUP, "0").await.expect("XGROUP");
        let () = redis::cmd("XREADGROUP")
            .arg(&["GROUP", keys::GROUP, "w", "COUNT", "2", "STREAMS", &key, ">"])
            .query_async(&mut redis)
            .await
            .expect("XREADGROUP");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        let shard = streams.backlog(2).await.expect("backlog").remove(1);
        assert!(shard.lag_ms >= 5, "the oldest pending entry is {} ms old", shard.lag_ms);

        let () = redis.xtrim(&key, redis::streams::StreamMaxlen::Equals(0)).await.expect("XTRIM");
        let shard = streams.backlog(2).await.expect("backlog").remove(1);
        assert_eq!(
            (shard.records(), shard.lag_ms),
            (0, 0),
            "an empty stream has no backlog, whatever the counters hold"
        );
        let () = redis.del(&[key, fence]).await.expect("DEL");
    }

    #[test]
    fn a_server_that_accepts_no_writes_shows_why() {
        let info = |used: u64, role: &str, status: &str| {
            format!(
                "# Memory\r\nused_memory:{used}\r\nmaxmemory:100\r\nmaxmemory_policy:noeviction\r\n# Replication\r\n\
                 role:{role}\r\n# Persistence\r\naof_last_write_status:{status}\r\n"
            )
        };
        assert_eq!(refuses_writes(&info(99, "master", "ok")), None);
        assert_eq!(refuses_writes(""), None);
        for (info, shown) in [
            (info(100, "master", "ok"), "full"),
            (info(1, "slave", "ok"), "replica"),
            (info(1, "master", "err"), "log"),
        ] {
            assert!(refuses_writes(&info).is_some_and(|why| why.contains(shown)), "{info}");
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
        let () = redis.del(key).await.expect("DEL");
    }
}
