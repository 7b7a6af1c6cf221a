//! What a caller can prove its identity with: secrets of API keys, and sessions of the console. Postgres holds only hashes.

use super::{Error, Store};

/// Hours that a session lasts, unless its key ends before.
pub const SESSION_HOURS: i32 = 8;
/// Most sessions of one secret; the oldest ones end first. Every process holds them in memory.
const MOST_SESSIONS: i64 = 32;

/// A secret that can be used, with its key.
#[derive(Debug, Clone)]
pub struct LiveSecret {
    /// Its id.
    pub secret_id: String,
    /// SHA-256 of the whole secret.
    pub hash: Vec<u8>,
    /// The id of its key.
    pub key_id: String,
    /// The name of its key.
    pub name: String,
    /// The scopes of its key.
    pub scopes: Vec<String>,
    /// The sources that its key is limited to, as JSON.
    pub source_ids: String,
    /// The destinations that its key is limited to, as JSON.
    pub destination_ids: String,
    /// The limits of its key of what it may send, as JSON.
    pub rate_limits: String,
    /// For how many milliseconds it has not expired yet; `None`: it never expires.
    pub expires_in_ms: Option<i64>,
    /// Whether it is a session of the console: then `hash` is that of the session's token, and `secret_id` the secret that
    /// signed in.
    pub is_session: bool,
}

impl Store {
    /// The secrets that can be used, and the sessions of the console that they began.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn live_secrets(&self) -> Result<Vec<LiveSecret>, Error> {
        let secrets = sqlx::query_as!(
            LiveSecret,
            r#"with live as (
                   select s.id as secret_id, s.hash, k.id as key_id, k.name, k.scopes, k.source_ids, k.destination_ids,
                          k.rate_limits, k.expires_at
                   from api_keys k join api_key_secrets s on s.key_id = k.id
                   where k.revoked_at is null and s.revoked_at is null and (k.expires_at is null or k.expires_at > now())
               ), used as (
                   select live.*, false as is_session from live
                   union all
                   select live.secret_id, c.hash, live.key_id, live.name, live.scopes, live.source_ids, live.destination_ids,
                          live.rate_limits, least(live.expires_at, c.expires_at), true
                   from console_sessions c join live on live.hash = c.secret_hash
                   where c.expires_at > now()
               )
               select secret_id as "secret_id!", hash as "hash!", key_id as "key_id!", name as "name!", scopes as "scopes!",
                      source_ids as "source_ids!", destination_ids as "destination_ids!", rate_limits as "rate_limits!",
                      (extract(epoch from expires_at - now()) * 1000)::bigint as expires_in_ms,
                      is_session as "is_session!"
               from used"#
        );
        Ok(secrets.fetch_all(&self.pool).await?)
    }

    /// Begins a session for the holder of a secret. Returns whether an active secret has that hash. Sessions that expired
    /// are deleted.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn begin_session(&self, hash: &[u8], secret_hash: &[u8]) -> Result<bool, Error> {
        let mut transaction = self.begin().await?;
        let begun = sqlx::query!(
            "insert into console_sessions (hash, secret_hash, expires_at)
             select $1, s.hash, now() + make_interval(hours => $3)
             from api_key_secrets s where s.hash = $2 and s.revoked_at is null",
            hash,
            secret_hash,
            SESSION_HOURS,
        )
        .execute(&mut *transaction)
        .await?
        .rows_affected();
        // A row that another process deletes at the same time is not waited for.
        sqlx::query!(
            "delete from console_sessions
             where hash in (select hash from console_sessions where expires_at < now() for update skip locked)"
        )
        .execute(&mut *transaction)
        .await?;
        sqlx::query!(
            "delete from console_sessions
             where hash in (select hash from console_sessions where secret_hash = $1 and hash <> $2
                            order by created_at desc, hash offset $3 for update skip locked)",
            secret_hash,
            hash,
            MOST_SESSIONS - 1,
        )
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(begun > 0)
    }

    /// Ends a session; every process refuses it within two seconds.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn end_session(&self, hash: &[u8]) -> Result<(), Error> {
        sqlx::query!("delete from console_sessions where hash = $1", hash).execute(&self.pool).await?;
        Ok(())
    }
}
