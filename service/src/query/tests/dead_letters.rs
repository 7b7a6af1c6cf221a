use super::*;
use crate::domain::InputRecord;

async fn records(world: &World, shard: ShardId) -> Vec<InputRecord> {
    let streams = Streams::connect(&crate::streams::testing::url(), &world.name).expect("URL");
    crate::streams::testing::records(&streams, shard).await
}

#[sqlx::test(migrations = "../migrations")]
async fn a_replay_appends_the_payload_with_the_dead_letters_number(pool: PgPool) {
    let mut world = World::new(pool).await;
    let payload = br#"{"recordId":"a", "value": 1.10}"#;
    world.dead_letter(1, Some("a"), payload).await;
    world.dead_letter(2, None, b"\xff\xfe").await;
    assert_eq!(
        world.post("/dead-letters/0-d1/replay").await,
        (202, serde_json::json!({"id": "0-d1", "status": "queued"}))
    );
    assert_eq!(world.post("/dead-letters/0-d1/replay").await.0, 202, "a second request is harmless");
    let queued = records(&world, ShardId::new(0)).await;
    assert_eq!(queued.len(), 2);
    assert_eq!(queued[0].payload, payload[..]);
    assert_eq!(queued[0].replay_of, Some("0-d1".parse().expect("an id")));
    assert_eq!(queued[0].received_at, time("2026-02-01T00:00:00Z"), "a replay keeps the time of receipt");
    let dead_letter = &world.get("/dead-letters?recordId=a").await["items"][0];
    assert_eq!((&dead_letter["state"], &dead_letter["requestedBy"]), (&"open".into(), &"dev".into()));

    assert_eq!(world.post("/dead-letters/0-d2/replay").await.1["code"], "dead_letter_not_replayable");
    for path in [
        "/dead-letters/0-d9/replay",
        "/dead-letters/0-d9/discard",
        "/dead-letters/x/replay",
        "/dead-letters/0-d01/discard",
    ] {
        assert_eq!(world.post(path).await.0, 404, "{path}");
    }
    world.clean().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_dead_letter_can_be_discarded_once_and_frees_its_id(pool: PgPool) {
    let world = World::new(pool).await;
    world.dead_letter(1, Some("a"), b"{}").await;
    assert_eq!(world.post("/dead-letters/0-d1/discard").await.0, 200);
    assert_eq!(world.post("/dead-letters/0-d1/discard").await.1["code"], "dead_letter_not_open");
    assert_eq!(world.post("/dead-letters/0-d1/replay").await.0, 409);
    let dead_letter = &world.get("/dead-letters").await["items"][0];
    assert_eq!((&dead_letter["state"], &dead_letter["closedBy"]), (&"discarded".into(), &"dev".into()));
    assert!(dead_letter["closedAt"].is_string());
    // The unique index covers only open dead letters, so it allows the id again.
    world.dead_letter(2, Some("a"), b"{}").await;
    assert_eq!(ids(&world.all("/dead-letters?state=open", 1).await, "id"), ["0-d2"]);
}

#[sqlx::test(migrations = "../migrations")]
async fn dead_letters_are_replayed_by_filter(pool: PgPool) {
    let mut world = World::new(pool).await;
    for n in 1..=250 {
        world.dead_letter(n, Some(&format!("id{n}")), br#"{"n": 1}"#).await;
    }
    world.dead_letter(251, None, b"\xff").await;
    world.run("update dead_letters set reason = 'malformed' where n <= 10; update dead_letters set state = 'replayed' where n = 250").await;
    let (status, dry) = world.post("/dead-letters/replay?dryRun=true&reason=below_minimum_total").await;
    assert_eq!(
        (status, &dry["matching"], &dry["queued"], &dry["unreadable"]),
        (202, &240.into(), &0.into(), &1.into())
    );
    assert_eq!(dry["ids"].as_array().expect("ids").len(), 239);
    assert!(records(&world, ShardId::new(0)).await.is_empty(), "a dry run appends nothing");
    let (_, first) = world.post("/dead-letters/replay?reason=below_minimum_total&limit=150").await;
    assert_eq!((&first["queued"], &first["ids"][0]), (&150.into(), &"0-d11".into()));
    let cursor = first["nextCursor"].as_str().expect("more");
    let (_, rest) = world.post(&format!("/dead-letters/replay?reason=below_minimum_total&cursor={cursor}")).await;
    assert_eq!(rest["queued"], 89);
    assert!(rest.get("nextCursor").is_none());
    let replayed: Vec<String> = records(&world, ShardId::new(0))
        .await
        .into_iter()
        .map(|record| record.replay_of.expect("a replay").to_string())
        .collect();
    assert_eq!(replayed, (11..250).map(|n| format!("0-d{n}")).collect::<Vec<_>>());
    let filtered = world.all("/dead-letters?reason=malformed", 3).await;
    assert_eq!(filtered.len(), 10);
    assert_eq!(filtered[0]["payload"]["n"], 1);
    assert_eq!(world.all("/dead-letters?startTime=2026-02-01T00:00:03Z", 100).await.len(), 0);
    world.clean().await;
}
