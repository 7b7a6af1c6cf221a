//! Ownership of shards: leases with epochs. Only the clock of Postgres decides.
//!
//! A lease lasts [`LONGEST_LEASE_MS`] at most. One that ends later was taken before the clock was set back: it has expired, or
//! nobody would take the shard of a dead worker for as long as the clock was ahead. The function `is_alive` decides.

use std::collections::BTreeMap;

use sqlx::{Postgres, Transaction};

use super::{Error, Store, columns::index_column};
use crate::{
    domain::{Lease, Offset, ShardId, StreamId, StreamPosition},
    protocol_trace,
};

/// Longest lease, in milliseconds; as in `is_alive` of the schema.
pub const LONGEST_LEASE_MS: u64 = 300_000;

/// The rank of a worker among the live workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rank {
    /// From 0, in the order of names.
    pub rank: i64,
    /// Number of live workers.
    pub workers: i64,
}

impl Store {
    /// Begins a transaction that waits for a row for at most 2 s, and holds one idle for at most 5 s. So a session that
    /// has locked one shard's row does not delay all leases, and a worker that is paused during a renewal does not lock
    /// its shards.
    async fn begin_with_timeouts(&self) -> Result<Transaction<'static, Postgres>, Error> {
        let mut turn = self.begin().await?;
        sqlx::query!(
            "select set_config('lock_timeout', '2000', true) as waits,
                    set_config('idle_in_transaction_session_timeout', '5000', true) as holds",
        )
        .fetch_one(&mut *turn)
        .await?;
        Ok(turn)
    }

    /// Extends the heartbeat of a worker by `ttl_ms`, and returns its rank among the live workers.
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
               from workers where is_alive(seen_until)"#,
            worker,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Rank { rank: row.rank, workers: row.workers })
    }

    /// Deletes a worker that ends, so that the others take its share at once.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn delete_worker(&self, worker: &str) -> Result<(), Error> {
        sqlx::query!("delete from workers where worker = $1", worker).execute(&self.pool).await?;
        Ok(())
    }

    /// Renews the leases that this worker still holds. Returns their shards. A row that is locked is left out, and counts
    /// as held while it shows this owner: the commit that has locked it extends the lease.
    ///
    /// # Errors
    /// When Postgres does not answer: the leases may or may not have been renewed.
    pub async fn renew(&self, held: &BTreeMap<ShardId, Lease>, ttl_ms: i64) -> Result<Vec<ShardId>, Error> {
        let shards: Vec<ShardId> = held.keys().copied().collect();
        let epochs: Vec<i64> = held.values().map(|lease| lease.epoch).collect();
        let tokens: Vec<String> = held.values().map(|lease| lease.token.clone()).collect();
        let mut turn = self.begin_with_timeouts().await?;
        let renewed = sqlx::query_scalar!(
            r#"with held as (
                 select * from unnest($1::int[], $2::bigint[], $3::text[]) as held (shard, epoch, token)
             ), free as (
                 select s.shard from shards s join held on s.shard = held.shard and s.epoch = held.epoch and s.token = held.token
                 where s.owner is not null
                 order by s.shard for update of s skip locked
             ), renewed as (
                 update shards s set lease_until = clock_timestamp() + $4::bigint * interval '1 ms'
                 from free where s.shard = free.shard
             )
             select s.shard as "shard: ShardId" from shards s
             join held on s.shard = held.shard and s.epoch = held.epoch and s.token = held.token
             where s.owner is not null"#,
            &shards as &[ShardId],
            &epochs,
            &tokens,
            ttl_ms,
        )
        .fetch_all(&mut *turn)
        .await?;
        turn.commit().await?;
        Ok(renewed)
    }

    /// Shards without an owner, or with an expired lease.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn free_shards(&self) -> Result<Vec<ShardId>, Error> {
        let free = sqlx::query_scalar!(
            r#"select shard as "shard: ShardId" from shards
               where owner is null or not is_alive(lease_until) order by shard"#,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(free)
    }

    /// Takes a free shard under a new epoch. Returns `None` when another worker was faster, or a commit of the previous
    /// owner still runs: waiting for that would keep this worker from renewing its own leases.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn take(&self, worker: &str, shard: ShardId, token: &str, ttl_ms: i64) -> Result<Option<Lease>, Error> {
        let step = protocol_trace::begin(shard.get(), "take", || format!("\"token\":\"{token}\""));
        let mut turn = self.begin_with_timeouts().await?;
        let epoch = sqlx::query_scalar!(
            "with free as (
                 select shard as free from shards
                 where shard = $2 and (owner is null or not is_alive(lease_until)) for update skip locked
             ), taken as (
                 update shards set owner = $1, token = $3, epoch = epoch + 1,
                                   lease_until = clock_timestamp() + $4::bigint * interval '1 ms'
                 from free where shard = free
                 returning shard, epoch, dead_letters, conflicts, processed, duplicates, alerts
             )
             insert into epochs (worker, shard, epoch, dead_letters, conflicts, processed, duplicates, alerts)
             select $1, taken.* from taken
             on conflict (shard, epoch) do update set worker = excluded.worker
             returning epoch",
            worker,
            shard as ShardId,
            token,
            ttl_ms,
        )
        .fetch_optional(&mut *turn)
        .await?;
        turn.commit().await?;
        match epoch {
            Some(epoch) => step.end("done", || format!("\"epoch\":{epoch}")),
            None => step.is("none"),
        }
        Ok(epoch.map(|epoch| Lease { epoch, token: token.to_owned() }))
    }

    /// Raises the epoch of an owned shard above `above`, the epoch beside the stream.
    ///
    /// # Errors
    /// [`Error::Fenced`] when another worker owns the shard by now.
    pub async fn raise_epoch(&self, worker: &str, shard: ShardId, lease: &Lease, above: i64) -> Result<Lease, Error> {
        let step = protocol_trace::begin(shard.get(), "raise", || format!("{},\"above\":{above}", lease.facts()));
        let epoch = sqlx::query_scalar!(
            "with raised as (
                 update shards set epoch = greatest(epoch, $4) + 1
                 where shard = $2 and epoch = $3 and token = $5 and owner is not null
                 returning shard, epoch, dead_letters, conflicts, processed, duplicates, alerts
             )
             insert into epochs (worker, shard, epoch, dead_letters, conflicts, processed, duplicates, alerts)
             select $1, raised.* from raised
             on conflict (shard, epoch) do update set worker = excluded.worker
             returning epoch",
            worker,
            shard as ShardId,
            lease.epoch,
            above,
            lease.token,
        )
        .fetch_optional(&self.pool)
        .await?;
        let epoch = epoch.ok_or(Error::Fenced)?;
        step.end("done", || format!("\"now\":{epoch}"));
        Ok(Lease { epoch, token: lease.token.clone() })
    }

    /// Releases a shard.
    ///
    /// # Errors
    /// When Postgres does not answer; the lease then expires by itself.
    pub async fn release(&self, shard: ShardId, lease: &Lease) -> Result<(), Error> {
        let step = protocol_trace::begin(shard.get(), "release", || lease.facts());
        sqlx::query!(
            "update shards set owner = null, lease_until = null where shard = $1 and epoch = $2 and token = $3",
            shard as ShardId,
            lease.epoch,
            lease.token,
        )
        .execute(&self.pool)
        .await?;
        step.is("done");
        Ok(())
    }

    /// Begins the account of a shard at the offset that Redis has acknowledged, unless it has begun. Returns the offset up
    /// to which records are applied or lost.
    ///
    /// # Errors
    /// [`Error::Fenced`] when another worker owns the shard by now.
    pub async fn open_account(&self, shard: ShardId, lease: &Lease, acknowledged: Offset) -> Result<Offset, Error> {
        let step = protocol_trace::begin(shard.get(), "account", || {
            format!("{},\"acknowledged\":{acknowledged}", lease.facts())
        });
        let accounted = sqlx::query_scalar!(
            r#"update shards set accounted = coalesce(accounted, $4) where shard = $1 and epoch = $2 and token = $3
               returning accounted as "accounted!: Offset""#,
            shard as ShardId,
            lease.epoch,
            lease.token,
            acknowledged as Offset,
        )
        .fetch_optional(&self.pool)
        .await?
        .ok_or(Error::Fenced)?;
        step.end("done", || format!("\"accounted\":{accounted}"));
        Ok(accounted)
    }

    /// Stores that a shard's consumer group was created. Returns whether it had been created before: then it was lost.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn note_prepared(&self, shard: ShardId) -> Result<bool, Error> {
        Ok(sqlx::query_scalar!(
            r#"with before as (select prepared from shards where shard = $1 for update)
               update shards set prepared = true from before where shard = $1 returning before.prepared as "prepared!""#,
            shard as ShardId,
        )
        .fetch_one(&self.pool)
        .await?)
    }

    /// Counts that a shard's stream or group was recreated.
    ///
    /// # Errors
    /// When Postgres does not answer: not counted.
    pub async fn note_recreated(&self, shard: ShardId) -> Result<(), Error> {
        sqlx::query!("update shards set recreated_streams = recreated_streams + 1 where shard = $1", shard as ShardId)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The index of the record that was noted last of a poison candidate; `None`: none was.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn noted_index(&self, shard: ShardId, entry: StreamId) -> Result<Option<u16>, Error> {
        let index = sqlx::query_scalar!(
            "select stream_index from attempts where shard = $1 and stream_id = $2",
            shard as ShardId,
            entry as StreamId,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(index.and_then(|index| u16::try_from(index).ok()))
    }

    /// Stores an attempt to decide a record of a poison candidate alone, in place of that of another record of the entry.
    /// Returns the number of attempts, including this one.
    ///
    /// # Errors
    /// When Postgres does not answer: not stored, so the caller must not decide the record.
    pub async fn note_attempt(&self, shard: ShardId, position: StreamPosition, digest: &[u8]) -> Result<i32, Error> {
        Ok(sqlx::query_scalar!(
            "insert into attempts (shard, stream_id, stream_index, digest, attempts) values ($1, $2, $3, $4, 1)
             on conflict (shard, stream_id) do update
             set attempts = case when attempts.digest = excluded.digest and attempts.stream_index = excluded.stream_index
                                 then attempts.attempts else 0 end + 1,
                 stream_index = excluded.stream_index, digest = excluded.digest, noted_at = now()
             returning attempts",
            shard as ShardId,
            position.entry as StreamId,
            index_column(position),
            digest,
        )
        .fetch_one(&self.pool)
        .await?)
    }

    /// Withdraws an attempt: the decision was abandoned for a reason outside of the record.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn withdraw_attempt(&self, shard: ShardId, entry: StreamId) -> Result<(), Error> {
        sqlx::query!(
            "update attempts set attempts = attempts - 1 where shard = $1 and stream_id = $2",
            shard as ShardId,
            entry as StreamId,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Deletes the note of a poison candidate: all of its records were decided.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn delete_attempts(&self, shard: ShardId, entry: StreamId) -> Result<(), Error> {
        sqlx::query!("delete from attempts where shard = $1 and stream_id = $2", shard as ShardId, entry as StreamId,)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Raises a shard's policy version to at least `version`, and stores from which record on it is active. Returns the
    /// version that the shard runs.
    ///
    /// # Errors
    /// [`Error::Fenced`] when another worker owns the shard by now.
    pub async fn apply_policy(&self, shard: ShardId, lease: &Lease, version: i64) -> Result<i64, Error> {
        let step = protocol_trace::begin(shard.get(), "policy", || format!("{},\"version\":{version}", lease.facts()));
        let applied = sqlx::query_scalar!(
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
            shard as ShardId,
            lease.epoch,
            lease.token,
            version,
        )
        .fetch_optional(&self.pool)
        .await?
        .ok_or(Error::Fenced)?;
        step.end("done", || format!("\"applied\":{applied}"));
        Ok(applied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::TestPipeline;

    #[tokio::test]
    async fn a_lease_from_before_the_clock_was_set_back_has_expired() {
        let pipeline = TestPipeline::new("shards: 2").await;
        let (store, shard) = (&pipeline.store, ShardId::new(0));
        store.heartbeat("one", 60_000).await.unwrap();
        let held = store.take("one", shard, "a", 60_000).await.unwrap().unwrap();
        assert_eq!(store.take("two", shard, "b", 60_000).await.unwrap(), None);
        let ahead = "update shards set lease_until = lease_until + interval '100 days';
                     update workers set seen_until = seen_until + interval '100 days'";
        sqlx::raw_sql(ahead).execute(&store.pool).await.unwrap();
        let rank = store.heartbeat("two", 60_000).await.unwrap();
        assert_eq!((rank.rank, rank.workers), (0, 1), "the other worker counts as dead until its next heartbeat");
        assert!(store.free_shards().await.unwrap().contains(&shard));
        let taken = store.take("two", shard, "b", 60_000).await.unwrap().unwrap();
        assert!(taken.epoch > held.epoch);
    }
}
