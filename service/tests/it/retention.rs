//! Retention: partitions are filled at earlier days and dropped, and what counted their records stays right.

use std::collections::{BTreeMap, HashSet};

use chrono::{NaiveDate, NaiveTime, TimeDelta};
use rust_decimal::Decimal;
use serde_json::{Value, json};

use crate::harness::{Load, Pipeline, check_stream, eventually, record, sink};

/// The worker's clock of commits is this many days off.
const CLOCK: &str = "MILLRACE_FAULT_CLOCK_DAYS";

/// Days of `spec.retention.records` here.
const KEPT: i64 = 3;

fn spec(more: Value) -> Value {
    let mut spec = json!({
        "shards": 2,
        "sinks": [sink("notifications", "Processed"), sink("alerts", "Alert")],
        "retention": {"partition": "Day", "records": format!("{KEPT}d")},
    });
    for (field, value) in more.as_object().unwrap() {
        spec[field] = value.clone();
    }
    spec
}

impl Pipeline {
    /// Applies records by a worker whose clock is so many days back.
    pub(crate) async fn applied_days_ago(&self, days: i64, records: &[Value]) {
        let mut work = self.work_with(&[(CLOCK, &format!("-{days}"))]);
        work.ready().await;
        self.send(records).await;
        self.applied().await;
        work.stop().await;
    }

    /// Today, by the clock of Postgres.
    async fn today(&self) -> NaiveDate {
        sqlx::query_scalar("select (clock_timestamp() at time zone 'UTC')::date").fetch_one(&self.sql).await.unwrap()
    }

    /// The day so many days ago.
    async fn day(&self, ago: i64) -> NaiveDate {
        self.today().await - TimeDelta::days(ago)
    }

    /// Whether the partition of a day is attached, or its table is left.
    async fn has_partition(&self, day: NaiveDate) -> bool {
        let there = "select exists (select from partitions where period = $1) or to_regclass($2) is not null";
        let table = format!("records_{}", day.format("%Y%m%d"));
        sqlx::query_scalar(there).bind(day).bind(table).fetch_one(&self.sql).await.unwrap()
    }

    async fn is_dropped(&self, day: NaiveDate) {
        eventually("the partition is dropped", async || !self.has_partition(day).await).await;
    }

    /// Count and total by destination, over all time.
    async fn totals(&self) -> BTreeMap<String, (i64, Decimal)> {
        let answer = self.get("/records/aggregations?records=false").await;
        let groups = answer["groups"].as_array().unwrap().iter();
        let of = |group: &Value| {
            let total = &group["totals"][0];
            let sum = (total["count"].as_i64().unwrap(), total["total"].as_str().unwrap().parse().unwrap());
            (group["destinationId"].as_str().unwrap().to_owned(), sum)
        };
        groups.map(of).collect()
    }
}

impl Pipeline {
    /// Answers that lack dropped records say from which `time` on they are complete; answers that count them do not.
    async fn says_what_is_missing(&self) {
        let since = "2026-01-31T12:00:00.000001Z";
        for (path, lacks) in [
            ("/records?limit=1", true),
            ("/records?order=processed&limit=1", true),
            ("/records/aggregations", true),
            ("/records/aggregations?alerted=false&records=false", true),
            ("/records/aggregations?endTime=2026-02-01T00:00:00Z&records=false", false),
            ("/records/aggregations?records=false", false),
            ("/records/rollups?window=1d&groupBy=destinationId", false),
            ("/records/rollups?startTime=2026-01-31T11:00:00Z", true),
            ("/records/rollups?groupBy=reference", true),
        ] {
            let answer = self.ask(path).await;
            let (found, lacking) =
                (answer.expect(200)["completeSince"].clone(), if lacks { since.into() } else { Value::Null });
            assert_eq!(found, lacking, "{path}");
            if !path.starts_with("/records?") {
                assert_eq!(answer.header("millrace-complete-since"), found.as_str().unwrap_or_default(), "{path}");
            }
            let and = if path.contains('?') { '&' } else { '?' };
            if lacks && !path.contains("startTime") {
                let complete = self.get(&format!("{path}{and}startTime={since}")).await;
                assert_eq!(complete.get("completeSince"), None, "{path} from that time on");
            }
        }
        let processed = self.get("/audit?limit=1").await["completeSince"].as_str().unwrap().to_owned();
        assert_eq!(self.get(&format!("/audit?startTime={processed}")).await.get("completeSince"), None);
        // A late record of a kept partition is there, whatever its time.
        let records = self.get("/records/aggregations").await;
        let counts = records["groups"].as_array().unwrap().iter().map(|group| group["count"].as_i64().unwrap());
        assert_eq!(counts.sum::<i64>(), 3_000);
    }
}

/// How many partitions the test fills and drops.
fn partitions() -> i64 {
    std::env::var("MILLRACE_RETENTION_PARTITIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(3)
}

#[tokio::test]
async fn partitions_are_dropped_under_load_and_every_sum_stays_exact() {
    let rollups = json!([{"name": "daily", "window": "1d", "groupBy": ["destinationId"], "distinct": "sourceId"}]);
    let pipeline = Pipeline::new(spec(json!({ "rollups": rollups, "retention": {"partition": "Day"} }))).await;
    let _serve = pipeline.serve().await;
    let (count, oldest) = (partitions(), KEPT + partitions());
    let mut sent = Vec::new();
    for n in 0..count {
        let load = Load::from("r", 300 * n as usize, 300);
        pipeline.applied_days_ago(oldest - n, &load.records).await;
        sent.push(load);
    }
    assert_eq!(pipeline.totals().await, expected(&sent));

    assert_eq!(pipeline.number("select count(*) from records").await, 300 * count, "all is kept");

    let mut work = pipeline.work();
    work.ready().await;
    pipeline.change(|spec| spec["retention"]["records"] = format!("{KEPT}d").into());
    let load = Load::from("r", 300 * count as usize, 3_000);
    let dropping = async {
        for n in 0..count {
            pipeline.is_dropped(pipeline.day(oldest - n).await).await;
        }
    };
    tokio::join!(pipeline.send_through(&load.records), dropping);
    pipeline.applied().await;
    sent.push(load);
    assert_eq!(pipeline.number("select count(*) from records").await, 3_000, "only new records are kept");
    let metric = "millrace_retention_dropped_partitions_total";
    eventually("a metric counts the partitions", async || work.metric(metric).await >= count as f64).await;
    work.has_problems(&[]).await;

    assert_eq!(pipeline.totals().await, expected(&sent), "totals also count what was dropped");
    let ids: Vec<String> = sent.iter().flat_map(|load| load.ids.clone()).collect();
    check_stream(&pipeline.sink_entries("notifications").await, &ids);
    pipeline.verify().await;
    pipeline.says_what_is_missing().await;
    // Dropped ids stay taken.
    pipeline.apply(&record("r-1", "destination-1")).await.refused(409, "record_conflict");
    pipeline.ask("/records/r-1").await.refused(410, "record_expired");
    work.stop().await;
}

/// Count and total by destination, by hand.
fn expected(sent: &[Load]) -> BTreeMap<String, (i64, Decimal)> {
    let mut sums: BTreeMap<String, (i64, Decimal)> = BTreeMap::new();
    let mut seen = HashSet::new();
    for record in
        sent.iter().flat_map(|load| &load.records).filter(|record| seen.insert(record["recordId"].to_string()))
    {
        let value: Decimal = record["value"].as_str().unwrap().parse().unwrap();
        let sum = sums.entry(record["destinationId"].as_str().unwrap().to_owned()).or_default();
        *sum = (sum.0 + 1, sum.1 + if record["type"] == "negative" { -value } else { value });
    }
    sums
}

#[tokio::test]
async fn a_partition_stays_until_every_sink_has_published_it() {
    let slow = json!({"name": "slow", "event": "Processed", "redisStream": {"maxLength": 10, "overflow": "Wait"}});
    let sinks = json!([sink("notifications", "Processed"), slow]);
    let pipeline = Pipeline::new(spec(json!({ "sinks": sinks }))).await;
    let _serve = pipeline.serve().await;
    let load = Load::new("old", 100);
    let mut work = pipeline.work_with(&[(CLOCK, "-5")]);
    pipeline.send(&load.records).await;
    pipeline.applied_except(&["slow"]).await;
    work.stop().await;
    let (day, old) = (pipeline.day(5).await, "select count(*) from records");

    let mut work = pipeline.work();
    let waiting = work.logs("worker.retention.waiting").await;
    assert_eq!((&waiting["sink"], &waiting["period"]), (&json!("slow"), &json!(day.to_string())), "{waiting}");
    let due = day.and_time(NaiveTime::MIN).and_utc().timestamp();
    let metric = "millrace_retention_due_partition_timestamp_seconds";
    eventually("a metric names the partition", async || work.metric(metric).await == due as f64).await;
    assert!(pipeline.has_partition(day).await);
    assert_eq!(pipeline.number(old).await, 100);

    // Its reader comes, and reads all.
    let stream = pipeline.stream("slow");
    let () = pipeline.redis(&["XGROUP", "CREATE", &stream, "readers", "$"]).await;
    let reading = async {
        eventually("the sink has published all", async || {
            let _: redis::Value =
                pipeline.redis(&["XREADGROUP", "GROUP", "readers", "one", "NOACK", "STREAMS", &stream, ">"]).await;
            let published: BTreeMap<String, i64> = pipeline
                .redis::<BTreeMap<String, String>>(&["HGETALL", &pipeline.cursor("slow")])
                .await
                .into_iter()
                .filter_map(|(shard, n)| Some((shard.parse::<u16>().ok()?.to_string(), n.parse().ok()?)))
                .collect();
            published.values().sum::<i64>() == 100
        })
        .await;
    };
    tokio::join!(reading, pipeline.is_dropped(day));
    assert_eq!(pipeline.number(old).await, 0);
    eventually("none is due", async || work.metric(metric).await == 0.0).await;
    pipeline.verify().await;
    work.stop().await;
}

#[tokio::test]
async fn a_drop_that_is_cut_short_or_meets_readers_is_finished_later() {
    let pipeline = Pipeline::new(spec(json!({"sinks": []}))).await;
    let _serve = pipeline.serve().await;
    for ago in [7, 6, 5] {
        pipeline.applied_days_ago(ago, &Load::new(&format!("old{ago}"), 50).records).await;
    }
    for (point, n, ago) in [("after_period_noted", 2, 7), ("after_detach", 2, 6)] {
        let day = pipeline.day(ago).await;
        let mut work = pipeline.work_with(&[("MILLRACE_FAULT", &format!("{point}:{n}"))]);
        work.died_at_its_fault().await;
        assert!(pipeline.has_partition(day).await, "{point}");
        pipeline.verify().await;
    }

    // A reader holds the last one: its queries see all records until it ends.
    let mut reader = pipeline.sql.begin_with("begin isolation level repeatable read").await.unwrap();
    let count = "select count(*) from records";
    let seen: i64 = sqlx::query_scalar(count).fetch_one(&mut *reader).await.unwrap();
    let mut work = pipeline.work_with(&[("MILLRACE_FAULT_READERS_MS", "500")]);
    work.logs("worker.retention.waiting").await;
    let load = Load::new("new", 50);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    let again: i64 = sqlx::query_scalar(count).fetch_one(&mut *reader).await.unwrap();
    assert_eq!(seen, again, "a reader is not disturbed");
    assert!(work.logged("worker.retention.failed").is_empty());
    reader.rollback().await.unwrap();
    for ago in [7, 6, 5] {
        pipeline.is_dropped(pipeline.day(ago).await).await;
    }
    assert_eq!(pipeline.number(count).await, 50);
    pipeline.verify().await;
    work.stop().await;
}

#[tokio::test]
async fn a_role_that_does_not_own_the_tables_leaves_the_drop_to_migrate() {
    let pipeline = Pipeline::new(spec(json!({"sinks": []}))).await;
    let _serve = pipeline.serve().await;
    pipeline.applied_days_ago(5, &Load::new("old", 50).records).await;
    let day = pipeline.day(5).await;
    let role = format!("rows_{}", pipeline.name);
    let url = pipeline.grant(&role).await;
    let mut work = pipeline.work_with(&[("MILLRACE_POSTGRES_URL", &url)]);
    let status = work.has_problems(&["PartitionOverdue"]).await;
    let message = status["problems"][0]["message"].as_str().unwrap();
    for part in [&day.to_string(), "must be owner", "millrace migrate"] {
        assert!(message.contains(part), "{part}: {message}");
    }
    let load = Load::new("new", 50);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    pipeline.verify().await;
    let migrated = pipeline.command("migrate", &[]).await;
    let text = [migrated.stdout, migrated.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).join("");
    assert!(migrated.status.success() && text.contains(&format!("dropped the partition of {day}")), "{text}");
    assert!(!pipeline.has_partition(day).await);
    work.has_problems(&[]).await;
    pipeline.verify().await;
    work.stop().await;
    pipeline.execute_as_owner(format!("drop owned by {role}; drop role {role}")).await;
}

/// Discards the dead letter of a record, as if that had been eight days ago.
async fn discard_eight_days_ago(pipeline: &Pipeline, id: &str) {
    let dead_letters = pipeline.list("/dead-letters").await;
    let dead_letter = dead_letters.iter().find(|dead_letter| dead_letter["recordId"] == id).unwrap();
    pipeline.act(&format!("/dead-letters/{}/discard", dead_letter["id"].as_str().unwrap())).await.expect(200);
    pipeline
        .execute("update dead_letters set closed_at = closed_at - interval '8 days' where closed_at is not null")
        .await;
}

#[tokio::test]
async fn ids_outcomes_and_windows_are_deleted_when_they_are_too_old() {
    let kept = json!({
        "partition": "Day", "records": "3d", "ids": "4d", "closedDeadLetters": "3d", "duplicates": "3d", "rollups": "3d",
    });
    let pipeline = Pipeline::new(spec(json!({
        "retention": kept, "policy": {"minimumTotal": "0"}, "rollups": [{"name": "daily", "window": "1d", "distinct": "sourceId"}],
        "sinks": [sink("notifications", "Processed"), sink("conflicts", "Conflicted"), sink("dead-letters", "DeadLettered")],
    })))
    .await;
    let _serve = pipeline.serve().await;
    let at = async |id: &str, ago: i64| {
        let mut record = record(id, "d");
        record["time"] = format!("{}T12:00:00Z", pipeline.day(ago).await).into();
        record
    };
    let (one, other) = (at("one", 8).await, at("other", 8).await);
    let mut conflict = one.clone();
    conflict["value"] = "7".into();
    let mut refused = [at("open", 8).await, at("closed", 8).await];
    for record in &mut refused {
        (record["type"], record["value"]) = ("negative".into(), "1000".into());
    }
    let [open, closed] = refused;
    let [mut paid, mut returned] = [at("paid", 8).await, at("returned", 8).await];
    paid["destinationId"] = "e".into();
    (returned["destinationId"], returned["type"], returned["reverses"]) =
        ("e".into(), "negative".into(), "paid".into());
    let records = [one.clone(), other.clone(), one.clone(), conflict, closed, open, paid, returned];
    pipeline.applied_days_ago(8, &records).await;
    assert_eq!(pipeline.number("select count(*) from rollup_totals").await, 3);
    assert_eq!(pipeline.number("select count(*) from reversals").await, 1);
    discard_eight_days_ago(&pipeline, "closed").await;
    pipeline.verify().await;

    let mut work = pipeline.work();
    for (what, left) in [
        ("select count(*) from records", 0),
        ("select count(*) from reversals", 0),
        ("select count(*) from duplicates", 0),
        ("select count(*) from conflicts", 0),
        ("select count(*) from dead_letters", 1),
        ("select count(*) from rollup_totals", 0),
        // The one of the open dead letter.
        ("select count(*) from record_ids", 1),
    ] {
        eventually(what, async || pipeline.number(what).await == left).await;
    }
    eventually("a pass over the ids ends", async || {
        pipeline.number("select count(*) from dropped_periods where ids_deleted_at is not null").await == 1
    })
    .await;
    pipeline.verify().await;
    let stats = pipeline.get("/stats").await;
    assert_eq!((&stats["duplicates"], &stats["conflicts"]), (&json!(1), &json!(1)), "{stats}");
    assert_eq!(stats["deadLetters"], json!({"open": 1, "discarded": 1, "replayed": 0}));
    assert_eq!(stats["lateAfterRetention"], 0);

    // A late record: it counts in the totals, and its window stays closed. Its id is free again.
    let applied = pipeline.apply(&one).await.expect(200);
    assert_eq!(
        (&applied["status"], &applied["summary"]["previousCount"]),
        (&json!("processed"), &json!(2)),
        "{applied}"
    );
    pipeline.apply(&at("fresh", 0).await).await.expect(200);
    assert_eq!(pipeline.get("/stats").await["lateAfterRetention"], 1);
    assert_eq!(pipeline.number("select count(*) from rollup_totals").await, 1, "only the window of today");
    assert_eq!(pipeline.totals().await["d"].0, 4);
    pipeline.applied().await;
    pipeline.verify().await;
    work.stop().await;
}
