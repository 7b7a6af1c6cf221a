//! What each serve process knows of its appends: what a loss is found by.

use super::{Error, Store};
use crate::streams::Fence;

/// A serve process whose counts were not noted for this long is dead.
const DEAD_SECONDS: f64 = 5.0;
/// One whose counts were not noted for this long may be dead: it notes them every second.
const SILENT_SECONDS: f64 = 2.5;
/// In place of a count of unknown outcomes: how many the process appended is not known.
const UNACCOUNTED: i64 = -1;

/// Appends of one process to one shard, since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardAppends {
    /// The shard.
    pub shard: u16,
    /// Entries that Redis has counted, those among them whose answers never came.
    pub acknowledged: i64,
    /// Further entries that may have been appended: their answers never came, and nothing told since.
    pub unknown: i64,
}

/// A serve process that appended to a shard, or may have.
#[derive(Debug, Clone, PartialEq)]
pub struct Appender {
    /// Its name.
    pub process: String,
    /// How many entries it appended at least.
    pub acknowledged: i64,
    /// How many more it may have appended, as far as it is accounted for.
    pub unknown: i64,
    /// Set when it died without its last word: seconds since its last.
    pub dead_for: Option<f64>,
    /// Whether it is not known how many it appended at most, or not known now: it is silent.
    pub unaccounted: bool,
}

/// What Postgres knows of a shard's entries.
#[derive(Debug, Clone, PartialEq)]
pub struct Books {
    /// Entries of serve processes that are settled.
    pub settled: i64,
    /// Entries that were found to be lost.
    pub lost: i64,
    /// Who appended.
    pub appenders: Vec<Appender>,
}

impl Store {
    /// Notes the counts of a process; what it appended never falls. `counts` are read after the time that is noted with
    /// them, however long they are on their way. `closed`: the process ended in order, and these are its last.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn note_appends(
        &self,
        process: &str,
        counts: impl FnOnce() -> Vec<ShardAppends>,
        closed: bool,
    ) -> Result<(), Error> {
        let mut connection = self.pool.acquire().await?;
        let at = sqlx::query_scalar!(r#"select clock_timestamp() as "at!""#).fetch_one(&mut *connection).await?;
        let counts = counts();
        let shards: Vec<i32> = counts.iter().map(|count| i32::from(count.shard)).collect();
        let acknowledged: Vec<i64> = counts.iter().map(|count| count.acknowledged).collect();
        let unknown: Vec<i64> = counts.iter().map(|count| count.unknown).collect();
        sqlx::query!(
            "insert into appends (process, shard, acknowledged, unknown, closed, noted_at)
             select $1, u.shard, u.acknowledged, u.unknown, $5, $6
             from unnest($2::int[], $3::bigint[], $4::bigint[]) as u (shard, acknowledged, unknown)
             on conflict (process, shard) do update set
                 acknowledged = greatest(appends.acknowledged, excluded.acknowledged),
                 unknown = excluded.unknown,
                 closed = excluded.closed,
                 noted_at = excluded.noted_at",
            process,
            &shards,
            &acknowledged,
            &unknown,
            closed,
            at,
        )
        .execute(&mut *connection)
        .await?;
        Ok(())
    }

    /// Notes a process that Redis knows and Postgres does not, with how many entries it appended to a shard.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn note_appender(&self, process: &str, shard: u16, count: i64) -> Result<(), Error> {
        sqlx::query!(
            "insert into appends (process, shard, acknowledged, unknown, closed) values ($1, $2, $3, 0, false)
             on conflict (process, shard) do update set acknowledged = greatest(appends.acknowledged, $3)",
            process,
            i32::from(shard),
            count,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A shard's books.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn books(&self, shard: u16) -> Result<Books, Error> {
        let row = sqlx::query!(
            r#"select lost, (processed + duplicates + conflicts + dead_letters - foreign_settled
                      - (select coalesce(sum(to_n - from_n + 1), 0) from gaps
                         where gaps.shard = shards.shard and kind <> 'records'))::bigint as "settled!"
               from shards where shard = $1"#,
            i32::from(shard),
        )
        .fetch_one(&self.pool)
        .await?;
        let appenders = sqlx::query!(
            r#"select process, acknowledged, unknown, closed,
                      extract(epoch from clock_timestamp() - noted_at)::float8 as "age!"
               from appends where shard = $1 order by process"#,
            i32::from(shard),
        )
        .fetch_all(&self.pool)
        .await?;
        let appenders = appenders.into_iter().map(|row| Appender {
            process: row.process,
            acknowledged: row.acknowledged,
            unknown: row.unknown.max(0),
            dead_for: (!row.closed && row.age > DEAD_SECONDS).then_some(row.age),
            unaccounted: row.unknown == UNACCOUNTED || (!row.closed && row.age > SILENT_SECONDS),
        });
        Ok(Books { settled: row.settled, lost: row.lost, appenders: appenders.collect() })
    }

    /// Speaks the last word for a process that died without it. `count`: how many entries Redis has of it, beside which
    /// those of unknown outcome stay what they were, where that is all (`accounted`); else it appended more, maybe.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn bury_appender(&self, process: &str, shard: u16, count: i64, accounted: bool) -> Result<(), Error> {
        sqlx::query!(
            "update appends set acknowledged = greatest(acknowledged, $3), unknown = coalesce($4, unknown), closed = true
             where process = $1 and shard = $2 and not closed",
            process,
            i32::from(shard),
            count,
            (!accounted).then_some(UNACCOUNTED),
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Notes how many entries of a shard were lost, at least; answers by how many more than was known.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the shard is another's by now.
    pub async fn note_lost(&self, shard: u16, fence: &Fence, lost: i64) -> Result<i64, Error> {
        let before = sqlx::query_scalar!(
            "with stood as (
                 select lost from shards where shard = $1 and epoch = $2 and token = $3 and owner is not null for update
             )
             update shards set lost = greatest(shards.lost, $4) from stood where shard = $1 returning stood.lost",
            i32::from(shard),
            fence.epoch,
            fence.token,
            lost,
        )
        .fetch_optional(&self.pool)
        .await?
        .ok_or(Error::Fenced)?;
        Ok((lost - before).max(0))
    }
}

#[cfg(test)]
mod tests {
    use sqlx::PgPool;

    use super::*;

    #[sqlx::test(migrations = "../migrations")]
    async fn counts_rise_and_the_last_word_closes(pool: PgPool) {
        let store = Store::of_test(pool.clone());
        let count = |acknowledged, unknown| ShardAppends { shard: 3, acknowledged, unknown };
        // Notes may overtake each other on their way.
        for (noted, closed) in [(count(5, 3), false), (count(9, 1), false), (count(7, 0), false), (count(9, 2), true)] {
            store.note_appends("p", || vec![noted], closed).await.expect("noted");
        }
        let rows: Vec<(String, i32, i64, i64, bool)> =
            sqlx::query_as("select process, shard, acknowledged, unknown, closed from appends")
                .fetch_all(&pool)
                .await
                .expect("rows");
        assert_eq!(rows, [("p".to_owned(), 3, 9, 2, true)]);
    }
}
