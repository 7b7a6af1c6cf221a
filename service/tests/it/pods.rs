//! Behaviour of pods that the operator relies on: they wait for their Secrets, report problems at `/status`, and write
//! a line about their end.

use std::{fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::harness::{KEY, Load, Pipeline, PrivatePostgres, PrivateRedis, eventually, record, shared, sink};

/// The directory of a pod's mounted Secrets, empty.
fn mounts() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Mounts a Secret in one step.
fn mount(dir: &Path, name: &str, value: &str) {
    fs::write(dir.join("new"), value).unwrap();
    fs::rename(dir.join("new"), dir.join(name)).unwrap();
}

/// The line in the termination log of a Job.
fn termination(dir: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(dir.join("termination")).unwrap()).unwrap()
}

/// A spec with references to Secrets.
fn named() -> Value {
    json!({
        "redis": {"urlSecretRef": {"name": "payments-redis", "key": "url"}},
        "postgres": {"urlSecretRef": {"name": "payments-postgres", "key": "dsn"}},
        "auth": {"bootstrapKeySecretRef": {"name": "payments-key", "key": "first"}},
    })
}

#[tokio::test]
async fn missing_secrets_are_reported_at_once_and_used_when_they_appear() {
    let pipeline = Pipeline::new(named()).await;
    let dir = mounts();
    let (serve, work) = (pipeline.start_in_pod("serve", dir.path()), pipeline.start_in_pod("work", dir.path()));
    for process in [&serve, &work] {
        let status = process.has_problems(&["SecretNotFound", "SecretNotFound"]).await;
        let messages: Vec<&str> =
            status["problems"].as_array().unwrap().iter().filter_map(|problem| problem["message"].as_str()).collect();
        assert_eq!(messages, ["payments-postgres, key dsn", "payments-redis, key url"]);
        assert_eq!((&status["pipeline"], &status["pipelineId"]), (&json!(pipeline.name), &Value::Null));
        assert!(!process.is_ready().await && process.text("/health").await.contains("true"));
    }
    // A process that waits for Secrets ends in order, too.
    pipeline.start_in_pod("work", dir.path()).stopped_while_it_waits().await;
    mount(dir.path(), "redis", pipeline.redis_url());
    work.has_problems(&["SecretNotFound"]).await;
    mount(dir.path(), "postgres", "http://me:s3cret@host");
    let status = work.has_problems(&["SecretInvalid"]).await;
    assert!(!status.to_string().contains("s3cret"), "{status}");
    mount(dir.path(), "postgres", pipeline.postgres_url());
    work.ready().await;
    work.has_problems(&[]).await;
    // Without a key, serve could accept no request.
    let status = serve.has_problems(&["SecretNotFound"]).await;
    assert_eq!(status["problems"][0]["message"], "payments-key, key first");
    assert!(!serve.is_ready().await);
    mount(dir.path(), "key", KEY);
    serve.ready().await;
    pipeline.send(&[record("a", "d")]).await;
    pipeline.applied().await;
    let status = work.reports("a processed record", |status| status["counts"]["processed"] == 1).await;
    assert_eq!((&status["counts"]["backlog"], &status["owned"]), (&0.into(), &json!([0, 1])));
    // serve continues with the key that it has read.
    fs::remove_file(dir.path().join("key")).unwrap();
    serve.has_problems(&["SecretNotFound"]).await;
    assert!(serve.is_ready().await);
    pipeline.send(&[record("b", "d")]).await;
    assert!(!fs::read_to_string(work.log()).unwrap().contains("s3cret"));
}

#[tokio::test]
async fn a_changed_redis_url_is_used_without_a_restart() {
    let (old, new) = (PrivateRedis::start(&[]).await, PrivateRedis::start(&[]).await);
    let mut settings = redis::Client::open(new.url()).unwrap().get_connection().unwrap();
    let () = redis::cmd("CONFIG").arg(&["SET", "requirepass", "s3cret"]).query(&mut settings).unwrap();
    let pipeline = Pipeline::on(&old.url(), &shared().await.postgres, json!({"sinks": [], "shards": 1})).await;
    let dir = mounts();
    mount(dir.path(), "redis", &old.url());
    mount(dir.path(), "postgres", pipeline.postgres_url());
    mount(dir.path(), "key", KEY);
    let (mut serve, mut work) = (pipeline.start_in_pod("serve", dir.path()), pipeline.start_in_pod("work", dir.path()));
    serve.ready().await;
    work.ready().await;
    let load = Load::new("r", 100);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    mount(dir.path(), "redis", &new.url().replace("redis://", "redis://:s3cret@"));
    for process in [&serve, &work] {
        process.logs("config.redis_url.changed").await;
    }
    let more = Load::from("r", 100, 100);
    pipeline.send_through(&more.records).await;
    eventually("records of the new server are processed", async || {
        pipeline.number("select count(*) from records").await == (load.ids.len() + more.ids.len()) as i64
    })
    .await;
    let left: u64 = pipeline.redis(&["XLEN", &pipeline.records(0)]).await;
    assert_eq!(left, 0, "no record went to the old server");
    assert!(!serve.has_ended() && !work.has_ended());
    assert!(!fs::read_to_string(work.log()).unwrap().contains("s3cret"));
}

#[tokio::test]
async fn a_worker_with_an_invalid_manifest_runs_the_last_version_and_reports_it() {
    let pipeline = Pipeline::new(json!({"threshold": "5"})).await;
    let dir = mounts();
    mount(dir.path(), "redis", pipeline.redis_url());
    mount(dir.path(), "postgres", pipeline.postgres_url());
    mount(dir.path(), "key", KEY);
    // Without an earlier policy version, there is none to run.
    let good = fs::read_to_string(pipeline.manifest()).unwrap();
    pipeline.write(&good.replace(r#""threshold":"5""#, r#""threshold":"5","later":1"#));
    let work = pipeline.start_in_pod("work", dir.path());
    let status = work.has_problems(&["ManifestInvalid"]).await;
    assert!(status["problems"][0]["message"].as_str().unwrap().contains("later"), "{status}");
    assert!(!work.is_ready().await);
    pipeline.write(&good);
    work.ready().await;
    drop(work);
    for broken in [good.replace(r#""threshold":"5""#, r#""threshold":"-7""#), "neither: [".to_owned()] {
        pipeline.write(&broken);
        let (serve, work) = (pipeline.start_in_pod("serve", dir.path()), pipeline.start_in_pod("work", dir.path()));
        for process in [&serve, &work] {
            process.ready().await;
            let status = process.has_problems(&["ManifestInvalid"]).await;
            // Of a file that breaks a rule it is known which object it was made from.
            let origin =
                if broken.starts_with("neither") { Value::Null } else { json!({"uid": null, "generation": 0}) };
            assert_eq!((&status["manifest"], &status["active"]["version"]), (&origin, &1.into()));
            assert!(status["refusal"].is_string(), "{status}");
        }
        let id = format!("r{}", broken.len());
        let mut high = record(&id, "d");
        high["value"] = "6".into();
        pipeline.send(&[high]).await;
        pipeline.applied().await;
    }
    assert_eq!(pipeline.number("select count(threshold) from records").await, 2, "the old threshold is active");
    // Commands work with such a file, too.
    let verified = pipeline.command_in_pod("verify", dir.path(), &[]).await;
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let listed = pipeline.command_in_pod("sinks", dir.path(), &[]).await;
    assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(
        ["notifications", "alerts", "dead-letters", "conflicts"].iter().all(|sink| listed.contains(sink)),
        "{listed}"
    );
    let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left.len(), 3, "commands write no file: {left:?}");
}

#[tokio::test]
async fn unreachable_servers_and_a_missing_schema_are_reported() {
    let (mut redis, mut postgres) = (PrivateRedis::start(&[]).await, PrivatePostgres::start().await);
    let pipeline = Pipeline::on(&redis.url(), &postgres.url(), json!({})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    work.ready().await;
    for process in [&serve, &work] {
        process.has_problems(&[]).await;
    }
    redis.kill();
    let status = work.has_problems(&["RedisUnreachable"]).await;
    assert_eq!((&status["counts"], status["shards"].as_array().map(Vec::len)), (&Value::Null, Some(2)));
    redis.restart().await;
    let _: String = pipeline.redis(&["CONFIG", "SET", "maxmemory", "1mb"]).await;
    serve.has_problems(&["RedisReadOnlyOrFull"]).await;
    let _: String = pipeline.redis(&["CONFIG", "SET", "maxmemory", "0"]).await;
    postgres.stop();
    let status = serve.has_problems(&["PostgresUnreachable"]).await;
    assert!(status["problems"][0]["message"].as_str().unwrap().contains("refused"), "{status}");
    postgres.restart().await;
    work.has_problems(&[]).await;
    let schema = format!("millrace_{}", pipeline.name);
    sqlx::query(sqlx::AssertSqlSafe(format!("alter schema {schema} rename to aside")))
        .execute(&pipeline.sql)
        .await
        .unwrap();
    for process in [&serve, &work] {
        process.has_problems(&["NotMigrated"]).await;
    }
    sqlx::query(sqlx::AssertSqlSafe(format!("alter schema aside rename to {schema}")))
        .execute(&pipeline.sql)
        .await
        .unwrap();
    serve.has_problems(&[]).await;
}

#[tokio::test]
async fn queued_and_unpublished_records_and_waiting_publishers_are_reported() {
    let full = json!({"name": "alerts", "event": "Alert", "redisStream": {"maxLength": 1}});
    let pipeline = Pipeline::new(json!({"threshold": "0", "sinks": [sink("notifications", "Processed"), full]})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    work.ready().await;
    let records: Vec<Value> = (0..5).map(|n| record(&format!("r{n}"), "d")).collect();
    pipeline.send(&records).await;
    let status = serve
        .reports("a waiting publisher, for no group reads the alerts", |status| {
            status["counts"]["unpublished"] == 4 && status["sinks"].as_array().is_some_and(|sinks| sinks.len() == 1)
        })
        .await;
    assert_eq!((&status["counts"]["processed"], &status["counts"]["alerts"]), (&5.into(), &5.into()));
    assert_eq!((&status["sinks"][0]["sink"], &status["sinks"][0]["state"]), (&"alerts".into(), &"waiting".into()));
    assert!(status["sinks"][0]["detail"].as_str().unwrap().contains("NoConsumerGroup"), "{status}");
    work.pause();
    pipeline.send(&[record("late", "d")]).await;
    // Redis may still deliver it to the read that the worker sent before the pause.
    serve.reports("a queued record", |status| status["counts"]["backlog"] == 1).await;
    work.resume();
    serve.reports("an empty backlog", |status| status["counts"]["backlog"] == 0).await;
}

#[tokio::test]
async fn a_migration_leaves_its_reason_in_the_termination_log() {
    let shared = shared().await;
    let pipeline = Pipeline::new(named()).await;
    let dir = mounts();
    let migrate = async |expected: &str| {
        let ended = pipeline.command_in_pod("migrate", dir.path(), &[]).await;
        let left = termination(dir.path());
        assert_eq!(left["reason"], expected, "{left}");
        assert_eq!(ended.status.success(), expected == "Migrated", "{left}");
        left
    };
    assert_eq!(migrate("SecretNotFound").await["message"], "payments-postgres, key dsn");
    mount(dir.path(), "postgres", "s3cret");
    assert!(!migrate("SecretInvalid").await.to_string().contains("s3cret"));
    mount(dir.path(), "postgres", "postgres://me:s3cret@127.0.0.1:1/none");
    assert!(!migrate("PostgresUnreachable").await.to_string().contains("s3cret"));
    mount(dir.path(), "postgres", &format!("{}_that_is_not_there", shared.postgres));
    migrate("PostgresDatabaseNotFound").await;
    mount(dir.path(), "postgres", pipeline.postgres_url());
    let left = migrate("Migrated").await;
    assert_eq!((&left["schema"]["from"], &left["schema"]["to"], &left["contract"]), (&1.into(), &1.into(), &0.into()));
    let id: String = sqlx::query_scalar("select pipeline_id from pipeline").fetch_one(&pipeline.sql).await.unwrap();
    assert_eq!(left["pipelineId"], json!(id));

    pipeline.execute("update pipeline set min_compatible = 999").await;
    migrate("SchemaTooNew").await;
    pipeline.execute("update pipeline set min_compatible = 1").await;
    pipeline.annotate(|metadata| metadata["namespace"] = "prod".into());
    assert!(migrate("OtherPipeline").await["message"].as_str().unwrap().contains(&id));
    pipeline.annotate(|metadata| metadata["annotations"] = json!({"millrace.dev/adopt": &id}));
    pipeline.execute("update shards set owner = 'w', lease_until = clock_timestamp() + interval '1 minute'").await;
    migrate("PreviousWorkersActive").await;
    pipeline.execute("update shards set owner = null, lease_until = null").await;
    migrate("Migrated").await;
    pipeline.change(|spec| spec["shards"] = 3.into());
    migrate("ManifestInvalid").await;
    pipeline.write("neither: [");
    migrate("ManifestInvalid").await;
}

#[tokio::test]
async fn a_migration_waits_for_a_secret_that_comes_late() {
    let pipeline = Pipeline::new(named()).await;
    let dir = mounts();
    let mount_later = async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        mount(dir.path(), "postgres", pipeline.postgres_url());
    };
    let (ended, ()) =
        tokio::join!(pipeline.command_in_pod("migrate", dir.path(), &["--wait-ms", "30000"]), mount_later);
    assert!(ended.status.success());
    assert_eq!(termination(dir.path())["reason"], "Migrated");
}
