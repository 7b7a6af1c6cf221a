//! Alerts of totals: those of the pipeline of these tests, with one fault at a time.

use super::*;

/// Thresholds of both versions, and the alerts that follow from the records: of a key in three steps, of a destination, of its day,
/// and of another unit.
const ALERTS: &str = r#"
    update policies set spec = '{"threshold":"100.00","totalThresholds":[
        {"name":"up","unit":"EUR","above":"50","every":"20.0","per":"Key"},
        {"name":"down","unit":"EUR","below":"0","per":"Destination"}]}' where version = 1;
    update policies set spec = '{"threshold":"5","thresholds":{"min":"50"},"totalThresholds":[
        {"name":"all","unit":"EUR","above":"5","per":"Destination"},
        {"name":"day","unit":"EUR","above":"5","per":"Destination","rollup":"daily"},
        {"name":"other","unit":"min","above":"0","per":"Key"}]}' where version = 2;
    update records set total_alerts = case seq
        when 1 then '[{"name":"up","per":"Key","above":"50","every":"20.0","steps":3,"previousTotal":"0.00","total":"100.00"}]'
        when 2 then '[{"name":"down","per":"Destination","below":"0","steps":1,"previousTotal":"100.00","total":"-0.01"}]'
        when 3 then '[{"name":"all","per":"Destination","above":"5","steps":1,"previousTotal":"-0.01","total":"5.99"},
            {"name":"day","per":"Destination","rollup":"daily","windowStart":"' || to_char(time at time zone 'UTC', 'YYYY-MM-DD')
            || 'T00:00:00Z","above":"5","steps":1,"previousTotal":"-0.01","total":"5.99"}]'
        when 5 then '[{"name":"other","per":"Key","above":"0","steps":1,"previousTotal":"0","total":"50"}]' end;
    update shards set total_alerts = 5 where shard = 1;
    update rollup_builds set decided_from = 3;
"#;

macro_rules! replaced {
    ($seq:literal, $from:literal, $to:literal) => {
        concat!(
            "update records set total_alerts = replace(total_alerts, '",
            $from,
            "', '",
            $to,
            "') where seq = ",
            $seq
        )
    };
}

/// Faults that are found in any scope.
const TOTAL_FAULTS: [(&str, &str, &[&str]); 8] = [
    (replaced!(1, "\"steps\":3", "\"steps\":2"), replaced!(1, "\"steps\":2", "\"steps\":3"), &["total_alert"]),
    (replaced!(1, "\"0.00\"", "\"0.01\""), replaced!(1, "\"0.01\"", "\"0.00\""), &["total_alert"]),
    (replaced!(1, "\"20.0\"", "\"20\""), replaced!(1, "\"20\"", "\"20.0\""), &["total_alert"]),
    (replaced!(2, "\"down\"", "\"up\""), replaced!(2, "\"up\"", "\"down\""), &["total_alert"]),
    (replaced!(2, "below", "above"), replaced!(2, "above", "below"), &["total_alert"]),
    (
        "update records set total_alerts = '[' || total_alerts || ']' where seq = 5",
        "update records set total_alerts = substring(total_alerts from 2 for length(total_alerts) - 2) where seq = 5",
        &["counter", "total_alert"],
    ),
    (
        "update records set attributes = total_alerts, total_alerts = null where seq = 2",
        "update records set total_alerts = attributes, attributes = null where seq = 2",
        &["counter", "total_alert"],
    ),
    (
        "update shards set total_alerts = 4 where shard = 1",
        "update shards set total_alerts = 5 where shard = 1",
        &["counter"],
    ),
];

/// Faults in alerts of windows, which are not derived since a time.
const WINDOW_FAULTS: [(&str, &str, &[&str]); 3] = [
    (replaced!(3, "T00:00:00Z", "T01:00:00Z"), replaced!(3, "T01:00:00Z", "T00:00:00Z"), &["total_alert"]),
    ("update rollup_builds set decided_from = 4", "update rollup_builds set decided_from = 3", &["total_alert"]),
    ("update rollup_builds set decided_from = null", "update rollup_builds set decided_from = 3", &["total_alert"]),
];

async fn with_alerts() -> (UnclaimedPipeline, sqlx::PgPool) {
    let (pipeline, sql) = consistent().await;
    sqlx::raw_sql(ALERTS).execute(&sql).await.unwrap();
    (pipeline, sql)
}

#[tokio::test]
async fn every_fault_in_an_alert_of_a_total_is_found() {
    let (pipeline, sql) = with_alerts().await;
    for scope in scopes() {
        assert_eq!(differing(&pipeline, &scope).await, [], "without a fault, {scope:?}");
    }
    find(&pipeline, &sql, &TOTAL_FAULTS, &scopes()).await;
    find(&pipeline, &sql, &WINDOW_FAULTS, &scopes()[..2]).await;
}

#[tokio::test]
async fn since_a_time_the_totals_of_destinations_begin_with_what_is_stored() {
    let (pipeline, sql) = with_alerts().await;
    sqlx::raw_sql("update records set processed_at = '2026-11-01T10:00:00Z' where seq < 3")
        .execute(&sql)
        .await
        .unwrap();
    let later = Scope { shards: None, since: parse_time("2026-11-01T10:00:01Z").ok() };
    assert_eq!(differing(&pipeline, &later).await, []);
    sqlx::raw_sql(replaced!(
        3,
        "\"all\",\"per\":\"Destination\",\"above\":\"5\",\"steps\":1",
        "\"all\",\"per\":\"Destination\",\"above\":\"5\",\"steps\":2"
    ))
    .execute(&sql)
    .await
    .unwrap();
    assert_eq!(checks_that_differ(&pipeline, &later).await, ["total_alert"]);
}
