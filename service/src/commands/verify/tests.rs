//! A consistent pipeline with one fault at a time: the check for a fault finds it, also in a limited scope.

mod totals;

use std::{str::FromStr as _, time::Duration};

use chrono::NaiveDate;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

use super::*;
use crate::{
    domain::{DestinationId, Period, Seq, ShardSeq},
    store::{
        Dropped, Expired, VerifyResult,
        testing::{UnclaimedPipeline, url},
    },
    streams::Streams,
};

const CONSISTENT: &str = "
    insert into pipeline (pipeline_id, namespace, name, uid, shards) values ('p', 'default', 'verify', 'p', 4);
    insert into policies (version, uid, generation, spec) values
        (1, 'p', 1, '{\"threshold\":\"100.00\"}'), (2, 'p', 2, '{\"threshold\":\"5\",\"thresholds\":{\"min\":\"50\"}}');
    insert into shards (shard, records, conflicts, dead_letters, processed, duplicates, alerts) values
        (0, 0, 0, 0, 0, 0, 0), (1, 5, 1, 1, 4, 1, 2), (2, 0, 0, 0, 0, 0, 0), (3, 0, 0, 0, 0, 0, 0);
    insert into shard_policies (shard, from_seq, version) values (1, 1, 1), (1, 3, 2);
    insert into records (shard, seq, period, epoch, received_at, processed_at, time, previous_count, positive, record_id, source_id,
        destination_id, reference, unit, stream_id, value, previous_total, threshold)
    select 1, seq, '2026-11-01', 1, now(), now(), now(), previous_count, positive, 'r' || seq, 's', 'd6', 'x', unit, '1-' || seq, value,
        previous_total, threshold
    from (values
        (1, 0, true, 'EUR', 100.00, 0, null), (2, 1, false, 'EUR', 100.01, 100.00, 100.00),
        (3, 2, true, 'EUR', 6, -0.01, 5), (5, 0, true, 'min', 50, 0, null)
    ) r (seq, previous_count, positive, unit, value, previous_total, threshold);
    insert into gaps (shard, kind, from_n, to_n) values (1, 'records', 4, 4);
    insert into record_ids select record_id, shard, seq, period, gen_random_uuid() from records;
    insert into totals (shard, destination_id, reference, unit, positive_count, positive_sum, negative_count, negative_sum, alerts, first_seq, last_seq)
        values (1, 'd6', 'x', 'EUR', 2, 106.00, 1, 100.01, 2, 1, 3), (1, 'd6', 'x', 'min', 1, 50, 0, 0, 0, 5, 5);
    insert into rollups (name, window_seconds, group_by, distinct_source, version)
        values ('daily', 86400, '{destinationId}', false, 2), ('removed', 60, '{}', false, 1);
    update rollups set removed = 2 where name = 'removed';
    insert into rollup_builds (rollup_id, shard, until_seq, next_seq) values (1, 1, 3, 3);
    insert into rollup_totals (rollup_id, shard, built, positive, window_start, destination_id, reference, source_id, unit, count, sum)
    select id, 1, built, positive, date_trunc('day', now(), 'UTC'), 'd6', '', '', unit, 1, sum
    from (values (1, true, true, 'EUR', 100), (1, true, false, 'EUR', 100.01), (1, false, true, 'EUR', 6.00),
                 (1, false, true, 'min', 50), (2, true, true, 'EUR', 7)) t (id, built, positive, unit, sum);
    insert into outcome_counts (shard, destination_id, duplicates, conflicts, dead_letters) values
        (1, 'd6', 1, 1, 0), (1, '', 0, 0, 1);
    insert into duplicates (shard, epoch, noted_at, received_at, record_id, stream_id, digest)
        values (1, 1, now(), now(), 'r1', '9-1', gen_random_uuid());
    insert into conflicts (shard, n, epoch, noted_at, received_at, record_id, destination_id, stream_id, payload, source_id)
        values (1, 1, 1, now(), now(), 'r1', 'd6', '9-2', '', 's');
    insert into dead_letters (shard, n, epoch, opened_at, received_at, stream_id, payload, reason, detail)
        values (1, 1, 1, now(), now(), '9-3', '', 'invalid_json', '');
";

/// A fault in the stored rows, its repair, and the checks that find the fault.
const FAULTS: [(&str, &str, &[&str]); 22] = [
    (
        "update records set previous_total = 100.02 where seq = 2",
        "update records set previous_total = 100 where seq = 2",
        &["summary"],
    ),
    (
        "update records set previous_count = 7 where seq = 3",
        "update records set previous_count = 2 where seq = 3",
        &["summary"],
    ),
    (
        "update totals set positive_sum = 106.000000001 where unit = 'EUR'",
        "update totals set positive_sum = 106.00 where unit = 'EUR'",
        &["total"],
    ),
    (
        "update totals set negative_count = 1 where unit = 'min'",
        "update totals set negative_count = 0 where unit = 'min'",
        &["total"],
    ),
    (
        "insert into totals (shard, destination_id, reference, unit) values (1, 'd6', 'y', 'EUR')",
        "delete from totals where reference = 'y'",
        &["total"],
    ),
    ("update totals set alerts = 1 where unit = 'EUR'", "update totals set alerts = 2 where unit = 'EUR'", &["total"]),
    (
        "update outcome_counts set conflicts = 0, duplicates = 2 where destination_id = 'd6'",
        "update outcome_counts set conflicts = 1, duplicates = 1 where destination_id = 'd6'",
        &["counter", "counter"],
    ),
    (
        "update outcome_counts set replayed = 1 where destination_id = ''",
        "update outcome_counts set replayed = 0 where destination_id = ''",
        &["counter"],
    ),
    ("delete from gaps", "insert into gaps (shard, kind, from_n, to_n) values (1, 'records', 4, 4)", &["number"]),
    (
        "update shards set processed = 5 where shard = 1",
        "update shards set processed = 4 where shard = 1",
        &["counter"],
    ),
    ("update shards set records = 6 where shard = 1", "update shards set records = 5 where shard = 1", &["counter"]),
    (
        "update shards set duplicates = 0 where shard = 1",
        "update shards set duplicates = 1 where shard = 1",
        &["counter"],
    ),
    ("update conflicts set n = 2", "update conflicts set n = 1", &["number", "counter"]),
    ("update dead_letters set record_id = 'r2'", "update dead_letters set record_id = null", &["id"]),
    ("update dead_letters set record_id = 'r7'", "update dead_letters set record_id = null", &["id"]),
    (
        "update record_ids set number = 5 where number = 3",
        "update record_ids set number = 3 where record_id = 'r3'",
        &["id"],
    ),
    ("update duplicates set record_id = 'r9'", "update duplicates set record_id = 'r1'", &["original"]),
    (
        "update records set threshold = 5 where seq = 5",
        "update records set threshold = null where seq = 5",
        &["counter", "alert", "total"],
    ),
    (
        "update records set threshold = null where seq = 2",
        "update records set threshold = 100 where seq = 2",
        &["counter", "alert", "total"],
    ),
    (
        "update totals set positive_count = 1, negative_count = 2, positive_sum = 5.99, negative_sum = 0 where unit = 'EUR'",
        "update totals set positive_count = 2, negative_count = 1, positive_sum = 106.00, negative_sum = 100.01 where unit = 'EUR'",
        &["total"],
    ),
    ("update records set threshold = 100 where seq = 3", "update records set threshold = 5 where seq = 3", &["alert"]),
    (
        "delete from shard_policies where from_seq = 1",
        "insert into shard_policies values (1, 1, 1)",
        &["alert", "alert"],
    ),
];

/// As above, in the rows of rollups. Those are not compared since a time.
const ROLLUP_FAULTS: [(&str, &str, &[&str]); 5] = [
    (
        "update rollup_totals set sum = 6.000000001 where not built and unit = 'EUR'",
        "update rollup_totals set sum = 6 where not built and unit = 'EUR'",
        &["rollup"],
    ),
    (
        "update rollup_totals set count = 2 where unit = 'min'",
        "update rollup_totals set count = 1 where unit = 'min'",
        &["rollup"],
    ),
    (
        "update rollup_totals set built = true where unit = 'min'",
        "update rollup_totals set built = false where unit = 'min'",
        &["rollup", "rollup"],
    ),
    ("update rollup_builds set next_seq = 2", "update rollup_builds set next_seq = 3", &["rollup"]),
    (
        "update rollup_totals set rollup_id = 9 where rollup_id = 2",
        "update rollup_totals set rollup_id = 2 where rollup_id = 9",
        &["rollup"],
    ),
];

/// As above, after retention deleted all but the last record, the duplicate and the conflict.
const RETENTION_FAULTS: [(&str, &str, &[&str]); 7] = [
    (
        "update expired_counts set count = 4 where kind = 'records'",
        "update expired_counts set count = 3 where kind = 'records'",
        &["counter"],
    ),
    (
        "update expired_counts set alerts = 1 where kind = 'records'",
        "update expired_counts set alerts = 2 where kind = 'records'",
        &["counter"],
    ),
    (
        "update expired_counts set count = 2 where kind = 'conflicts'",
        "update expired_counts set count = 1 where kind = 'conflicts'",
        &["counter", "counter"],
    ),
    (
        "update expired_counts set count = 2 where kind = 'duplicates'",
        "update expired_counts set count = 1 where kind = 'duplicates'",
        &["counter", "counter"],
    ),
    (
        "update records set previous_count = 1 where seq = 5",
        "update records set previous_count = 0 where seq = 5",
        &["total"],
    ),
    ("delete from gaps", "insert into gaps (shard, kind, from_n, to_n) values (1, 'records', 4, 4)", &["number"]),
    (
        "update rollup_totals set count = 0 where unit = 'min'",
        "update rollup_totals set count = 1 where unit = 'min'",
        &["rollup"],
    ),
];

/// The scopes that hold every row of the pipeline above.
fn scopes() -> [Scope; 3] {
    let since = parse_time("2026-01-01T00:00:00Z").ok();
    let shards = Some(vec![ShardId::new(1), ShardId::new(3)]);
    [Scope::default(), Scope { shards: shards.clone(), since: None }, Scope { shards, since }]
}

/// A migrated pipeline with the rows above, and a connection to its schema.
async fn consistent() -> (UnclaimedPipeline, sqlx::PgPool) {
    let pipeline = UnclaimedPipeline::new().await;
    let options = PgConnectOptions::from_str(&url()).unwrap();
    let options = options.options([("search_path", Store::schema(&pipeline.name))]);
    let sql = PgPoolOptions::new().max_connections(1).connect_with(options).await.unwrap();
    sqlx::raw_sql(CONSISTENT).execute(&sql).await.unwrap();
    // The rows above assume this shard for the destination.
    assert_eq!(ShardId::of(&DestinationId::stored("d6"), 4), ShardId::new(1));
    (pipeline, sql)
}

/// Streams that nothing reads: the pipeline has no sinks.
fn no_streams() -> Streams {
    Streams::connect("redis://127.0.0.1:1", "none").unwrap()
}

async fn differing(pipeline: &UnclaimedPipeline, scope: &Scope) -> Vec<Difference> {
    let result = compare(&pipeline.store, &no_streams(), scope).await.unwrap();
    assert_eq!(result.differences.count, result.differences.first.len() as u64);
    result.differences.first
}

async fn checks_that_differ(pipeline: &UnclaimedPipeline, scope: &Scope) -> Vec<&'static str> {
    let mut checks: Vec<_> = differing(pipeline, scope).await.iter().map(|difference| difference.check).collect();
    checks.sort_unstable();
    checks
}

/// Each fault is found by its checks in these scopes, and by none in another shard.
async fn find(
    pipeline: &UnclaimedPipeline,
    sql: &sqlx::PgPool,
    faults: &[(&'static str, &'static str, &[&str])],
    scopes: &[Scope],
) {
    for (fault, repair, expected) in faults {
        sqlx::raw_sql(*fault).execute(sql).await.expect(fault);
        let mut expected = expected.to_vec();
        expected.sort_unstable();
        for scope in scopes {
            assert_eq!(checks_that_differ(pipeline, scope).await, expected, "{fault}, {scope:?}");
        }
        let other = Scope { shards: Some(vec![ShardId::new(0)]), since: None };
        assert_eq!(differing(pipeline, &other).await, [], "{fault}, in another shard");
        sqlx::raw_sql(*repair).execute(sql).await.expect(repair);
    }
}

#[tokio::test]
async fn every_fault_in_a_rollup_is_found_by_its_check() {
    let (pipeline, sql) = consistent().await;
    find(&pipeline, &sql, &ROLLUP_FAULTS, &scopes()[..2]).await;
}

#[tokio::test]
async fn every_fault_is_found_by_its_check() {
    let (pipeline, sql) = consistent().await;
    for scope in scopes() {
        assert_eq!(differing(&pipeline, &scope).await, [], "without a fault, {scope:?}");
    }
    find(&pipeline, &sql, &FAULTS, &scopes()).await;
    sqlx::raw_sql(
        "delete from rollup_totals; delete from rollups;
         update records set destination_id = 'd1'; update totals set destination_id = 'd1'",
    )
    .execute(&sql)
    .await
    .expect("moved");
    assert_ne!(ShardId::of(&DestinationId::stored("d1"), 4), ShardId::new(1));
    assert_eq!(checks_that_differ(&pipeline, &Scope::default()).await, ["shard"]);
    sqlx::raw_sql("update records set shard = 7; update record_ids set shard = 7; update totals set shard = 7")
        .execute(&sql)
        .await
        .expect("moved");
    let checks = checks_that_differ(&pipeline, &Scope::default()).await;
    assert_eq!(checks, ["counter", "counter", "counter", "shard", "total", "total"]);
}

#[tokio::test]
async fn since_a_time_a_pass_begins_at_the_stored_totals() {
    let (pipeline, sql) = consistent().await;
    sqlx::raw_sql("update records set processed_at = '2026-11-01T10:00:00Z' where seq < 3")
        .execute(&sql)
        .await
        .unwrap();
    let since = |time: &str| Scope { shards: None, since: parse_time(time).ok() };
    let (all, later, none) =
        (since("2026-11-01T10:00:00Z"), since("2026-11-01T10:00:01Z"), since("9999-01-01T00:00:00Z"));
    let compared = async |scope: &Scope| {
        let result = compare(&pipeline.store, &no_streams(), scope).await.unwrap();
        (result.records, result.totals, result.differences.count)
    };
    assert_eq!(compared(&all).await, (4, 2, 0));
    assert_eq!(compared(&later).await, (2, 2, 0));
    assert_eq!(compared(&none).await, (0, 0, 0));
    // The summary of the first record is where the pass begins; the stored total shows that it is wrong.
    sqlx::raw_sql("update records set previous_total = 9 where seq = 3").execute(&sql).await.unwrap();
    assert_eq!(checks_that_differ(&pipeline, &later).await, ["total"]);
    assert_eq!(checks_that_differ(&pipeline, &all).await, ["summary"]);
    sqlx::raw_sql("update records set previous_total = -0.01 where seq = 3").execute(&sql).await.unwrap();
    // What was before is not compared.
    sqlx::raw_sql("update records set threshold = null where seq = 2").execute(&sql).await.unwrap();
    assert_eq!(compared(&later).await, (2, 2, 0));
}

#[tokio::test]
async fn what_retention_deleted_counts_as_it_was_noted() {
    let (pipeline, sql) = consistent().await;
    let store = &pipeline.store;
    let moved = "update records set period = '2026-12-01' where seq = 5; update record_ids set period = '2026-12-01' where number = 5";
    sqlx::raw_sql(moved).execute(&sql).await.unwrap();
    let mut turn = store.begin_retention().await.unwrap().unwrap();
    assert!(store.begin_retention().await.unwrap().is_none(), "one process at a time");
    let compared = async |what: &str| {
        for scope in &scopes()[..2] {
            assert_eq!(differing(&pipeline, scope).await, [], "{what}, {scope:?}");
        }
    };
    let old = Period::stored(NaiveDate::from_ymd_opt(2026, 11, 1).unwrap());
    for _ in 0..2 {
        turn.note(old, None).await.unwrap();
        compared("noted, also twice, and not dropped").await;
    }
    assert_eq!(turn.drop_partition(old).await.unwrap(), Dropped::Done);
    compared("dropped").await;
    let later = store.clock().await.unwrap() + Duration::from_secs(60);
    let all = [ShardSeq { shard: ShardId::new(1), seq: Seq::new(1) }];
    assert_eq!(store.delete_duplicates(later.into(), 9).await.unwrap(), 1);
    assert_eq!(store.delete_outcomes(Expired::Conflicts, later.into(), &[], 9).await.unwrap(), 0, "not published");
    assert_eq!(store.delete_outcomes(Expired::Conflicts, later.into(), &all, 9).await.unwrap(), 1);
    assert_eq!(store.delete_outcomes(Expired::DeadLetters, later.into(), &all, 9).await.unwrap(), 0, "it is open");
    compared("with fewer outcomes").await;
    assert_eq!(compare(store, &no_streams(), &Scope::default()).await.unwrap().records, 1);
    find(&pipeline, &sql, &RETENTION_FAULTS, &scopes()[..2]).await;
}

#[tokio::test]
async fn a_result_is_stored_and_the_last_whole_one_counts() {
    let (pipeline, sql) = consistent().await;
    let store = &pipeline.store;
    assert_eq!(store.verify_result().await.unwrap(), VerifyResult::default());
    let part = Scope { shards: Some(vec![ShardId::new(1)]), since: None };
    let run = async |scope: &Scope| {
        let outcome = compare(store, &no_streams(), scope).await;
        note(store, scope, Duration::from_millis(1_500), &outcome).await;
        store.verify_result().await.unwrap()
    };
    let of_part = VerifyResult { failed: Some(false), ..VerifyResult::default() };
    assert_eq!(run(&part).await, of_part, "a part is no success of the whole");
    let first = run(&Scope::default()).await;
    assert!(first.last_success.is_some() && first.differences == Some(0), "{first:?}");
    sqlx::raw_sql("update shards set processed = 9 where shard = 1").execute(&sql).await.unwrap();
    assert_eq!(run(&part).await, VerifyResult { differences: Some(1), ..first });
    note(store, &part, Duration::ZERO, &Err(anyhow::anyhow!("no \0 Redis"))).await;
    let failed = VerifyResult { differences: Some(1), failed: Some(true), ..first };
    assert_eq!(store.verify_result().await.unwrap(), failed, "what was found last stays");
    let stored: Vec<(Option<i64>, i64, bool, String)> = sqlx::query_as(
        "select differences, records, ended_at - started_at >= interval '1.5 s', problems from verifications order by n",
    )
    .fetch_all(&sql)
    .await
    .unwrap();
    assert_eq!(stored[1], (Some(0), 4, true, String::new()));
    assert_eq!(stored[2].3, "counter: processed of shard 1: expected 4; found 9\n");
    assert_eq!(stored[3], (None, 0, false, "no \u{fffd} Redis".to_owned()));
}

#[tokio::test]
async fn only_the_last_thousand_results_are_kept() {
    let (pipeline, sql) = consistent().await;
    let fill =
        "insert into verifications (started_at, records, differences) select now(), 0, 0 from generate_series(1, 1200)";
    sqlx::raw_sql(fill).execute(&sql).await.unwrap();
    note(&pipeline.store, &Scope::default(), Duration::ZERO, &Ok(Comparison::default())).await;
    let (count, oldest): (i64, i64) =
        sqlx::query_as("select count(*), min(n) from verifications").fetch_one(&sql).await.unwrap();
    assert_eq!((count, oldest), (1_000, 202));
}

#[tokio::test]
async fn a_shard_that_the_pipeline_lacks_is_refused() {
    let (pipeline, _sql) = consistent().await;
    let scope = Scope { shards: Some(vec![ShardId::new(4)]), since: None };
    let refused = compare(&pipeline.store, &no_streams(), &scope).await.unwrap_err().to_string();
    assert_eq!(refused, "--shard 4: the pipeline has the shards 0 to 3");
}
