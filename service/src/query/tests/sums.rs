use futures::TryStreamExt as _;

use super::*;
use crate::store::{AggregationRow, RecordFilter, ReversedRecords};

const AGGREGATIONS: &str = "/records/aggregations";

#[sqlx::test(migrations = "../migrations")]
async fn sums_are_exact_beyond_the_precision_of_floats(pool: PgPool) {
    let mut world = World::new(pool).await;
    // The sum has 30 digits: neither a double nor a 96-bit decimal holds it.
    for n in 0..30 {
        world.add(Row { id: &n.to_string(), value: "999999999999999.999999999", ..ROW }).await;
    }
    world.add(Row { id: "less", value: "-0.000000001", ..ROW }).await;
    world.add(Row { id: "other", unit: "USD", value: "0.10", ..ROW }).await;
    world.add(Row { id: "e", destination: "e", value: "-2.50", ..ROW }).await;
    let answer = world.get(&format!("{AGGREGATIONS}?records=false")).await;
    let expected = serde_json::json!([
        {"destinationId": "d", "totals": [
            {"unit": "EUR", "count": 31, "total": "29999999999999999.999999969"},
            {"unit": "USD", "count": 1, "total": "0.10"}], "count": 32},
        {"destinationId": "e", "totals": [{"unit": "EUR", "count": 1, "total": "-2.50"}], "count": 1},
    ]);
    assert_eq!(answer["groups"], expected);
    assert!(answer["asOf"].as_str().expect("asOf").ends_with('Z'));
    let positive = world.get(&format!("{AGGREGATIONS}?records=false&type=positive&destinationId=d&unit=EUR")).await;
    assert_eq!(positive["groups"][0]["totals"][0]["total"], "29999999999999999.999999970");
    let rolled = world.get("/records/rollups?unit=EUR&destinationId=d").await;
    assert_eq!(rolled["items"][0]["totals"][0]["total"], "29999999999999999.999999969");
    assert_eq!(world.get(&format!("{AGGREGATIONS}?reference=none")).await["groups"], serde_json::json!([]));
}

#[sqlx::test(migrations = "../migrations")]
async fn an_aggregation_has_every_record_of_its_groups_over_many_pages(pool: PgPool) {
    let mut world = World::new(pool).await;
    world.add(Row { id: "z", destination: "z", attributes: Some("{\"a\": 1.0}"), ..ROW }).await;
    // More than a page of 1,000, both of records and of units of one destination.
    let shard = ShardId::of(&DestinationId::stored("many"), SHARDS);
    sqlx::query(
        "insert into records (shard, seq, period, epoch, received_at, processed_at, time, previous_count, positive, record_id,
             source_id, destination_id, reference, unit, stream_id, value, previous_total)
         select $1, 100 + i, '2026-11-01', 1, now(), now(), '2026-01-01Z', 0, true, 'm' || i, 's', 'many', 'r',
                'u' || lpad((i % 1100)::text, 4, '0'), '1-' || i, 1.5, 0
         from generate_series(1, 2200) i",
    )
    .bind(shard)
    .execute(&world.pool)
    .await
    .expect("insert");
    let answer = world.get(AGGREGATIONS).await;
    let many = &answer["groups"][0];
    assert_eq!((&many["destinationId"], &many["count"]), (&"many".into(), &2200.into()));
    assert_eq!(many["totals"].as_array().expect("totals").len(), 1100);
    assert!(many["totals"].as_array().expect("totals").iter().all(|total| total["total"] == "3.0"));
    let order: Vec<String> = (1..=2200).map(|n| format!("m{n}")).collect();
    assert_eq!(ids(many["records"].as_array().expect("records"), "recordId"), order);
    assert_eq!(ids(answer["groups"][1]["records"].as_array().expect("records"), "recordId"), ["z"]);

    let lines = world.text(AGGREGATIONS, "application/x-ndjson").await;
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(lines.len(), 2 + 2201 + 1);
    assert_eq!(lines[0]["group"]["totals"].as_array().expect("totals").len(), 1100, "totals come before their records");
    assert_eq!(lines[2201]["group"]["destinationId"], "z");
    let end = &lines[2203]["end"];
    assert_eq!((&end["groups"], &end["records"]), (&2.into(), &2201.into()));

    let table = world.text(AGGREGATIONS, "text/csv").await;
    assert_eq!(table.lines().count(), 1 + 2201);
    let last = table.lines().last().expect("a line");
    assert!(last.starts_with("z,2026-01-01T00:00:00Z,s,z,positive,1,EUR,r,\"{\"\"a\"\": 1.0}\",2026"), "{last}");
    let rolled = world.get("/records/rollups?groupBy=destinationId").await;
    assert_eq!(rolled["items"][0]["totals"].as_array().expect("totals").len(), 1100);
}

#[sqlx::test(migrations = "../migrations")]
async fn rollups_count_windows_and_distinct_sources(pool: PgPool) {
    let mut world = World::new(pool).await;
    for (n, (time, source, destination, unit)) in [
        ("1969-12-31T23:59:59.999999Z", "a", "x,1", "u"),
        ("2026-01-01T00:00:00Z", "a", "x,1", "u"),
        ("2026-01-01T00:00:59.999999Z", "a", "x,1", "u"),
        ("2026-01-01T00:00:30Z", "b", "x,1", "v"),
        ("2026-01-01T00:01:00Z", "a", "x,1", "u"),
        ("2026-01-01T00:01:00Z", "c", "y", "u"),
    ]
    .into_iter()
    .enumerate()
    {
        world.add(Row { id: &n.to_string(), time, source, destination, unit, ..ROW }).await;
    }
    let rolled = world
        .get("/records/rollups?window=1m&groupBy=destinationId&distinct=sourceId&startTime=2026-01-01T00:00:00Z")
        .await;
    let expected = serde_json::json!([
        {"windowStart": "2026-01-01T00:00:00Z", "windowEnd": "2026-01-01T00:01:00Z", "destinationId": "x,1", "count": 3,
         "distinctSourceIds": 2, "totals": [{"unit": "u", "count": 2, "total": "2"}, {"unit": "v", "count": 1, "total": "1"}]},
        {"windowStart": "2026-01-01T00:01:00Z", "windowEnd": "2026-01-01T00:02:00Z", "destinationId": "x,1", "count": 1,
         "distinctSourceIds": 1, "totals": [{"unit": "u", "count": 1, "total": "1"}]},
        {"windowStart": "2026-01-01T00:01:00Z", "windowEnd": "2026-01-01T00:02:00Z", "destinationId": "y", "count": 1,
         "distinctSourceIds": 1, "totals": [{"unit": "u", "count": 1, "total": "1"}]},
    ]);
    assert_eq!(rolled["items"], expected);
    let all = world.get("/records/rollups?distinct=sourceId").await;
    assert_eq!((&all["items"][0]["count"], &all["items"][0]["distinctSourceIds"]), (&6.into(), &3.into()));
    assert!(all["items"][0].get("windowStart").is_none());
    let days = world.get("/records/rollups?window=1d").await;
    assert!(days["items"][0].get("distinctSourceIds").is_none(), "nobody asked for them");
    assert_eq!(days["items"][0]["windowStart"], "1969-12-31T00:00:00Z", "aligned to UTC, before 1970 as well");
    let days = world.get("/records/rollups?window=1d&timeZone=America/New_York").await;
    assert_eq!(days["items"][0]["windowStart"], "1969-12-31T05:00:00Z");
    assert_eq!(days["items"][0]["windowEnd"], "1970-01-01T05:00:00Z");
    let both = world.get("/records/rollups?groupBy=sourceId,unit&groupBy=type&groupBy=reference").await;
    assert_eq!(both["items"].as_array().expect("items").len(), 3);
    let row = &both["items"][1];
    assert_eq!((&row["sourceId"], &row["unit"], &row["type"]), (&"b".into(), &"v".into(), &"positive".into()));
    let table = world.text("/records/rollups?groupBy=destinationId", "text/csv").await;
    assert!(table.starts_with("destinationId,count,totalUnit,totalCount,total\r\n\"x,1\",5,u,4,4\r\n"), "{table}");
    let table = world.text("/records/rollups?groupBy=destinationId&distinct=sourceId", "text/csv").await;
    let lines: Vec<&str> = table.split("\r\n").collect();
    assert_eq!(
        lines,
        [
            "destinationId,count,distinctSourceIds,totalUnit,totalCount,total",
            "\"x,1\",5,2,u,4,4",
            "\"x,1\",5,2,v,1,1",
            "y,1,1,u,1,1",
            ""
        ]
    );
    let lines = world.text("/records/rollups?groupBy=unit", "application/x-ndjson").await;
    assert!(
        lines.lines().last().expect("a line").starts_with(r#"{"end":{"#) && lines.contains(r#""rows":2"#),
        "{lines}"
    );
    assert_eq!(world.get("/records/rollups?reference=none").await["items"], serde_json::json!([]));
    assert_eq!(world.refusal("/records/rollups?groupBy=colour").await.1, "invalid_parameter");
    assert_eq!(world.refusal("/records/rollups?window=2m").await.0, 400);
    for query in ["window=1h&timeZone=Europe/Berlin", "timeZone=Europe/Berlin", "window=1d&timeZone=Europe/Nowhere"] {
        let refusal = world.refusal(&format!("/records/rollups?{query}")).await;
        assert_eq!((refusal.0, &*refusal.1), (400, "invalid_parameter"), "{query}");
    }
    let (status, _) = world.send("GET", "/records/rollups", "image/png").await;
    assert_eq!(status, 406);
}

#[sqlx::test(migrations = "../migrations")]
async fn totals_and_records_come_from_one_snapshot(pool: PgPool) {
    let mut world = World::new(pool).await;
    world.add(Row { id: "before", ..ROW }).await;
    let store = Store::of_test(world.pool.clone());
    let mut snapshot = store.snapshot().await.expect("snapshot");
    world.add(Row { id: "after", ..ROW }).await;
    let filter = RecordFilter::default();
    let totals: Vec<_> =
        snapshot.totals(&filter, ReversedRecords::Include).await.expect("totals").try_collect().await.expect("totals");
    assert_eq!((totals.len(), totals[0].count), (1, 1));
    let rows: Vec<_> =
        snapshot.aggregation(&filter, ReversedRecords::Include).expect("rows").try_collect().await.expect("rows");
    assert!(
        matches!(&rows[..], [AggregationRow::Total(total), AggregationRow::Record(_)] if total.count == 1),
        "{rows:?}"
    );
    let size = world.pool.size();
    drop(snapshot);
    assert!(world.pool.size() < size, "a dropped snapshot closes its connection");
}

#[sqlx::test(migrations = "../migrations")]
async fn a_response_whose_query_fails_never_looks_complete(pool: PgPool) {
    let world = World::new(pool).await;
    sqlx::query(
        "insert into records (shard, seq, period, epoch, received_at, processed_at, time, previous_count, positive, record_id,
             source_id, destination_id, reference, unit, stream_id, value, previous_total, attributes)
         select 0, 100 + i, '2026-11-01', 1, now(), now(), '2026-01-01Z', 0, true, 'm' || i, 's', 'many', 'r', 'u', '1-' || i, 1.5, 0,
                '{\"x\":\"' || repeat('x', 1000) || '\"}'
         from generate_series(1, 3000) i",
    )
    .execute(&world.pool)
    .await
    .expect("insert");
    let request = Request::builder().uri(AGGREGATIONS.parse().expect("a path")).finish();
    let response = world.api.get_response(request).await;
    assert_eq!(response.status(), 200);
    // The channel is bounded, so the query still runs when its connection is terminated.
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let ended: i64 = sqlx::query_scalar(
        "select count(pg_terminate_backend(pid)) from pg_stat_activity
         where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null",
    )
    .fetch_one(&world.pool)
    .await
    .expect("terminate");
    assert_eq!(ended, 1, "the query waits for its reader");
    assert!(response.into_body().into_bytes().await.is_err(), "a part must not look complete");
}
