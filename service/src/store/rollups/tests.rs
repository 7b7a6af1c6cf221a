//! Declarations, builds and deletions on rows that SQL makes.

use millrace_crds::RecordPipelineSpec;

use super::*;
use crate::store::{Offer, Registered, testing::TestPipeline};

/// Registers a manifest with these rollups as the next version.
async fn register(test: &TestPipeline, rollups: &str) -> i64 {
    let spec = RecordPipelineSpec::from_canonical(&format!(r#"{{"shards": 2, "rollups": [{rollups}]}}"#)).unwrap();
    let offer = Offer { uid: None, generation: 0, accept: "", spec: &spec, changed: true };
    match test.store.register(&offer).await.unwrap() {
        Registered::AsNew(version) => version,
        other => panic!("{other:?}"),
    }
}

async fn execute(test: &TestPipeline, statements: &'static str) {
    sqlx::raw_sql(statements).execute(&test.store.pool).await.unwrap();
}

async fn text(test: &TestPipeline, query: &'static str) -> String {
    sqlx::query_scalar(query).fetch_one(&test.store.pool).await.unwrap()
}

const HOURLY: &str = r#"{"name": "a", "window": "1h", "groupBy": ["destinationId"]}"#;

/// 100 records of shard 0, without the numbers 41 to 60; version 1 from 1 on, version 2 from 81 on.
const RECORDS: &str = "
    insert into records (shard, seq, period, epoch, received_at, processed_at, time, previous_count, positive, record_id,
        source_id, destination_id, reference, unit, stream_id, value, previous_total)
    select 0, seq, (select max(substring(relname from '\\d{8}')::date) from pg_class where relname ~ '^records_\\d{8}$'),
        1, now(), now(), timestamptz '1969-12-31 22:30:00+00' + seq * interval '1 minute', 0, seq % 4 > 0, 'r' || seq,
        's' || seq % 3, 'd' || seq % 2, 'f', 'EUR', '1-' || seq, seq, 0
    from generate_series(1, 120) seq where seq not between 41 and 60;
    insert into shard_policies (shard, from_seq, version) values (0, 1, 1), (1, 1, 1), (0, 81, 2), (1, 1, 2);
    update shards set policy_version = 2;";

async fn build_all(test: &TestPipeline, most: i64) -> i64 {
    let mut all = 0;
    while let RollupStep::Built { records, .. } = test.store.build_rollup(most).await.unwrap() {
        all += records;
    }
    all
}

const IDS: &str =
    "select coalesce(string_agg(concat_ws(' ', id, name, version, removed), ', ' order by id), '') from rollups";

#[tokio::test]
async fn an_unchanged_definition_keeps_its_id_and_any_other_is_new() {
    let test = TestPipeline::new("shards: 2").await;
    register(&test, HOURLY).await;
    let other = r#"{"name": "b", "window": "1m", "groupBy": ["sourceId", "reference"], "distinct": "sourceId"}"#;
    register(&test, &[HOURLY, other].join(",")).await;
    assert_eq!(text(&test, IDS).await, "1 a 1, 2 b 2");
    // The order of fields and of rollups means nothing.
    let same = r#"{"name": "b", "window": "1m", "groupBy": ["reference", "sourceId"], "distinct": "sourceId"}"#;
    register(&test, &[same, HOURLY].join(",")).await;
    assert_eq!(text(&test, IDS).await, "1 a 1, 2 b 2");
    for changed in [
        r#"{"name": "a", "window": "1d", "groupBy": ["destinationId"]}"#,
        r#"{"name": "a", "window": "1d"}"#,
        r#"{"name": "a", "window": "1d", "distinct": "sourceId"}"#,
        r#"{"name": "c", "window": "1d", "distinct": "sourceId"}"#,
    ] {
        register(&test, changed).await;
    }
    register(&test, HOURLY).await;
    assert_eq!(text(&test, IDS).await, "1 a 1 4, 2 b 2 4, 3 a 4 5, 4 a 5 6, 5 a 6 7, 6 c 7 8, 7 a 8");
}

#[tokio::test]
async fn a_build_adds_each_record_below_the_first_of_the_declaring_version_once() {
    let test = TestPipeline::new("shards: 2").await;
    register(&test, "").await;
    register(&test, r#"{"name": "a", "window": "1h", "groupBy": ["destinationId"], "distinct": "sourceId"}"#).await;
    assert_eq!(test.store.build_rollup(7).await.unwrap(), RollupStep::Nothing, "no shard runs the version");
    assert!(!test.store.rollup_states().await.unwrap()[0].complete);
    execute(&test, RECORDS).await;
    let step = test.store.build_rollup(7).await.unwrap();
    assert_eq!(step, RollupStep::Built { id: 1, name: "a".to_owned(), records: 7, ended: false });
    let state = test.store.rollup_states().await.unwrap();
    assert_eq!(state, [RollupState { id: 1, name: "a".to_owned(), complete: false, unbuilt: 73 }]);
    // Builders at the same time never add the same records.
    let all = futures::future::join_all((0..4).map(|_| build_all(&test, 7))).await;
    build_all(&test, 7).await;
    assert!(all.iter().sum::<i64>() <= 53, "{all:?}");
    let state = test.store.rollup_states().await.unwrap();
    assert_eq!(state, [RollupState { id: 1, name: "a".to_owned(), complete: true, unbuilt: 0 }]);
    let rows = "from rollup_totals where built and rollup_id = 1";
    let expected =
        "from (select date_bin('1 hour', time, '1970-01-01 00:00:00+00') as window_start, positive, destination_id,
                          source_id, unit, count(*) as count, sum(value) as sum
                          from records where seq < 81 group by 1, 2, 3, 4, 5) t";
    let rendered =
        "select string_agg(concat_ws(' ', destination_id, window_start, source_id, unit, positive, count, sum), ', '
                        order by destination_id, window_start, source_id, positive) ";
    let [found, expected] = [rows, expected].map(|from| format!("{rendered}{from}"));
    let read = async |query: String| {
        sqlx::query_scalar::<_, String>(sqlx::AssertSqlSafe(query)).fetch_one(&test.store.pool).await.unwrap()
    };
    let found = read(found).await;
    assert_eq!(found, read(expected).await);
    assert!(found.contains("1969-12-31 23:00:00+00"), "a window before 1970 begins at a full hour: {found}");
}

#[tokio::test]
async fn a_build_uses_the_days_of_the_rollup_s_time_zone() {
    let test = TestPipeline::new("shards: 2").await;
    register(&test, "").await;
    let daily = r#"{"name": "a", "window": "1d", "timeZone": "Europe/Berlin"}"#;
    register(&test, daily).await;
    execute(&test, RECORDS).await;
    // The days on which clocks change have 23 and 25 hours.
    execute(
        &test,
        "update records set time = case when seq <= 40
             then timestamptz '2026-03-28 22:30:00+00' + seq * interval '40 minutes'
             else timestamptz '2026-10-24 21:30:00+00' + (seq - 60) * interval '90 minutes' end",
    )
    .await;
    build_all(&test, 7).await;
    let days = text(
        &test,
        "select string_agg(concat_ws(' ', window_start::date, count), ', ' order by window_start) from (
             select window_start, sum(count) as count from rollup_totals where built group by 1) t",
    )
    .await;
    let expected = text(
        &test,
        "select string_agg(concat_ws(' ', day, count), ', ' order by day) from (
             select (time at time zone 'Europe/Berlin')::date as day, count(*) as count
             from records where seq < 81 group by 1) t",
    )
    .await;
    assert_eq!(days, expected);
    assert!(days.starts_with("2026-03-29 35, 2026-03-30 5, "), "{days}");
    // Another zone is another rollup; UTC by its name is not.
    register(&test, r#"{"name": "a", "window": "1d", "timeZone": "Europe/Paris"}"#).await;
    register(&test, r#"{"name": "a", "window": "1d", "timeZone": "UTC"}"#).await;
    register(&test, r#"{"name": "a", "window": "1d"}"#).await;
    assert_eq!(text(&test, IDS).await, "1 a 2 3, 2 a 3 4, 3 a 4");
}

#[tokio::test]
async fn a_removed_rollup_is_deleted_once_every_shard_runs_a_version_without_it() {
    let test = TestPipeline::new("shards: 2").await;
    register(&test, "").await;
    register(&test, HOURLY).await;
    execute(&test, RECORDS).await;
    test.store.build_rollup(30).await.unwrap();
    register(&test, "").await;
    assert_eq!(test.store.build_rollup(30).await.unwrap(), RollupStep::Nothing, "its build has ended");
    execute(&test, "update shards set policy_version = 3 where shard = 0").await;
    assert_eq!(test.store.delete_rollup(2).await.unwrap(), RollupStep::Nothing, "shard 1 still adds to it");
    execute(&test, "update shards set policy_version = 3").await;
    assert_eq!(test.store.delete_rollup(2).await.unwrap(), RollupStep::Deleting);
    let mut last = RollupStep::Deleting;
    while last == RollupStep::Deleting {
        last = test.store.delete_rollup(2).await.unwrap();
    }
    assert_eq!(last, RollupStep::Deleted { id: 1, name: "a".to_owned() });
    let left = "select concat((select count(*) from rollups), (select count(*) from rollup_builds),
                              (select count(*) from rollup_totals))";
    assert_eq!(text(&test, left).await, "000");
    assert_eq!(test.store.delete_rollup(2).await.unwrap(), RollupStep::Nothing);
}
