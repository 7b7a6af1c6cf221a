//! Skipped sequence numbers: after Postgres was rewound, no number is assigned twice.

use super::{Error, Store, newest::Server};
use crate::{
    domain::{Lease, Offset, Seq, ShardId, StreamId, Watermarks},
    protocol_trace,
};

/// The highest numbers and counts of a shard's log, and the server that holds it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardProgress {
    /// Highest assigned sequence numbers.
    pub watermarks: Watermarks,
    /// All records up to it are applied or lost.
    pub accounted: Offset,
    /// The highest id of an entry that was ever applied.
    pub applied: Option<StreamId>,
    /// A server that was restored, or replaced another one, counts as another server.
    pub server: Server,
}

impl ShardProgress {
    /// As facts of the protocol trace.
    #[must_use]
    pub fn facts(&self) -> String {
        let applied = self.applied.map(|applied| applied.to_string()).unwrap_or_default();
        let Server(server) = self.server;
        let numbers = self.watermarks.facts();
        format!("{numbers},\"accounted\":{},\"applied\":\"{applied}\",\"server\":{server}", self.accounted)
    }
}

impl Store {
    /// Reads the progress of a shard.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn progress_of(&self, shard: ShardId) -> Result<ShardProgress, Error> {
        let row = sqlx::query!(
            r#"select records as "records: Seq", dead_letters as "dead_letters: Seq", conflicts as "conflicts: Seq",
                      coalesce(accounted, 0) as "accounted!: Offset", applied_entry as "applied: StreamId",
                      (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint as "server!"
               from shards where shard = $1"#,
            shard as ShardId,
        )
        // Over a connection for commits: after a failover, old connections to the replaced server remain for a while.
        .fetch_one(&self.commits)
        .await?;
        Ok(ShardProgress {
            watermarks: Watermarks { records: row.records, dead_letters: row.dead_letters, conflicts: row.conflicts },
            accounted: row.accounted,
            applied: row.applied,
            server: Server(row.server),
        })
    }

    /// Raises a shard's highest numbers to at least `least`, and stores the skipped numbers in `gaps`. Returns the
    /// highest numbers after that.
    ///
    /// # Errors
    /// [`Error::Fenced`] when another worker owns the shard by now.
    pub async fn skip_to(&self, shard: ShardId, fence: &Lease, least: Watermarks) -> Result<Watermarks, Error> {
        let step = protocol_trace::begin(shard.get(), "skip", || format!("{},{}", fence.facts(), least.facts()));
        let row = sqlx::query!(
            r#"with previous as (
                   select records, dead_letters, conflicts from shards
                   where shard = $1 and epoch = $2 and token = $3 and owner is not null for update
               ), noted as (
                   insert into gaps (shard, kind, from_n, to_n)
                   select $1, kind, highest + 1, least
                   from previous cross join lateral (values
                       ('records', records, $4::bigint), ('dead_letters', dead_letters, $5::bigint),
                       ('conflicts', conflicts, $6::bigint)) as kinds (kind, highest, least)
                   where least > highest
               )
               update shards set records = greatest(shards.records, $4),
                      dead_letters = greatest(shards.dead_letters, $5),
                      conflicts = greatest(shards.conflicts, $6)
               from previous where shard = $1
               returning shards.records as "records: Seq", shards.dead_letters as "dead_letters: Seq",
                         shards.conflicts as "conflicts: Seq""#,
            shard as ShardId,
            fence.epoch,
            fence.token,
            least.records as Seq,
            least.dead_letters as Seq,
            least.conflicts as Seq,
        )
        .fetch_optional(&self.pool)
        .await?
        .ok_or(Error::Fenced)?;
        let skipped = Watermarks { records: row.records, dead_letters: row.dead_letters, conflicts: row.conflicts };
        step.end("done", || skipped.facts());
        Ok(skipped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::TestPipeline;

    fn watermarks(records: i64, dead_letters: i64, conflicts: i64) -> Watermarks {
        let [records, dead_letters, conflicts] = [records, dead_letters, conflicts].map(Seq::new);
        Watermarks { records, dead_letters, conflicts }
    }

    const SHARD: ShardId = ShardId::new(0);

    #[tokio::test]
    async fn skipped_numbers_are_stored_and_only_by_the_owner() {
        let pipeline = TestPipeline::new("shards: 1").await;
        let store = &pipeline.store;
        let fence = store.take("one", SHARD, "token", 60_000).await.unwrap().unwrap();
        sqlx::query("update shards set records = 7, conflicts = 4, accounted = 12").execute(&store.pool).await.unwrap();
        let other = Lease { token: "other".to_owned(), ..fence.clone() };
        assert!(matches!(store.skip_to(SHARD, &other, watermarks(9, 9, 9)).await, Err(Error::Fenced)));
        let progress = store.progress_of(SHARD).await.unwrap();
        assert_eq!(
            (progress.watermarks, progress.accounted),
            (watermarks(7, 0, 4), Offset::new(12)),
            "nothing changed"
        );
        assert_eq!(store.skip_to(SHARD, &fence, watermarks(10, 2, 3)).await.unwrap(), watermarks(10, 2, 4));
        assert_eq!(
            store.skip_to(SHARD, &fence, watermarks(10, 2, 3)).await.unwrap(),
            watermarks(10, 2, 4),
            "a repetition changes nothing"
        );
        let gaps: Vec<(String, i64, i64)> =
            sqlx::query_as("select kind, from_n, to_n from gaps order by kind").fetch_all(&store.pool).await.unwrap();
        assert_eq!(gaps, [("dead_letters".to_owned(), 1, 2), ("records".to_owned(), 8, 10)]);
    }
}
