//! A consistent pipeline with one fault at a time: the check for a fault finds it.

use super::*;

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
    insert into totals (shard, destination_id, reference, unit, positive_count, positive_sum, negative_count, negative_sum)
        values (1, 'd6', 'x', 'EUR', 2, 106.00, 1, 100.01), (1, 'd6', 'x', 'min', 1, 50, 0, 0);
    insert into duplicates (shard, epoch, noted_at, received_at, record_id, stream_id, digest)
        values (1, 1, now(), now(), 'r1', '9-1', gen_random_uuid());
    insert into conflicts (shard, n, epoch, noted_at, received_at, record_id, destination_id, stream_id, payload)
        values (1, 1, 1, now(), now(), 'r1', 'd6', '9-2', '');
    insert into dead_letters (shard, n, epoch, opened_at, received_at, stream_id, payload, reason, detail)
        values (1, 1, 1, now(), now(), '9-3', '', 'invalid_json', '');
";

/// A fault in the stored rows, its repair, and the checks that find the fault.
const FAULTS: [(&str, &str, &[&str]); 18] = [
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
        &["counter", "alert"],
    ),
    (
        "update records set threshold = null where seq = 2",
        "update records set threshold = 100 where seq = 2",
        &["counter", "alert"],
    ),
    ("update records set threshold = 100 where seq = 3", "update records set threshold = 5 where seq = 3", &["alert"]),
    (
        "delete from shard_policies where from_seq = 1",
        "insert into shard_policies values (1, 1, 1)",
        &["alert", "alert"],
    ),
];

async fn checks_that_differ(store: &Store) -> Vec<&'static str> {
    let mut snapshot = store.verification().await.expect("snapshot");
    let mut differences = Differences::default();
    let extent = snapshot.extent().await.expect("extent");
    assert_eq!(extent.shards, 4);
    snapshot.numbers(&mut differences).await.expect("numbers");
    snapshot.counters(&mut differences).await.expect("counters");
    snapshot.originals(&mut differences).await.expect("originals");
    snapshot.ids(&mut differences).await.expect("ids");
    snapshot.shards(extent.shards, &mut differences).await.expect("shards");
    snapshot.summaries(&mut differences).await.expect("summaries");
    snapshot.totals(&mut differences).await.expect("totals");
    snapshot.alerts(&mut differences).await.expect("alerts");
    snapshot.end().await.expect("end");
    assert_eq!(differences.count, differences.first.len() as u64);
    differences.first.iter().map(|difference| difference.check).collect()
}

#[tokio::test]
async fn every_fault_is_found_by_its_check() {
    let url = std::env::var("MILLRACE_TEST_POSTGRES_URL")
        .expect("MILLRACE_TEST_POSTGRES_URL names a Postgres; hack/with-servers starts one");
    let name = format!("verify-{:x}", rand::random::<u64>());
    let store = Store::connect(&url, &name, 1).expect("url");
    store.migrate(&name).await.expect("migrated");
    crate::store::testing::create_partition(&store.pool).await;
    sqlx::raw_sql(CONSISTENT).execute(&store.pool).await.expect("rows");
    // The rows above assume this shard for the destination.
    assert_eq!(ShardId::of(&DestinationId::stored("d6"), 4), ShardId::new(1));
    assert_eq!(checks_that_differ(&store).await, [""; 0], "without a fault");

    for (fault, repair, expected) in FAULTS {
        sqlx::raw_sql(fault).execute(&store.pool).await.expect(fault);
        assert_eq!(checks_that_differ(&store).await, expected, "{fault}");
        sqlx::raw_sql(repair).execute(&store.pool).await.expect(repair);
    }
    sqlx::raw_sql("update records set destination_id = 'd1'; update totals set destination_id = 'd1'")
        .execute(&store.pool)
        .await
        .expect("moved");
    assert_ne!(ShardId::of(&DestinationId::stored("d1"), 4), ShardId::new(1));
    assert_eq!(checks_that_differ(&store).await, ["shard"]);

    // Safe in SQL: the name has only letters, digits and `-`.
    let drop = format!("drop schema {} cascade", Store::schema(&name));
    sqlx::raw_sql(sqlx::AssertSqlSafe(drop)).execute(&store.pool).await.expect("dropped");
}
