use super::*;

#[sqlx::test(migrations = "../migrations")]
async fn records_are_listed_in_log_order_while_more_arrive(pool: PgPool) {
    let mut world = World::new(pool).await;
    let mut stored = Vec::new();
    for n in 0..7 {
        let (id, destination) = (format!("r{n}"), format!("d{}", n % 3));
        let place = world.add(Row { id: &id, destination: &destination, ..ROW }).await;
        stored.push((place, id));
    }
    let first = world.get("/records?limit=3").await;
    let cursor = first["nextCursor"].as_str().expect("more").to_owned();
    for n in 7..9 {
        let (id, destination) = (format!("r{n}"), format!("d{}", n % 3));
        let place = world.add(Row { id: &id, destination: &destination, ..ROW }).await;
        stored.push((place, id));
    }
    let mut seen = ids(first["items"].as_array().expect("items"), "recordId");
    let rest = world.get(&format!("/records?limit=1000&cursor={cursor}")).await;
    assert!(rest.get("nextCursor").is_none());
    seen.extend(ids(rest["items"].as_array().expect("items"), "recordId"));
    let mut distinct = seen.clone();
    distinct.sort();
    distinct.dedup();
    assert_eq!(distinct.len(), seen.len(), "no record appears twice");
    for n in 0..7 {
        assert!(seen.contains(&format!("r{n}")), "every record that existed at the beginning appears");
    }
    stored.sort();
    let log: Vec<String> = stored.into_iter().map(|(_, id)| id).collect();
    assert_eq!(ids(&world.all("/records", 2).await, "recordId"), log);
    assert_eq!(
        world.refusal(&format!("/records?destinationId=d0&cursor={cursor}")).await,
        (400, "invalid_cursor".to_owned(), false),
        "a cursor is valid only for its filters"
    );
}

#[sqlx::test(migrations = "../migrations")]
async fn every_filter_of_records_selects_its_records(pool: PgPool) {
    let mut world = World::new(pool).await;
    let attributes = Some(r#"{"n": 12345678901234567890.10}"#);
    let big = Row { id: "a b/c?", value: "999999999999999.100000000", attributes, ..ROW };
    world.add(big).await;
    world.add(Row { id: "2", destination: "e", value: "-2.50", ..ROW }).await;
    world.add(Row { id: "3", reference: "q", threshold: Some("0.5"), ..ROW }).await;
    world.add(Row { id: "4", source: "t", time: "2026-01-02T00:00:00.000001Z", ..ROW }).await;
    world.add(Row { id: "5", unit: "USD", time: "2026-01-03T00:00:00Z", ..ROW }).await;
    for (query, expected) in [
        ("destinationId=e", &["2"][..]),
        ("reference=q", &["3"]),
        ("sourceId=t", &["4"]),
        ("type=negative", &["2"]),
        ("unit=USD", &["5"]),
        ("alerted=true", &["3"]),
        ("alerted=false&destinationId=d", &["4", "5", "a b/c?"]),
        ("recordId=2&recordId=5&recordId=none", &["2", "5"]),
        ("recordId=a%20b%2Fc%3F", &["a b/c?"]),
        ("startTime=2026-01-02T00:00:00.000001Z&endTime=2026-01-03T00:00:00Z", &["4"]),
        ("startTime=2026-01-03T01:00:00%2B01:00", &["5"]),
        ("endTime=2026-01-01T00:00:00Z", &[]),
    ] {
        let mut found = ids(&world.all(&format!("/records?{query}"), 100).await, "recordId");
        found.sort();
        assert_eq!(found, expected, "{query}");
    }
    let body = world.text("/records?sourceId=s&reference=r&unit=EUR&type=positive", "*/*").await;
    assert!(body.contains(r#""value":"999999999999999.100000000""#), "the scale is kept: {body}");
    assert!(body.contains(r#""attributes":{"n": 12345678901234567890.10}"#), "the bytes are kept: {body}");
    assert!(body.contains(r#""processedAt":"2026-02-01T00:00:01Z""#));
}

#[sqlx::test(migrations = "../migrations")]
async fn parameters_that_no_record_can_match_are_refused(pool: PgPool) {
    let world = World::new(pool).await;
    let many = "recordId=x&".repeat(101);
    for query in [
        "limit=0",
        "limit=1001",
        "limit=x",
        "startTime=yesterday",
        "startTime=2026-01-01T00:00:00.1234567Z",
        "destinationId=",
        "destinationId=a%00b",
        "type=zero",
        "alerted=perhaps",
        "destination=x",
        "unit=a&unit=b",
        many.trim_end_matches('&'),
    ] {
        let (status, code, _) = world.refusal(&format!("/records?{query}")).await;
        assert_eq!(status, 400, "{query}: {code}");
    }
    assert_eq!(world.refusal("/records?cursor=nonsense").await.1, "invalid_cursor");
}

#[sqlx::test(migrations = "../migrations")]
async fn conflicts_show_both_contents(pool: PgPool) {
    let mut world = World::new(pool).await;
    world.add(Row { id: "taken", value: "5.00", ..ROW }).await;
    world.dead_letter(1, Some("refused"), br#"{"recordId":"refused","value":"1.0"}"#).await;
    world
        .run(
            r#"insert into conflicts values
               (0, 1, 1, '2026-02-01T00:00:03Z', '2026-02-01T00:00:02Z', 'taken', 'd', '1-0', '{"value": 6.00}', null, 0, 's'),
               (0, 2, 1, '2026-02-01T00:00:04Z', '2026-02-01T00:00:02Z', 'refused', 'e', '1-1', 'no json', null, 0, 's'),
               (1, 1, 1, '2026-02-01T00:00:05Z', '2026-02-01T00:00:02Z', 'taken', 'd', '1-2', '{}', null, 0, 's')"#,
        )
        .await;
    let items = world.all("/conflicts", 1).await;
    assert_eq!(ids(&items, "id"), ["0-c1", "0-c2", "1-c1"]);
    assert_eq!(items[0]["record"]["value"], "5.00");
    assert_eq!(items[1]["deadLetter"]["value"], "1.0");
    assert_eq!(items[1]["refusedBase64"], "bm8ganNvbg==");
    assert!(world.text("/conflicts?limit=1", "*/*").await.contains(r#""refused":{"value": 6.00}"#));
    for (query, expected) in [
        ("recordId=taken", &["0-c1", "1-c1"][..]),
        ("destinationId=e", &["0-c2"]),
        ("startTime=2026-02-01T00:00:04Z&endTime=2026-02-01T00:00:05Z", &["0-c2"]),
    ] {
        assert_eq!(ids(&world.all(&format!("/conflicts?{query}"), 100).await, "id"), expected, "{query}");
    }
}
