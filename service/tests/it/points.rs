//! Sinks that begin again at an earlier point, begin at a time, or end at one.

use std::collections::BTreeMap;

use serde_json::json;

use crate::{
    harness::{Load, Pipeline, SinkEntry, eventually, record},
    webhooks::Hooked,
};

/// Runs `millrace sinks rewind`, which succeeds or says why not.
async fn rewind(pipeline: &Pipeline, arguments: &[&str]) -> Result<String, String> {
    let arguments: Vec<&str> = std::iter::once("rewind").chain(arguments.iter().copied()).collect();
    let done = pipeline.command("sinks", &arguments).await;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    if done.status.success() { Ok(text(done.stdout)) } else { Err(text(done.stderr)) }
}

/// Per shard, the ranges of numbers that follow each other in a stream.
fn ranges(entries: &[SinkEntry]) -> BTreeMap<u64, Vec<(i64, i64)>> {
    let mut ranges: BTreeMap<u64, Vec<(i64, i64)>> = BTreeMap::new();
    for entry in entries {
        let (shard, number) = entry.number();
        let of = ranges.entry(shard).or_default();
        match of.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => of.push((number, number)),
        }
    }
    ranges
}

/// A time, in text, at which everything that was sent is committed and nothing else.
async fn time_now(pipeline: &Pipeline) -> String {
    let now = "select to_char(clock_timestamp() at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    sqlx::query_scalar(now).fetch_one(&pipeline.sql).await.unwrap()
}

async fn heads(pipeline: &Pipeline) -> BTreeMap<u64, i64> {
    let rows: Vec<(i32, i64)> =
        sqlx::query_as("select shard, records from shards").fetch_all(&pipeline.sql).await.unwrap();
    rows.into_iter().map(|(shard, records)| (shard.try_into().unwrap(), records)).collect()
}

/// The sum of the cursors of a webhook.
async fn cursors(pipeline: &Pipeline) -> i64 {
    pipeline.number("select sum(cursor)::bigint from webhook_cursors").await
}

/// Waits until this number of sinks is complete.
async fn completed(pipeline: &Pipeline, count: i64) {
    eventually(&format!("{count} sinks are complete"), async || {
        pipeline.number("select count(*) from sinks where completed_at is not null").await == count
    })
    .await;
}

async fn is_started(pipeline: &Pipeline) -> bool {
    pipeline.number("select count(*) from sinks where not started or old_stream is not null").await == 0
}

/// Each shard's stream goes up to where it was, and then from above `points` up to the end.
async fn check_rewound(pipeline: &Pipeline, points: &BTreeMap<u64, i64>) {
    let heads = heads(pipeline).await;
    let ranges = ranges(&pipeline.sink_entries("notifications").await);
    for (shard, point) in points {
        match ranges[shard].as_slice() {
            [(1, end), (begin, last)] => {
                assert_eq!((*begin, last), (point + 1, &heads[shard]), "shard {shard}");
                assert!(end >= point, "shard {shard} ended at {end}");
            }
            other => panic!("shard {shard}: {other:?}"),
        }
    }
    for (shard, head) in heads.iter().filter(|(shard, _)| !points.contains_key(shard)) {
        assert_eq!(ranges[shard], [(1, *head)], "shard {shard} continues");
    }
    pipeline.verify().await;
}

#[tokio::test]
async fn a_stream_that_is_rewound_while_it_publishes_repeats_from_there_on() {
    let pipeline = Pipeline::new(json!({"shards": 2})).await;
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 300);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    let (time, points) = (time_now(&pipeline).await, heads(&pipeline).await);
    pipeline.send(&Load::from("r", 300, 300).records).await;
    pipeline.applied().await;
    let refused = rewind(&pipeline, &["notifications", "--to-time", &time]).await.unwrap_err();
    assert!(refused.contains("still has entries") && refused.contains("--repeat"), "{refused}");
    let more = Load::from("r", 600, 900);
    let back = async {
        eventually("more is published", async || pipeline.sink_entries("notifications").await.len() > 650).await;
        rewind(&pipeline, &["notifications", "--to-time", &time, "--repeat"]).await.unwrap()
    };
    let ((), said) = tokio::join!(pipeline.send(&more.records), back);
    assert!(said.contains(&format!("shard 1 from {}", points[&1] + 1)), "{said}");
    eventually("the sink is started", async || is_started(&pipeline).await).await;
    pipeline.applied().await;
    check_rewound(&pipeline, &points).await;
    let trail = pipeline.get("/audit?action=ADMIN").await;
    let act = trail["items"].as_array().unwrap().last().unwrap();
    assert_eq!(act["reason"], format!("sinks.rewind: sink notifications to time {time}"), "{trail}");
    assert!(act["actor"].as_str().unwrap().starts_with("command"), "{trail}");
}

/// The worker holds a page that it read by the old cursor.
#[tokio::test]
async fn a_publisher_with_a_page_in_flight_moves_no_cursor_over_a_rewind() {
    let pipeline = Pipeline::new(json!({"shards": 1})).await;
    let _serve = pipeline.serve().await;
    let mut first = pipeline.work();
    pipeline.send(&Load::new("r", 300).records).await;
    pipeline.applied().await;
    first.stop().await;
    let stopped = pipeline.work_with(&[("MILLRACE_FAULT", "before_publish:1:stop")]);
    pipeline.send(&Load::from("r", 300, 300).records).await;
    eventually("more is committed", async || heads(&pipeline).await[&0] > 300).await;
    rewind(&pipeline, &["notifications", "--to-seq", "0:101", "--repeat"]).await.unwrap();
    // Takes the shard once the lease has expired, and makes the cursor.
    let _successor = pipeline.work();
    eventually("the sink is started", async || is_started(&pipeline).await).await;
    stopped.resume();
    pipeline.send(&Load::from("r", 600, 100).records).await;
    pipeline.applied().await;
    assert_eq!(heads(&pipeline).await[&0], 700);
    check_rewound(&pipeline, &BTreeMap::from([(0, 100)])).await;
}

#[tokio::test]
async fn a_worker_that_dies_while_it_rewinds_leaves_nothing_out() {
    let pipeline = Pipeline::new(json!({"shards": 2})).await;
    let _serve = pipeline.serve().await;
    let mut work = pipeline.work();
    pipeline.send(&Load::new("r", 300).records).await;
    pipeline.applied().await;
    work.stop().await;
    rewind(&pipeline, &["notifications", "--to-seq", "1:51", "--repeat"]).await.unwrap();
    let again = rewind(&pipeline, &["notifications", "--to-seq", "1:51", "--repeat"]).await.unwrap_err();
    assert!(again.contains("starts or moves"), "{again}");
    pipeline.work_with(&[("MILLRACE_FAULT", "after_retire:1")]).died_at_its_fault().await;
    pipeline.work_with(&[("MILLRACE_FAULT", "before_sink_started:1")]).died_at_its_fault().await;
    let (_one, _other) = (pipeline.work(), pipeline.work());
    pipeline.send(&Load::from("r", 300, 100).records).await;
    eventually("the sink is started", async || is_started(&pipeline).await).await;
    pipeline.applied().await;
    check_rewound(&pipeline, &BTreeMap::from([(1, 50)])).await;
    assert_eq!(pipeline.number("select count(*) from sink_starts where rewound_to is not null").await, 0);
}

#[tokio::test]
async fn a_rewind_to_a_point_that_is_not_there_is_refused() {
    let pipeline = Pipeline::new(json!({"shards": 2})).await;
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    pipeline.send(&Load::new("r", 100).records).await;
    pipeline.applied().await;
    let time = time_now(&pipeline).await;
    let head = heads(&pipeline).await[&1];
    let above = format!("1:{}", head + 1);
    for (arguments, words) in [
        (["none", "--to-seq", "1:1"], "there is no sink none; there are: alerts"),
        (["notifications", "--to-seq", "2:1"], "there is no shard 2; shards are 0 to 1"),
        (["notifications", "--to-seq", &above], "highest number of shard 1"),
        (["notifications", "--to-seq", "1:0"], "such as 3:17"),
        (["notifications", "--to-time", "9999-01-01T00:00:00Z"], "in the future"),
        (["notifications", "--to-time", "yesterday"], "RFC 3339"),
        (["notifications", "--to-time", &time], "published nothing from there on"),
    ] {
        let refused = rewind(&pipeline, &arguments).await.unwrap_err();
        assert!(refused.contains(words), "{arguments:?}: {refused}");
    }
    let acts = pipeline.number("select count(*) from admin_actions where action = 'sinks.rewind'").await;
    assert_eq!(acts, 0, "an act that is refused is none");

    // As after the drop of an old partition.
    assert!(pipeline.execute("delete from records where shard = 1 and seq < 10").await > 0);
    let dropped = rewind(&pipeline, &["notifications", "--to-seq", "1:9", "--repeat"]).await.unwrap_err();
    assert!(dropped.contains("was dropped; the earliest point is --to-seq 1:10"), "{dropped}");
    let dropped = rewind(&pipeline, &["notifications", "--to-time", "2020-01-01T00:00:00Z", "--repeat"]).await;
    let dropped = dropped.unwrap_err();
    assert!(dropped.contains("were dropped; the earliest point is --to-time 20"), "{dropped}");
    rewind(&pipeline, &["notifications", "--to-seq", "1:10", "--repeat"]).await.unwrap();
    eventually("the sink is started", async || is_started(&pipeline).await).await;
    pipeline.applied().await;
    let ranges = ranges(&pipeline.sink_entries("notifications").await);
    assert_eq!(ranges[&1], [(1, head), (10, head)]);
}

#[tokio::test]
async fn a_webhook_that_is_rewound_delivers_again_from_there_on() {
    let hooked = Hooked::new(2, |_| {}).await;
    let pipeline = &hooked.pipeline;
    let work = hooked.work_with(&[("MILLRACE_FAULT", "after_delivery:250:stop")]);
    pipeline.send(&Load::new("r", 100).records).await;
    hooked.received(100).await;
    let points = heads(pipeline).await;
    let time = time_now(pipeline).await;
    pipeline.send(&Load::from("r", 100, 100).records).await;
    hooked.received(200).await;
    eventually("the cursors are at the end", async || cursors(pipeline).await == 200).await;
    // The worker is stopped with deliveries that it has not stored.
    pipeline.send(&Load::from("r", 200, 200).records).await;
    eventually("the worker is stopped", async || hooked.receiver.deliveries().len() >= 250).await;
    eventually("it sends nothing more", async || {
        let status = std::fs::read_to_string(format!("/proc/{}/stat", work.id())).unwrap();
        status.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
    })
    .await;
    let before = hooked.receiver.deliveries().len();
    rewind(pipeline, &["hooks", "--to-time", &time]).await.unwrap();
    assert_eq!(cursors(pipeline).await, points.values().sum::<i64>());
    work.resume();
    hooked.received(400).await;
    let heads = heads(pipeline).await;
    eventually("all are delivered again", async || {
        let again = hooked.receiver.deliveries().split_off(before);
        points.iter().all(|(shard, point)| {
            (point + 1..=heads[shard])
                .all(|seq| again.iter().any(|one| one.body["shard"] == *shard && one.seq() == seq))
        })
    })
    .await;
    let again = hooked.receiver.deliveries().split_off(before);
    assert!(again.iter().all(|one| one.seq() > points[&one.body["shard"].as_u64().unwrap()]), "nothing before it");
    // What the old publisher had under way comes first. The last delivery of each number is in order.
    let mut seen: BTreeMap<String, Vec<i64>> = BTreeMap::new();
    for one in again.iter().rev() {
        let later = seen.entry(one.destination().to_owned()).or_default();
        if !later.contains(&one.seq()) {
            assert!(later.iter().all(|seq| one.seq() < *seq), "{later:?} came after {}", one.body);
            later.push(one.seq());
        }
    }
    eventually("the cursors are at the end", async || cursors(pipeline).await == 400).await;
    let actions = pipeline.number("select count(*) from admin_actions where action = 'sinks.rewind'").await;
    assert_eq!(actions, 1);
}

#[tokio::test]
async fn a_rewound_webhook_keeps_what_waits_below_the_point() {
    let hooked = Hooked::new(1, |_| {}).await;
    let pipeline = &hooked.pipeline;
    hooked.receiver.answer_by_destination(|destination| if destination == "destination-3" { 500 } else { 200 });
    let _work = hooked.work();
    pipeline.send(&Load::new("r", 100).records).await;
    hooked.received(95).await;
    eventually("the cursor is at the end", async || cursors(pipeline).await == 100).await;
    rewind(pipeline, &["hooks", "--to-seq", "0:51"]).await.unwrap();
    assert_eq!(pipeline.number("select n from deliveries").await, 4, "the first of its destination");
    hooked.receiver.answer_by_destination(|_| 200);
    pipeline.post("/deliveries/hooks.0-4/retry", &json!({})).await;
    hooked.received(100).await;
    hooked.receiver.check_order();
    eventually("nothing waits", async || pipeline.number("select count(*) from deliveries").await == 0).await;

    // A rewind to before what waits: it is delivered in its turn.
    hooked.receiver.answer(|_| (410, Vec::new()));
    pipeline.send(&Load::from("r", 100, 10).records).await;
    eventually("it is disabled", async || pipeline.number("select count(*) from sinks where disabled").await == 1)
        .await;
    let disabled = rewind(pipeline, &["hooks", "--to-seq", "0:51"]).await.unwrap_err();
    assert!(disabled.contains("is disabled: `millrace sinks resume hooks` first"), "{disabled}");
}

#[tokio::test]
async fn a_temporary_sink_publishes_what_is_between_its_times_and_is_complete() {
    let pipeline = Pipeline::new(json!({"shards": 2})).await;
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    let (mut times, mut points) = (Vec::new(), Vec::new());
    for n in 0..4 {
        pipeline.send(&Load::from("r", n * 100, 100).records).await;
        pipeline.applied().await;
        times.push(time_now(&pipeline).await);
        points.push(heads(&pipeline).await);
    }
    let backfill = json!({"name": "backfill", "event": "Processed", "redisStream": {},
                          "from": {"time": times[0]}, "until": {"time": times[1]}});
    pipeline.change(|spec| spec["sinks"].as_array_mut().unwrap().push(backfill));
    completed(&pipeline, 1).await;
    pipeline.send(&Load::from("r", 400, 100).records).await;
    pipeline.applied_except(&["backfill"]).await;
    let between = |from: usize, to: usize| {
        let ranges = points[from].iter().map(|(shard, point)| (*shard, vec![(point + 1, points[to][shard])]));
        ranges.collect::<BTreeMap<_, _>>()
    };
    assert_eq!(ranges(&pipeline.sink_entries("backfill").await), between(0, 1));
    let stats = pipeline.get("/stats").await;
    let sink = stats["sinks"].as_array().unwrap().iter().find(|sink| sink["name"] == "backfill").unwrap().clone();
    assert_eq!((&sink["complete"], &sink["lag"], &sink["states"]), (&json!(true), &json!(0), &json!([])), "{stats}");
    let listed = String::from_utf8(pipeline.command("sinks", &["list"]).await.stdout).unwrap();
    assert!(listed.lines().any(|line| line.starts_with("backfill") && line.ends_with("complete")), "{listed}");
    pipeline.verify().await;

    // With a later end it continues.
    pipeline
        .change(|spec| spec["sinks"].as_array_mut().unwrap().last_mut().unwrap()["until"] = json!({"time": times[2]}));
    eventually("it has continued", async || ranges(&pipeline.sink_entries("backfill").await) == between(0, 2)).await;
    completed(&pipeline, 1).await;
    // And a rewound one is published up to its end again.
    rewind(&pipeline, &["backfill", "--to-time", &times[1], "--repeat"]).await.unwrap();
    completed(&pipeline, 0).await;
    completed(&pipeline, 1).await;
    let again = ranges(&pipeline.sink_entries("backfill").await);
    for (shard, ranges) in between(1, 2) {
        assert_eq!(again[&shard].last(), ranges.last(), "{again:?}");
    }
    pipeline.verify().await;
}

#[tokio::test]
async fn a_sink_whose_end_comes_while_records_do_ends_at_it_in_each_shard() {
    let pipeline = Pipeline::new(json!({"shards": 2})).await;
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    pipeline.send(&Load::new("r", 100).records).await;
    pipeline.applied().await;
    let later = "select to_char((clock_timestamp() + interval '2 seconds') at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
    let until: String = sqlx::query_scalar(later).fetch_one(&pipeline.sql).await.unwrap();
    let sink = |name: &str, event: &str| json!({"name": name, "event": event, "redisStream": {}, "from": {"position": "Beginning"}, "until": {"time": until}});
    let sinks = [sink("until", "Processed"), sink("alerts-until", "Alert"), sink("none-until", "Conflicted")];
    pipeline.change(|spec| spec["sinks"].as_array_mut().unwrap().extend(sinks));
    // Of one destination: the other shard has nothing behind the end.
    let mut sent = 0;
    while pipeline.number("select count(*) from sinks where completed_at is not null").await < 3 {
        let records: Vec<_> = (sent..sent + 5).map(|n| record(&format!("more-{n}"), "destination-1")).collect();
        pipeline.send(&records).await;
        sent += 5;
    }
    let ends: Vec<(i32, i64)> =
        sqlx::query_as("select shard, max(seq) from records where processed_at < $1::text::timestamptz group by shard")
            .bind(&until)
            .fetch_all(&pipeline.sql)
            .await
            .unwrap();
    let expected: BTreeMap<u64, Vec<(i64, i64)>> =
        ends.iter().map(|(shard, end)| (u64::try_from(*shard).unwrap(), vec![(1, *end)])).collect();
    assert_eq!(ranges(&pipeline.sink_entries("until").await), expected);
    let last: i64 = ends.iter().map(|(_, end)| end).sum();
    assert!(last < 100 + sent as i64 && last > 100, "{last} of {sent} before the end");
    pipeline.applied_except(&["until", "alerts-until", "none-until"]).await;
    assert_eq!(ranges(&pipeline.sink_entries("until").await), expected, "nothing more");
    let alerts = "select count(*) from records r where threshold is not null and not exists (select from sinks where name = 'alerts-until' and until <= r.processed_at)";
    assert_eq!(pipeline.sink_entries("alerts-until").await.len() as i64, pipeline.number(alerts).await);
    pipeline.verify().await;
}

#[tokio::test]
async fn a_temporary_webhook_is_complete_once_nothing_waits() {
    let hooked = Hooked::new(1, |_| {}).await;
    let pipeline = &hooked.pipeline;
    hooked.receiver.answer_by_destination(|destination| if destination == "destination-3" { 500 } else { 200 });
    let _work = hooked.work();
    pipeline.send(&Load::new("r", 100).records).await;
    hooked.received(95).await;
    let time = time_now(pipeline).await;
    pipeline.send(&Load::from("r", 100, 100).records).await;
    pipeline.change(|spec| spec["sinks"][0]["until"] = json!({"time": time}));
    eventually("its ends are known", async || {
        pipeline.number("select coalesce(sum(upto), 0)::bigint from sink_starts where sink = 'hooks'").await == 100
    })
    .await;
    eventually("a retry waits", async || {
        pipeline.number("select count(*) from deliveries where attempts > 0").await == 1
    })
    .await;
    completed(pipeline, 0).await;
    let before = hooked.receiver.received().len();
    hooked.receiver.answer_by_destination(|_| 200);
    pipeline.post("/deliveries/hooks.0-4/retry", &json!({})).await;
    completed(pipeline, 1).await;
    // It may have delivered some of what came behind before it had its end.
    let received = hooked.receiver.received();
    assert!(received.len() >= before + 5, "what waited is delivered");
    let all: std::collections::BTreeSet<i64> = received.iter().map(|one| one.seq()).collect();
    assert!((1..=100).all(|seq| all.contains(&seq)));
}
