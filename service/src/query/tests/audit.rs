use super::*;

async fn filled(pool: PgPool) -> World {
    let mut world = World::new(pool).await;
    world.add(Row { id: "a", threshold: Some("0.5"), ..ROW }).await;
    world.add(Row { id: "b", destination: "e", ..ROW }).await;
    world.dead_letter(1, Some("c"), b"{}").await;
    world.dead_letter(2, Some("d"), b"{}").await;
    world
        .run(
            "insert into duplicates values
                 (0, 1, '2026-02-01T00:00:03Z', '2026-02-01T00:00:01Z', 'a', '1769904001500-0', 0, gen_random_uuid()),
                 (0, 1, '2026-02-01T00:00:03Z', '2026-02-01T00:00:01Z', 'b', '18446744073709551615-7', 0, gen_random_uuid());
             insert into conflicts values
                 (0, 1, 1, '2026-02-01T00:00:04Z', '2026-02-01T00:00:01Z', 'a', 'd', '1769904001500-1', '{}', null, 0, 's');
             update dead_letters set state = 'discarded', closed_at = '2026-02-01T00:00:05Z', closed_by = 'ann' where n = 1;
             insert into admin_actions (time, actor, action, reason)
             values ('2026-02-01T00:00:06Z', 'ben', 'sinks resume alerts', 'moved');
             update shards set duplicates = 2, conflicts = 1 where shard = 0;
             insert into outcome_counts as c (destination_id, shard, duplicates, conflicts) values ('d', 0, 1, 1), ('e', 0, 1, 0)
             on conflict (destination_id, shard) do update set duplicates = 1, conflicts = 1",
        )
        .await;
    world
}

#[sqlx::test(migrations = "../migrations")]
async fn facts_are_listed_in_order_and_paged(pool: PgPool) {
    let world = filled(pool).await;
    let whole = world.all("/audit", 1000).await;
    assert_eq!(whole.len(), 7 + 6 + 3 + 6 + 1 + 1);
    for limit in [1, 2, 5] {
        assert_eq!(world.all("/audit", limit).await, whole, "pages of {limit}");
    }
    let facts = world.all("/audit?recordId=a", 100).await;
    assert_eq!(
        ids(&facts, "action"),
        [
            "RECEIVED",
            "QUEUED",
            "PROCESSED",
            "ALERTED",
            "RECEIVED",
            "QUEUED",
            "DROPPED",
            "RECEIVED",
            "QUEUED",
            "CONFLICT"
        ]
    );
    assert_eq!(facts[1]["time"], "2026-02-01T00:00:00.500Z");
    assert_eq!((&facts[2]["worker"], &facts[3]["reason"]), (&"w1".into(), &"above 0.5".into()));
    assert!(facts[0].get("worker").is_none(), "a serve process receives, not a worker");
    let odd = world.all("/audit?recordId=b&action=QUEUED", 100).await;
    assert_eq!(odd[1]["time"], "2026-02-01T00:00:01Z", "a stream id that is not from a clock is not used as a time");
    for (query, expected) in [
        ("action=DROPPED&destinationId=e", &["DROPPED"][..]),
        ("action=DISCARDED&action=ADMIN", &["DISCARDED", "ADMIN"]),
        ("startTime=2026-02-01T00:00:05Z&endTime=2026-02-01T00:00:06Z", &["DISCARDED"]),
        ("recordId=none", &[]),
    ] {
        assert_eq!(ids(&world.all(&format!("/audit?{query}"), 100).await, "action"), expected, "{query}");
    }
    let by = world.all("/audit?action=DISCARDED&action=ADMIN", 100).await;
    assert_eq!((&by[0]["actor"], &by[1]["actor"]), (&"ann".into(), &"ben".into()));
    assert_eq!(by[1]["reason"], "sinks resume alerts: moved");
    assert_eq!(world.refusal("/audit?action=SLEPT").await.0, 400);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_replayed_dead_letter_counts_as_received_once(pool: PgPool) {
    let mut world = filled(pool).await;
    world.add(Row { id: "d", ..ROW }).await;
    world
        .run(
            "update dead_letters set state = 'replayed', closed_at = '2026-02-01T00:00:07Z', requested_by = 'ann' where n = 2;
             update outcome_counts set replayed = 1 where destination_id = 'd'",
        )
        .await;
    let facts = world.all("/audit?recordId=d", 100).await;
    assert_eq!(ids(&facts, "action"), ["PROCESSED", "RECEIVED", "QUEUED", "DEAD_LETTERED", "REPLAYED"]);
    let stats = world.get("/audit/summary").await;
    assert_eq!(stats["actions"]["RECEIVED"], 7, "two records, two duplicates, a conflict, two dead letters");
    assert_eq!(stats["actions"]["PROCESSED"], 3);
}

#[sqlx::test(migrations = "../migrations")]
async fn the_summary_counts_the_facts_of_the_list(pool: PgPool) {
    let world = filled(pool).await;
    for query in [
        "",
        "&action=ALERTED&action=ADMIN",
        "&action=RECEIVED",
        "&destinationId=d",
        "&recordId=a&action=PROCESSED&action=DROPPED",
        "&startTime=2026-02-01T00:00:01Z&endTime=2026-02-01T00:00:04Z",
    ] {
        let facts = world.all(&format!("/audit?{}", query.trim_start_matches('&')), 7).await;
        let mut counted: std::collections::BTreeMap<String, i64> = std::collections::BTreeMap::new();
        for fact in &facts {
            *counted.entry(fact["action"].as_str().expect("action").to_owned()).or_default() += 1;
        }
        let first = world.get(&format!("/audit/summary?limit=1{query}")).await;
        assert_eq!(first["actions"], serde_json::json!(counted), "{query}");
        let of_worker: i64 = facts.iter().filter(|fact| fact["worker"] == "w1").count() as i64;
        let workers = first["workers"].as_array().expect("workers");
        let of_workers = workers.iter().flat_map(|worker| worker["actions"].as_object().expect("actions").values());
        assert_eq!(of_workers.map(|n| n.as_i64().expect("n")).sum::<i64>(), of_worker, "{query}");
        let mut of_destinations: std::collections::BTreeMap<(String, String), i64> = std::collections::BTreeMap::new();
        for fact in facts.iter().filter(|fact| fact.get("destinationId").is_some()) {
            let field = |name: &str| fact[name].as_str().expect(name).to_owned();
            *of_destinations.entry((field("destinationId"), field("action"))).or_default() += 1;
        }
        let mut counted: std::collections::BTreeMap<(String, String), i64> = std::collections::BTreeMap::new();
        for page in world.pages(&format!("/audit/summary?limit=1{query}")).await {
            for destination in page["destinations"].as_array().expect("destinations") {
                for (action, n) in destination["actions"].as_object().expect("actions") {
                    let key = (destination["destinationId"].as_str().expect("an id").to_owned(), action.clone());
                    assert_eq!(counted.insert(key, n.as_i64().expect("n")), None, "{query}");
                }
            }
        }
        assert_eq!(counted, of_destinations, "{query}");
    }
    let first = world.get("/audit/summary?limit=1").await;
    assert_eq!(first["destinations"][0]["destinationId"], "d");
    let cursor = first["nextCursor"].as_str().expect("more");
    let next = world.get(&format!("/audit/summary?limit=1&cursor={cursor}")).await;
    assert_eq!(next["destinations"][0]["actions"]["DROPPED"], 1);
    assert_eq!(next["destinations"][0]["destinationId"], "e");
    assert!(next.get("nextCursor").is_none());
}
