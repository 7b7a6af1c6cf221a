//! Ends of sinks: the last number of each shard, and whether everything up to it was published.

use chrono::{DateTime, Utc};

use super::{Error, SinkRow, Store, columns::unzipped};
use crate::domain::{Seq, ShardId, ShardSeq};

impl Store {
    /// Stores another end of a sink, which is not reached. Does nothing if `version` is not the newest policy version.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn set_sink_until(&self, name: &str, until: Option<DateTime<Utc>>, version: i64) -> Result<(), Error> {
        sqlx::query!(
            "with changed as (
                 update sinks set until = $2, completed_at = null
                 where name = $1 and until is distinct from $2 and $3 = (select max(version) from policies)
                 returning name
             )
             update sink_starts set upto = null from changed where sink = name",
            name,
            until,
            version,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The last number of each shard before the end of a sink; `None`: they are not all known.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn sink_ends(&self, name: &str) -> Result<Option<Vec<ShardSeq>>, Error> {
        let rows = sqlx::query!(
            r#"select shard as "shard: ShardId", upto as "upto: Seq" from sink_starts where sink = $1 order by shard"#,
            name
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| Some(ShardSeq { shard: row.shard, seq: row.upto? })).collect())
    }

    /// Stores the last number of each shard before the end of a sink at `until`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn set_sink_ends(&self, name: &str, until: DateTime<Utc>, ends: &[ShardSeq]) -> Result<(), Error> {
        let (shards, upto) = unzipped(ends);
        sqlx::query!(
            "with sink as (select name from sinks where name = $1 and until = $2 for share)
             update sink_starts s set upto = e.upto
             from sink, unnest($3::int[], $4::bigint[]) as e (shard, upto) where s.sink = sink.name and s.shard = e.shard",
            name,
            until,
            &shards as &[ShardId],
            &upto as &[Seq],
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Whether a webhook has delivered all outcomes up to these numbers, or given them up.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn is_webhook_at(&self, name: &str, ends: &[ShardSeq]) -> Result<bool, Error> {
        let (shards, upto) = unzipped(ends);
        let is_at = sqlx::query_scalar!(
            r#"select not exists (select from unnest($2::int[], $3::bigint[]) as e (shard, upto)
                                  left join webhook_cursors c on c.sink = $1 and c.shard = e.shard
                                  where c.cursor is null or c.cursor < e.upto)
                  and not exists (select from deliveries where sink = $1 and state = 'waiting') as "is_at!""#,
            name,
            &shards as &[ShardId],
            &upto as &[Seq],
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(is_at)
    }

    /// Completes a sink that has published all before its end. Returns false if it has another start or end by now.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn complete_sink(&self, row: &SinkRow, until: DateTime<Utc>) -> Result<bool, Error> {
        let completed = sqlx::query_scalar!(
            r#"with completed as (
                   update sinks set completed_at = clock_timestamp()
                   where name = $1 and cursor_generation = $2 and until = $3 and started and not removed
                   returning name
               ), cleared as (
                   delete from sink_states using completed where sink = name
               )
               select count(*) > 0 as "completed!" from completed"#,
            row.name,
            row.cursor_generation,
            until,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(completed)
    }
}
