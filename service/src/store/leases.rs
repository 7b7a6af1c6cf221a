//! Who owns which shard: leases with epochs. Only this server's clock decides.

use sqlx::{Postgres, Transaction};

use super::{Error, Store};
use crate::streams::Fence;

/// Where this worker stands among those that live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rank {
    /// From 0, by name.
    pub rank: i64,
    /// How many live.
    pub workers: i64,
}

impl Store {
    /// A transaction that waits for no row for long, and holds none for long: whoever has a shard's row must not hold up
    /// all leases, and a worker that is paused during a renewal must not keep the others from its shards.
    async fn impatient(&self) -> Result<Transaction<'static, Postgres>, Error> {
        let mut turn = self.begin().await?;
        sqlx::query!(
            "select set_config('lock_timeout', '2000', true) as waits,
                    set_config('idle_in_transaction_session_timeout', '5000', true) as holds",
        )
        .fetch_one(&mut *turn)
        .await?;
        Ok(turn)
    }

    /// Says that a worker lives for `ttl_ms` more, and tells its place among the living.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn heartbeat(&self, worker: &str, ttl_ms: i64) -> Result<Rank, Error> {
        sqlx::query!(
            "insert into workers (worker, seen_until) values ($1, clock_timestamp() + $2::bigint * interval '1 ms')
             on conflict (worker) do update set seen_until = excluded.seen_until",
            worker,
            ttl_ms,
        )
        .execute(&self.pool)
        .await?;
        sqlx::query!("delete from workers where seen_until < clock_timestamp() - interval '1 day'")
            .execute(&self.pool)
            .await?;
        let row = sqlx::query!(
            r#"select count(*) as "workers!", count(*) filter (where worker < $1) as "rank!"
               from workers where seen_until > clock_timestamp()"#,
            worker,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Rank { rank: row.rank, workers: row.workers })
    }

    /// Forgets a worker that ends, so that the others take its share at once.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn delete_worker(&self, worker: &str) -> Result<(), Error> {
        sqlx::query!("delete from workers where worker = $1", worker).execute(&self.pool).await?;
        Ok(())
    }

    /// Renews the leases that are still this worker's; answers which are.
    ///
    /// # Errors
    /// When Postgres does not answer: the leases may or may not have been renewed.
    pub async fn renew(&self, held: &[(u16, Fence)], ttl_ms: i64) -> Result<Vec<u16>, Error> {
        let shards: Vec<i32> = held.iter().map(|(shard, _)| i32::from(*shard)).collect();
        let epochs: Vec<i64> = held.iter().map(|(_, fence)| fence.epoch).collect();
        let tokens: Vec<String> = held.iter().map(|(_, fence)| fence.token.clone()).collect();
        let mut turn = self.impatient().await?;
        let renewed = sqlx::query_scalar!(
            "update shards set lease_until = clock_timestamp() + $4::bigint * interval '1 ms'
             from unnest($1::int[], $2::bigint[], $3::text[]) as held (shard, epoch, token)
             where shards.shard = held.shard and shards.epoch = held.epoch and shards.token = held.token
               and shards.owner is not null
             returning shards.shard",
            &shards,
            &epochs,
            &tokens,
            ttl_ms,
        )
        .fetch_all(&mut *turn)
        .await?;
        turn.commit().await?;
        Ok(renewed.into_iter().map(|shard| shard as u16).collect())
    }

    /// Shards that nobody owns, or whose lease ran out.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn free_shards(&self) -> Result<Vec<u16>, Error> {
        let free = sqlx::query_scalar!(
            "select shard from shards where owner is null or lease_until < clock_timestamp() order by shard",
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(free.into_iter().map(|shard| shard as u16).collect())
    }

    /// Takes a shard that is free, under a new epoch; `None` when another worker was faster, or a commit of its last owner
    /// is still under way: waiting for that would keep this worker from renewing its own leases.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn take(&self, worker: &str, shard: u16, token: &str, ttl_ms: i64) -> Result<Option<Fence>, Error> {
        let mut turn = self.impatient().await?;
        let epoch = sqlx::query_scalar!(
            "with free as (
                 select shard as free from shards
                 where shard = $2 and (owner is null or lease_until < clock_timestamp()) for update skip locked
             ), taken as (
                 update shards set owner = $1, token = $3, epoch = epoch + 1,
                                   lease_until = clock_timestamp() + $4::bigint * interval '1 ms'
                 from free where shard = free
                 returning shard, epoch
             )
             insert into epochs (shard, epoch, worker) select shard, epoch, $1 from taken
             on conflict (shard, epoch) do update set worker = excluded.worker
             returning epoch",
            worker,
            i32::from(shard),
            token,
            ttl_ms,
        )
        .fetch_optional(&mut *turn)
        .await?;
        turn.commit().await?;
        Ok(epoch.map(|epoch| Fence { epoch, token: token.to_owned() }))
    }

    /// Raises the epoch of a shard that is still this owner's above the one that is beside the stream.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the shard is another's by now.
    pub async fn raise_epoch(&self, worker: &str, shard: u16, fence: &Fence, above: i64) -> Result<Fence, Error> {
        let epoch = sqlx::query_scalar!(
            "with raised as (
                 update shards set epoch = greatest(epoch, $4) + 1
                 where shard = $2 and epoch = $3 and token = $5 and owner is not null
                 returning shard, epoch
             )
             insert into epochs (shard, epoch, worker) select shard, epoch, $1 from raised
             on conflict (shard, epoch) do update set worker = excluded.worker
             returning epoch",
            worker,
            i32::from(shard),
            fence.epoch,
            above,
            fence.token,
        )
        .fetch_optional(&self.pool)
        .await?;
        epoch.map(|epoch| Fence { epoch, token: fence.token.clone() }).ok_or(Error::Fenced)
    }

    /// Gives a shard back.
    ///
    /// # Errors
    /// When Postgres does not answer; the lease then runs out by itself.
    pub async fn release(&self, shard: u16, fence: &Fence) -> Result<(), Error> {
        sqlx::query!(
            "update shards set owner = null, lease_until = null where shard = $1 and epoch = $2 and token = $3",
            i32::from(shard),
            fence.epoch,
            fence.token,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Says that a shard's group was made; answers whether it had been made before: then it was gone.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn note_prepared(&self, shard: u16) -> Result<bool, Error> {
        Ok(sqlx::query_scalar!(
            r#"with before as (select prepared from shards where shard = $1 for update)
               update shards set prepared = true from before where shard = $1 returning before.prepared as "prepared!""#,
            i32::from(shard),
        )
        .fetch_one(&self.pool)
        .await?)
    }

    /// Notes that a shard's stream or group was gone.
    ///
    /// # Errors
    /// When Postgres does not answer: not noted.
    pub async fn note_recreated(&self, shard: u16) -> Result<(), Error> {
        sqlx::query!("update shards set recreated_streams = recreated_streams + 1 where shard = $1", i32::from(shard))
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Notes that an entry is about to be decided alone; answers how often that was noted, this time counted.
    ///
    /// # Errors
    /// When Postgres does not answer: not noted, do not decide.
    pub async fn note_attempt(&self, shard: u16, stream_id: &str, digest: &[u8]) -> Result<i32, Error> {
        Ok(sqlx::query_scalar!(
            "insert into attempts (shard, stream_id, digest, attempts) values ($1, $2, $3, 1)
             on conflict (shard, stream_id) do update
             set attempts = case when attempts.digest = excluded.digest then attempts.attempts else 0 end + 1,
                 digest = excluded.digest, noted_at = now()
             returning attempts",
            i32::from(shard),
            stream_id,
            digest,
        )
        .fetch_one(&self.pool)
        .await?)
    }

    /// Takes a note back: the entry was decided, or let go for a reason that is not its own.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn withdraw_attempt(&self, shard: u16, stream_id: &str, decided: bool) -> Result<(), Error> {
        sqlx::query!(
            "with counted as (
                 update attempts set attempts = attempts - 1 where shard = $1 and stream_id = $2 and not $3
             )
             delete from attempts where shard = $1 and stream_id = $2 and $3",
            i32::from(shard),
            stream_id,
            decided,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Sets a shard's policy version where it stands lower, and notes from which record on; answers where it stands.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the shard is another's by now.
    pub async fn apply_policy(&self, shard: u16, fence: &Fence, version: i64) -> Result<i64, Error> {
        sqlx::query_scalar!(
            r#"with held as (
                 select policy_version as before, records from shards
                 where shard = $1 and epoch = $2 and token = $3 for update
             ), raised as (
                 update shards set policy_version = $4 from held where shard = $1 and held.before < $4
                 returning held.records
             ), noted as (
                 insert into shard_policies (shard, from_seq, version) select $1, records + 1, $4 from raised
                 on conflict do nothing
             )
             select greatest(before, $4) as "version!" from held"#,
            i32::from(shard),
            fence.epoch,
            fence.token,
            version,
        )
        .fetch_optional(&self.pool)
        .await?
        .ok_or(Error::Fenced)
    }
}
