use super::*;

#[sqlx::test(migrations = "../migrations")]
async fn counts_add_up_over_both_servers(pool: PgPool) {
    let mut world = World::new(pool).await;
    world.run("insert into pipeline (pipeline_id, namespace, name, uid, shards, created_at) values ('p', 'default', 'p', 'u', 2, now() - interval '1 hour')").await;
    for n in 0..5 {
        let threshold = (n == 4).then_some("0.5");
        world.add(Row { id: &n.to_string(), destination: ["d", "e"][n % 2], threshold, ..ROW }).await;
    }
    for n in 1..=3 {
        world.dead_letter(n, Some(&format!("x{n}")), b"{}").await;
    }
    world
        .run(
            "update dead_letters set state = 'replayed' where n = 1;
             update dead_letters set state = 'discarded' where n = 2;
             update shards set duplicates = 7, conflicts = 4, lost = 2, accounted = 20 where shard = 1;
             update shards set without_threshold = shard + 1, late_after_retention = shard + 3;
             insert into expired_counts (shard, kind, count, replayed) values (1, 'dead_letters', 5, 2);
             insert into gaps values (1, 'conflicts', 2, 3);
             insert into sinks (name, kind, cursor_generation, started, version) values ('late', 'Processed', 'i', true, 1);
             insert into sink_starts select 'late', shard, records from shards;",
        )
        .await;
    let (stream, fence) = (world.stream(ShardId::new(1)), keys::fence(&world.name, ShardId::new(1)));
    let () = world.redis.xadd(&stream, "*", &[("records", "")]).await.expect("XADD");
    let () = world.redis.hset_multiple(&fence, &[("appended", "26"), ("acknowledged", "17")]).await.expect("HSET");
    let (shard, last) = (ShardId::of(&DestinationId::stored("d"), SHARDS).get(), 3);
    let notifications = keys::cursor(&format!("{}.notifications", world.name));
    let () = world.redis.hset(&notifications, shard, last - 1).await.expect("HSET");
    let () = world.redis.hset(&notifications, "pipeline", "test-pipeline").await.expect("HSET");

    let stats = world.get("/stats").await;
    assert_eq!((&stats["processed"], &stats["duplicates"], &stats["conflicts"]), (&5.into(), &7.into(), &2.into()));
    assert_eq!(stats["deadLetters"], serde_json::json!({"open": 1, "discarded": 4, "replayed": 3}));
    assert_eq!((&stats["backlog"], &stats["lost"], &stats["alerts"]), (&6.into(), &2.into(), &1.into()));
    assert_eq!((&stats["recordsWithoutThreshold"], &stats["lateAfterRetention"]), (&3.into(), &7.into()));
    assert_eq!(stats["received"], 5 + 7 + 2 + 5 + 6 + 2);
    assert_eq!(stats["destinations"], 2);
    assert_eq!(stats["shards"][1]["backlog"]["records"], 6);
    assert_eq!(stats["lossUncertain"], false);
    assert!(stats["uptimeSeconds"].as_i64().expect("uptime") >= 3600);
    let lags: Vec<_> = stats["sinks"].as_array().expect("sinks").iter().map(|sink| sink["lag"].clone()).collect();
    let notified = last - 1;
    assert_eq!(lags, [Value::from(5 - notified), Value::from(1), Value::from(0)]);
    assert_eq!(stats["postgres"]["fsync"].as_str().map(str::is_empty), Some(false));
    assert!(stats["redis"]["version"].as_str().expect("version").starts_with(|c: char| c.is_ascii_digit()));

    // More is applied by now than when Redis was read.
    world.run("update shards set accounted = 30, loss_uncertain_since = now() where shard = 1").await;
    let stats = world.get("/stats").await;
    assert_eq!((&stats["backlog"], &stats["lossUncertain"]), (&0.into(), &true.into()));
    world.clean().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn without_redis_stats_name_the_missing_fields(pool: PgPool) {
    let mut world = World::with_redis(pool, "redis://127.0.0.1:1").await;
    world.add(ROW).await;
    let stats = world.get("/stats").await;
    assert_eq!(stats["processed"], 1);
    for absent in ["received", "backlog", "lagMs", "redis"] {
        assert!(stats.get(absent).is_none(), "{absent}");
    }
    assert!(stats["missing"].as_str().expect("missing").contains("Redis"));
}

#[sqlx::test(migrations = "../migrations")]
async fn stats_show_the_last_run_of_verify(pool: PgPool) {
    let world = World::new(pool).await;
    assert!(world.get("/stats").await.get("verify").is_none());
    world
        .run(
            "insert into verifications (started_at, ended_at, records, differences)
             values ('2026-01-01T00:00:00Z', '2026-01-01T00:01:00Z', 7, 0);
             insert into verifications (started_at, ended_at, shards, since, records, differences)
             values ('2026-01-02T00:00:00Z', '2026-01-02T00:01:00Z', '{1}', '2026-01-01T00:00:00Z', 3, 2)",
        )
        .await;
    let expected = serde_json::json!({"startedAt": "2026-01-02T00:00:00Z", "endedAt": "2026-01-02T00:01:00Z", "shards": [1],
                                      "since": "2026-01-01T00:00:00Z", "records": 3, "differences": 2});
    assert_eq!(world.get("/stats").await["verify"], expected);
    world.run("insert into verifications (started_at, records) values (now(), 5)").await;
    let last = &world.get("/stats").await["verify"];
    assert_eq!((&last["records"], last.get("differences"), last.get("shards")), (&5.into(), None, None));
}
