//! Values from responses are accepted as input, and exported records equal the stored ones.

use std::fmt::Write as _;

use super::*;
use crate::domain::Record;

/// Ids that need care in a path, in a query and in CSV.
const IDS: [&str; 9] = [
    "a/b%2Fc",
    "100% +1",
    "a&b=c#d?e",
    "say \"hi\", you;",
    "می\u{200c}خواهم",
    "👩\u{200d}👩\u{200d}👧",
    "line\u{2028}break",
    "../..",
    "=1+1",
];

/// Attributes on several lines, with text that looks like a line break.
const ATTRIBUTES: &str = "{\r\n \"a\": {\n\t\"b\": [1,\r2.50],\n \"text\": \"one\\ntwo\u{2028}three\u{85}\\\"\"\n }\n}";

fn encoded(text: &str) -> String {
    let mut encoded = String::new();
    for byte in text.bytes() {
        let _ = write!(encoded, "%{byte:02X}");
    }
    encoded
}

/// One record per id, with times of different precision.
async fn filled(pool: PgPool) -> World {
    let mut world = World::new(pool).await;
    for (n, id) in IDS.into_iter().enumerate() {
        let fraction = ["", ".5", ".123456"][n % 3];
        let row = Row {
            id,
            destination: id,
            reference: id,
            source: id,
            unit: id,
            value: ["-0.50", "999999999999999.100000000", "0"][n % 3],
            time: &format!("2026-01-01T00:00:0{n}{fraction}Z"),
            attributes: (n % 2 == 0).then_some(ATTRIBUTES),
            ..ROW
        };
        world.add(row).await;
    }
    world
}

#[sqlx::test(migrations = "../migrations")]
async fn each_ndjson_line_is_an_object_for_all_attributes(pool: PgPool) {
    let world = filled(pool).await;
    let json = world.text("/records/aggregations", "application/json").await;
    assert!(json.contains(&format!(r#""attributes":{ATTRIBUTES}"#)), "JSON keeps the bytes");
    let spaced = ATTRIBUTES.replace(['\r', '\n'], " ");
    for accept in ["application/x-ndjson", "application/jsonl"] {
        let text = world.text("/records/aggregations", accept).await;
        assert!(!text.contains('\r') && text.ends_with('\n'));
        let lines: Vec<&str> = text.trim_end_matches('\n').split('\n').collect();
        assert_eq!(lines.len(), 2 * IDS.len() + 1);
        for line in lines {
            let value: Value = serde_json::from_str(line).expect(line);
            let kinds: Vec<&String> = value.as_object().expect("an object").keys().collect();
            assert!(["group", "record", "end"].contains(&kinds[0].as_str()) && kinds.len() == 1, "{line}");
            if let Some(attributes) = value["record"].get("attributes") {
                assert!(line.contains(&spaced), "line breaks become spaces: {line}");
                assert_eq!(*attributes, serde_json::from_str::<Value>(ATTRIBUTES).expect("JSON"));
            }
        }
    }
    let rolled = world.text("/records/rollups?groupBy=unit,reference&window=1m", "application/x-ndjson").await;
    assert!(rolled.split_terminator('\n').all(|line| serde_json::from_str::<Value>(line).is_ok()), "{rolled}");
}

#[sqlx::test(migrations = "../migrations")]
async fn csv_rows_hold_complete_records(pool: PgPool) {
    let world = filled(pool).await;
    let table = world.text("/records/aggregations", "text/csv").await;
    let mut rows = csv::Reader::from_reader(table.as_bytes());
    let header = rows.headers().expect("a header").clone();
    let mut exported = HashMap::new();
    for row in rows.records() {
        let row = row.expect("a row");
        let mut record = serde_json::Map::new();
        for (name, cell) in header.iter().zip(&row).filter(|(name, cell)| !name.ends_with("At") && !cell.is_empty()) {
            let value = match name {
                "attributes" => serde_json::from_str(cell).expect("JSON"),
                _ => Value::from(cell),
            };
            record.insert(name.to_owned(), value);
        }
        let text = Value::from(record).to_string();
        let record = Record::parse(text.as_bytes()).expect("a record");
        exported.insert(record.record_id.to_string(), record);
    }
    assert_eq!(exported.len(), IDS.len());
    for item in world.all("/records", 100).await {
        let mut item = item;
        let fields = item.as_object_mut().expect("an object");
        fields.retain(|name, _| !name.ends_with("At"));
        let stored = Record::parse(item.to_string().as_bytes()).expect("a record");
        let same = &exported[stored.record_id.as_str()];
        assert_eq!(*same, stored);
        assert_eq!(same.value.to_string(), stored.value.to_string(), "the scale is kept");
    }
}

/// Collects every (field, value) of a response.
fn values(answer: &Value, found: &mut Vec<(String, String)>) {
    match answer {
        Value::Array(items) => items.iter().for_each(|item| values(item, found)),
        Value::Object(fields) => {
            for (name, value) in fields {
                // Refused content is returned as it was received, so its values need not be valid.
                if ["payload", "refused", "attributes", "deadLetter"].contains(&name.as_str()) {
                    continue;
                }
                match value {
                    Value::String(text) => found.push((name.clone(), text.clone())),
                    other => values(other, found),
                }
            }
        }
        _ => {}
    }
}

/// Paths whose responses hold values for filters.
const ANSWERS: [&str; 8] = [
    "/records",
    "/records/aggregations",
    "/records/rollups?window=1h&groupBy=destinationId,unit",
    "/conflicts",
    "/dead-letters",
    "/audit",
    "/audit/summary",
    "/stats",
];

/// The paths that have a filter with this name.
fn filtered_by(name: &str) -> &'static [&'static str] {
    match name {
        "recordId" | "destinationId" => {
            &["/records", "/records/aggregations", "/conflicts", "/dead-letters", "/audit", "/audit/summary"]
        }
        "sourceId" | "reference" | "unit" | "type" => &["/records", "/records/aggregations", "/records/rollups"],
        "action" => &["/audit", "/audit/summary"],
        "reason" | "state" => &["/dead-letters"],
        _ => &[],
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn every_value_of_a_response_is_accepted_as_a_filter(pool: PgPool) {
    let world = filled(pool).await;
    world.dead_letter(1, Some("👻 x/y"), br#"{"recordId":"x"}"#).await;
    world
        .run(
            "insert into conflicts values
                 (0, 1, 1, '2026-02-01T00:00:03.25Z', '2026-02-01T00:00:02Z', 'a/b%2Fc', 'a&b=c#d?e', '1-0', '{}', null, 0, 's')",
        )
        .await;
    let mut found = Vec::new();
    for path in ANSWERS {
        values(&world.get(path).await, &mut found);
    }
    found.sort();
    found.dedup();
    let mut asked = 0;
    for (name, value) in &found {
        // Audit facts also have reasons that no dead letter has.
        let of_audit = name == "reason" && value != "below_minimum_total";
        for path in filtered_by(name).iter().filter(|_| !of_audit) {
            world.get(&format!("{path}?{name}={}", encoded(value))).await;
            asked += 1;
        }
        for path in ["/records", "/audit", "/conflicts", "/dead-letters"].iter().filter(|_| parse_time(value).is_ok()) {
            world.get(&format!("{path}?startTime={value}&endTime={}", encoded(value))).await;
            asked += 1;
        }
    }
    assert!(asked > 150, "{asked}");
    let dead_letter = world.all("/dead-letters", 10).await[0]["id"].as_str().expect("an id").to_owned();
    assert_eq!(world.post(&format!("/dead-letters/{dead_letter}/discard")).await.0, 200);
}

#[sqlx::test(migrations = "../migrations")]
async fn an_id_of_a_response_is_accepted_in_path_query_cursor_and_body(pool: PgPool) {
    let mut world = filled(pool).await;
    for id in IDS {
        let history = world.get(&format!("/records/{}", encoded(id))).await;
        assert_eq!(history["recordId"], id);
        let listed = world.all(&format!("/records?recordId={0}&unit={0}&destinationId={0}", encoded(id)), 10).await;
        assert_eq!(ids(&listed, "recordId"), [id]);
        let mut record = history["record"].clone();
        record.as_object_mut().expect("an object").retain(|name, _| !name.ends_with("At"));
        let (status, answer) = world.post_json("/records", &record).await;
        assert_eq!((status, &answer["recordId"]), (202, &id.into()), "{answer}");
    }
    // A cursor holds the destination.
    let (mut cursor, mut destinations) = (String::new(), Vec::new());
    loop {
        let page = world.get(&format!("/audit/summary?limit=1{cursor}")).await;
        destinations.extend(ids(page["destinations"].as_array().expect("destinations"), "destinationId"));
        let Some(next) = page.get("nextCursor") else { break };
        cursor = format!("&cursor={}", next.as_str().expect("a cursor"));
    }
    let mut expected = IDS;
    expected.sort_unstable();
    assert_eq!(destinations, expected);
    world.clean().await;
}

#[sqlx::test(migrations = "../migrations")]
async fn a_filter_that_matches_no_record_is_refused_with_the_cause(pool: PgPool) {
    let world = World::new(pool).await;
    for (path, detail) in [
        ("/records?unit=EUR%20", "unit: ends with a space (U+0020); remove it"),
        ("/records?recordId=a&recordId=%C2%A0b", "recordId: starts with a no-break space (U+00A0); remove it"),
        ("/audit?destinationId=a%E2%80%8B", "destinationId: has a zero-width space (U+200B) as character 2; remove it"),
        ("/records/a%EF%BB%BF", "the id in the path has a byte order mark (U+FEFF) as character 2; remove it"),
        (
            "/records?startTime=2026-01-01T00:00:00+01:00",
            "startTime: a + in a URL means a space: write the + of the offset as %2B, such as 2026-01-31T12:00:00%2B01:00",
        ),
        (
            "/dead-letters?startTime=2026-01-02T00:00:00Z&endTime=2026-01-01T00:00:00Z",
            "startTime: is after endTime, so nothing can match; exchange the two",
        ),
        (
            "/records/rollups?startTime=2026-01-02T00:00:00Z&endTime=2026-01-01T00:00:00Z",
            "startTime: is after endTime, so nothing can match; exchange the two",
        ),
    ] {
        let (status, body) = world.send("GET", path, "application/json").await;
        let problem: Value = serde_json::from_str(&body.expect("a whole body")).expect("JSON");
        assert_eq!((status.as_u16(), &problem["detail"]), (400, &detail.into()), "{path}");
    }
}
