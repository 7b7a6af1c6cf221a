//! API keys with their secrets: Postgres holds only the hashes of secrets.

mod text;

use chrono::{DateTime, Utc};
use millrace_crds::RateLimits;

use self::text::{described, json, parsed};
use super::{Actor, Error, Store, admin::note_action};
use crate::domain::{IdPattern, Scope, Text};

/// Id and name of the key that comes from the environment; also the id of its secret.
const BOOTSTRAP: &str = "bootstrap";
/// Most secrets of a key that are active at once.
const MOST_SECRETS: i64 = 2;

/// A key as a list shows it.
#[derive(Debug, Clone)]
pub struct ApiKey {
    /// Its id, which is not secret.
    pub id: String,
    /// Its name, the actor in the audit trail.
    pub name: String,
    /// Its scopes.
    pub scopes: Vec<String>,
    /// The sources that it is limited to; empty: any.
    pub source_ids: Vec<IdPattern>,
    /// The destinations that it is limited to; empty: any.
    pub destination_ids: Vec<IdPattern>,
    /// Its own limits of what it may send.
    pub rate_limits: RateLimits,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it expires; `None`: never.
    pub expires_at: Option<DateTime<Utc>>,
    /// When it was revoked; `None` for an active key.
    pub revoked_at: Option<DateTime<Utc>>,
    /// Its secrets, oldest first.
    pub secrets: Vec<KeySecret>,
}

/// A secret of a key, without the secret itself.
#[derive(Debug, Clone)]
pub struct KeySecret {
    /// Its id, which is not secret.
    pub id: String,
    /// When it was created.
    pub created_at: DateTime<Utc>,
    /// When it was last used, up to a minute ago; `None`: never.
    pub last_used_at: Option<DateTime<Utc>>,
    /// When it was revoked by itself; `None`: it is active while its key is.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// A key to create.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: Text,
    /// Its scopes.
    pub scopes: Vec<Scope>,
    /// The sources that it is limited to; empty: any.
    pub source_ids: Vec<IdPattern>,
    /// The destinations that it is limited to; empty: any.
    pub destination_ids: Vec<IdPattern>,
    /// Its own limits of what it may send.
    pub rate_limits: RateLimits,
    /// When it expires; `None`: never.
    pub expires_at: Option<DateTime<Utc>>,
}

/// A secret to store.
#[derive(Debug, Clone, Copy)]
pub struct NewSecret<'a> {
    /// Its id.
    pub id: &'a str,
    /// SHA-256 of the whole secret.
    pub hash: &'a [u8],
}

/// Why a key was not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum KeyRefusal {
    /// No active key, or secret of it, has the id.
    #[error("no active key, or no active secret of it, has this id; list the keys to see their ids")]
    Unknown,
    /// It would expire before it exists.
    #[error("the time of expiry is not in the future")]
    Expired,
    /// It has two secrets already.
    #[error("the key has two secrets already; revoke the one that is no longer used")]
    TwoSecrets,
    /// The environment has its secret.
    #[error("the secret of the key bootstrap is what the environment holds; change it there")]
    Bootstrap,
}

impl Store {
    /// Keys in the order of their creation, after a key, at most `limit`.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn list_keys(&self, after: Option<(DateTime<Utc>, &str)>, limit: i64) -> Result<Vec<ApiKey>, Error> {
        self.read_keys(None, after, limit).await
    }

    /// One key.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn find_key(&self, id: &str) -> Result<Option<ApiKey>, Error> {
        Ok(self.read_keys(Some(id), None, 1).await?.pop())
    }

    async fn read_keys(
        &self,
        id: Option<&str>,
        after: Option<(DateTime<Utc>, &str)>,
        limit: i64,
    ) -> Result<Vec<ApiKey>, Error> {
        let (after_time, after_id) = after.unzip();
        let rows = sqlx::query!(
            "select id, name, scopes, source_ids, destination_ids, rate_limits, created_at, expires_at, revoked_at from api_keys
             where ($1::timestamptz is null or (created_at, id) > ($1, $2)) and ($3::text is null or id = $3)
             order by created_at, id limit $4",
            after_time,
            after_id,
            id,
            limit,
        )
        .fetch_all(&self.pool)
        .await?;
        let ids: Vec<String> = rows.iter().map(|row| row.id.clone()).collect();
        let mut secrets = self.secrets_of(&ids).await?;
        let keys = rows.into_iter().map(|row| {
            Ok(ApiKey {
                secrets: secrets.extract_if(.., |(key, _)| *key == row.id).map(|(_, secret)| secret).collect(),
                id: row.id,
                name: row.name,
                scopes: row.scopes,
                source_ids: parsed(&row.source_ids)?,
                destination_ids: parsed(&row.destination_ids)?,
                rate_limits: parsed(&row.rate_limits)?,
                created_at: row.created_at,
                expires_at: row.expires_at,
                revoked_at: row.revoked_at,
            })
        });
        keys.collect()
    }

    /// The secrets of keys, oldest first, each with the id of its key.
    async fn secrets_of(&self, keys: &[String]) -> Result<Vec<(String, KeySecret)>, Error> {
        let rows = sqlx::query!(
            "select key_id, id, created_at, last_used_at, revoked_at from api_key_secrets
             where key_id = any($1) order by created_at, id",
            keys
        )
        .fetch_all(&self.pool)
        .await?;
        let secrets = rows.into_iter().map(|row| {
            let (created_at, last_used_at, revoked_at) = (row.created_at, row.last_used_at, row.revoked_at);
            (row.key_id, KeySecret { id: row.id, created_at, last_used_at, revoked_at })
        });
        Ok(secrets.collect())
    }

    /// Stores a new key with its first secret, and adds the action to the audit trail.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn create_key(
        &self,
        key: &NewKey,
        secret: NewSecret<'_>,
        actor: &Actor,
    ) -> Result<Result<(), KeyRefusal>, Error> {
        let mut transaction = self.begin().await?;
        let scopes: Vec<String> = key.scopes.iter().map(|scope| scope.as_str().to_owned()).collect();
        let is_live = sqlx::query_scalar!(
            r#"insert into api_keys (id, name, scopes, source_ids, destination_ids, rate_limits, expires_at)
               values ($1, $2, $3, $4, $5, $6, $7) returning $7::timestamptz is null or $7 > now() as "is_live!""#,
            key.id,
            key.name.as_str(),
            &scopes,
            json(&key.source_ids),
            json(&key.destination_ids),
            json(&key.rate_limits),
            key.expires_at,
        )
        .fetch_one(&mut *transaction)
        .await?;
        if !is_live {
            return Ok(Err(KeyRefusal::Expired));
        }
        insert_secret(&mut transaction, &key.id, secret).await?;
        note_action(&mut transaction, actor, "keys.create", &described(key, &scopes)).await?;
        transaction.commit().await?;
        Ok(Ok(()))
    }

    /// Adds a second secret to an active key, and the action to the audit trail. The first one stays active.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn rotate_key(
        &self,
        id: &str,
        secret: NewSecret<'_>,
        actor: &Actor,
    ) -> Result<Result<(), KeyRefusal>, Error> {
        if id == BOOTSTRAP {
            return Ok(Err(KeyRefusal::Bootstrap));
        }
        let mut transaction = self.begin().await?;
        // Its lock keeps others from adding a third secret.
        let name = sqlx::query_scalar!(
            "select name from api_keys where id = $1 and revoked_at is null
                 and (expires_at is null or expires_at > now()) for update",
            id
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(name) = name else { return Ok(Err(KeyRefusal::Unknown)) };
        let active = sqlx::query_scalar!(
            r#"select count(*) as "count!" from api_key_secrets where key_id = $1 and revoked_at is null"#,
            id
        )
        .fetch_one(&mut *transaction)
        .await?;
        if active >= MOST_SECRETS {
            return Ok(Err(KeyRefusal::TwoSecrets));
        }
        insert_secret(&mut transaction, id, secret).await?;
        let reason = format!("key {id} ({name}), new secret {}", secret.id);
        note_action(&mut transaction, actor, "keys.rotate", &reason).await?;
        transaction.commit().await?;
        Ok(Ok(()))
    }

    /// Revokes a key with all its secrets, and adds the action to the audit trail.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn revoke_key(&self, id: &str, actor: &Actor) -> Result<Result<(), KeyRefusal>, Error> {
        let mut transaction = self.begin().await?;
        let name = sqlx::query_scalar!(
            "update api_keys set revoked_at = now() where id = $1 and revoked_at is null returning name",
            id
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(name) = name else { return Ok(Err(KeyRefusal::Unknown)) };
        note_action(&mut transaction, actor, "keys.revoke", &format!("key {id} ({name})")).await?;
        transaction.commit().await?;
        Ok(Ok(()))
    }

    /// Revokes one secret of an active key, and adds the action to the audit trail.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn revoke_secret(&self, key: &str, secret: &str, actor: &Actor) -> Result<Result<(), KeyRefusal>, Error> {
        let mut transaction = self.begin().await?;
        let name = sqlx::query_scalar!(
            "update api_key_secrets s set revoked_at = now() from api_keys k
             where s.id = $2 and s.key_id = $1 and s.revoked_at is null and k.id = s.key_id and k.revoked_at is null
             returning k.name",
            key,
            secret,
        )
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(name) = name else { return Ok(Err(KeyRefusal::Unknown)) };
        let reason = format!("secret {secret} of key {key} ({name})");
        note_action(&mut transaction, actor, "keys.revoke_secret", &reason).await?;
        transaction.commit().await?;
        Ok(Ok(()))
    }

    /// Notes when secrets were last used: so many milliseconds ago. A noted time never falls.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn note_last_use(&self, secrets: &[String], ago_ms: &[i64]) -> Result<(), Error> {
        sqlx::query!(
            "update api_key_secrets s
             set last_used_at = greatest(s.last_used_at, clock_timestamp() - used.ago_ms * interval '1 millisecond')
             from unnest($1::text[], $2::bigint[]) as used (id, ago_ms) where s.id = used.id",
            secrets,
            ago_ms,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Stores the key from the environment as the key `bootstrap` with scope `admin`. A revoked one stays revoked until
    /// the environment has another key. Returns whether anything was written.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn bootstrap_key(&self, hash: &[u8]) -> Result<bool, Error> {
        let mut transaction = self.begin().await?;
        // Its row is locked first, as by every change of a key.
        sqlx::query!(
            "insert into api_keys (id, name, scopes) values ($1, $1, array['admin'])
             on conflict (id) do update set name = excluded.name",
            BOOTSTRAP,
        )
        .execute(&mut *transaction)
        .await?;
        let written = sqlx::query!(
            "insert into api_key_secrets as s (id, key_id, hash) values ($1, $1, $2)
             on conflict (id) do update
             set hash = excluded.hash, created_at = now(), last_used_at = null, revoked_at = null
             where s.hash <> excluded.hash",
            BOOTSTRAP,
            hash,
        )
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        if written > 0 {
            sqlx::query!("update api_keys set created_at = now(), revoked_at = null where id = $1", BOOTSTRAP)
                .execute(&mut *transaction)
                .await?;
            let environment = Actor { name: BOOTSTRAP.into(), key_id: Some(BOOTSTRAP.into()), address: None };
            note_action(&mut transaction, &environment, "keys.bootstrap", "key bootstrap from the environment").await?;
        }
        transaction.commit().await?;
        Ok(written > 0)
    }
}

async fn insert_secret(connection: &mut sqlx::PgConnection, key: &str, secret: NewSecret<'_>) -> Result<(), Error> {
    let NewSecret { id, hash } = secret;
    sqlx::query!("insert into api_key_secrets (id, key_id, hash) values ($1, $2, $3)", id, key, hash)
        .execute(connection)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests;
