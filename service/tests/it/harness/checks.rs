//! Checks of results: everything is applied and published, each record once and in order, and `verify` agrees.

use std::collections::{BTreeMap, HashMap, HashSet};

use redis::streams::StreamRangeReply;
use serde_json::{Value, json};

use super::{Pipeline, eventually};

/// An entry of a sink's stream.
#[derive(Debug, Clone)]
pub(crate) struct SinkEntry {
    /// Such as `0-1`, `0-1-alert`, `0-1-total-a`, `0-d1`, `0-c1`.
    pub(crate) id: String,
    /// Such as `record.processed`.
    pub(crate) kind: String,
    pub(crate) source: String,
    pub(crate) data: Value,
    /// All fields of the entry in Redis.
    pub(crate) fields: BTreeMap<String, String>,
}

impl SinkEntry {
    /// The record's id, of an entry of any kind; empty where it has none.
    pub(crate) fn record_id(&self) -> &str {
        self.data["record"]["recordId"].as_str().or_else(|| self.data["recordId"].as_str()).unwrap_or_default()
    }

    /// Shard and sequence number.
    pub(crate) fn number(&self) -> (u64, i64) {
        let (shard, rest) = self.id.split_once('-').unwrap();
        let rest = rest.split_once("-total-").map_or(rest, |(number, _)| number);
        let number = rest.trim_start_matches(['d', 'c']).trim_end_matches("-alert");
        (shard.parse().unwrap(), number.parse().unwrap())
    }
}

impl Pipeline {
    /// A whole stream, in order.
    pub(crate) async fn entries(&self, stream: &str) -> Vec<SinkEntry> {
        let (mut ids, mut from) = (Vec::new(), "-".to_owned());
        loop {
            let page: StreamRangeReply = self.redis(&["XRANGE", stream, &from, "+", "COUNT", "2000"]).await;
            let Some(last) = page.ids.last() else { break };
            from = format!("({}", last.id);
            ids.extend(page.ids);
        }
        let entry = |entry: redis::streams::StreamId| {
            let fields: BTreeMap<String, String> = entry
                .map
                .iter()
                .map(|(name, value)| (name.clone(), redis::from_redis_value_ref(value).unwrap()))
                .collect();
            let field = |name: &str| fields.get(name).cloned().unwrap_or_default();
            let data = serde_json::from_str(&field("data")).unwrap();
            SinkEntry { id: field("id"), kind: field("type"), source: field("source"), data, fields }
        };
        ids.into_iter().map(entry).collect()
    }

    /// The stream of a sink by its name, in order.
    pub(crate) async fn sink_entries(&self, sink: &str) -> Vec<SinkEntry> {
        self.entries(&self.stream(sink)).await
    }

    /// The number of records in all input streams that are not acknowledged; an entry of another program counts as one.
    pub(crate) async fn backlog(&self) -> u64 {
        let mut records = 0;
        for shard in 0..self.shards() {
            if self.redis::<u64>(&["XLEN", &self.records(shard)]).await > 0 {
                let fields = ["HMGET", &self.fence(shard), "appended", "acknowledged"];
                let (appended, acknowledged): (Option<u64>, Option<u64>) = self.redis(&fields).await;
                records += appended.unwrap_or_default().saturating_sub(acknowledged.unwrap_or_default()).max(1);
            }
        }
        records
    }

    /// Waits until all input streams are empty and every sink has published all outcomes.
    pub(crate) async fn applied(&self) {
        self.applied_except(&[]).await;
    }

    /// Waits until all input streams are empty and every sink except `dead` has published all outcomes.
    pub(crate) async fn applied_except(&self, dead: &[&str]) {
        eventually("all entries are applied", async || self.backlog().await == 0).await;
        eventually("every sink has published all", async || self.sinks_behind(dead).await.is_empty()).await;
    }

    /// Sinks that are not started, or whose cursor is below the highest stored number of a shard. `dead` are left out.
    async fn sinks_behind(&self, dead: &[&str]) -> Vec<String> {
        let sinks: Vec<(String, String, String, bool)> =
            sqlx::query_as("select name, kind, stream, started from sinks where not removed and stream is not null")
                .fetch_all(&self.sql)
                .await
                .unwrap();
        let shards: Vec<(i32, i64, i64, i64)> =
            sqlx::query_as("select shard, records, dead_letters, conflicts from shards")
                .fetch_all(&self.sql)
                .await
                .unwrap();
        let mut behind = Vec::new();
        for (name, kind, stream, started) in sinks {
            if dead.contains(&name.as_str()) {
                continue;
            }
            let cursor: HashMap<String, String> = self.redis(&["HGETALL", &format!("{{{stream}}}:cursor")]).await;
            let is_current = shards.iter().all(|(shard, records, dead_letters, conflicts)| {
                let highest = match kind.as_str() {
                    "DeadLettered" => dead_letters,
                    "Conflicted" => conflicts,
                    _ => records,
                };
                cursor.get(&shard.to_string()) == Some(&highest.to_string())
            });
            if !started || !is_current {
                behind.push(name);
            }
        }
        // Before a policy version is stored, sinks of the manifest are not yet in Postgres: they are behind, too.
        let spec: Option<String> = sqlx::query_scalar("select spec from policies order by version desc limit 1")
            .fetch_optional(&self.sql)
            .await
            .unwrap();
        if spec.is_none() {
            behind.push("(no policy yet)".to_owned());
        }
        behind
    }

    /// Waits until both servers count every record that was appended: `lost` of them are lost, and each other one has its
    /// outcome.
    pub(crate) async fn counted(&self, lost: i64) {
        eventually(&format!("both servers count every record, {lost} of them as lost"), async || {
            let [mut appended, mut acknowledged] = [0, 0];
            for shard in 0..self.shards() {
                let fields = ["HMGET", &self.fence(shard), "appended", "acknowledged"];
                let counts: (Option<i64>, Option<i64>) = self.redis(&fields).await;
                appended += counts.0.unwrap_or_default();
                acknowledged += counts.1.unwrap_or_default();
            }
            let of_producers = "select ((select sum(folded) from shards)
                + coalesce((select sum(appended) from producers where not folded), 0))::bigint";
            let outcomes = "select sum(processed + duplicates + conflicts + dead_letters)::bigint from shards";
            let counts = [
                appended,
                acknowledged,
                self.number("select coalesce(sum(accounted), 0)::bigint from shards").await,
                self.number(of_producers).await,
                self.number(outcomes).await + lost,
            ];
            counts.iter().all(|count| *count == appended)
                && self.number("select sum(lost)::bigint from shards").await == lost
                && self.backlog().await == 0
        })
        .await;
    }

    /// Runs `millrace verify`, which must succeed.
    pub(crate) async fn verify(&self) {
        let verified = self.command("verify", &[]).await;
        let printed =
            [verified.stdout, verified.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("");
        assert!(verified.status.success(), "verify: {printed}");
    }

    /// Checks that exactly these records were processed: each is once in the log and once in the stream of
    /// notifications, with numbers without gaps, in the order of arrival within its destination. Runs `verify`, too.
    pub(crate) async fn check_exactly_once(&self, expected: &[String]) {
        let entries = self.sink_entries("notifications").await;
        check_stream(&entries, expected);
        let stored: Vec<String> =
            sqlx::query_scalar("select record_id from records").fetch_all(&self.sql).await.unwrap();
        assert_eq!(stored.len(), expected.len(), "rows of the log");
        let stored: HashSet<&String> = stored.iter().collect();
        assert!(expected.iter().all(|id| stored.contains(id)), "every record is in the log");
        self.verify().await;
    }
}

/// Checks that a stream of notifications, from its beginning, holds each of these records once and in order.
pub(crate) fn check_stream(entries: &[SinkEntry], expected: &[String]) {
    let mut seen: HashMap<&str, u32> = HashMap::new();
    let mut next: BTreeMap<u64, i64> = BTreeMap::new();
    let mut order: HashMap<&str, i64> = HashMap::new();
    for entry in entries {
        *seen.entry(entry.record_id()).or_default() += 1;
        let (shard, number) = entry.number();
        let expected = next.entry(shard).or_insert(1);
        assert_eq!(number, *expected, "numbers of shard {shard} have no gap");
        *expected += 1;
        let record = &entry.data["record"];
        if let Some(n) = record["attributes"]["n"].as_i64() {
            let before = order.insert(record["destinationId"].as_str().unwrap(), n);
            assert!(before.is_none_or(|before| before < n), "{} came before {before:?}", entry.record_id());
        }
    }
    let doubled: Vec<_> = seen.iter().filter(|(_, times)| **times > 1).take(10).collect();
    assert!(doubled.is_empty(), "published more than once: {doubled:?}");
    let lost: Vec<_> = expected.iter().filter(|id| !seen.contains_key(id.as_str())).take(10).collect();
    assert!(lost.is_empty(), "never published: {lost:?}");
    assert_eq!(seen.len(), expected.len(), "nothing else was published");
}

/// Waits until `/stats` has this number of lost records, and the loss is `uncertain` or not.
pub(crate) async fn lost(pipeline: &Pipeline, records: i64, uncertain: bool) {
    let mut shown = Value::Null;
    eventually(&format!("{records} records are lost, uncertain: {uncertain}"), async || {
        // After a move to another server it may not answer yet.
        let stats = pipeline.ask("/stats").await.json();
        let now = json!([stats["lost"], stats["lossUncertain"]]);
        if now != shown {
            eprintln!("lost, uncertain: {now}");
        }
        shown = now;
        shown == json!([records, uncertain])
    })
    .await;
}
