use sqlx::PgPool;

use super::*;

async fn secrets(store: &Store) -> Vec<String> {
    let mut ids: Vec<String> =
        store.live_secrets().await.expect("secrets").into_iter().map(|secret| secret.secret_id).collect();
    ids.sort();
    ids
}

fn key(id: &str) -> NewKey {
    NewKey {
        id: id.to_owned(),
        name: Text::stored("a"),
        scopes: vec![Scope::Read],
        source_ids: vec!["prefix=eu-".parse().unwrap()],
        destination_ids: Vec::new(),
        rate_limits: RateLimits { records_per_second: Some(50), ..RateLimits::default() },
        expires_at: None,
    }
}

fn secret(id: &str) -> NewSecret<'_> {
    NewSecret { id, hash: id.as_bytes() }
}

async fn actions(pool: &PgPool) -> Vec<String> {
    sqlx::query_scalar("select actor || ' ' || action || ' ' || reason from admin_actions order by n")
        .fetch_all(pool)
        .await
        .expect("rows")
}

#[sqlx::test(migrations = "../migrations")]
async fn keys_are_active_until_they_are_revoked_and_each_action_is_audited(pool: PgPool) {
    let (store, me) = (Store::of_test(pool.clone()), Actor::command(Some("me")));
    store.create_key(&key("key_1"), secret("sec_1"), &me).await.expect("written").expect("made");
    assert!(store.bootstrap_key(b"first").await.expect("written"));
    assert!(!store.bootstrap_key(b"first").await.expect("the same"));
    assert_eq!(secrets(&store).await, ["bootstrap", "sec_1"]);
    store.revoke_key("key_1", &me).await.expect("written").expect("revoked");
    assert_eq!(store.revoke_key("key_1", &me).await.expect("only once"), Err(KeyRefusal::Unknown));
    store.revoke_key("bootstrap", &me).await.expect("written").expect("revoked");
    // A restart must not activate a revoked key again; another key replaces it.
    assert!(!store.bootstrap_key(b"first").await.expect("still revoked"));
    assert_eq!(secrets(&store).await, [""; 0]);
    assert!(store.bootstrap_key(b"second").await.expect("another"));
    assert_eq!(secrets(&store).await, ["bootstrap"]);
    let expected = [
        "command:me keys.create key key_1 (a) with scopes read; sourceIds prefix=eu-; recordsPerSecond 50",
        "bootstrap keys.bootstrap key bootstrap from the environment",
        "command:me keys.revoke key key_1 (a)",
        "command:me keys.revoke key bootstrap (bootstrap)",
        "bootstrap keys.bootstrap key bootstrap from the environment",
    ];
    assert_eq!(actions(&pool).await, expected);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_rotated_key_has_two_secrets_until_one_is_revoked(pool: PgPool) {
    let (store, me) = (Store::of_test(pool.clone()), Actor::command(None));
    store.create_key(&key("key_1"), secret("sec_1"), &me).await.expect("written").expect("made");
    store.create_key(&key("key_2"), secret("sec_o"), &me).await.expect("written").expect("made");
    store.rotate_key("key_1", secret("sec_2"), &me).await.expect("written").expect("rotated");
    let third = store.rotate_key("key_1", secret("sec_3"), &me).await.expect("answered");
    assert_eq!(third, Err(KeyRefusal::TwoSecrets));
    assert_eq!(secrets(&store).await, ["sec_1", "sec_2", "sec_o"]);
    let of_another = store.revoke_secret("key_2", "sec_1", &me).await.expect("answered");
    assert_eq!(of_another, Err(KeyRefusal::Unknown));
    store.revoke_secret("key_1", "sec_1", &me).await.expect("written").expect("revoked");
    assert_eq!(secrets(&store).await, ["sec_2", "sec_o"]);
    store.rotate_key("key_1", secret("sec_3"), &me).await.expect("written").expect("room again");
    store.bootstrap_key(b"first").await.expect("written");
    for (id, refusal) in [("bootstrap", KeyRefusal::Bootstrap), ("key_9", KeyRefusal::Unknown)] {
        assert_eq!(store.rotate_key(id, secret("sec_4"), &me).await.expect("answered"), Err(refusal));
    }
    let listed = store.list_keys(None, 10).await.expect("listed");
    let of_first: Vec<(&str, bool)> =
        listed[0].secrets.iter().map(|secret| (secret.id.as_str(), secret.revoked_at.is_some())).collect();
    assert_eq!(of_first, [("sec_1", true), ("sec_2", false), ("sec_3", false)]);
    assert_eq!(listed[0].source_ids, key("key_1").source_ids);
    let rest = store.list_keys(Some((listed[0].created_at, "key_1")), 1).await.expect("listed");
    assert_eq!(rest[0].id, "key_2");
    assert_eq!(store.find_key("key_2").await.expect("asked").expect("found").secrets[0].id, "sec_o");
}

#[sqlx::test(migrations = "../migrations")]
async fn an_expired_key_is_not_live_and_a_last_use_never_falls(pool: PgPool) {
    let (store, me) = (Store::of_test(pool.clone()), Actor::command(None));
    let past = NewKey { expires_at: Some(DateTime::UNIX_EPOCH), ..key("key_0") };
    let refused = store.create_key(&past, secret("sec_0"), &me).await.expect("answered");
    assert_eq!(refused, Err(KeyRefusal::Expired));
    store.create_key(&key("key_1"), secret("sec_1"), &me).await.expect("written").expect("made");
    for ago_ms in [0, 60_000] {
        store.note_last_use(&["sec_1".to_owned()], &[ago_ms]).await.expect("noted");
    }
    let seconds: f64 =
        sqlx::query_scalar("select extract(epoch from clock_timestamp() - last_used_at)::float8 from api_key_secrets")
            .fetch_one(&pool)
            .await
            .expect("a time");
    assert!(seconds < 50.0, "{seconds}");
    sqlx::query("update api_keys set expires_at = now() + interval '1 hour'").execute(&pool).await.expect("set");
    let left = store.live_secrets().await.expect("secrets")[0].expires_in_ms.expect("an expiry");
    assert!((3_500_000..=3_600_000).contains(&left), "{left}");
    sqlx::query("update api_keys set expires_at = now() - interval '1 ms'").execute(&pool).await.expect("set");
    assert_eq!(secrets(&store).await, [""; 0]);
    let rotated = store.rotate_key("key_1", secret("sec_2"), &me).await.expect("answered");
    assert_eq!(rotated, Err(KeyRefusal::Unknown));
}
