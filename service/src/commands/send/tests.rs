//! Requests and refused rows of files, by the flags.

mod programs;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{Args, Feed, Reader, origin::Refused};

/// Requests and refused rows of a file.
struct Sent {
    /// Number, first row of the request, and record.
    rows: Vec<(u64, u64, String)>,
    refused: Vec<Refused>,
    skipped: u64,
    end: anyhow::Result<()>,
}

impl Sent {
    fn records(&self) -> Vec<Value> {
        self.rows.iter().map(|(.., line)| serde_json::from_str(line).expect("JSON")).collect()
    }

    fn numbers(&self) -> Vec<u64> {
        self.rows.iter().map(|(number, ..)| *number).collect()
    }

    /// Row, line and code of each refused row.
    fn refusals(&self) -> Vec<(u64, u64, &str)> {
        self.refused.iter().map(|one| (one.origin.number, one.origin.line, one.invalid.code)).collect()
    }

    /// The error that ended it.
    fn error(&self) -> String {
        format!("{:#}", self.end.as_ref().expect_err("an error"))
    }
}

fn args(flags: &[&str]) -> Args {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }
    let line = <Line as clap::Parser>::try_parse_from(std::iter::once("send").chain(flags.iter().copied()));
    line.expect("flags").args
}

/// Requests of two rows of a file.
fn send(name: &str, content: impl AsRef<[u8]>, flags: &[&str]) -> Sent {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join(name);
    std::fs::write(&path, content).expect("written");
    let mut all = vec![path.to_str().expect("UTF-8")];
    all.extend(flags);
    let (feed, mut fed) = mpsc::channel(10_000);
    let end = Reader::open(&args(&all), 0, 2).and_then(|reader| reader.read(&feed));
    drop(feed);
    let mut sent = Sent { rows: Vec::new(), refused: Vec::new(), skipped: 0, end };
    while let Some(next) = fed.blocking_recv() {
        match next {
            Feed::Batch(batch, origins) => {
                assert_eq!(batch.rows.len(), origins.len());
                for row in batch.rows {
                    assert!(!row.line.contains(&b'\n') && !row.line.contains(&b'\r'), "one line");
                    let line = String::from_utf8(row.line).expect("UTF-8");
                    sent.rows.push((row.number, batch.first_row, line));
                }
            }
            Feed::Refused(refused) => sent.refused.push(*refused),
            Feed::Skipped(rows) => sent.skipped += rows,
            Feed::Repeated(_) => {}
        }
    }
    sent
}

const HEAD: &str = "recordId,time,sourceId,destinationId,type,value,unit,reference";

/// A CSV of rows that differ in what `row` gives: recordId and reference.
fn table(rows: &[(&str, &str)]) -> String {
    let rows = rows.iter().map(|(id, reference)| format!("{id},2026-01-31T12:00:00Z,s,d,positive,1,USD,{reference}\n"));
    format!("{HEAD}\n{}", rows.collect::<String>())
}

/// Flags that give all fields but those named.
fn constants<'a>(except: &[&str]) -> Vec<&'a str> {
    let all = [
        ("recordId", "recordId=r"),
        ("time", "time=2026-01-31T12:00:00Z"),
        ("sourceId", "sourceId=s"),
        ("destinationId", "destinationId=d"),
        ("type", "type=positive"),
        ("value", "value=1"),
        ("unit", "unit=EUR"),
        ("reference", "reference=r"),
    ];
    all.iter().filter(|(field, _)| !except.contains(field)).flat_map(|(_, set)| ["--set", set]).collect()
}

/// A CSV with the fields `except` from its cells.
fn send_cells(content: &str, except: &[&str], flags: &[&str]) -> Sent {
    let all: Vec<&str> = flags.iter().copied().chain(constants(except)).collect();
    send("file.csv", content, &all)
}

#[test]
fn one_bad_row_of_a_table_costs_one_row() {
    let good = table(&[("z1", "r"), ("z2", "r"), ("BAD", "r"), ("z4", "r"), ("z5", "r")]);
    let line = good.lines().find(|line| line.starts_with("BAD")).expect("the row").to_owned();
    let long = "x".repeat(super::rows::LONGEST);
    for (bad, code) in [
        (format!("{line},"), "wrong_columns"),
        ("z3,only".to_owned(), "wrong_columns"),
        (line.replace("BAD", ""), "missing_field"),
        (line.replace("BAD", "\"z3"), "broken_quotes"),
        (line.replace("BAD", "\"z\"3"), "broken_quotes"),
        (line.replace("BAD", &long), "too_large"),
        (line.replace("BAD", &long[..20_000]), "too_large"),
        (line.replace("BAD", "z3").replace(",1,", ",\"1,5\","), "invalid_value"),
    ] {
        let sent = send("file.csv", good.replace(&line, &bad), &[]);
        sent.end.as_ref().expect(code);
        assert_eq!(sent.numbers(), [1, 2, 4, 5], "{code}");
        assert_eq!(sent.refusals(), [(3, 4, code)]);
        let text = &sent.refused[0].origin.text;
        assert_eq!(text[..], bad.as_bytes()[..text.len()], "{code}");
        assert_eq!(sent.refused[0].origin.is_cut, bad.len() > text.len());
    }
}

#[test]
fn a_row_that_is_not_utf_8_is_refused_with_its_bytes_and_column() {
    let mut file = table(&[("z1", "r"), ("z2", "r"), ("z3", "r@"), ("z4", "r")]).into_bytes();
    let at = file.iter().position(|byte| *byte == b'@').expect("the byte");
    file[at] = 0xe9;
    let sent = send("file.csv", &file, &[]);
    assert_eq!((sent.numbers(), sent.refusals()), (vec![1, 2, 4], vec![(3, 4, "not_utf8")]));
    let Refused { origin, invalid } = &sent.refused[0];
    assert!(origin.text.ends_with(b"r\xe9"));
    assert_eq!(invalid.pointer, "/reference");
    assert!(invalid.detail.contains("column reference") && invalid.detail.contains("--encoding"), "{}", invalid.detail);
    let sent = send("file.csv", &file, &["--encoding", "windows-1252"]);
    assert_eq!(sent.records()[2]["reference"], "ré");
}

#[test]
fn one_bad_element_or_line_of_json_costs_one_row() {
    let record = |id: &str| {
        json!({"recordId": id, "time": "2026-01-31T12:00:00Z", "sourceId": "s", "destinationId": "d", "type": "positive",
               "value": "1", "unit": "USD", "reference": "r"})
        .to_string()
    };
    let (one, three) = (record("1"), record("3"));
    let broken = [
        "{\"recordId\":}".to_owned(),
        "1".to_owned(),
        "null".to_owned(),
        record("2").replace("\"r\"", "\"r"),
        record("2").replace("\"recordId\":\"2\",", ""),
        record("2").replace("\"r\"", "\"r\",\"attributes\":\"web\""),
        record("2").replace("\"r\"", "\"r\",\"attributes\":[1]"),
    ];
    for bad in &broken {
        let sent = send("file.ndjson", format!("{one}\r\n{bad}\r\n\r\n{three}"), &[]);
        assert_eq!((sent.numbers(), sent.refused.len()), (vec![1, 4], 1), "{bad}");
        assert_eq!((sent.refused[0].origin.line, &sent.refused[0].origin.text[..]), (2, bad.as_bytes()));
        let sent = send("file.json", format!("[\n{one},\n{bad},\n{three}\n]"), &[]);
        sent.end.as_ref().expect(bad);
        assert_eq!((sent.numbers(), sent.refused.len()), (vec![1, 3], 1), "{bad}");
        assert_eq!(sent.refused[0].origin.line, 3, "{bad}");
    }
    let long = format!("{one}\n{{\"a\":\"{}\"}}\n{three}", "x".repeat(super::rows::LONGEST));
    let sent = send("file.ndjson", long, &[]);
    assert_eq!((sent.numbers(), sent.refusals()), (vec![1, 3], vec![(2, 2, "too_large")]));
}

#[test]
fn derived_ids_depend_on_the_row_number_alone() {
    let head = "time,sourceId,destinationId,type,value,unit,reference,v\n";
    let rows: Vec<String> = (1..=5).map(|n| format!("2026-01-31T12:00:00Z,s,d,positive,{n},USD,r,x\n")).collect();
    let ids = |sent: &Sent| -> BTreeMap<u64, String> {
        let ids = sent.records().into_iter().map(|record| record["recordId"].as_str().expect("an id").to_owned());
        sent.numbers().into_iter().zip(ids).collect()
    };
    let flags = ["--idempotency-key", "k", "--skip-empty", "v"];
    let all = ids(&send("file.csv", format!("{head}{}", rows.concat()), &flags));
    // The id that the service derives for index 1 of the request of rows 3 and 4.
    let source = crate::domain::SourceId::stored("s");
    assert_eq!(all[&4], crate::accept::derived_id(&source, "k-3", 1).as_str());
    for bad in ["broken\n".to_owned(), rows[2].replace(",x\n", ",\n"), ",,,,,,,\n".to_owned()] {
        let mut some = rows.clone();
        some[2] = bad;
        let sent = send("file.csv", format!("{head}{}", some.concat()), &flags);
        let mut expected = all.clone();
        expected.remove(&3);
        assert_eq!(ids(&sent), expected);
        assert_eq!(sent.refused.len() as u64 + sent.skipped, 1);
    }
    // An id of the row's own is kept.
    let own = send("file.csv", table(&[("own", "r"), ("", "r")]), &["--idempotency-key", "k"]);
    assert_eq!(own.records()[0]["recordId"], "own");
    assert_eq!(own.records()[1]["recordId"], crate::accept::derived_id(&source, "k-1", 1).as_str());
}

#[test]
fn requests_are_cut_by_row_number_whatever_is_left_out() {
    let rows = |ids: &[&str]| table(&ids.iter().map(|id| (*id, "r")).collect::<Vec<_>>());
    let csv = rows(&["1", "", "", "", "5", "6", "7"]);
    let cuts = |sent: Sent| sent.rows.iter().map(|(number, first, _)| (*number, *first)).collect::<Vec<_>>();
    assert_eq!(cuts(send("file.csv", csv, &["--skip-empty", "recordId"])), [(1, 1), (5, 5), (6, 5), (7, 7)]);
}

#[test]
fn attributes_of_flags_add_to_the_rows_own() {
    let csv = |own: &str| format!("attributes,chan\n\"{}\",x\n", own.replace('"', "\"\""));
    let flags = ["--map", "chan=attributes.sales", "--set", "attributes.import=july"];
    // As they are written, up to the field behind them.
    let attributes = |sent: &Sent| {
        let behind = sent.rows[0].2.split_once("\"attributes\":").expect("attributes").1;
        behind.split_once("},\"recordId\"").map_or(behind, |(own, _)| own).trim_end_matches('}').to_owned()
    };
    let sent = send_cells(&csv("{\"channel\": \"web\", \"n\": 1.10}"), &[], &flags);
    assert_eq!(attributes(&sent), r#"{"channel": "web", "n": 1.10,"sales":"x","import":"july""#);
    let sent = send_cells(&csv("{}"), &[], &flags);
    assert_eq!(attributes(&sent), r#"{"sales":"x","import":"july""#);
    let sent = send_cells(&csv(""), &[], &flags);
    assert_eq!(attributes(&sent), r#"{"sales":"x","import":"july""#);
    for (own, said) in [
        ("{\"import\":1}", "attributes.import comes from two places: the row's own attributes, and --set"),
        ("{\"sales\":1}", "and --map"),
        ("[1]", "must be a JSON object"),
        ("web", "one JSON object"),
        (" ", "one JSON object"),
    ] {
        let sent = send_cells(&csv(own), &[], &flags);
        let Refused { origin, invalid } = &sent.refused[0];
        assert!(invalid.detail.contains(said), "{own}: {}", invalid.detail);
        let cell = origin.cell(&invalid.pointer).expect("the cell");
        assert_eq!((cell.column.as_str(), cell.value.as_str()), ("attributes", own));
    }
    let sent = send_cells(&csv(" "), &[], &["--trim", "--map", "chan=attributes.sales"]);
    assert_eq!(attributes(&sent), r#"{"sales":"x""#);
}

#[test]
fn a_cell_of_attributes_is_one_json_value_on_one_line() {
    let csv = |cell: &str| format!("{HEAD},attributes\nm1,2026-01-31T12:00:00Z,s,d,positive,1,USD,r,\"{cell}\"\n");
    let sent = send("file.csv", csv("{\r\n \"\"channel\"\": \"\"web\"\"\r\n}"), &[]);
    assert!(sent.rows[0].2.ends_with(r#""attributes":{   "channel": "web"  }}"#), "{}", sent.rows[0].2);
    for cell in ["{},\"\"unit\"\":\"\"JPY\"\"", "{}}\n{\"\"recordId\"\":\"\"evil\"\",\"\"attributes\"\":{}", "{", "1"] {
        let sent = send("file.csv", csv(cell), &[]);
        assert_eq!((sent.rows.len(), sent.refused.len()), (0, 1), "{cell}");
        assert_eq!(sent.refused[0].invalid.pointer, "/attributes");
    }
}

#[test]
fn json_rows_and_tables_follow_the_same_flags() {
    let flags = ["--map", "id=recordId", "--map", "id=attributes.id", "--signed", "v", "--map", "v=attributes.v"];
    let all: Vec<&str> = flags.iter().copied().chain(constants(&["recordId", "type", "value"])).collect();
    let json = send("file.ndjson", "{\"id\":7,\"v\":-12345678901234567.890}", &all);
    let csv = send("file.csv", "id,v\n7,-12345678901234567.890\n", &all);
    let line = &json.rows[0].2;
    let (json, csv) = (&json.records()[0], &csv.records()[0]);
    for record in [json, csv] {
        assert_eq!(record["recordId"], "7");
        assert_eq!((&record["type"], &record["value"]), (&json!("negative"), &json!("12345678901234567.890")));
    }
    assert_eq!(json["attributes"]["id"], 7);
    assert!(line.ends_with(r#""attributes":{"id":7,"v":-12345678901234567.890}}"#), "{line}");
    assert_eq!(csv["attributes"], json!({"id": "7", "v": "-12345678901234567.890"}));
}

#[test]
fn numbers_in_the_place_of_texts_become_the_text_that_is_written() {
    let all: Vec<&str> = constants(&["recordId", "sourceId", "value"]);
    let sent = send("file.ndjson", "{\"recordId\":1001,\"sourceId\":12345678901234567890,\"value\":1.10}", &all);
    let line = &sent.rows[0].2;
    assert!(line.starts_with(r#"{"recordId":"1001","sourceId":"12345678901234567890","value":1.10,"#), "{line}");
    // An exponent has several spellings, so it is no id.
    let sent = send("file.ndjson", "{\"recordId\":1e3,\"value\":1}", &constants(&["recordId", "value"]));
    assert!(sent.rows[0].2.starts_with(r#"{"recordId":1e3,"#));
}

#[test]
fn no_field_has_two_sources() {
    let refused = |content: &str, flags: &[&str]| send("file.ndjson", content, flags).refused.remove(0).invalid;
    let all: Vec<&str> = ["--map", "id=recordId"].into_iter().chain(constants(&["recordId"])).collect();
    assert_eq!(refused("{\"id\":\"a\",\"recordId\":\"b\"}", &all).pointer, "/recordId");
    let invalid = refused("{\"id\":\"a\",\"unit\":\"USD\"}", &all);
    assert!(invalid.detail.contains("the row's own \"USD\", and --set unit=EUR"), "{}", invalid.detail);
    for (content, flags) in [
        ("id,recordId\n1,2\n", &["--map", "id=recordId"][..]),
        ("recordId,recordId\n1,2\n", &[]),
        ("recordId,delay,value\n1,2,3\n", &["--signed", "delay"]),
        ("recordId,d,c,type\n1,2,3,positive\n", &["--debit", "d", "--credit", "c"]),
    ] {
        let sent = send("file.csv", content, flags);
        assert!(sent.error().contains("two"), "{content}: {}", sent.error());
    }
    for flags in [
        &["--signed", "a", "--map", "b=value"][..],
        &["--signed", "a", "--set", "type=positive"],
        &["--sign", "a=+,-", "--map", "b=type"],
        &["--sign", "a=+,-", "--signed", "b"],
        &["--map", "a=unit", "--set", "unit=EUR"],
        &["--signed", "a", "--debit", "b"],
        &["--rows", "a"],
    ] {
        assert!(send("file.csv", "", flags).end.is_err(), "{flags:?}");
    }
    assert!(Reader::open(&args(&["--generate", "1", "--delimiter", ";"]), 0, 2).is_err());
}

#[test]
fn a_header_that_names_no_field_is_named_with_the_remedy() {
    for (content, flags, said) in [
        ("recordId;time;value\n", &[][..], "line 1 holds ';' within its cells"),
        ("recordId\ttime\tvalue\n", &[], "give --delimiter tab"),
        ("recordId,time\n", &["--delimiter", ";"], "give --delimiter ,"),
        ("r1,2026-01-31T12:00:00Z,s\n", &[], "line 1 is no header"),
        ("recordId,time,value\n", &[], "no column gives sourceId, destinationId, type, unit, reference"),
        ("recordId,Betrag \n", &["--signed", "Betrag"], "--trim removes them"),
        ("recordId,a\n", &["--map", "b=value"], "has no column b; its columns on line 1 are recordId, a"),
        ("r\0e\0c\0\n", &[], "--encoding utf-16le"),
        ("\"recordId,time\n", &[], "the header on line 1 holds a cell that begins with a quote"),
    ] {
        let error = send("file.csv", content, flags).error();
        assert!(error.contains(said), "{content}: {error}");
    }
}
