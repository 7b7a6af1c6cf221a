//! `millrace verify` finds each kind of difference in a sink's stream, in every scope that holds it and in no other.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::harness::{Load, Pipeline, eventually};

/// The fields of an entry.
type Fields = BTreeMap<String, String>;

/// An entry of a stream, with its id.
#[derive(Debug, Clone)]
struct Entry {
    stream_id: String,
    fields: Fields,
}

impl Entry {
    fn id(&self) -> &str {
        &self.fields["id"]
    }

    fn with(mut self, field: &str, change: impl FnOnce(&str) -> String) -> Self {
        let before = self.fields[field].clone();
        let after = change(&before);
        assert_ne!(after, before, "the fault changes the entry");
        self.fields.insert(field.to_owned(), after);
        self
    }
}

async fn read(pipeline: &Pipeline, stream: &str) -> Vec<Entry> {
    let found: redis::streams::StreamRangeReply = pipeline.redis(&["XRANGE", stream, "-", "+"]).await;
    let fields = |entry: &redis::streams::StreamId| {
        let text = |value| redis::from_redis_value_ref(value).unwrap();
        entry.map.iter().map(|(name, value)| (name.clone(), text(value))).collect()
    };
    found.ids.iter().map(|entry| Entry { stream_id: entry.id.clone(), fields: fields(entry) }).collect()
}

/// Makes the stream hold exactly these entries, as if nothing else had ever been appended.
async fn write(pipeline: &Pipeline, stream: &str, entries: &[Entry]) {
    pipeline.redis::<i64>(&["DEL", stream]).await;
    for entry in entries {
        let mut words = vec!["XADD", stream, &entry.stream_id];
        words.extend(entry.fields.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]));
        pipeline.redis::<String>(&words).await;
    }
}

/// The places and expectations of the differences that `verify` finds, one text each. It ends with 0 only if there is none.
async fn differences(pipeline: &Pipeline, arguments: &[&str]) -> Vec<String> {
    let output = pipeline.command("verify", &[&["--json"], arguments].concat()).await;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    let verdict: Value = serde_json::from_str(&printed)
        .unwrap_or_else(|_| panic!("{arguments:?}: {printed}{}", String::from_utf8_lossy(&output.stderr)));
    let first = verdict["first"].as_array().unwrap();
    assert_eq!(output.status.success(), first.is_empty(), "{arguments:?}: {printed}");
    assert_eq!(verdict["verified"], json!(first.is_empty()));
    assert_eq!(verdict["differences"], json!(first.len()));
    let text = |one: &Value, field: &str| one[field].as_str().unwrap().to_owned();
    first.iter().map(|one| format!("{}: {}", text(one, "place"), text(one, "expected"))).collect()
}

/// A fault: the entries of a stream that has it, and the beginning of the difference that shows it.
struct Fault {
    what: &'static str,
    sink: &'static str,
    entries: Vec<Entry>,
    found: String,
}

/// Each kind of fault, at the record `seq` of shard 0 and its alert.
fn faults(notifications: &[Entry], alerts: &[Entry], seq: i64) -> Vec<Fault> {
    let (id, alert_id) = (format!("0-{seq}"), format!("0-{seq}-alert"));
    let change = |entries: &[Entry], id: &str, field: &str, from: &str, to: &str| {
        let change = |entry: &Entry| {
            if entry.id() == id { entry.clone().with(field, |text| text.replacen(from, to, 1)) } else { entry.clone() }
        };
        entries.iter().map(change).collect::<Vec<_>>()
    };
    let without = |entries: &[Entry], id: &str| entries.iter().filter(|entry| entry.id() != id).cloned().collect();
    let again = |entries: &[Entry], id: &str| {
        let again = entries.iter().find(|entry| entry.id() == id).cloned().unwrap();
        let last = entries.last().unwrap().stream_id.clone();
        let (ms, n) = last.split_once('-').unwrap();
        let again = Entry { stream_id: format!("{ms}-{}", n.parse::<u64>().unwrap() + 1), ..again };
        [entries, &[again]].concat()
    };
    let of = |sink: &str, id: &str, field: &str| format!("sink {sink}, {id}, {field}: ");
    let missing = |sink: &str| format!("sink {sink}, shard 0: number {seq}");
    let total = r#""previousTotal":""#;
    vec![
        Fault {
            what: "a missing notification",
            sink: "notifications",
            entries: without(notifications, &id),
            found: missing("notifications"),
        },
        Fault {
            what: "a doubled notification",
            sink: "notifications",
            entries: again(notifications, &id),
            found: "sink notifications, entry ".to_owned(),
        },
        Fault {
            what: "a wrong previous total",
            sink: "notifications",
            entries: change(notifications, &id, "data", total, &format!("{total}9")),
            found: of("notifications", &id, "data"),
        },
        Fault {
            what: "a wrong value",
            sink: "notifications",
            entries: change(notifications, &id, "data", r#""value":""#, r#""value":"1"#),
            found: of("notifications", &id, "data"),
        },
        Fault {
            what: "a wrong time",
            sink: "notifications",
            entries: change(notifications, &id, "time", "20", "19"),
            found: of("notifications", &id, "time"),
        },
        Fault {
            what: "a missing alert",
            sink: "alerts",
            entries: without(alerts, &alert_id),
            found: missing("alerts"),
        },
        Fault {
            what: "a wrong threshold",
            sink: "alerts",
            entries: change(alerts, &alert_id, "data", r#""threshold":""#, r#""threshold":"1"#),
            found: of("alerts", &alert_id, "data"),
        },
    ]
}

#[tokio::test]
async fn each_fault_of_a_stream_is_found_in_each_scope_that_holds_it() {
    let pipeline = Pipeline::new(json!({"threshold": "200"})).await;
    let (serve, mut work) = (pipeline.serve().await, pipeline.work());
    pipeline.send(&Load::new("first", 300).records).await;
    pipeline.applied().await;
    pipeline.send(&Load::new("second", 600).records).await;
    pipeline.applied().await;
    // Stopped: a publisher would notice that a stream was deleted.
    work.stop().await;
    let time = |id: &str| {
        format!(
            "select to_char(min(processed_at) at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') from records where {id}"
        )
    };
    let time = async |of: &str| {
        let query = sqlx::AssertSqlSafe(time(of));
        sqlx::query_scalar::<_, String>(query).fetch_one(&pipeline.sql).await.unwrap()
    };
    let (all, later) = (time("true").await, time("record_id like 'second-%'").await);
    let first = pipeline
        .number("select max(seq) from records where shard = 0 and threshold is not null and record_id like 'first-%'")
        .await;
    let second = pipeline
        .number("select min(seq) from records where shard = 0 and threshold is not null and record_id like 'second-%'")
        .await;
    let scopes: [(&[&str], bool); 5] = [
        (&[], true),
        (&["--shard", "0"], true),
        (&["--shard", "1", "--shard", "0", "--since", &all], true),
        (&["--since", &later], true),
        (&["--shard", "1"], false),
    ];
    for (scope, _) in scopes {
        assert_eq!(differences(&pipeline, scope).await, [""; 0], "without a fault, {scope:?}");
    }
    let (notifications, alerts) =
        (read(&pipeline, &pipeline.stream("notifications")).await, read(&pipeline, &pipeline.stream("alerts")).await);
    for Fault { what, sink, entries, found } in faults(&notifications, &alerts, second) {
        write(&pipeline, &pipeline.stream(sink), &entries).await;
        for (scope, holds) in scopes {
            let differing = differences(&pipeline, scope).await;
            assert_eq!(differing.len(), usize::from(holds), "{what}, {scope:?}: {differing:?}");
            assert!(differing.iter().all(|one| one.starts_with(&found)), "{what}, {scope:?}: {differing:?}");
        }
        write(&pipeline, &pipeline.stream(sink), if sink == "alerts" { &alerts } else { &notifications }).await;
    }
    // What comes before the time is not compared.
    let Fault { entries, .. } = faults(&notifications, &alerts, first).remove(0);
    write(&pipeline, &pipeline.stream("notifications"), &entries).await;
    assert_eq!(differences(&pipeline, &["--since", &later]).await, [""; 0]);
    assert_eq!(differences(&pipeline, &["--since", &all]).await.len(), 1);

    assert_eq!(differences(&pipeline, &[]).await.len(), 1);
    eventually("the metric has the differences of the last run", async || {
        serve.metric("millrace_verify_differences").await == 1.0
    })
    .await;
    let succeeded = serve.metric("millrace_verify_last_success_timestamp_seconds").await;
    let stored = "select extract(epoch from max(ended_at) filter (where differences = 0 and shards is null and since is null))::bigint from verifications";
    assert_eq!(succeeded, pipeline.number(stored).await as f64);
}
