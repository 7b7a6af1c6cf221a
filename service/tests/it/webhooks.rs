//! Webhooks against a real endpoint: signed, in order, repeated, disabled and resumed.

use std::{collections::BTreeSet, fs, time::Duration};

use reqwest::Method;
use serde_json::{Value, json};

use crate::harness::{Load, Pipeline, Process, Receiver, SIGNING_KEY, answer, eventually, obtain, record};

/// A pipeline of one shard with a webhook, its processes and its endpoint.
pub(crate) struct Hooked {
    pub(crate) pipeline: Pipeline,
    pub(crate) receiver: Receiver,
    _serve: Process,
    secrets: tempfile::TempDir,
}

impl Hooked {
    /// Without a worker. `change` changes the sink.
    pub(crate) async fn new(shards: u16, change: impl FnOnce(&mut Value)) -> Self {
        let receiver = Receiver::start().await;
        let mut sink = receiver.sink("hooks", "Processed");
        change(&mut sink);
        let pipeline = Pipeline::new(json!({"shards": shards, "sinks": [sink]})).await;
        let secrets = tempfile::tempdir().unwrap();
        let this = Self { _serve: pipeline.serve().await, pipeline, receiver, secrets };
        this.secret("signing", SIGNING_KEY);
        this
    }

    pub(crate) fn secret(&self, key: &str, content: &str) {
        let dir = self.secrets.path().join("hooks");
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("new"), content).unwrap();
        fs::rename(dir.join("new"), dir.join(key)).unwrap();
    }

    pub(crate) fn work(&self) -> Process {
        self.work_with(&[])
    }

    pub(crate) fn work_with(&self, environment: &[(&str, &str)]) -> Process {
        let dir = self.secrets.path().to_str().unwrap();
        let all: Vec<(&str, &str)> =
            environment.iter().copied().chain([("MILLRACE_WEBHOOK_SECRETS_DIR", dir)]).collect();
        self.pipeline.work_with(&all)
    }

    /// Waits until the endpoint has this number of distinct deliveries that it answered 2xx.
    pub(crate) async fn received(&self, count: usize) {
        eventually(&format!("{count} deliveries"), async || self.receiver.received().len() >= count).await;
        assert_eq!(self.receiver.received().len(), count);
    }

    pub(crate) async fn state(&self) -> Option<(String, String)> {
        sqlx::query_as("select state, detail from sink_states where sink = 'hooks' order by shard limit 1")
            .fetch_optional(&self.pipeline.sql)
            .await
            .unwrap()
    }

    async fn becomes(&self, wanted: &str) -> String {
        obtain(&format!("the sink is {wanted}"), async || match self.state().await {
            Some((state, detail)) if state == wanted => Some(detail),
            _ => None,
        })
        .await
    }

    async fn cursor(&self) -> i64 {
        self.pipeline.number("select coalesce(sum(cursor), 0)::bigint from webhook_cursors").await
    }
}

#[tokio::test]
async fn each_outcome_is_delivered_signed_and_in_order_per_destination() {
    let hooked = Hooked::new(4, |_| {}).await;
    let _work = hooked.work();
    let load = Load::new("r", 400);
    hooked.pipeline.send(&load.records).await;
    hooked.received(load.ids.len()).await;
    hooked.receiver.check_order();
    let got: BTreeSet<String> = hooked.receiver.received().iter().map(|one| one.record_id().to_owned()).collect();
    assert_eq!(got, load.ids.iter().cloned().collect());
    let all = hooked.receiver.deliveries();
    assert_eq!(all.len(), load.ids.len(), "each once");
    let pipeline_id: String =
        sqlx::query_scalar("select pipeline_id from pipeline").fetch_one(&hooked.pipeline.sql).await.unwrap();
    for delivery in &all {
        let body = &delivery.body;
        assert_eq!(delivery.id, format!("{pipeline_id}-{}", body["id"].as_str().unwrap()));
        assert_eq!(body["id"], format!("{}-{}", body["shard"], body["seq"]));
        assert_eq!(body["type"], "record.processed");
        assert_eq!(body["source"], format!("{}/{pipeline_id}", hooked.pipeline.name));
        assert_eq!(delivery.headers["content-type"], "application/json");
        assert!(body["data"]["summary"]["previousTotal"].is_string() && body["timestamp"].is_string());
    }
    eventually("the cursors are at the end", async || hooked.cursor().await == load.ids.len() as i64).await;
    let stats = hooked.pipeline.get("/stats").await;
    assert_eq!((&stats["sinks"][0]["lag"], &stats["sinks"][0]["started"]), (&json!(0), &json!(true)), "{stats}");
    let listed = hooked.pipeline.get("/deliveries").await;
    assert_eq!(listed["items"], json!([]));
}

#[tokio::test]
async fn a_worker_that_dies_repeats_at_most_what_was_in_flight() {
    let hooked = Hooked::new(1, |sink| sink["webhook"]["maxInFlight"] = 8.into()).await;
    for (fault, n) in [("after_delivery", 50), ("before_delivery", 120)] {
        let mut work = hooked.work_with(&[("MILLRACE_FAULT", &format!("{fault}:{n}"))]);
        let load = Load::from(fault, 0, 200);
        let before = hooked.receiver.deliveries().len();
        hooked.pipeline.send(&load.records).await;
        work.ended().await;
        let mut successor = hooked.work();
        hooked.received(if before == 0 { 200 } else { 400 }).await;
        hooked.receiver.check_order();
        let repeats = hooked.receiver.deliveries().len() - before - 200;
        assert!(repeats <= 8, "{repeats} deliveries were repeated");
        successor.stop().await;
    }
}

#[tokio::test]
async fn a_destination_that_fails_delays_no_other_and_catches_up_in_order() {
    let hooked = Hooked::new(1, |_| {}).await;
    hooked.receiver.answer_by_destination(|destination| if destination == "bad" { 500 } else { 204 });
    let mut work = hooked.work();
    let records: Vec<Value> = (0..300)
        .map(|n| record(&format!("r-{n}"), if n % 3 == 0 { "bad" } else { ["good", "better"][n % 2] }))
        .collect();
    hooked.pipeline.send(&records).await;
    hooked.received(200).await;
    eventually("the cursor passes over what waits", async || hooked.cursor().await == 300).await;
    let listed = hooked.pipeline.get("/deliveries?state=waiting&destinationId=bad").await;
    let item = &listed["items"][0];
    assert_eq!((&item["id"], &item["sink"], &listed["items"][1]), (&json!("hooks.0-1"), &json!("hooks"), &Value::Null));
    assert_eq!(item["lastAttempts"][0]["status"], 500, "{listed}");
    assert!(hooked.receiver.received().iter().all(|one| one.body["deliveredThrough"] == 0), "the first is missing");
    // A successor finds what waits, and the rest of the destination follows.
    work.stop().await;
    let _work = hooked.work();
    hooked.receiver.answer_by_destination(|_| 200);
    let (status, _) = hooked.pipeline.post("/deliveries/hooks.0-1/retry", &json!({})).await;
    assert_eq!(status, 202);
    hooked.received(300).await;
    hooked.receiver.check_order();
    eventually("nothing waits", async || hooked.pipeline.number("select count(*) from deliveries").await == 0).await;
    hooked.pipeline.send(&[record("last", "bad")]).await;
    hooked.received(301).await;
    let last = hooked.receiver.received().pop().unwrap();
    assert_eq!((&last.body["previousSeq"], &last.body["deliveredThrough"]), (&json!(298), &json!(300)));
}

#[tokio::test]
async fn an_endpoint_that_fails_as_a_whole_loses_nothing_and_continues() {
    let hooked = Hooked::new(1, |_| {}).await;
    hooked.receiver.answer_by_destination(|_| 503);
    let work = hooked.work();
    let load = Load::new("r", 300);
    hooked.pipeline.send(&load.records).await;
    let detail = hooked.becomes("failing").await;
    assert!(detail.contains("503"), "{detail}");
    let waiting = hooked.pipeline.number("select count(*) from deliveries").await;
    assert!(waiting <= 64, "{waiting} wait");
    assert!(hooked.cursor().await < 300, "the rest stays in the log");
    // Records are applied meanwhile.
    eventually("all are applied", async || hooked.pipeline.number("select count(*) from records").await == 300).await;
    assert!(work.metric("millrace_delivery_attempts_total").await >= 10.0);
    hooked.receiver.answer_by_destination(|_| 200);
    hooked.received(300).await;
    hooked.receiver.check_order();
    eventually("it runs again", async || hooked.state().await.is_none()).await;
}

#[tokio::test]
async fn after_72_hours_a_delivery_has_failed_and_its_destination_continues() {
    let hooked = Hooked::new(1, |_| {}).await;
    hooked.receiver.answer(|body| (if body["seq"] == 2 { 422 } else { 200 }, Vec::new()));
    let mut work = hooked.work();
    let records: Vec<Value> = (0..6).map(|n| record(&format!("r-{n}"), ["a", "b"][n % 2])).collect();
    hooked.pipeline.send(&records).await;
    hooked.received(3).await;
    eventually("it waits", async || hooked.pipeline.number("select count(*) from deliveries").await == 1).await;
    work.stop().await;
    let shifted =
        "update deliveries set first_attempt_at = first_attempt_at - interval '73 hours', next_attempt_at = now()";
    assert_eq!(hooked.pipeline.execute(shifted).await, 1);
    let _work = hooked.work();
    hooked.received(5).await;
    let after = hooked.receiver.received().into_iter().find(|one| one.seq() == 4).unwrap();
    assert_eq!(after.body["previousSeq"], 2, "the gap shows");
    let failed = obtain("it has failed", async || {
        let listed = hooked.pipeline.get("/deliveries?state=failed").await;
        listed["items"][0]["failedAt"].is_string().then_some(listed)
    })
    .await;
    assert_eq!(failed["items"][0]["id"], "hooks.0-2");
    eventually("nothing is behind", async || hooked.cursor().await == 6).await;

    // A retry by filter: first a dry run, then one that fails again, then one that succeeds with the same id.
    let request = |dry_run: bool| {
        hooked.pipeline.request(Method::POST, &format!("/deliveries/retry?state=failed&sink=hooks&dryRun={dry_run}"))
    };
    let dry = answer(request(true)).await.expect(202);
    assert_eq!((&dry["matching"], &dry["requested"], &dry["ids"]), (&json!(1), &json!(0), &json!(["hooks.0-2"])));
    let attempts = async || hooked.pipeline.number("select coalesce(max(attempts), 0)::bigint from deliveries").await;
    let before = attempts().await;
    assert_eq!(answer(request(false)).await.expect(202)["requested"], 1);
    eventually("it failed again", async || attempts().await == before + 1).await;
    hooked.receiver.answer_by_destination(|_| 200);
    assert_eq!(answer(request(false)).await.expect(202)["requested"], 1);
    hooked.received(6).await;
    let ids: BTreeSet<String> =
        hooked.receiver.deliveries().iter().filter(|one| one.seq() == 2).map(|one| one.id.clone()).collect();
    assert_eq!(ids.len(), 1, "the id stays");
    eventually("it is no longer listed", async || {
        hooked.pipeline.get("/deliveries").await["items"].as_array().unwrap().is_empty()
    })
    .await;
    let noted = hooked.pipeline.number("select count(*) from admin_actions where action = 'deliveries.retry'").await;
    assert_eq!(noted, 2);
    let unknown = answer(hooked.pipeline.request(Method::POST, "/deliveries/hooks.0-2/retry")).await;
    unknown.refused(404, "not_found");
}

#[tokio::test]
async fn an_endpoint_that_is_gone_is_disabled_until_it_is_resumed() {
    let hooked = Hooked::new(2, |_| {}).await;
    hooked.receiver.answer_by_destination(|_| 410);
    let mut work = hooked.work();
    let load = Load::new("r", 100);
    hooked.pipeline.send(&load.records).await;
    let detail = hooked.becomes("disabled").await;
    assert!(detail.contains("millrace sinks resume hooks"), "{detail}");
    work.stop().await;
    let asked = hooked.receiver.deliveries().len();
    let _work = hooked.work();
    hooked.pipeline.send(&[record("one-more", "d")]).await;
    eventually("all are applied", async || hooked.pipeline.number("select count(*) from records").await == 101).await;
    assert_eq!(hooked.receiver.deliveries().len(), asked, "nothing is delivered");
    let listed = String::from_utf8(hooked.pipeline.command("sinks", &["list"]).await.stdout).unwrap();
    assert!(listed.contains("disabled"), "{listed}");
    hooked.receiver.answer_by_destination(|_| 200);
    let resumed = hooked.pipeline.command("sinks", &["resume", "hooks"]).await;
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    hooked.received(101).await;
    hooked.receiver.check_order();
    assert_eq!(hooked.state().await, None);
    let again = hooked.pipeline.command("sinks", &["resume", "hooks"]).await;
    assert!(!again.status.success(), "it runs");
}

#[tokio::test]
async fn an_endpoint_decides_when_it_is_asked_again() {
    let hooked = Hooked::new(1, |_| {}).await;
    hooked.receiver.answer(|_| (429, vec![("retry-after", "3600".to_owned())]));
    let _work = hooked.work();
    hooked.pipeline.send(&[record("r", "d")]).await;
    let pause = obtain("it waits", async || {
        let listed = hooked.pipeline.get("/deliveries").await;
        let item = &listed["items"][0];
        let time = |field: &str| item[field].as_str().and_then(|at| chrono::DateTime::parse_from_rfc3339(at).ok());
        Some((time("nextAttemptAt")? - time("firstAttemptAt")?).num_seconds())
    })
    .await;
    assert_eq!(pause, 3_600);
    assert_eq!(hooked.receiver.deliveries().len(), 1);
}

#[tokio::test]
async fn keys_rotate_without_a_restart_and_headers_are_sent() {
    let hooked = Hooked::new(1, |sink| {
        sink["webhook"]["headersSecretRef"] = json!({"name": "hooks", "key": "headers"});
    })
    .await;
    let _work = hooked.work();
    let missing = hooked.becomes("failing").await;
    assert!(missing.contains("hooks, key headers"), "{missing}");
    hooked.secret("headers", "Authorization: Bearer abc\n");
    hooked.pipeline.send(&[record("one", "d")]).await;
    hooked.received(1).await;
    assert_eq!(hooked.receiver.received()[0].headers["authorization"], "Bearer abc");
    // Both keys sign while receivers change from one to the next.
    let next = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
    hooked.secret("signing", &format!("{next}\n{SIGNING_KEY}\n"));
    eventually("both sign", async || {
        let n = hooked.receiver.received().len();
        hooked.pipeline.send(&[record(&format!("r-{n}"), "d")]).await;
        hooked.received(n + 1).await;
        let last = hooked.receiver.received().pop().unwrap();
        last.headers["webhook-signature"].to_str().unwrap().split(' ').count() == 2
    })
    .await;
    hooked.receiver.expect_keys(&[next]);
    hooked.pipeline.send(&[record("two", "d")]).await;
    eventually("the receiver has changed its key", async || {
        hooked.receiver.received().iter().any(|one| one.record_id() == "two")
    })
    .await;
    // A content that is none changes nothing.
    hooked.secret("signing", "no key");
    tokio::time::timeout(Duration::from_secs(30), async {
        hooked.pipeline.send(&[record("three", "d")]).await;
        eventually("it is signed", async || hooked.receiver.received().iter().any(|one| one.record_id() == "three"))
            .await;
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_filter_leaves_outcomes_out_and_the_previous_number_tells_them_from_a_gap() {
    let filter = json!({
        "units": ["EUR", "USD"], "types": ["positive"], "minimumValue": "10", "destinations": {"prefixes": ["a", "b-"]},
        "sources": {"prefixes": ["shop"]},
    });
    let receiver = Receiver::start().await;
    let (mut hook, mut stream) = (receiver.sink("hooks", "Processed"), crate::harness::sink("chosen", "Processed"));
    (hook["filter"], stream["filter"]) = (filter.clone(), filter);
    let pipeline = Pipeline::new(json!({"shards": 1, "sinks": [hook, stream]})).await;
    let secrets = tempfile::tempdir().unwrap();
    let hooked = Hooked { _serve: pipeline.serve().await, pipeline, receiver, secrets };
    hooked.secret("signing", SIGNING_KEY);
    let mut expected: Vec<String> = Vec::new();
    let mut sent = 0;
    for round in 0..3 {
        // Each worker begins without a number in memory.
        let mut work = hooked.work();
        let mut records = Vec::new();
        for n in 0..200 {
            let mut one = record(&format!("r-{round}-{n}"), ["a1", "b-2", "b", "c", "a2"][n % 5]);
            one["unit"] = ["EUR", "JPY", "USD"][n % 3].into();
            one["type"] = if n % 7 == 0 { "negative" } else { "positive" }.into();
            one["value"] = ["9.999999999", "10", "10.00", "250"][n % 4].into();
            one["sourceId"] = if n % 11 == 0 { "other" } else { "shop-1" }.into();
            let passes = n % 5 != 2 && n % 5 != 3 && n % 3 != 1 && n % 7 != 0 && n % 4 != 0 && n % 11 != 0;
            expected.extend(passes.then(|| format!("r-{round}-{n}")));
            records.push(one);
        }
        hooked.pipeline.send(&records).await;
        sent += records.len();
        hooked.received(expected.len()).await;
        eventually("the cursor is at the end", async || hooked.cursor().await == sent as i64).await;
        hooked.pipeline.applied().await;
        work.stop().await;
    }
    hooked.receiver.check_order();
    let got: BTreeSet<String> = hooked.receiver.received().iter().map(|one| one.record_id().to_owned()).collect();
    assert_eq!(got, expected.iter().cloned().collect());
    let entries = hooked.pipeline.sink_entries("chosen").await;
    let ids: Vec<&str> = entries.iter().map(|entry| entry.record_id()).collect();
    assert_eq!(ids, expected.iter().map(String::as_str).collect::<Vec<_>>());
    let mut last: std::collections::HashMap<String, i64> = std::collections::HashMap::new();
    for entry in &entries {
        let seq: i64 = entry.id.split_once('-').unwrap().1.parse().unwrap();
        let before = last.insert(entry.data["record"]["destinationId"].as_str().unwrap().to_owned(), seq);
        assert_eq!(entry.data["previousSeq"], json!(before), "{}", entry.id);
    }
    hooked.pipeline.verify().await;
    // The history names the sinks that carry the record.
    let published = async |id: &str| hooked.pipeline.get(&format!("/records/{id}")).await["published"].clone();
    let both = json!([{"sink": "hooks", "state": "published"}, {"sink": "chosen", "state": "published"}]);
    assert_eq!((published(&expected[0]).await, published("r-0-0").await), (both, json!([])));
}

#[tokio::test]
async fn a_filter_that_changes_names_no_number_from_before() {
    let hooked = Hooked::new(1, |_| {}).await;
    let _work = hooked.work();
    hooked.pipeline.send(&[record("one", "d"), record("two", "d")]).await;
    hooked.received(2).await;
    eventually("they are stored", async || hooked.cursor().await == 2).await;
    hooked.pipeline.change(|spec| spec["sinks"][0]["filter"] = json!({"units": ["USD"]}));
    eventually("the publisher has the filter", async || {
        hooked.pipeline.number("select count(*) from webhook_cursors where filter like '%USD%'").await == 1
    })
    .await;
    let mut dollars = record("four", "d");
    dollars["unit"] = "USD".into();
    hooked.pipeline.send(&[record("three", "d"), dollars.clone()]).await;
    hooked.received(3).await;
    dollars["recordId"] = "five".into();
    hooked.pipeline.send(&[dollars]).await;
    hooked.received(4).await;
    let seen: Vec<Value> =
        hooked.receiver.received().iter().map(|one| json!([one.seq(), one.body["previousSeq"]])).collect();
    assert_eq!(seen, [json!([1, null]), json!([2, 1]), json!([4, null]), json!([5, 4])]);
}
