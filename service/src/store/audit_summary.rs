//! Counts over the audit trail, by action and worker, and by action and destination: from counts that the commits keep, or
//! by a scan of the facts.

use std::collections::BTreeMap;

use super::{AuditFilter, AuditTotals, DestinationFacts, Error, Store, slow::Watch};
use crate::domain::{Seq, ShardId};

/// Counts of outcomes. Each has its facts.
#[derive(Debug, Clone, Default)]
pub struct OutcomeCounts {
    /// The worker or the destination that they are of.
    pub of: String,
    /// Processed records.
    pub processed: i64,
    /// Those of them that raised an alert.
    pub alerts: i64,
    /// Duplicates.
    pub duplicates: i64,
    /// Conflicts.
    pub conflicts: i64,
    /// Opened dead letters.
    pub dead_letters: i64,
    /// Dead letters that a replay closed.
    pub replayed: i64,
    /// Discarded dead letters.
    pub discarded: i64,
}

impl OutcomeCounts {
    /// The facts of these outcomes, by action. An outcome has the facts `RECEIVED` and `QUEUED`, unless it is that of a
    /// replay.
    #[must_use]
    pub fn facts(&self) -> BTreeMap<&'static str, i64> {
        let entries = self.processed + self.duplicates + self.conflicts + self.dead_letters - self.replayed;
        let counts =
            [("RECEIVED", entries), ("QUEUED", entries), ("REPLAYED", self.replayed), ("DISCARDED", self.discarded)];
        self.facts_of_worker().into_iter().chain(counts).filter(|(_, count)| *count > 0).collect()
    }

    /// The facts that a worker makes, by action.
    #[must_use]
    pub fn facts_of_worker(&self) -> BTreeMap<&'static str, i64> {
        let counts = [
            ("PROCESSED", self.processed),
            ("ALERTED", self.alerts),
            ("DROPPED", self.duplicates),
            ("CONFLICT", self.conflicts),
            ("DEAD_LETTERED", self.dead_letters),
        ];
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }

    /// Adds other outcomes.
    pub fn add(&mut self, other: &Self) {
        self.processed += other.processed;
        self.alerts += other.alerts;
        self.duplicates += other.duplicates;
        self.conflicts += other.conflicts;
        self.dead_letters += other.dead_letters;
        self.replayed += other.replayed;
        self.discarded += other.discarded;
    }
}

/// Counts over the whole trail, but for destinations.
#[derive(Debug, Clone, Default)]
pub struct TrailCounts {
    /// By worker, in the order of their names. Of replays and discards they count none.
    pub workers: Vec<OutcomeCounts>,
    /// Dead letters that a replay closed.
    pub replayed: i64,
    /// Discarded dead letters.
    pub discarded: i64,
    /// Other actions of administrators.
    pub admin: i64,
}

impl Store {
    /// Counts of the whole trail, from the counts that commits keep: those of a worker are what the counts of its shards
    /// grew by in its epochs.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn trail_counts(&self) -> Result<TrailCounts, Error> {
        let _watch = Watch::start("audit.counts");
        let workers = sqlx::query_as!(
            OutcomeCounts,
            r#"with spans as (
                   select e.worker, e.shard,
                          lead(e.processed, 1, s.processed) over epochs - e.processed as processed,
                          lead(e.alerts, 1, s.alerts) over epochs - e.alerts as alerts,
                          lead(e.duplicates, 1, s.duplicates) over epochs - e.duplicates as duplicates,
                          e.conflicts as conflicts_after, lead(e.conflicts, 1, s.conflicts) over epochs as conflicts_upto,
                          e.dead_letters as dead_letters_after,
                          lead(e.dead_letters, 1, s.dead_letters) over epochs as dead_letters_upto
                   from epochs e join shards s on s.shard = e.shard
                   window epochs as (partition by e.shard order by e.epoch)
               )
               select worker as "of!", sum(processed)::bigint as "processed!", sum(alerts)::bigint as "alerts!",
                      sum(duplicates)::bigint as "duplicates!",
                      sum(conflicts_upto - conflicts_after - skipped.conflicts)::bigint as "conflicts!",
                      sum(dead_letters_upto - dead_letters_after - skipped.dead_letters)::bigint as "dead_letters!",
                      0::bigint as "replayed!", 0::bigint as "discarded!"
               from spans cross join lateral (
                   -- An owner skips numbers: a gap is of one epoch.
                   select coalesce(sum(to_n - from_n + 1) filter (where kind = 'conflicts' and from_n > conflicts_after
                                                                    and to_n <= conflicts_upto), 0) as conflicts,
                          coalesce(sum(to_n - from_n + 1) filter (where kind = 'dead_letters' and from_n > dead_letters_after
                                                                    and to_n <= dead_letters_upto), 0) as dead_letters
                   from gaps where gaps.shard = spans.shard) skipped
               group by worker order by worker"#
        )
        .fetch_all(&self.pool)
        .await?;
        let rest = sqlx::query!(
            r#"select (select coalesce(sum(replayed), 0)::bigint from outcome_counts) as "replayed!",
                      (select count(*) from dead_letters where state = 'discarded') as "discarded!",
                      (select count(*) from admin_actions) as "admin!""#
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(TrailCounts { workers, replayed: rest.replayed, discarded: rest.discarded, admin: rest.admin })
    }

    /// Counts of the `limit` destinations after `after`, from the counts that commits keep.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn destination_counts(&self, after: &str, limit: i64) -> Result<Vec<OutcomeCounts>, Error> {
        let _watch = Watch::start("audit.destination_counts");
        // Each branch ends at the limit by itself: its first destinations have all of theirs that are on the page.
        let destinations = sqlx::query_as!(
            OutcomeCounts,
            r#"select destination_id as "of!", sum(processed)::bigint as "processed!", sum(alerts)::bigint as "alerts!",
                      sum(duplicates)::bigint as "duplicates!", sum(conflicts)::bigint as "conflicts!",
                      sum(dead_letters)::bigint as "dead_letters!", sum(replayed)::bigint as "replayed!",
                      sum(discarded)::bigint as "discarded!"
               from (
                   (select destination_id, sum(count) as processed, sum(alerts) as alerts, 0 as duplicates,
                           0 as conflicts, 0 as dead_letters, 0 as replayed, 0 as discarded
                    from totals where destination_id > $1 group by destination_id order by destination_id limit $2)
                   union all
                   (select destination_id, 0, 0, sum(duplicates), sum(conflicts), sum(dead_letters), sum(replayed), 0
                    from outcome_counts where destination_id > $1 group by destination_id order by destination_id limit $2)
                   union all
                   (select destination_id, 0, 0, 0, 0, 0, 0, count(*)
                    from dead_letters where state = 'discarded' and destination_id > $1
                    group by destination_id order by destination_id limit $2)
               ) counts
               group by destination_id order by destination_id limit $2"#,
            after,
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(destinations)
    }

    /// The count of each action, by worker: a scan of the facts.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn audit_totals(&self, filter: &AuditFilter) -> Result<Vec<AuditTotals>, Error> {
        let place = self.place_of(filter).await?;
        let _watch = Watch::start("audit.totals");
        let totals = sqlx::query_as!(
            AuditTotals,
            r#"select f.action as "action!", e.worker as "worker?", sum(f.count)::bigint as "count!"
               from (select action, shard, epoch, count(*) as count
                     from audit_facts
                     where ($1::text[] is null or action = any($1))
                       and ($2::text is null or record_id = $2)
                       and ($3::text is null or destination_id = $3)
                       and ($4::timestamptz is null or time >= $4)
                       and ($5::timestamptz is null or time < $5)
                       and ($2::text is null or kind <> 1 or shard = $6 and n = $7)
                     group by 1, 2, 3) f
               left join epochs e on e.shard = f.shard and e.epoch = f.epoch
               group by 1, 2 order by 1, 2"#,
            filter.actions.as_deref(),
            filter.record_id,
            filter.destination_id,
            filter.start,
            filter.end,
            place.map(|place| place.shard) as Option<ShardId>,
            place.map(|place| place.seq) as Option<Seq>,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(totals)
    }

    /// The count of each action for each of the `limit` destinations after `after`: a scan of the facts.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn audit_destinations(
        &self,
        filter: &AuditFilter,
        after: &str,
        limit: i64,
    ) -> Result<Vec<DestinationFacts>, Error> {
        let place = self.place_of(filter).await?;
        let _watch = Watch::start("audit.destinations");
        let totals = sqlx::query_as!(
            DestinationFacts,
            r#"with counted as (
                   select destination_id, action, count(*) as count from audit_facts
                   where destination_id > $6
                     and ($1::text[] is null or action = any($1))
                     and ($2::text is null or record_id = $2)
                     and ($3::text is null or destination_id = $3)
                     and ($4::timestamptz is null or time >= $4)
                     and ($5::timestamptz is null or time < $5)
                     and ($2::text is null or kind <> 1 or shard = $8 and n = $9)
                   group by 1, 2
               ), page as (select distinct destination_id from counted order by 1 limit $7)
               select counted.destination_id as "destination_id!", action as "action!", count as "count!"
               from counted join page using (destination_id)
               order by 1, 2"#,
            filter.actions.as_deref(),
            filter.record_id,
            filter.destination_id,
            filter.start,
            filter.end,
            after,
            limit,
            place.map(|place| place.shard) as Option<ShardId>,
            place.map(|place| place.seq) as Option<Seq>,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(totals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::Watermarks, store::testing::TestPipeline};

    const SHARD: ShardId = ShardId::new(0);

    #[tokio::test]
    async fn each_worker_counts_what_its_shards_grew_by_in_its_epochs() {
        let test = TestPipeline::new("shards: 1").await;
        let store = &test.store;
        let run = async |sql: &'static str| sqlx::raw_sql(sql).execute(&store.pool).await.unwrap();
        let first = store.take("one", SHARD, "first", 60_000).await.unwrap().unwrap();
        run("update shards set processed = 5, alerts = 2, duplicates = 1, conflicts = 3, dead_letters = 4").await;
        // Numbers 4 to 6 of conflicts are skipped.
        let skipped = Watermarks { conflicts: Seq::new(6), dead_letters: Seq::new(4), ..Watermarks::default() };
        store.skip_to(SHARD, &first, skipped).await.unwrap();
        let raised = store.raise_epoch("one", SHARD, &first, 7).await.unwrap();
        run("update shards set processed = 6").await;
        store.release(SHARD, &raised).await.unwrap();
        store.take("two", SHARD, "second", 60_000).await.unwrap().unwrap();
        run("update shards set processed = 16, conflicts = 8").await;
        let counts = store.trail_counts().await.unwrap().workers;
        let facts: Vec<_> =
            counts.iter().map(|worker| (worker.of.as_str(), worker.facts_of_worker().into_iter().collect())).collect();
        let one = vec![("ALERTED", 2), ("CONFLICT", 3), ("DEAD_LETTERED", 4), ("DROPPED", 1), ("PROCESSED", 6)];
        let two = vec![("CONFLICT", 2), ("PROCESSED", 10)];
        assert_eq!(facts, [("one", one), ("two", two)]);
    }
}
