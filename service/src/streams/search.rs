//! The search for a queued record in the input streams, newest entries first, up to a bound.

use std::borrow::Cow;

use redis::{AsyncCommands, streams::StreamRangeReply};

use super::{Error, Streams, keys};
use crate::domain::{Record, RecordId, ShardId, StreamId};

/// Maximum number of entries that are read of one shard.
const SHARD_BOUND: usize = 5_000;
/// Maximum number of entries that are read over all shards.
const BOUND: usize = 10_000;
/// Entries of one read.
const PAGE: usize = 500;

/// An entry in an input stream.
#[derive(Debug, Clone)]
pub struct Queued {
    /// Its shard.
    pub shard: ShardId,
    /// Its id.
    pub id: StreamId,
    /// Its record.
    pub record: Record,
    /// The time of receipt in microseconds since the epoch; absent in an entry of another program.
    pub received_at_us: Option<i64>,
}

/// The result of a search.
#[derive(Debug, Clone)]
pub enum Search {
    /// The entry was found.
    Found(Box<Queued>),
    /// No input stream has the record.
    Absent,
    /// The entries that were read do not have the record, and there are more.
    BoundReached,
}

impl Streams {
    /// Searches all shards for a record, newest entries first.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn search(&self, record_id: &RecordId, shards: u16) -> Result<Search, Error> {
        let queries = self.queries().await?;
        let needle = serde_json::Value::from(record_id.as_str()).to_string();
        // The id before which each shard's search continues; `None` at its end.
        let mut places: Vec<Option<Cow<'static, str>>> = vec![Some(Cow::Borrowed("+")); usize::from(shards)];
        let (mut seen, mut cut) = (0, false);
        for _ in 0..SHARD_BOUND / PAGE {
            for (shard, place) in ShardId::all(shards).zip(&mut places) {
                let Some(from) = place.as_deref() else { continue };
                if seen >= BOUND {
                    cut = true;
                    break;
                }
                let key = keys::records(&self.pipeline, shard);
                let page: StreamRangeReply =
                    queries.of(&key)?.xrevrange_count(&key, from, "-", PAGE).await.map_err(Error::of)?;
                seen += page.ids.len();
                for entry in &page.ids {
                    if let Some(found) = matching(shard, entry, &needle, record_id) {
                        return Ok(Search::Found(Box::new(found)));
                    }
                }
                *place = match page.ids.last() {
                    Some(last) if page.ids.len() == PAGE => Some(Cow::Owned(format!("({}", last.id))),
                    _ => None,
                };
            }
        }
        let all_seen = !cut && places.iter().all(Option::is_none);
        Ok(if all_seen { Search::Absent } else { Search::BoundReached })
    }
}

fn matching(shard: ShardId, entry: &redis::streams::StreamId, needle: &str, record_id: &RecordId) -> Option<Queued> {
    let payload: Vec<u8> = entry.get("record")?;
    // The cheap check first. With a backslash, another program may have spelt the id in another way.
    let text = std::str::from_utf8(&payload).ok()?;
    if !text.contains(needle) && !text.contains('\\') {
        return None;
    }
    let record = Record::parse(&payload).ok().filter(|record| record.record_id == *record_id)?;
    Some(Queued { shard, id: entry.id.parse().ok()?, record, received_at_us: entry.get("receivedAt") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(id: &str) -> String {
        format!(
            r#"{{"recordId":"{id}","time":"2026-01-01T00:00:00Z","sourceId":"s","destinationId":"d","type":"positive","value":"1","unit":"u","reference":"r"}}"#
        )
    }

    #[tokio::test]
    async fn a_queued_record_is_found_up_to_the_bound() {
        let url = crate::streams::testing::url();
        let name = format!("search-{:016x}", rand::random::<u64>());
        let streams = Streams::connect(&url, &name).expect("URL");
        let key = keys::records(&name, ShardId::new(1));
        let mut redis = streams.shared(&key);
        let mut add = redis::pipe();
        add.xadd(&key, "*", &[("record", json("first").as_str()), ("receivedAt", "1700000000000000")]).ignore();
        add.xadd(&key, "*", &[("record", json("\\u0061bc").as_str())]).ignore();
        for n in 0..1200 {
            add.xadd(&key, "*", &[("record", json(&format!("x{n}")).as_str())]).ignore();
        }
        let () = add.query_async(&mut redis).await.expect("XADD");
        let Ok(Search::Found(found)) = streams.search(&RecordId::stored("first"), 2).await else {
            panic!("the oldest is found")
        };
        assert_eq!((found.shard, found.received_at_us), (ShardId::new(1), Some(1_700_000_000_000_000)));
        assert!(
            matches!(streams.search(&RecordId::stored("abc"), 2).await, Ok(Search::Found(_))),
            "with any spelling of its id"
        );
        assert!(
            matches!(streams.search(&RecordId::stored("d"), 2).await, Ok(Search::Absent)),
            "another field is not an id"
        );

        let mut more = redis::pipe();
        for n in 0..SHARD_BOUND {
            more.xadd(&key, "*", &[("record", json(&format!("y{n}")).as_str())]).ignore();
        }
        let () = more.query_async(&mut redis).await.expect("XADD");
        assert!(matches!(streams.search(&RecordId::stored("first"), 2).await, Ok(Search::BoundReached)));
        let () = redis.del(key).await.expect("DEL");
    }
}
