//! What each serve process knows of its appends: what a loss is found by.

use super::{Error, Store};

/// Appends of one process to one shard, since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardAppends {
    /// The shard.
    pub shard: u16,
    /// Entries that Redis confirmed.
    pub acknowledged: i64,
    /// Entries whose outcome is unknown.
    pub unknown: i64,
}

impl Store {
    /// Notes the counts of a process, which never fall. `closed`: the process ended in order, and these are its last.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn note_appends(&self, process: &str, counts: &[ShardAppends], closed: bool) -> Result<(), Error> {
        let shards: Vec<i32> = counts.iter().map(|count| i32::from(count.shard)).collect();
        let acknowledged: Vec<i64> = counts.iter().map(|count| count.acknowledged).collect();
        let unknown: Vec<i64> = counts.iter().map(|count| count.unknown).collect();
        sqlx::query!(
            "insert into appends (process, shard, acknowledged, unknown, closed)
             select $1, u.shard, u.acknowledged, u.unknown, $5
             from unnest($2::int[], $3::bigint[], $4::bigint[]) as u (shard, acknowledged, unknown)
             on conflict (process, shard) do update set
                 acknowledged = greatest(appends.acknowledged, excluded.acknowledged),
                 unknown = greatest(appends.unknown, excluded.unknown),
                 closed = excluded.closed,
                 noted_at = now()",
            process,
            &shards,
            &acknowledged,
            &unknown,
            closed,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sqlx::PgPool;

    use super::*;

    #[sqlx::test(migrations = "../migrations")]
    async fn counts_rise_and_the_last_word_closes(pool: PgPool) {
        let store = Store { commits: pool.clone(), pool: pool.clone() };
        let count = |acknowledged, unknown| ShardAppends { shard: 3, acknowledged, unknown };
        // Notes may overtake each other on their way.
        for (noted, closed) in [(count(5, 1), false), (count(9, 1), false), (count(7, 0), false), (count(9, 2), true)] {
            store.note_appends("p", &[noted], closed).await.expect("noted");
        }
        let rows: Vec<(String, i32, i64, i64, bool)> =
            sqlx::query_as("select process, shard, acknowledged, unknown, closed from appends")
                .fetch_all(&pool)
                .await
                .expect("rows");
        assert_eq!(rows, [("p".to_owned(), 3, 9, 2, true)]);
    }
}
