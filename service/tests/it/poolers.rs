//! Poolers before Postgres: session mode works, transaction mode is refused.

use serde_json::{Value, json};

use crate::harness::{Load, Pipeline, Pooler, eventually, record, shared};

/// Startup options are refused, as PgBouncer does by default, or ignored, as is usual.
const STARTUP_OPTIONS: [&str; 2] = ["", "ignore_startup_parameters = extra_float_digits,options"];

#[tokio::test]
async fn two_pipelines_on_one_database_work_behind_a_pooler_in_session_mode() {
    for ignored in STARTUP_OPTIONS {
        let pooler = Pooler::start(&shared().await.postgres, &format!("pool_mode = session\n{ignored}")).await;
        let one = Pipeline::behind(&pooler, json!({})).await;
        let other = Pipeline::behind_in(&pooler, one.database(), json!({})).await;
        let mut running = Vec::new();
        for pipeline in [&one, &other] {
            let (serve, work) = (pipeline.serve().await, pipeline.work());
            work.ready().await;
            running.push((serve, work));
        }
        for (pipeline, name) in [(&one, "a"), (&other, "b")] {
            let load = Load::new(name, 300);
            pipeline.send(&load.records).await;
            pipeline.applied().await;
            pipeline.check_exactly_once(&load.ids).await;
            pipeline.verify().await;
        }
        for (serve, work) in &running {
            serve.has_problems(&[]).await;
            work.has_problems(&[]).await;
        }
        let outside = "select count(*) from pg_class where relnamespace = 'public'::regnamespace";
        assert_eq!(one.number(outside).await, 0, "all tables are in the schemas of the pipelines");
    }
}

#[tokio::test]
async fn a_pooler_in_transaction_mode_is_refused_until_it_gives_sessions() {
    for mode in ["transaction", "statement"] {
        let ignored = "ignore_startup_parameters = extra_float_digits,options";
        let session = format!("pool_mode = session\n{ignored}");
        let mut pooler = Pooler::start(&shared().await.postgres, &session).await;
        let pipeline = Pipeline::behind(&pooler, json!({})).await;
        pooler.restart(&format!("pool_mode = {mode}\n{ignored}")).await;
        let migrated = pipeline.command("migrate", &["--wait-ms", "10000"]).await;
        let text = String::from_utf8_lossy(&migrated.stderr).into_owned();
        assert!(!migrated.status.success() && text.contains("pool_mode = session"), "{text}");
        let listed = pipeline.command("sinks", &["list"]).await;
        let text = String::from_utf8_lossy(&listed.stderr).into_owned();
        assert!(!listed.status.success() && text.contains("pool_mode = session"), "{text}");
        let (serve, work) = (pipeline.start_waiting("serve", &[]), pipeline.start_waiting("work", &[]));
        for process in [&serve, &work] {
            let status = process.has_problems(&["PoolerInTransactionMode"]).await;
            let message = status["problems"][0]["message"].as_str().unwrap();
            assert!(message.contains("pool_mode = session") && message.contains("URL of Postgres itself"), "{message}");
            assert!(!process.is_ready().await);
        }
        pooler.restart(&session).await;
        for process in [&serve, &work] {
            process.ready().await;
            process.has_problems(&[]).await;
        }
    }
}

#[tokio::test]
async fn a_pooler_that_changes_to_transaction_mode_is_noticed_at_the_next_connection() {
    let mut pooler = Pooler::start(&shared().await.postgres, "pool_mode = session").await;
    let pipeline = Pipeline::behind(&pooler, json!({})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 100);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    pooler.restart("pool_mode = transaction").await;
    for process in [&serve, &work] {
        process
            .reports("the mode of the pooler", |status| {
                let problems = status["problems"].as_array();
                problems.is_some_and(|all| all.iter().any(|one| one["reason"] == "PoolerInTransactionMode"))
            })
            .await;
    }
    for process in [&serve, &work] {
        let line = process.logs("config.postgres.unavailable").await.to_string();
        assert!(line.contains("pool_mode = session"), "{line}");
        let log = std::fs::read_to_string(process.log()).unwrap();
        assert!(!log.contains("after_connect"), "the driver logs nothing beside it");
    }
    pipeline.send(&[record("later", "d")]).await;
    pooler.restart("pool_mode = session").await;
    pipeline.applied().await;
    let ids: Vec<String> = load.ids.iter().cloned().chain(["later".to_owned()]).collect();
    pipeline.check_exactly_once(&ids).await;
    for process in [&serve, &work] {
        process.has_problems(&[]).await;
    }
}

#[tokio::test]
async fn a_pooler_that_changes_its_mode_under_open_connections_is_noticed_and_nothing_is_lost() {
    let pooler = Pooler::start(&shared().await.postgres, "pool_mode = session").await;
    let pipeline = Pipeline::behind(&pooler, json!({})).await;
    let (mut serve, mut work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 600);
    let is_named = |status: &Value| {
        let problems = status["problems"].as_array();
        problems.is_some_and(|all| all.iter().any(|one| one["reason"] == "PoolerInTransactionMode"))
    };
    for records in load.records.chunks(200) {
        let (before, during) = records.split_at(records.len() / 2);
        pipeline.send(before).await;
        pipeline.applied().await;
        pooler.reload("pool_mode = transaction");
        for few in during.chunks(5) {
            pipeline.send(few).await;
        }
        // The driver may panic on the answer of another session before the mode is noticed, which ends the process; what
        // supervises it starts it again.
        eventually("both report the mode of the pooler", async || {
            if serve.has_ended() {
                serve = pipeline.starting_serve_with(&[]);
            }
            if work.has_ended() {
                work = pipeline.work();
            }
            is_named(&serve.status().await) && is_named(&work.status().await)
        })
        .await;
        pooler.reload("pool_mode = session");
        pipeline.answers().await;
        pipeline.applied().await;
        for process in [&serve, &work] {
            process.has_problems(&[]).await;
        }
    }
    pipeline.check_exactly_once(&load.ids).await;
    pipeline.verify().await;
}
