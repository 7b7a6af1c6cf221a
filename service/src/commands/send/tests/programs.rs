//! Files as banks, shops, spreadsheets and the API itself write them.

use serde_json::json;

use super::{HEAD, constants, send, send_cells, table};
use crate::commands::send::origin::Refused;

#[test]
fn a_banks_file_with_a_preamble_is_read_by_flags() {
    let bank = "Konto;DE02\r\nZeitraum;Januar\r\n\r\nBuchung;Text;Betrag;S/H\r\n31.01.2026;Miete;1.234,56;S\r\n01.02.2026;\"Gut;schrift\";0,99;H\r\n";
    let flags = [
        "--skip-lines",
        "3",
        "--delimiter",
        ";",
        "--decimal",
        ",",
        "--sign",
        "S/H=H,S",
        "--map",
        "Betrag=value",
        "--map",
        "Buchung=time",
        "--time-format",
        "%d.%m.%Y",
        "--time-zone",
        "Europe/Berlin",
        "--map",
        "Text=attributes.text",
        "--idempotency-key",
        "bank",
    ];
    let sent = send_cells(bank, &["recordId", "time", "type", "value"], &flags);
    sent.end.as_ref().expect("read");
    let records = sent.records();
    assert_eq!((&records[0]["type"], &records[0]["value"]), (&json!("negative"), &json!("1234.56")));
    assert_eq!((&records[1]["type"], &records[1]["value"]), (&json!("positive"), &json!("0.99")));
    assert_eq!(records[0]["time"], "2026-01-30T23:00:00Z");
    assert_eq!(records[1]["attributes"], json!({"text": "Gut;schrift"}));
    // Lines are those of the file.
    let broken = bank.replace("1.234,56", "1.23");
    let sent = send_cells(&broken, &["recordId", "time", "type", "value"], &flags);
    let Refused { origin, invalid } = &sent.refused[0];
    assert_eq!((origin.number, origin.line), (1, 5));
    let cell = origin.cell(&invalid.pointer).expect("the cell");
    assert_eq!((cell.column.as_str(), cell.value.as_str()), ("Betrag", "1.23"));
    let excel = send_cells("sep=;\r\nrecordId;value\r\na;1\r\n", &["recordId", "value"], &[]);
    assert_eq!(excel.records()[0]["recordId"], "a");
}

#[test]
fn debit_and_credit_columns_give_one_amount_a_row() {
    let csv = "recordId,Soll,Haben\n1,5,\n2,,7\n3,0.00,8\n4,1,2\n5,,\n6,-5,\n";
    let except = ["recordId", "type", "value"];
    let sent = send_cells(csv, &except, &["--debit", "Soll", "--credit", "Haben"]);
    let amounts: Vec<_> =
        sent.records().iter().map(|record| format!("{} {}", record["type"], record["value"])).collect();
    assert_eq!(amounts, ["\"negative\" \"5\"", "\"positive\" \"7\"", "\"positive\" \"8\""]);
    assert_eq!(sent.refused.iter().map(|one| one.origin.number).collect::<Vec<_>>(), [4, 5, 6]);
    assert!(sent.refused[2].invalid.detail.contains("give --signed for both"), "{:?}", sent.refused[2]);
    // A bank that writes a minus before debits.
    let sent = send_cells("recordId,Soll,Haben\n1,-5,\n2,,7\n", &except, &["--signed", "Soll", "--signed", "Haben"]);
    let types: Vec<_> = sent.records().iter().map(|record| record["type"].clone()).collect();
    assert_eq!(types, ["negative", "positive"]);
}

#[test]
fn a_shops_json_with_minor_units_is_read_by_flags() {
    let shop = r#"{"shop": "x", "orders": [
        {"id": 1001, "total": 1999, "created": "2026-01-31 12:00:00 -0500", "customer": 7, "email": "a@b.c"},
        {"id": 1002, "total": 5, "created": "2026-01-31 12:00:00+00", "customer": 8, "email": null}], "page": 1}"#;
    let flags = [
        "--map",
        "id=recordId",
        "--map",
        "total=value",
        "--scale",
        "2",
        "--map",
        "created=time",
        "--map",
        "customer=sourceId",
    ];
    let all: Vec<&str> = flags.iter().copied().chain(constants(&["recordId", "time", "sourceId", "value"])).collect();
    let refused = send("file.json", shop, &[&all[..], &["--rows", "orders"]].concat());
    assert_eq!(refused.refused[0].invalid.pointer, "/email");
    let sent = send("file.json", shop, &[&all[..], &["--rows", "orders", "--ignore-unknown"]].concat());
    let records = sent.records();
    assert_eq!((&records[0]["recordId"], &records[0]["value"]), (&json!("1001"), &json!("19.99")));
    assert_eq!((&records[1]["sourceId"], &records[1]["value"]), (&json!("8"), &json!("0.05")));
    assert_eq!(records[0]["time"], "2026-01-31T12:00:00-05:00");
    let whole = send("file.json", shop, &all);
    assert!(whole.refused[0].invalid.detail.contains("--rows orders"), "{:?}", whole.refused[0].invalid);
    for (name, flags) in [("file.csv", &["--rows", "a"][..]), ("file.json", &["--delimiter", ";"])] {
        assert!(send(name, "", flags).end.is_err(), "{flags:?}");
    }
}

#[test]
fn a_zone_column_gives_the_zone_of_each_row() {
    let csv = "recordId,time,tz\n1,2026-01-31 12:00:00,America/New_York\n2,2026-01-31 12:00:00,+01:00\n3,2026-01-31 12:00:00,Mars\n4,2026-01-31 12:00:00,\n";
    let sent = send_cells(csv, &["recordId", "time"], &["--zone-column", "tz"]);
    let times: Vec<_> = sent.records().iter().map(|record| record["time"].clone()).collect();
    assert_eq!(times, ["2026-01-31T17:00:00Z", "2026-01-31T11:00:00Z"]);
    assert_eq!(sent.refusals(), [(3, 4, "invalid_value"), (4, 5, "invalid_value")]);
}

#[test]
fn trim_removes_what_nobody_sees_at_both_ends() {
    let rows = [("u1", "EUR  "), ("u2", "EUR\u{200b}"), ("u3", "\u{a0}EUR"), ("u4", "\u{202a}EUR\u{2069}\u{feff}")];
    let csv: String = rows.iter().map(|(id, unit)| format!("{id},{unit}\n")).collect();
    let csv = format!("recordId , unit\n{csv}");
    let sent = send_cells(&csv, &["recordId", "unit"], &["--trim"]);
    assert!(sent.records().iter().all(|record| record["unit"] == "EUR"), "{:?}", sent.rows);
    let json = send("file.ndjson", "{\"unit\":\" E U\\u200c \"}", &[&["--trim"][..], &constants(&["unit"])].concat());
    // Between dead letters everything stays, and so do the joiners of Persian and of emoji.
    assert_eq!(json.records()[0]["unit"], "E U\u{200c}");
}

#[test]
fn answers_of_the_api_are_sent_again_as_records() {
    let record = json!({"recordId": "a", "time": "2026-01-31T12:00:00Z", "sourceId": "s", "destinationId": "d",
        "type": "positive", "value": "1.50", "unit": "EUR", "reference": "r", "attributes": {"a": 1}});
    let mut shown = record.clone();
    shown["receivedAt"] = json!("2026-01-31T12:00:01Z");
    shown["processedAt"] = json!("2026-01-31T12:00:02Z");
    let group = json!({"destinationId": "d", "totals": [{"unit": "EUR", "count": 1, "total": "1.50"}], "count": 1});
    let mut whole = group.clone();
    whole["records"] = json!([shown]);
    // Written by hand: the API writes these keys first.
    let aggregations = format!("{{\"asOf\":\"2026-01-31T12:00:00Z\",\"groups\":[{whole}]}}");
    let end = json!({"end": {"groups": 1, "records": 1, "asOf": "2026-01-31T12:00:00Z"}});
    let lines = format!("{}\n{}\n{end}\n", json!({"group": group}), json!({"record": shown}));
    let csv = format!(
        "{HEAD},attributes,receivedAt,processedAt\r\na,2026-01-31T12:00:00Z,s,d,positive,1.50,EUR,r,\"{{\"\"a\"\":1}}\",\
         2026-01-31T12:00:01Z,2026-01-31T12:00:02Z\r\n"
    );
    let page = format!("{{\"items\":[{shown}],\"nextCursor\":\"x\"}}");
    for (name, content) in [("a.json", aggregations), ("a.ndjson", lines), ("a.csv", csv), ("r.json", page)] {
        let sent = send(name, &content, &[]);
        sent.end.as_ref().expect(name);
        assert_eq!(sent.records(), std::slice::from_ref(&record), "{name}");
        assert!(sent.refused.is_empty() && sent.skipped == 0, "{name}");
    }
}

#[test]
fn rows_before_a_file_that_ends_early_are_sent() {
    use std::io::Write as _;
    let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let rows: Vec<_> = (0..5_000).map(|n| (format!("z{n}"), format!("{:x}", n * 7_919))).collect();
    let rows: Vec<_> = rows.iter().map(|(id, reference)| (id.as_str(), reference.as_str())).collect();
    packer.write_all(table(&rows).as_bytes()).expect("packed");
    let packed = packer.finish().expect("packed");
    assert_eq!(send("file.csv.gz", &packed, &[]).rows.len(), 5_000);
    let sent = send("file", &packed[..packed.len() / 2], &[]);
    assert!(sent.end.is_err() && !sent.rows.is_empty() && sent.refused.is_empty(), "{}", sent.rows.len());
    let last = sent.rows.len();
    assert_eq!(sent.numbers().last(), Some(&(last as u64)));
}
