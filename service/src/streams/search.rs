//! The search for a queued record in the input streams, newest entries first, within bounds in records and bytes.

use std::borrow::Cow;

use redis::{FromRedisValue as _, Value};

use super::{Error, Streams, entry, keys};
use crate::domain::{AccessLimit, InputRecord, Parsed, RecordId, ShardId};

/// Maximum number of records that are read of one shard, up to the last entry.
const SHARD_RECORDS: usize = 5_000;
/// Maximum number of records that are read over all shards, up to the last page.
const RECORDS: usize = 10_000;
/// Maximum number of bytes that are read over all shards, up to the last page.
const BYTES: usize = 16 << 20;
/// Entries of one read.
const PAGE: usize = 32;

/// A record in an input stream.
#[derive(Debug, Clone)]
pub struct Queued {
    /// Its shard.
    pub shard: ShardId,
    /// As it came.
    pub input: InputRecord,
    /// Its content.
    pub parsed: Parsed,
}

/// The result of a search.
#[derive(Debug, Clone)]
pub enum Search {
    /// The record was found.
    Found(Box<Queued>),
    /// No input stream has the record.
    Absent,
    /// The entries that were read do not have the record, and there are more.
    BoundReached,
}

/// The search in one shard.
struct ShardSearch {
    shard: ShardId,
    /// The id before which it continues; `None` at its end.
    before: Option<Cow<'static, str>>,
    records: usize,
}

impl Streams {
    /// Searches all shards for a record that a caller may reach, newest entries first.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn search(&self, record_id: &RecordId, limit: &AccessLimit, shards: u16) -> Result<Search, Error> {
        let queries = self.queries().await?;
        let needle = serde_json::Value::from(record_id.as_str()).to_string();
        let start = |shard| ShardSearch { shard, before: Some(Cow::Borrowed("+")), records: 0 };
        let mut searches: Vec<ShardSearch> = ShardId::all(shards).map(start).collect();
        let (mut records, mut bytes) = (0, 0);
        loop {
            let mut moved = false;
            for search in &mut searches {
                let Some(before) = search.before.as_deref().filter(|_| search.records < SHARD_RECORDS) else {
                    continue;
                };
                if records >= RECORDS || bytes >= BYTES {
                    return Ok(Search::BoundReached);
                }
                let key = keys::records(&self.pipeline, search.shard);
                let mut command = redis::cmd("XREVRANGE");
                command.arg(&key).arg(before).arg("-").arg("COUNT").arg(PAGE);
                let page: Value = command.query_async(&mut queries.of(&key)?).await.map_err(Error::of)?;
                let page = Vec::<(String, Vec<Vec<u8>>)>::from_redis_value(page).map_err(redis::RedisError::from)?;
                moved = true;
                search.before = match page.last() {
                    Some((last, _)) if page.len() == PAGE => Some(Cow::Owned(format!("({last}"))),
                    _ => None,
                };
                for (id, fields) in &page {
                    if search.records >= SHARD_RECORDS {
                        search.before = Some(Cow::Owned(id.clone()));
                        break;
                    }
                    bytes += fields.iter().map(Vec::len).sum::<usize>();
                    let fields: Vec<_> = fields.iter().map(|field| field.clone().into()).collect();
                    // An entry of another version is passed over.
                    let Ok(Some(found)) = entry::entry(id, 1, &fields) else { continue };
                    records += found.records.len();
                    search.records += found.records.len();
                    for input in found.records.into_iter().rev() {
                        if let Some(parsed) = matching(&input, &needle, record_id, limit) {
                            return Ok(Search::Found(Box::new(Queued { shard: search.shard, input, parsed })));
                        }
                    }
                }
            }
            if !moved {
                break;
            }
        }
        let all_read = searches.iter().all(|search| search.before.is_none());
        Ok(if all_read { Search::Absent } else { Search::BoundReached })
    }
}

fn matching(input: &InputRecord, needle: &str, record_id: &RecordId, limit: &AccessLimit) -> Option<Parsed> {
    // The cheap check first. With a backslash, another program may have spelt the id in another way.
    let text = std::str::from_utf8(&input.payload).ok()?;
    if !text.contains(needle) && !text.contains('\\') {
        return None;
    }
    let parsed = Parsed::read(&input.payload).ok()?;
    let record = &parsed.record;
    let is_it = record.record_id == *record_id && limit.allows(&record.source_id, &record.destination_id);
    is_it.then_some(parsed)
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
        let any = AccessLimit::default();
        let url = crate::streams::testing::url();
        let name = format!("search-{:016x}", rand::random::<u64>());
        let streams = Streams::connect(&url, &name).expect("URL");
        let key = keys::records(&name, ShardId::new(1));
        let mut redis = streams.shared(&key);
        let mut add = redis::pipe();
        add.xadd(&key, "*", &[("record", json("first").as_str())]).ignore();
        add.xadd(&key, "*", &[("record", json("\\u0061bc").as_str())]).ignore();
        for n in 0..1200 {
            add.xadd(&key, "*", &[("record", json(&format!("x{n}")).as_str())]).ignore();
        }
        let () = add.query_async(&mut redis).await.expect("XADD");
        let Ok(Search::Found(found)) = streams.search(&RecordId::stored("first"), &any, 2).await else {
            panic!("the oldest is found")
        };
        assert_eq!(found.shard, ShardId::new(1));
        assert!(
            matches!(streams.search(&RecordId::stored("abc"), &any, 2).await, Ok(Search::Found(_))),
            "with any spelling of its id"
        );
        assert!(
            matches!(streams.search(&RecordId::stored("d"), &any, 2).await, Ok(Search::Absent)),
            "another field is not an id"
        );

        let mut more = redis::pipe();
        for n in 0..SHARD_RECORDS {
            more.xadd(&key, "*", &[("record", json(&format!("y{n}")).as_str())]).ignore();
        }
        let () = more.query_async(&mut redis).await.expect("XADD");
        assert!(matches!(streams.search(&RecordId::stored("first"), &any, 2).await, Ok(Search::BoundReached)));
        let () = redis::AsyncCommands::del(&mut redis, key).await.expect("DEL");
    }
}
