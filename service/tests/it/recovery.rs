//! Restore and disaster, step by step as in `docs/runbooks/`: after each, the loss is reported with its number, and `verify` finds
//! no difference.

use std::collections::HashSet;

use reqwest::Method;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tempfile::TempDir;

use crate::{
    harness::{
        KEY, Load, Pipeline, PrivatePostgres, PrivateRedis, Process, SinkEntry, check_stream, eventually, lost, record,
        shared, sink,
    },
    tls::mount,
};

/// A pipeline whose processes read their URLs from files, as pods do.
struct Pods {
    // They go before the folder of their logs.
    serve: Process,
    work: Process,
    pipeline: Pipeline,
    dir: TempDir,
}

impl Pods {
    /// `mounts`: further files.
    async fn start(pipeline: Pipeline, mounts: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let urls = [("redis", pipeline.redis_url()), ("postgres", pipeline.postgres_url()), ("key", KEY)];
        urls.iter().chain(mounts).for_each(|(name, value)| mount(dir.path(), name, value));
        let (serve, work) = (pipeline.start_in_pod("serve", dir.path()), pipeline.start_in_pod("work", dir.path()));
        serve.ready().await;
        work.ready().await;
        Self { pipeline, dir, serve, work }
    }

    /// Moves the processes and the test to other servers.
    async fn move_to(&mut self, redis: &str, postgres_server: &str) {
        self.pipeline.move_to(redis, postgres_server).await;
        mount(self.dir.path(), "redis", redis);
        mount(self.dir.path(), "postgres", self.pipeline.postgres_url());
    }
}

/// Runs `millrace sinks`, which must succeed.
async fn sinks(pipeline: &Pipeline, words: &[&str]) {
    let done = pipeline.command("sinks", words).await;
    assert!(done.status.success(), "sinks {words:?}: {}", String::from_utf8_lossy(&done.stderr));
}

/// Waits until a sink is halted in every shard.
async fn halted(pipeline: &Pipeline, name: &'static str) {
    eventually(&format!("{name} is halted"), async || {
        let states =
            sqlx::query_scalar::<_, i64>("select count(*) from sink_states where sink = $1 and state = 'halted'");
        states.bind(name).fetch_one(&pipeline.sql).await.unwrap() == pipeline.shards() as i64
    })
    .await;
}

/// Sends records and waits until all is applied and published.
async fn apply(pipeline: &Pipeline, load: &Load) {
    pipeline.send_through(&load.records).await;
    pipeline.applied().await;
}

async fn stored(pipeline: &Pipeline) -> HashSet<String> {
    let ids: Vec<String> = sqlx::query_scalar("select record_id from records").fetch_all(&pipeline.sql).await.unwrap();
    ids.into_iter().collect()
}

fn ids(loads: &[&Load]) -> Vec<String> {
    loads.iter().flat_map(|load| load.ids.iter().cloned()).collect()
}

/// No id of a notification is in these entries twice.
fn check_ids_are_unique(entries: &[SinkEntry]) {
    let mut seen = HashSet::new();
    entries.iter().for_each(|entry| assert!(seen.insert(&entry.id), "{} was given twice", entry.id));
}

/// docs/runbooks/restore-postgres.md
#[tokio::test]
async fn a_postgres_restored_to_a_point_in_time_loses_what_came_after_and_its_sinks_continue() {
    let mut postgres = PrivatePostgres::start().await;
    let pipeline = Pipeline::on(&shared().await.redis, &postgres.url(), json!({"shards": 2})).await;
    let (_serve, work) = (pipeline.serve().await, pipeline.work());
    let kept = Load::new("kept", 100);
    apply(&pipeline, &kept).await;
    let mut restored = postgres.base_backup(&[]);
    let after_backup = Load::from("kept", 100, 60);
    apply(&pipeline, &after_backup).await;
    let time: String = sqlx::query_scalar("select clock_timestamp()::text").fetch_one(&pipeline.sql).await.unwrap();
    let gone = Load::new("gone", 70);
    apply(&pipeline, &gone).await;
    // After the point in time a sink was started again: Postgres will not hold that start.
    sinks(&pipeline, &["rewind", "alerts", "--to-seq", "0:1", "--repeat"]).await;
    eventually("the sink is started again", async || {
        pipeline.number("select count(*) from sinks where not started").await == 0
    })
    .await;
    let published = pipeline.sink_entries("notifications").await;

    postgres.stop();
    restored.recover(&postgres, &time).await;
    work.logs("worker.postgres.rewound").await;
    lost(&pipeline, gone.entries(), false).await;
    assert_eq!(
        stored(&pipeline).await,
        ids(&[&kept, &after_backup]).into_iter().collect(),
        "what was committed by then"
    );
    halted(&pipeline, "alerts").await;
    sinks(&pipeline, &["resume", "alerts", "--from", "now"]).await;
    // Clients send what was lost again, with the same ids.
    apply(&pipeline, &gone).await;
    assert_eq!(stored(&pipeline).await.len(), 230);
    let entries = pipeline.sink_entries("notifications").await;
    assert_eq!(entries.len(), published.len() + gone.ids.len(), "readers get what was sent again as new entries");
    check_ids_are_unique(&entries);
    lost(&pipeline, gone.entries(), false).await;
    pipeline.verify().await;
}

/// docs/runbooks/rebuild-a-stream.md
#[tokio::test]
async fn a_stream_is_rebuilt_under_a_new_key_while_records_arrive() {
    let pipeline = Pipeline::new(json!({"shards": 2})).await;
    let (_serve, _work) = (pipeline.serve().await, pipeline.work());
    let before = Load::new("r", 400);
    apply(&pipeline, &before).await;
    let _: i64 = pipeline.redis(&["XTRIM", &pipeline.stream("notifications"), "MAXLEN", "0"]).await;

    // Another sink fills the new key from the beginning, beside the old one.
    let rebuilt = format!("{}.rebuilt", pipeline.name);
    let fresh = json!({
        "name": "rebuilt", "event": "Processed", "from": {"position": "Beginning"}, "redisStream": {"maxLength": 0},
    });
    pipeline.change(|spec| spec["sinks"].as_array_mut().unwrap().push(fresh));
    let during = Load::from("r", 400, 400);
    pipeline.send(&during.records).await;
    eventually("the new sink is started", async || {
        pipeline.number("select count(*) from sinks where name = 'rebuilt' and started").await == 1
    })
    .await;
    pipeline.applied().await;
    check_stream(&pipeline.entries(&rebuilt).await, &ids(&[&before, &during]));
    pipeline.change(|spec| spec["sinks"].as_array_mut().unwrap().retain(|sink| sink["name"] != "notifications"));
    eventually("the old sink is removed", async || {
        pipeline.number("select count(*) from sinks where name = 'notifications'").await == 0
    })
    .await;
    pipeline.verify().await;

    // Or the same sink moves to a new key, and is rewound there.
    let moved = format!("{}.moved", pipeline.name);
    pipeline.change(|spec| {
        let sinks = spec["sinks"].as_array_mut().unwrap();
        sinks.iter_mut().find(|sink| sink["name"] == "rebuilt").unwrap()["redisStream"]["stream"] = json!(moved);
    });
    eventually("the sink has moved", async || {
        let is_there = "select count(*) from sinks where name = 'rebuilt' and started and stream like '%.moved'";
        pipeline.number(is_there).await == 1
    })
    .await;
    sinks(&pipeline, &["rewind", "rebuilt", "--to-time", "2000-01-01T00:00:00Z"]).await;
    let after = Load::from("r", 800, 100);
    eventually("the sink is started again", async || {
        pipeline.number("select count(*) from sinks where not started").await == 0
    })
    .await;
    apply(&pipeline, &after).await;
    check_stream(&pipeline.entries(&moved).await, &ids(&[&before, &during, &after]));
    pipeline.verify().await;
    lost(&pipeline, 0, false).await;
}

/// docs/runbooks/redis-lost.md
#[tokio::test]
async fn a_redis_lost_entirely_costs_what_waited_there_and_its_streams_are_filled_again() {
    let mut redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({"shards": 2})).await;
    let (_serve, mut work) = (pipeline.serve().await, pipeline.work());
    let kept = Load::new("r", 200);
    apply(&pipeline, &kept).await;
    work.stop().await;
    let waiting = Load::from("r", 200, 80);
    pipeline.send(&waiting.records).await;
    eventually("serve has noted its counts", async || {
        let noted = "select coalesce(sum(appended), 0)::bigint from producers";
        pipeline.number(noted).await == kept.entries() + waiting.entries()
    })
    .await;

    redis.kill();
    redis.lose_data();
    redis.restart().await;
    let work = pipeline.work();
    work.logs("worker.records.lost").await;
    lost(&pipeline, waiting.entries(), false).await;
    let names = ["notifications", "alerts", "dead-letters", "conflicts"];
    for name in names {
        halted(&pipeline, name).await;
        sinks(&pipeline, &["resume", name, "--from", "beginning"]).await;
    }
    apply(&pipeline, &waiting).await;
    check_stream(&pipeline.sink_entries("notifications").await, &ids(&[&kept, &waiting]));
    lost(&pipeline, waiting.entries(), false).await;
    pipeline.check_exactly_once(&ids(&[&kept, &waiting])).await;
}

/// docs/runbooks/move-redis.md
#[tokio::test]
async fn a_move_to_another_redis_under_load_loses_nothing() {
    let old = PrivateRedis::start(&["repl-diskless-sync-delay 0"]).await;
    let new = PrivateRedis::start(&[&format!("replicaof 127.0.0.1 {}", old.port())]).await;
    let pipeline = Pipeline::on(&old.url(), &shared().await.postgres, json!({"shards": 2})).await;
    let mut pods = Pods::start(pipeline, &[]).await;
    let before = Load::new("r", 300);
    apply(&pods.pipeline, &before).await;
    eventually("the new server is a replica in step", async || {
        let about: String = redis_command(&new, &["INFO", "replication"]).await;
        about.contains("master_link_status:up")
    })
    .await;
    let during = Load::from("r", 300, 2_000);
    let moving = async {
        eventually("some of it is sent", async || stored(&pods.pipeline).await.len() > 400).await;
        // Redis itself stops writes, waits for the replica, and promotes it.
        let _: String = redis_command(&old, &["FAILOVER", "TO", "127.0.0.1", &new.port().to_string()]).await;
        eventually("the new server is the primary", async || {
            redis_command::<String>(&new, &["INFO", "replication"]).await.contains("role:master")
        })
        .await;
        mount(pods.dir.path(), "redis", &new.url());
    };
    tokio::join!(pods.pipeline.send_through(&during.records), moving);
    for process in [&pods.serve, &pods.work] {
        process.logs("config.redis_url.changed").await;
    }
    let postgres = shared().await.postgres.clone();
    pods.move_to(&new.url(), &postgres).await;
    let after = Load::from("r", 2_300, 100);
    apply(&pods.pipeline, &after).await;
    lost(&pods.pipeline, 0, false).await;
    pods.pipeline.check_exactly_once(&ids(&[&before, &during, &after])).await;
}

/// Runs a command on one server.
async fn redis_command<T: redis::FromRedisValue>(server: &PrivateRedis, words: &[&str]) -> T {
    let client = redis::Client::open(server.url()).unwrap();
    let mut connection = client.get_multiplexed_async_connection().await.unwrap();
    redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await.unwrap()
}

/// docs/runbooks/promote-a-standby.md
#[tokio::test]
async fn a_promoted_standby_that_was_behind_loses_a_counted_number_and_no_other_history_is_read() {
    let mut primary = PrivatePostgres::start().await;
    let spec = json!({"shards": 1, "postgres": {
        "urlSecretRef": {"name": "a", "key": "url"}, "readUrlSecretRef": {"name": "b", "key": "url"},
        "maxStaleness": "3600s",
    }});
    let pipeline = Pipeline::on(&shared().await.redis, &primary.url(), spec).await;
    let (mut promoted, left) = (primary.standby().await, primary.standby().await);
    let of_left = format!("{}/{}", left.url().rsplit_once('/').unwrap().0, pipeline.database());
    let mut pods = Pods::start(pipeline, &[("postgres-read", &of_left)]).await;
    let kept = Load::new("kept", 100);
    apply(&pods.pipeline, &kept).await;
    eventually("the standby has it", async || replicated(&promoted, &pods.pipeline).await == 100).await;
    promoted.stop();
    let gone = Load::new("gone", 40);
    apply(&pods.pipeline, &gone).await;
    eventually("the other standby has all", async || {
        replicated(&left, &pods.pipeline).await == 140
            && reads_from(&pods.pipeline).await == ("standby".to_owned(), 140)
    })
    .await;

    primary.stop();
    promoted.restart().await;
    promoted.promote().await;
    let redis = pods.pipeline.redis_url().to_owned();
    pods.move_to(&redis, &promoted.url()).await;
    pods.work.logs("worker.postgres.rewound").await;
    lost(&pods.pipeline, gone.entries(), false).await;
    // The other standby has a history that was lost.
    assert_eq!(reads_from(&pods.pipeline).await, ("primary".to_owned(), 100));
    apply(&pods.pipeline, &gone).await;
    assert_eq!(reads_from(&pods.pipeline).await, ("primary".to_owned(), 140));
    check_ids_are_unique(&pods.pipeline.sink_entries("notifications").await);
    assert_eq!(stored(&pods.pipeline).await, ids(&[&kept, &gone]).into_iter().collect());
    pods.pipeline.verify().await;
}

/// How many records a standby shows.
async fn replicated(standby: &PrivatePostgres, pipeline: &Pipeline) -> i64 {
    let url = format!("{}/{}", standby.url().rsplit_once('/').unwrap().0, pipeline.database());
    let mut connection = PgConnection::connect(&url).await.unwrap();
    let count = format!("select count(*) from millrace_{}.records", pipeline.name);
    sqlx::query_scalar(AssertSqlSafe(count)).fetch_one(&mut connection).await.unwrap_or_default()
}

/// The server that answers a query which asks for the standby, and how many records it counts.
async fn reads_from(pipeline: &Pipeline) -> (String, i64) {
    let request = pipeline.request(Method::GET, "/records/aggregations?records=false");
    let answer = request.header("Millrace-Read-From", "standby").send().await.unwrap();
    let server = answer.headers()["millrace-read-from"].to_str().unwrap().to_owned();
    let groups: Value = answer.json().await.unwrap();
    let counts = groups["groups"].as_array().unwrap().iter().filter_map(|group| group["count"].as_i64());
    (server, counts.sum())
}

/// docs/runbooks/restore-under-another-name.md
#[tokio::test]
async fn a_restored_pipeline_is_adopted_under_another_name_with_its_losses_counted() {
    let servers = shared().await;
    let old = Pipeline::new(json!({"shards": 2, "sinks": [sink("notifications", "Processed")]})).await;
    let (mut serve, mut work) = (old.serve().await, old.work());
    let kept = Load::new("kept", 150);
    apply(&old, &kept).await;
    work.stop().await;
    let waiting = Load::new("waiting", 30);
    old.send(&waiting.records).await;
    serve.stop().await;

    // As from a dump: the schema under the name that the new pipeline has.
    let new = Pipeline::beside_unmigrated(
        &servers.redis,
        old.postgres_url(),
        json!({"shards": 2, "sinks": [
            sink("notifications", "Processed"),
        ]}),
    )
    .await;
    let rename = format!("alter schema millrace_{} rename to millrace_{}", old.name, new.name);
    sqlx::raw_sql(AssertSqlSafe(rename)).execute(&old.sql).await.unwrap();
    let refused = new.command("migrate", &[]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("millrace.dev/adopt: "), "{said}");
    let id = said.rsplit("millrace.dev/adopt: ").next().unwrap().split_whitespace().next().unwrap().to_owned();
    new.annotate(|metadata| metadata["annotations"] = json!({ "millrace.dev/adopt": id }));
    let adopted = new.command("migrate", &[]).await;
    assert!(adopted.status.success(), "{}", String::from_utf8_lossy(&adopted.stderr));

    let (_serve, _work) = (new.serve().await, new.work());
    // What waited in the old input streams is not read under the new name.
    lost(&new, waiting.entries(), false).await;
    apply(&new, &waiting).await;
    new.send(&[record("own", "d")]).await;
    new.applied().await;
    let expected: Vec<String> = ids(&[&kept, &waiting]).into_iter().chain(["own".to_owned()]).collect();
    assert_eq!(stored(&new).await, expected.into_iter().collect());
    new.verify().await;
}
