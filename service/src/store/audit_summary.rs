//! Counts over the audit trail: the facts of `audit` by action and worker, and by action and destination.

use super::{AuditFilter, AuditTotals, DestinationFacts, Error, Store};

impl Store {
    /// The count of each action, by worker.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn audit_totals(&self, filter: &AuditFilter) -> Result<Vec<AuditTotals>, Error> {
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
                     group by 1, 2, 3) f
               left join epochs e on e.shard = f.shard and e.epoch = f.epoch
               group by 1, 2 order by 1, 2"#,
            filter.actions.as_deref(),
            filter.record_id,
            filter.destination_id,
            filter.start,
            filter.end
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(totals)
    }

    /// The count of each action for each of the `limit` destinations after `after`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn audit_destinations(
        &self,
        filter: &AuditFilter,
        after: &str,
        limit: i64,
    ) -> Result<Vec<DestinationFacts>, Error> {
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
            limit
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(totals)
    }
}
