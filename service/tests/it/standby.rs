//! Queries that read from a standby: they ask for it, the answer names its server, and none is older than it may be.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::{
    harness::{Authority, KEY, Load, Pipeline, PrivatePostgres, eventually, record, shared},
    tls::{HOST, World, mount, postgres_url, problem},
};

/// The server that an answer names, and the answer.
async fn read(pipeline: &Pipeline, path: &str, from: Option<&str>) -> (String, Value) {
    let mut request = pipeline.request(Method::GET, path);
    if let Some(from) = from {
        request = request.header("Millrace-Read-From", from);
    }
    let answer = request.send().await.unwrap();
    let server = answer.headers().get("millrace-read-from").map(|name| name.to_str().unwrap().to_owned());
    let (status, body) = (answer.status(), answer.json().await.unwrap());
    assert_eq!(status, StatusCode::OK, "{path} {from:?}: {body}");
    (server.unwrap_or_default(), body)
}

/// The number of records of one destination, and the server that counted them.
async fn count(pipeline: &Pipeline, from: Option<&str>) -> (String, i64) {
    let (server, body) = read(pipeline, "/records/aggregations?records=false&destinationId=d", from).await;
    (server, body["groups"][0]["count"].as_i64().unwrap_or_default())
}

async fn reads_from(pipeline: &Pipeline, server: &str) {
    eventually(&format!("queries read from the {server}"), async || count(pipeline, Some("standby")).await.0 == server)
        .await;
}

/// The URL of the pipeline's database on another server.
fn on(server: &PrivatePostgres, pipeline: &Pipeline) -> String {
    let url = server.url();
    format!("{}/{}", url.rsplit_once('/').unwrap().0, pipeline.database())
}

async fn with_staleness(postgres: &PrivatePostgres, most: &str) -> Pipeline {
    let read = json!({"urlSecretRef": {"name": "a", "key": "url"}, "maxStaleness": most});
    Pipeline::on(&shared().await.redis, &postgres.url(), json!({"shards": 1, "postgres": read})).await
}

#[tokio::test]
async fn queries_read_from_a_standby_only_when_they_ask_and_while_it_is_fresh() {
    let primary = PrivatePostgres::start().await;
    let pipeline = with_staleness(&primary, "4s").await;
    let mut standby = primary.standby().await;
    let serve = pipeline.serve_with(&[("MILLRACE_POSTGRES_READ_URL", &on(&standby, &pipeline))]).await;
    let work = pipeline.work();
    work.ready().await;
    pipeline.apply(&record("a", "d")).await.expect(200);
    reads_from(&pipeline, "standby").await;
    eventually("the standby has the record", async || count(&pipeline, Some("standby")).await == ("standby".into(), 1))
        .await;
    for path in ["/records", "/records/rollups?window=1h", "/audit", "/audit/summary", "/conflicts", "/dead-letters"] {
        assert_eq!(read(&pipeline, path, Some("standby")).await.0, "standby", "{path}");
        for from in [None, Some("primary")] {
            assert_eq!(read(&pipeline, path, from).await.0, "primary", "{path}");
        }
    }
    for path in ["/records/a", "/stats"] {
        assert_eq!(read(&pipeline, path, Some("standby")).await.0, "", "{path} always reads from the primary");
    }
    // A primary without new records is no reason to take a standby for late.
    let notes = "select extract(epoch from max(noted_at))::bigint from producers";
    let begun = pipeline.number(notes).await;
    while pipeline.number(notes).await < begun + 6 {
        assert_eq!(count(&pipeline, Some("standby")).await.0, "standby", "it stays fresh");
    }
    assert!(serve.metric("millrace_standby_staleness_seconds").await < 4.0);

    // It receives what is committed, and does not replay it.
    standby.pause_replay().await;
    pipeline.apply(&record("b", "d")).await.expect(200);
    assert_eq!(count(&pipeline, None).await, ("primary".into(), 2), "an awaited record is in the next query");
    eventually("the standby is too far behind", async || {
        let (server, records) = count(&pipeline, Some("standby")).await;
        assert_eq!(records, if server == "standby" { 1 } else { 2 });
        server == "primary"
    })
    .await;
    serve.has_problems(&["StandbyBehind"]).await;
    assert!(serve.is_ready().await, "it serves");
    standby.run("select pg_wal_replay_resume()").await;
    reads_from(&pipeline, "standby").await;
    assert_eq!(count(&pipeline, Some("standby")).await.1, 2);
    serve.has_problems(&[]).await;

    // Each request is answered, also the first one after the standby has ended.
    standby.stop();
    for _ in 0..20 {
        assert_eq!(count(&pipeline, Some("standby")).await, ("primary".into(), 2));
    }
    let status = serve.has_problems(&["StandbyUnavailable"]).await;
    assert!(!status.to_string().contains("postgres://"), "{status}");
    standby.restart().await;
    reads_from(&pipeline, "standby").await;
    let used = serve.metric("millrace_standby_queries_total{outcome=\"answered\"}").await;
    assert!(used > 10.0, "{used}");
}

#[tokio::test]
async fn a_header_that_names_no_server_is_refused() {
    let pipeline = Pipeline::new(json!({})).await;
    let _serve = pipeline.serve().await;
    let ask = async |path: &str, from: &[&str]| {
        let request = pipeline.request(Method::GET, path);
        let request = from.iter().fold(request, |request, from| request.header("Millrace-Read-From", *from));
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json::<Value>().await.unwrap())
    };
    for wrong in [&["replica"][..], &["Standby"], &[""], &["standby", "standby"]] {
        let (status, problem) = ask("/records", wrong).await;
        assert_eq!((status, &problem["code"]), (400, &json!("invalid_parameter")), "{wrong:?}");
        assert!(problem["detail"].as_str().unwrap().contains("Millrace-Read-From must be given once"), "{problem}");
    }
    // Without a standby the primary answers.
    assert_eq!(ask("/records", &["standby"]).await.0, 200);
    assert_eq!(read(&pipeline, "/records", Some("standby")).await.0, "primary");
}

#[tokio::test]
async fn the_url_of_a_standby_is_followed_and_a_server_that_is_none_is_not_read() {
    let primary = PrivatePostgres::start().await;
    let reads = json!({
        "urlSecretRef": {"name": "payments-postgres", "key": "url"},
        "readUrlSecretRef": {"name": "payments-standby", "key": "dsn"},
    });
    let pipeline = Pipeline::on(&shared().await.redis, &primary.url(), json!({"shards": 1, "postgres": reads})).await;
    let dir = tempfile::tempdir().unwrap();
    let mount = |name: &str, value: &str| mount(dir.path(), name, value);
    mount("redis", pipeline.redis_url());
    mount("postgres", pipeline.postgres_url());
    mount("key", KEY);
    mount("postgres-read", "http://me:s3cret@host");
    let (serve, _work) = (pipeline.start_in_pod("serve", dir.path()), pipeline.work());
    serve.ready().await;
    let status = serve.has_problems(&["SecretInvalid"]).await;
    assert!(status["problems"][0]["message"].as_str().unwrap().starts_with("payments-standby, key dsn: "), "{status}");
    pipeline.send(&Load::new("r", 10).records).await;
    pipeline.applied().await;
    assert_eq!(count(&pipeline, Some("standby")).await.0, "primary");
    mount("postgres-read", pipeline.postgres_url());
    let status = serve.has_problems(&["StandbyUnavailable"]).await;
    assert!(status.to_string().contains("a server that is no standby"), "{status}");
    assert_eq!(count(&pipeline, Some("standby")).await.0, "primary");
    let standby = primary.standby().await;
    mount("postgres-read", &on(&standby, &pipeline));
    reads_from(&pipeline, "standby").await;
    serve.has_problems(&[]).await;
    // The last URL that could be used stays in use.
    mount("postgres-read", "postgres://h/d?unknown=1");
    serve.has_problems(&["SecretInvalid"]).await;
    assert_eq!(count(&pipeline, Some("standby")).await.0, "standby");
    // Promoted, it follows the primary no longer.
    standby.promote().await;
    reads_from(&pipeline, "primary").await;
}

#[tokio::test]
async fn a_standby_is_verified_with_the_files_of_the_primary() {
    let world = World::new().await;
    let (pipeline, dir) = (&world.pipeline, world.dir.path());
    let mut standby = world.postgres.standby().await;
    pipeline.change(|spec| spec["postgres"]["readUrlSecretRef"] = json!({"name": "payments-standby", "key": "dsn"}));
    let at = |host: &str| postgres_url(pipeline, &standby, "client", host, "verify-full");
    mount(dir, "postgres-read", &at(HOST));
    let (serve, work) = (pipeline.start_in_pod("serve", dir), pipeline.start_in_pod("work", dir));
    serve.ready().await;
    work.ready().await;
    world.carries("a").await;
    reads_from(pipeline, "standby").await;
    let encrypted = "do $$ begin
                         assert (select bool_and(ssl) from pg_stat_ssl join pg_stat_activity using (pid)
                                 where application_name like 'millrace%');
                     end $$";
    standby.run(encrypted).await;

    // The name in its certificate, and its authority, are checked; a failure leaves queries to the primary.
    mount(dir, "postgres-read", &at("127.0.0.1"));
    let message = problem(&serve, "TlsNameMismatch").await;
    assert!(["payments-standby, key dsn", HOST].iter().all(|words| message.contains(words)), "{message}");
    assert_eq!(count(pipeline, Some("standby")).await.0, "primary");
    mount(dir, "postgres-read", &at(HOST));
    reads_from(pipeline, "standby").await;
    let other = Authority::new("other").issue(&[HOST]);
    standby.install(&[("server.crt", &other.certificate), ("server.key", &other.key)]);
    standby.stop();
    standby.restart().await;
    let message = problem(&serve, "TlsUntrusted").await;
    assert!(
        ["payments-standby, key dsn", "postgres-ca, key ca.crt"].iter().all(|words| message.contains(words)),
        "{message}"
    );
    assert_eq!(count(pipeline, Some("standby")).await.0, "primary");
    world.carries("b").await;
}
