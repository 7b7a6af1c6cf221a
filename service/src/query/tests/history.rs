use super::*;

fn json(id: &str) -> String {
    format!(
        r#"{{"recordId":"{id}","time":"2026-01-01T00:00:00Z","sourceId":"s","destinationId":"d","type":"positive","value":"1.50","unit":"EUR","reference":"r"}}"#
    )
}

#[sqlx::test(migrations = "../migrations")]
async fn a_processed_record_has_its_whole_history(pool: PgPool) {
    let mut world = World::new(pool).await;
    let id = "order 1/2%é";
    let (shard, seq) = world.add(Row { id, threshold: Some("0.5"), ..ROW }).await;
    world
        .run("insert into sinks (name, kind, cursor_generation, started, version) values ('late', 'Processed', 'i', true, 1)")
        .await;
    world.run("insert into sink_starts select 'late', shard, 1 from shards").await;
    world.run("insert into duplicates values (0, 1, now(), now(), 'order 1/2%é', '5-0', 0, gen_random_uuid())").await;
    let cursor = |sink: &str| keys::cursor(&format!("{}.{sink}", world.name));
    let (notifications, alerts) = (cursor("notifications"), cursor("alerts"));
    let () = world.redis.hset(&notifications, shard, seq).await.expect("HSET");
    let () = world.redis.hset(&alerts, shard, seq - 1).await.expect("HSET");
    let history = world.get("/records/order%201%2F2%25%C3%A9").await;
    assert_eq!(
        (&history["recordId"], &history["status"], &history["seq"]),
        (&id.into(), &"processed".into(), &seq.into())
    );
    assert_eq!(history["id"], format!("{shard}-{seq}"));
    assert_eq!(history["queuedAt"], "2026-02-01T00:00:00.500Z");
    assert_eq!(history["summary"], serde_json::json!({"previousCount": 0, "previousTotal": "0", "unit": "EUR"}));
    assert_eq!(
        (&history["threshold"], &history["duplicates"], &history["conflicts"]),
        (&"0.5".into(), &1.into(), &0.into())
    );
    let states: Vec<_> =
        history["published"].as_array().expect("published").iter().map(|sink| sink["state"].clone()).collect();
    assert_eq!(states, ["published", "waiting", "before_start"]);
    world.clean().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_queued_record_is_found_and_an_unknown_one_is_not(pool: PgPool) {
    let mut world = World::new(pool).await;
    let stream = world.stream(ShardId::new(1));
    let fields = [("record", json("waits"))];
    let () = world.redis.xadd(&stream, "1769904000000-0", &fields).await.expect("XADD");
    let history = world.get("/records/waits").await;
    assert_eq!((&history["status"], &history["shard"]), (&"queued".into(), &1.into()));
    assert_eq!((&history["record"]["value"], &history["receivedAt"]), (&"1.50".into(), &"2026-02-01T00:00:00Z".into()));
    assert!(history["queuedAt"].is_string() && history.get("processedAt").is_none());
    assert_eq!(world.refusal("/records/none").await, (404, "not_found".to_owned(), false));
    world.clean().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn without_redis_a_record_may_still_be_queued(pool: PgPool) {
    let mut world = World::with_redis(pool, "redis://127.0.0.1:1").await;
    world.add(Row { id: "known", ..ROW }).await;
    let history = world.get("/records/known").await;
    assert_eq!((&history["status"], &history["published"][0]["state"]), (&"processed".into(), &"unknown".into()));
    assert_eq!(world.refusal("/records/none").await, (404, "not_found_or_queued".to_owned(), true));
}

#[sqlx::test(migrations = "../migrations")]
async fn a_record_is_dead_lettered_until_its_dead_letter_is_discarded(pool: PgPool) {
    let mut world = World::new(pool).await;
    world.dead_letter(1, Some("bad"), json("bad").as_bytes()).await;
    let history = world.get("/records/bad").await;
    assert_eq!((&history["status"], &history["record"]["value"]), (&"dead_lettered".into(), &"1.50".into()));
    assert_eq!(history["deadLetters"][0]["reason"], "below_minimum_total");
    assert_eq!(world.post("/dead-letters/0-d1/discard").await.0, 200);
    assert_eq!(world.get("/records/bad").await["status"], "discarded");
    let stream = world.stream(ShardId::new(0));
    let () = world.redis.xadd(&stream, "*", &[("record", json("bad"))]).await.expect("XADD");
    let history = world.get("/records/bad").await;
    assert_eq!((&history["status"], &history["deadLetters"][0]["state"]), (&"queued".into(), &"discarded".into()));
    world.clean().await;
}
