//! API keys: Postgres holds only their hashes.

use chrono::{DateTime, Utc};

use super::{Error, Store};

/// Id and name of the key that comes from the environment.
const BOOTSTRAP: &str = "bootstrap";

/// A key as a list shows it.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// Its id, which is not secret and selects it when it is revoked.
    pub id: String,
    /// Its name, the actor in the audit trail.
    pub name: String,
    /// Its scopes.
    pub scopes: Vec<String>,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it was revoked; `None` for an active key.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// An active key with its hash.
#[derive(Debug, Clone)]
pub struct LiveKey {
    /// SHA-256 of the whole key.
    pub hash: Vec<u8>,
    /// Its name.
    pub name: String,
    /// Its scopes.
    pub scopes: Vec<String>,
}

impl Store {
    /// The active keys.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn live_keys(&self) -> Result<Vec<LiveKey>, Error> {
        Ok(sqlx::query_as!(LiveKey, "select hash, name, scopes from api_keys where revoked_at is null")
            .fetch_all(&self.pool)
            .await?)
    }

    /// All keys, oldest first.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn list_keys(&self) -> Result<Vec<ApiKey>, Error> {
        Ok(sqlx::query_as!(
            ApiKey,
            "select id, name, scopes, created_at, revoked_at from api_keys order by created_at, id"
        )
        .fetch_all(&self.pool)
        .await?)
    }

    /// Stores a new key's hash, and adds the action to the audit trail.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn create_key(
        &self,
        id: &str,
        name: &str,
        hash: &[u8],
        scopes: &[String],
        actor: &str,
    ) -> Result<(), Error> {
        let mut transaction = self.begin().await?;
        sqlx::query!("insert into api_keys (id, name, hash, scopes) values ($1, $2, $3, $4)", id, name, hash, scopes)
            .execute(&mut *transaction)
            .await?;
        let reason = format!("key {id} ({name}) with scopes {}", scopes.join(", "));
        sqlx::query!("insert into admin_actions (actor, action, reason) values ($1, 'keys.create', $2)", actor, reason)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Revokes a key, and adds the action to the audit trail. Returns false if no active key has this id.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn revoke_key(&self, id: &str, actor: &str) -> Result<bool, Error> {
        let mut transaction = self.begin().await?;
        let name = sqlx::query_scalar!(
            "update api_keys set revoked_at = now() where id = $1 and revoked_at is null returning name",
            id
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(name) = name else { return Ok(false) };
        let reason = format!("key {id} ({name})");
        sqlx::query!("insert into admin_actions (actor, action, reason) values ($1, 'keys.revoke', $2)", actor, reason)
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Stores the key from the environment as the key `bootstrap` with scope `admin`. A revoked one stays revoked until
    /// the environment has another key. Returns whether anything was written.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn bootstrap_key(&self, hash: &[u8]) -> Result<bool, Error> {
        let mut transaction = self.begin().await?;
        let written = sqlx::query!(
            "insert into api_keys (id, name, hash, scopes) values ($1, $1, $2, array['admin'])
             on conflict (id) do update set hash = excluded.hash, created_at = now(), revoked_at = null
             where api_keys.hash <> excluded.hash",
            BOOTSTRAP,
            hash,
        )
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        if written > 0 {
            sqlx::query!(
                "insert into admin_actions (actor, action, reason)
                 values ($1, 'keys.bootstrap', 'key bootstrap from the environment')",
                BOOTSTRAP
            )
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(written > 0)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::PgPool;

    use super::*;

    async fn names(store: &Store) -> Vec<String> {
        let mut names: Vec<String> = store.live_keys().await.expect("keys").into_iter().map(|key| key.name).collect();
        names.sort();
        names
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn keys_are_active_until_they_are_revoked_and_each_action_is_audited(pool: PgPool) {
        let store = Store::of_test(pool.clone());
        store.create_key("key_1", "a", b"hash", &["read".to_owned()], "me").await.expect("made");
        assert!(store.bootstrap_key(b"first").await.expect("written"));
        assert!(!store.bootstrap_key(b"first").await.expect("the same"));
        assert_eq!(names(&store).await, ["a", "bootstrap"]);
        assert!(store.revoke_key("key_1", "me").await.expect("revoked"));
        assert!(!store.revoke_key("key_1", "me").await.expect("only once"));
        assert!(store.revoke_key("bootstrap", "me").await.expect("revoked"));
        // A restart must not activate a revoked key again; another key replaces it.
        assert!(!store.bootstrap_key(b"first").await.expect("still revoked"));
        assert_eq!(names(&store).await, [""; 0]);
        assert!(store.bootstrap_key(b"second").await.expect("another"));
        assert_eq!(names(&store).await, ["bootstrap"]);
        let actions: Vec<(String, String)> =
            sqlx::query_as("select actor, action from admin_actions order by n").fetch_all(&pool).await.expect("rows");
        let expected = [
            ("me", "keys.create"),
            ("bootstrap", "keys.bootstrap"),
            ("me", "keys.revoke"),
            ("me", "keys.revoke"),
            ("bootstrap", "keys.bootstrap"),
        ];
        assert_eq!(actions, expected.map(|(actor, action)| (actor.to_owned(), action.to_owned())));
    }
}
