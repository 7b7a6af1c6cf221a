//! Partitions of the records, created ahead of their periods.
//!
//! Must never create a default partition: a partition could then not be detached without a lock that stops all commits.

use millrace_crds::Partition;
use sqlx::{PgConnection, PgPool};

use super::{Error, Store, session::BEGIN};
use crate::domain::Period;

/// Number of periods after the present one that have a partition.
const AHEAD: usize = 2;

impl Store {
    /// Creates the missing partitions of the present period and the next two. Without a missing one it needs no right to
    /// create.
    ///
    /// # Errors
    /// When Postgres does not answer, the role may not create a partition, or a table stays locked.
    pub async fn create_partitions(&self, partition: Partition) -> Result<Vec<Period>, Error> {
        let now = self.now().await?;
        let mut period = Period::of(now, partition);
        let mut created = Vec::new();
        for _ in 0..=AHEAD {
            if create_partition(&self.pool, period).await? {
                created.push(period);
            }
            period = period.next(partition);
        }
        Ok(created)
    }
}

/// The table of a period. Safe in SQL: a name of digits.
pub(super) fn table_of(period: Period) -> String {
    format!("records_{}", period.first().format("%Y%m%d"))
}

/// Creates the partition of a period unless it exists. Returns whether it did.
pub(super) async fn create_partition(pool: &PgPool, period: Period) -> Result<bool, Error> {
    let name = table_of(period);
    if exists(&mut *pool.acquire().await?, &name).await? {
        return Ok(false);
    }
    let mut turn = pool.begin_with(BEGIN).await?;
    sqlx::query!(
        "select set_config('lock_timeout', least(2000, setting::int)::text, true),
                pg_advisory_xact_lock(hashtextextended(current_schema() || ' partitions', 0))::text
         from pg_settings where name = 'lock_timeout'"
    )
    .fetch_one(&mut *turn)
    .await?;
    if exists(&mut turn, &name).await? {
        return Ok(false);
    }
    // Attached, and not created as a partition, because that would lock the table against commits. Safe in SQL: a name of
    // digits.
    let create = format!(
        "create table {name} (like records including all);
         alter table records attach partition {name} for values in ('{period}')"
    );
    sqlx::raw_sql(sqlx::AssertSqlSafe(create)).execute(&mut *turn).await?;
    turn.commit().await?;
    Ok(true)
}

/// Whether a partition is attached, or is being detached.
async fn exists(connection: &mut PgConnection, name: &str) -> Result<bool, Error> {
    Ok(sqlx::query_scalar!(
        r#"select exists (select from pg_inherits where inhparent = 'records'::regclass and inhrelid = to_regclass($1)) as "exists!""#,
        name,
    )
    .fetch_one(connection)
    .await?)
}

#[cfg(test)]
mod tests {
    use chrono::Datelike as _;

    use super::*;
    use crate::store::testing::TestPipeline;

    #[tokio::test]
    async fn missing_partitions_are_created_once_also_at_the_same_time() {
        let test = TestPipeline::new("shards: 1").await;
        let store = &test.store;
        let (one, other) =
            tokio::join!(store.create_partitions(Partition::Day), store.create_partitions(Partition::Day));
        let mut created = [one.unwrap(), other.unwrap()].concat();
        created.sort();
        let now = sqlx::query_scalar("select clock_timestamp()").fetch_one(&store.pool).await.unwrap();
        let first = Period::of(now, Partition::Day);
        let next = first.next(Partition::Day);
        let wanted = [first, next, next.next(Partition::Day)].into_iter();
        // The first day of a month has the partition of that month, which the migration has created.
        assert_eq!(created, wanted.filter(|period| period.first().day() != 1).collect::<Vec<_>>());
        assert!(store.create_partitions(Partition::Day).await.unwrap().is_empty());
        let indexes = "select count(*) from pg_inherits i join pg_class c on c.oid = inhrelid where relkind = 'i'";
        let of_each: i64 = sqlx::query_scalar(indexes).fetch_one(&store.pool).await.unwrap();
        assert!(of_each > 0, "a partition has the indexes of the table");
    }
}
