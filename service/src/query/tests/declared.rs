//! Declared rollups in answers: used where they fit and are complete, and nowhere else.

use super::*;

/// A rollup to declare.
pub(super) struct Declared {
    pub(super) name: &'static str,
    pub(super) seconds: i32,
    pub(super) group_by: &'static [&'static str],
    pub(super) distinct: bool,
    pub(super) zone: &'static str,
}

pub(super) const HOURLY: Declared =
    Declared { name: "hourly", seconds: 3_600, group_by: &["destinationId"], distinct: false, zone: "UTC" };

impl World {
    /// Declares a complete rollup. The first half of each shard's records is built, the others are counted as by commits.
    /// Must not run beside a writer.
    pub(super) async fn declare(&self, declared: Declared) {
        let Declared { name, seconds, group_by, distinct, zone } = declared;
        sqlx::query("update shards set policy_version = 1").execute(&self.pool).await.expect("version");
        let id: i32 = sqlx::query_scalar(
            "insert into rollups (name, window_seconds, group_by, distinct_source, time_zone, version)
             values ($1, $2, $3, $4, $5, 1) returning id",
        )
        .bind(name)
        .bind(seconds)
        .bind(group_by)
        .bind(distinct)
        .bind(zone)
        .fetch_one(&self.pool)
        .await
        .expect("declare");
        sqlx::query(
            "with builds as (
                 insert into rollup_builds (rollup_id, shard, until_seq, next_seq)
                 select $1, shard, records / 2 + 1, records / 2 + 1 from shards returning *)
             insert into rollup_totals (rollup_id, shard, built, positive, window_start, count, destination_id, reference,
                                        source_id, unit, sum)
             select r.id, s.shard, s.seq < b.until_seq, s.positive,
                    date_bin(make_interval(secs => r.window_seconds), s.time at time zone r.time_zone at time zone 'UTC',
                        timestamptz '1970-01-01 00:00:00+00'), count(*),
                    case when 'destinationId' = any(r.group_by) then s.destination_id else '' end,
                    case when 'reference' = any(r.group_by) then s.reference else '' end,
                    case when r.distinct_source or 'sourceId' = any(r.group_by) then s.source_id else '' end, s.unit,
                    sum(s.value)
             from builds b join rollups r on r.id = b.rollup_id join records s on s.shard = b.shard
             group by 1, 2, 3, 4, 5, 7, 8, 9, 10",
        )
        .bind(id)
        .execute(&self.pool)
        .await
        .expect("build");
    }

    /// All declared rollups but these are removed. They are still kept, so that they can be complete again.
    pub(super) async fn leave_declared(&self, names: &[&str]) {
        let sql = "update rollups set removed = case when name <> all($1) then 2 end";
        sqlx::query(sql).bind(names).execute(&self.pool).await.expect("update");
    }

    /// Number of records that an answer counts.
    async fn count(&self, path: &str) -> i64 {
        let answer = self.get(path).await;
        let rows = answer.get("items").or(answer.get("groups")).and_then(Value::as_array).expect("rows");
        rows.iter().map(|row| row["count"].as_i64().expect("a count")).sum()
    }
}

/// A pipeline with a rollup whose rows count 1,000 records too many, so that its use shows.
async fn with_wrong_rollup(pool: PgPool, declared: Declared) -> World {
    let mut world = World::new(pool).await;
    for hour in 0..4 {
        for (minute, destination) in [(0, "d"), (30, "e"), (59, "d")] {
            let time = format!("2026-01-01T{hour:02}:{minute:02}:00Z");
            world.add(Row { id: &format!("{hour} {minute}"), destination, time: &time, ..ROW }).await;
        }
    }
    world.declare(declared).await;
    world.run("update rollup_totals set count = count + 1000").await;
    world
}

#[sqlx::test(migrations = "../migrations")]
async fn a_declared_rollup_serves_the_queries_that_it_fits(pool: PgPool) {
    let world = with_wrong_rollup(pool, HOURLY).await;
    for query in [
        "rollups",
        "rollups?window=1h",
        "rollups?window=1d&groupBy=destinationId",
        "rollups?destinationId=d&groupBy=type,unit",
        "rollups?type=positive&unit=EUR",
        "rollups?startTime=2026-01-01T01:00:00Z",
        "rollups?startTime=2026-01-01T00:30:00Z&endTime=2026-01-01T02:00:00Z",
        "aggregations?records=false&startTime=2026-01-01T00:30:00Z&type=positive",
        "aggregations?records=false&endTime=2026-01-01T02:00:00Z&destinationId=e",
    ] {
        let count = world.count(&format!("/records/{query}")).await;
        assert!(count > 1000, "{query} does not use the rollup: {count}");
    }
    for (query, expected) in [
        ("rollups?window=15m", 12),
        ("rollups?groupBy=reference", 12),
        ("rollups?groupBy=sourceId", 12),
        ("rollups?distinct=sourceId", 12),
        ("rollups?reference=r", 12),
        ("rollups?sourceId=s", 12),
        ("rollups?recordId=1%2030", 1),
        ("rollups?alerted=false", 12),
        ("rollups?startTime=2026-01-01T00:30:00Z&endTime=2026-01-01T01:30:00Z", 3),
        ("rollups?startTime=2026-01-01T01:00:00Z&endTime=2026-01-01T01:00:00Z", 0),
        ("aggregations?records=false", 12),
        ("aggregations?records=false&sourceId=s", 12),
        ("aggregations?startTime=2026-01-01T01:00:00Z", 9),
    ] {
        assert_eq!(world.count(&format!("/records/{query}")).await, expected, "{query}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_rollup_with_distinct_sources_serves_filters_and_groups_by_source(pool: PgPool) {
    let world = with_wrong_rollup(pool, Declared { distinct: true, ..HOURLY }).await;
    for query in ["groupBy=sourceId", "sourceId=s", "distinct=sourceId", "window=1d&distinct=sourceId"] {
        let count = world.count(&format!("/records/rollups?{query}")).await;
        assert!(count > 1000, "{query} does not use the rollup: {count}");
    }
    world.run("update rollup_totals set source_id = 'other' where destination_id = 'e'").await;
    let answer = world.get("/records/rollups?distinct=sourceId").await;
    assert_eq!(answer["items"][0]["distinctSourceIds"], 2);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_rollup_is_used_only_while_every_shard_has_built_it(pool: PgPool) {
    let world = with_wrong_rollup(pool, HOURLY).await;
    for (not_complete, complete) in [
        ("update rollups set removed = 2", "update rollups set removed = null"),
        ("update rollups set version = 2", "update shards set policy_version = 2"),
        (
            "update shards set policy_version = 1 where shard = 1",
            "update shards set policy_version = 3 where shard = 1",
        ),
        (
            "update rollup_builds set next_seq = until_seq - 1 where shard = 0",
            "update rollup_builds set next_seq = until_seq + 1 where shard = 0",
        ),
        (
            "create table deleted as select * from rollup_builds where shard = 1; delete from rollup_builds where shard = 1",
            "insert into rollup_builds select * from deleted",
        ),
    ] {
        world.run(not_complete).await;
        for path in ["/records/rollups", "/records/aggregations?records=false&endTime=2027-01-01T00:00:00Z"] {
            assert_eq!(world.count(path).await, 12, "{not_complete}: {path}");
        }
        world.run(complete).await;
        assert!(world.count("/records/rollups").await > 1000, "{complete}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn sums_of_a_rollup_stay_when_their_records_are_dropped(pool: PgPool) {
    let mut world = World::new(pool).await;
    for hour in 0..3 {
        let time = format!("2026-01-01T{hour:02}:30:00Z");
        world.add(Row { id: &hour.to_string(), time: &time, value: "-1.50", ..ROW }).await;
    }
    world.declare(HOURLY).await;
    world.run("delete from records").await;
    let answer = world.get("/records/rollups?groupBy=destinationId&startTime=2026-01-01T01:00:00Z").await;
    assert_eq!(answer["items"][0]["totals"], serde_json::json!([{"unit": "EUR", "count": 2, "total": "-3.00"}]));
    let answer = world.get("/records/aggregations?records=false&startTime=2026-01-01T00:10:00Z").await;
    assert_eq!(answer["groups"][0]["count"], 2, "of the edge no record is left");
}
