//! A Redis with restricted rights, hidden settings or weak settings, and clocks that differ.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    harness::{Load, Pipeline, PrivateRedis, record, shared},
    refusing::has,
};

/// Creates the user `app` with these rights and the password `right`; returns a URL with the given password.
async fn user(pipeline: &Pipeline, redis: &PrivateRedis, password: &str, rights: &[&str]) -> String {
    let words = [&["ACL", "SETUSER", "app", "on", ">right"], rights].concat();
    let _: String = pipeline.redis(&words).await;
    redis.url().replace("redis://", &format!("redis://app:{password}@"))
}

#[tokio::test]
async fn serve_with_a_wrong_redis_password_is_not_ready_and_reports_it() {
    let redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let url = user(&pipeline, &redis, "wr0ng", &["~*", "+@all"]).await;
    let serve = pipeline.serve_with(&[("MILLRACE_REDIS_URL", &url)]).await;
    let line = serve.logs("streams.access.denied").await;
    assert!(line["error"].as_str().unwrap().contains("refuses the user or password"), "{line}");
    assert!(!line.to_string().contains("wr0ng"));
    serve.reports("the denied access", |status| has(status, "RedisAccessDenied", "refuses the user or password")).await;
    assert!(!serve.is_ready().await);
    let _: String = pipeline.redis(&["ACL", "SETUSER", "app", ">wr0ng"]).await;
    serve.ready().await;
    serve.has_problems(&[]).await;
    pipeline.send(&[record("a", "d")]).await;
}

/// The commands of the documented rights.
fn documented() -> Vec<&'static str> {
    let docs = include_str!("../../../docs/servers.md");
    let lines = docs.lines().skip_while(|line| !line.starts_with("ACL SETUSER millrace"));
    let words = lines.take_while(|line| !line.starts_with("```")).flat_map(str::split_whitespace);
    words.filter(|word| ["+", "-", "reset"].iter().any(|start| word.starts_with(start))).collect()
}

/// A pipeline whose processes connect to a Redis of its own as a user with the documented rights; returns the user's URL.
async fn restricted() -> (PrivateRedis, Pipeline, String) {
    let redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let (own, streams) = (format!("~{{{}.*}}*", pipeline.name), format!("~{}.*", pipeline.name));
    let rights = [documented(), vec![own.as_str(), streams.as_str()]].concat();
    let url = user(&pipeline, &redis, "right", &rights).await;
    (redis, pipeline, url)
}

#[tokio::test]
async fn a_pipeline_runs_under_the_documented_redis_rights() {
    let (redis, pipeline, url) = restricted().await;
    let under = [("MILLRACE_REDIS_URL", url.as_str())];
    let (serve, mut work) = (pipeline.serve_with(&under).await, pipeline.work_with(&under));
    let load = Load::new("r", 300);
    let (before, after) = load.records.split_at(150);
    pipeline.send(before).await;
    pipeline.applied().await;
    // A successor reclaims what is pending.
    work.kill();
    pipeline.send(after).await;
    let work = pipeline.work_with(&under);
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    for process in [&serve, &work] {
        let status = process.has_problems(&[]).await;
        assert_eq!(status["redisDurability"], "Unknown", "CONFIG is denied");
        assert!(process.logged("streams.access.denied").is_empty());
    }
    pipeline.get("/stats").await;
    pipeline.ask("/records/never").await.refused(404, "not_found");
    let verified = pipeline.command("verify", &["--redis-url", &url]).await;
    let text = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(!verified.status.success() && text.contains("MULTI, EXEC: the user of Redis lacks"), "{text}");
    let _: String = pipeline.redis(&["ACL", "SETUSER", "app", "+multi", "+exec"]).await;
    let verified = pipeline.command("verify", &["--redis-url", &url]).await;
    assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    let denied: Vec<redis::Value> = pipeline.redis(&["ACL", "LOG"]).await;
    let denied: Vec<String> = denied.iter().map(|entry| format!("{entry:?}")).collect();
    let optional = ["info", "config", "client"];
    let needed = denied.iter().find(|entry| !optional.iter().any(|word| entry.contains(word)));
    assert_eq!(needed, None, "only optional commands were denied");

    let _: String = pipeline.redis(&["ACL", "SETUSER", "app", "-xadd"]).await;
    let (status, _) = pipeline.post("/records", &record("refused", "d")).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    let line = serve.logs("accept.append.failed").await.to_string();
    assert!(
        line.to_lowercase().contains("xadd") && line.contains("docs/servers.md") && !line.contains("away"),
        "{line}"
    );

    let streams = format!("~{}.*", pipeline.name);
    let _: String = pipeline.redis(&["ACL", "SETUSER", "app", "+xadd", "resetkeys", &streams]).await;
    let records = pipeline.records(0);
    for process in [&serve, &work] {
        process.reports("the denied key", |status| has(status, "RedisAccessDenied", &records)).await;
        process.reports("the missing key", |status| has(status, "RedisAclMissing", &records)).await;
    }
    drop(redis);
}

#[tokio::test]
async fn missing_redis_rights_are_named_at_the_start() {
    let (_redis, pipeline, url) = restricted().await;
    let _: String = pipeline.redis(&["ACL", "SETUSER", "app", "-time", "-exists", "-xgroup|delconsumer"]).await;
    pipeline.change(|spec| spec["sinks"][0]["redisStream"]["stream"] = json!("elsewhere"));
    let _ = pipeline.command("migrate", &[]).await;
    let under = [("MILLRACE_REDIS_URL", url.as_str())];
    let (serve, work) = (pipeline.start_waiting("serve", &under), pipeline.start_waiting("work", &under));
    for process in [&serve, &work] {
        let words = "TIME, EXISTS, XGROUP|DELCONSUMER, key elsewhere, key {elsewhere}:cursor: ";
        process.reports("the missing rights", |status| has(status, "RedisAclMissing", words)).await;
        let line = process.logs("streams.access.denied").await.to_string();
        assert!(line.contains("RedisAclMissing") && line.contains("TIME, EXISTS"), "{line}");
    }
    assert!(!serve.is_ready().await);
    let grants = ["+time", "+exists", "+xgroup|delconsumer", "~elsewhere", "~{elsewhere}*"];
    let _: String = pipeline.redis(&[&["ACL", "SETUSER", "app"], grants.as_slice()].concat()).await;
    serve.ready().await;
    for process in [&serve, &work] {
        process.logs("streams.access.granted").await;
        process.has_problems(&[]).await;
    }
}

#[tokio::test]
async fn a_worker_that_redis_denies_owns_no_shard() {
    let redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({"shards": 4})).await;
    let url = user(&pipeline, &redis, "wr0ng", &["~*", "+@all"]).await;
    let owns = |count| move |status: &Value| status["owned"].as_array().is_some_and(|owned| owned.len() == count);
    let (_serve, first) = (pipeline.serve().await, pipeline.work());
    first.reports("all shards", owns(4)).await;

    let second = pipeline.start_waiting("work", &[("MILLRACE_REDIS_URL", &url)]);
    second.logs("streams.access.denied").await;
    let load = Load::new("r", 200);
    let (before, after) = load.records.split_at(100);
    pipeline.send(before).await;
    pipeline.applied().await;
    second.reports("no shard", owns(0)).await;

    let _: String = pipeline.redis(&["ACL", "SETUSER", "app", ">wr0ng"]).await;
    second.reports("its share", owns(2)).await;
    let _: String = pipeline.redis(&["ACL", "SETUSER", "app", "off"]).await;
    let _: i64 = pipeline.redis(&["CLIENT", "KILL", "USER", "app"]).await;
    first.reports("all shards again", owns(4)).await;
    pipeline.send(after).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
}

#[tokio::test]
async fn each_documented_redis_right_is_missed_when_it_is_taken() {
    let (_redis, pipeline, url) = restricted().await;
    let work = pipeline.work_with(&[("MILLRACE_REDIS_URL", url.as_str())]);
    work.ready().await;
    work.has_problems(&[]).await;
    for right in documented().into_iter().filter(|word| word.starts_with('+')) {
        // Without these two nothing can be asked.
        if ["+evalsha", "+ping"].contains(&right) {
            continue;
        }
        let name = right[1..].to_uppercase();
        let _: String = pipeline.redis(&["ACL", "SETUSER", "app", &format!("-{}", &right[1..])]).await;
        work.reports(right, |status| has(status, "RedisAclMissing", &name)).await;
        let _: String = pipeline.redis(&["ACL", "SETUSER", "app", right]).await;
    }
    work.has_problems(&[]).await;
}

#[tokio::test]
async fn a_redis_that_may_lose_records_is_a_problem_until_it_may_not() {
    let redis = PrivateRedis::start(&[]).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    work.ready().await;
    for (setting, weak, right, reason) in [
        ("appendfsync", "everysec", "always", "RedisNotDurable"),
        ("appendonly", "no", "yes", "RedisNotDurable"),
        ("maxmemory-policy", "allkeys-lru", "noeviction", "RedisEvicts"),
    ] {
        let _: String = pipeline.redis(&["CONFIG", "SET", setting, weak]).await;
        for process in [&serve, &work] {
            let status = process.has_problems(&[reason]).await;
            assert!(has(&status, reason, &format!("{setting} {weak}")), "{status}");
            assert_eq!(status["redisDurability"], "NotDurable");
            assert!(process.is_ready().await, "it continues");
        }
        let _: String = pipeline.redis(&["CONFIG", "SET", setting, right]).await;
        for process in [&serve, &work] {
            assert_eq!(process.has_problems(&[]).await["redisDurability"], "Durable");
        }
    }
}

#[tokio::test]
async fn a_redis_without_config_info_wait_and_debug_works_and_its_durability_is_unknown() {
    let settings = ["CONFIG", "INFO", "WAIT", "DEBUG"].map(|command| format!("rename-command {command} \"\""));
    let redis = PrivateRedis::start(&settings.each_ref().map(String::as_str)).await;
    let pipeline = Pipeline::on(&redis.url(), &shared().await.postgres, json!({})).await;
    let (serve, work) = (pipeline.serve().await, pipeline.work());
    let load = Load::new("r", 300);
    pipeline.send(&load.records).await;
    pipeline.applied().await;
    pipeline.check_exactly_once(&load.ids).await;
    for process in [&serve, &work] {
        assert_eq!(process.has_problems(&[]).await["redisDurability"], "Unknown");
    }
    let stats = pipeline.get("/stats").await;
    assert_eq!((&stats["redis"]["appendfsync"], &stats["redis"]["version"]), (&json!("unknown"), &json!("unknown")));
}

/// The library that gives a process another clock.
pub(crate) fn libfaketime() -> String {
    let found =
        std::fs::read_dir("/usr/lib").unwrap().flatten().map(|dir| dir.path().join("faketime/libfaketimeMT.so.1"));
    let found = found.into_iter().find(|path| path.is_file());
    found.expect("libfaketime is not installed; hack/install-deps does it").display().to_string()
}

#[tokio::test]
async fn a_clock_that_differs_from_those_of_the_servers_is_a_problem() {
    let pipeline = Pipeline::new(json!({})).await;
    let library = libfaketime();
    let late = [("LD_PRELOAD", library.as_str()), ("FAKETIME", "-20s"), ("DONT_FAKE_MONOTONIC", "1")];
    let (serve, work) = (pipeline.serve_with(&late).await, pipeline.work());
    let status = serve.has_problems(&["ClockDifference", "ClockDifference"]).await;
    for server in ["Postgres", "Redis"] {
        let ahead = |seconds| has(&status, "ClockDifference", &format!("{server} is {seconds} s ahead of"));
        assert!(ahead(19) || ahead(20), "{status}");
    }
    work.ready().await;
    work.has_problems(&[]).await;
    pipeline.send(&[record("a", "d")]).await;
    pipeline.applied().await;
}
