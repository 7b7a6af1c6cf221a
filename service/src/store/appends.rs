//! What each serve process knows of its appends: what a loss is found by.

use sqlx::PgConnection;

use super::{Error, Store};
use crate::domain::{Lease, ShardId};

/// A serve process whose counts were not noted for this long is dead.
const DEAD_SECONDS: f64 = 5.0;
/// One whose counts were not noted for this long may be dead: it notes them every second.
const SILENT_SECONDS: f64 = 2.5;
/// A process that closed this long ago is folded. A Postgres that is restored to a time before that counts less than was
/// appended, by the entries of the processes that were folded since: as many lost records would not be found.
const FOLD_AFTER_SECONDS: f64 = 86_400.0;
/// In place of a count of unknown outcomes: how many the process appended is not known.
const UNACCOUNTED: i64 = -1;

/// Appends of one process to one shard, since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShardAppends {
    /// The shard.
    pub shard: ShardId,
    /// Entries that Redis has counted, those among them whose answers never came.
    pub acknowledged: i64,
    /// Further entries that may have been appended: their answers never came, and nothing told since.
    pub unknown: i64,
}

/// A serve process that appended to a shard, or may have.
#[derive(Debug, Clone, PartialEq)]
pub struct Producer {
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
    /// Whether it closed long ago and all that it appended is known: it can be folded.
    pub former: bool,
}

/// What Postgres knows of a shard's entries.
#[derive(Debug, Clone, PartialEq)]
pub struct Books {
    /// Entries of serve processes that are applied.
    pub applied: i64,
    /// Entries that were found to be lost.
    pub lost: i64,
    /// Entries of the processes that were folded.
    pub folded: i64,
    /// Who appended, without those that were folded.
    pub appenders: Vec<Producer>,
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
        let shards: Vec<ShardId> = counts.iter().map(|count| count.shard).collect();
        let acknowledged: Vec<i64> = counts.iter().map(|count| count.acknowledged).collect();
        let unknown: Vec<i64> = counts.iter().map(|count| count.unknown).collect();
        for _ in 0..2 {
            let written = sqlx::query!(
                "insert into appends (process, shard, acknowledged, unknown, closed, noted_at)
                 select $1, u.shard, u.acknowledged, u.unknown, $5, $6
                 from unnest($2::int[], $3::bigint[], $4::bigint[]) as u (shard, acknowledged, unknown)
                 on conflict (process, shard) do update set
                     acknowledged = greatest(appends.acknowledged, excluded.acknowledged),
                     unknown = excluded.unknown,
                     closed = excluded.closed,
                     noted_at = excluded.noted_at
                 where not appends.folded",
                process,
                &shards as &[ShardId],
                &acknowledged,
                &unknown,
                closed,
                at,
            )
            .execute(&mut *connection)
            .await?
            .rows_affected();
            if written == shards.len() as u64 {
                break;
            }
            // A folded row is not written: this process was taken for dead.
            unfold(&mut connection, process, None).await?;
        }
        Ok(())
    }

    /// Notes a process that Redis knows and no row of [`Books`] names, with how many entries it appended to a shard. Returns
    /// whether it had been folded: the books that were read before count its entries as well.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn note_appender(&self, process: &str, shard: ShardId, count: i64) -> Result<bool, Error> {
        let mut connection = self.pool.acquire().await?;
        let mut was_folded = false;
        for _ in 0..2 {
            let written = sqlx::query!(
                "insert into appends (process, shard, acknowledged, unknown, closed) values ($1, $2, $3, 0, false)
                 on conflict (process, shard) do update set acknowledged = greatest(appends.acknowledged, $3)
                 where not appends.folded",
                process,
                shard as ShardId,
                count,
            )
            .execute(&mut *connection)
            .await?
            .rows_affected();
            if written > 0 {
                break;
            }
            was_folded = unfold(&mut connection, process, Some(shard)).await?;
        }
        Ok(was_folded)
    }

    /// Folds processes that closed long ago into one sum of the shard. Returns those that were folded.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn fold_appenders(&self, shard: ShardId, processes: &[String]) -> Result<Vec<String>, Error> {
        let folded = sqlx::query_scalar!(
            "with folded as (
                 update appends set folded = true
                 where shard = $1 and process = any($2) and closed and not folded and unknown = 0
                 returning process, acknowledged
             ), counted as (
                 update shards set folded_appends = folded_appends + (select sum(acknowledged) from folded)
                 where shard = $1 and exists (select from folded)
             )
             select process from folded",
            shard as ShardId,
            processes,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(folded)
    }

    /// A shard's books.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn books(&self, shard: ShardId) -> Result<Books, Error> {
        let row = sqlx::query!(
            r#"select lost, folded_appends, (processed + duplicates + conflicts + dead_letters - external_applied
                      - (select coalesce(sum(to_n - from_n + 1), 0) from gaps
                         where gaps.shard = shards.shard and kind <> 'records'))::bigint as "applied!"
               from shards where shard = $1"#,
            shard as ShardId,
        )
        .fetch_one(&self.pool)
        .await?;
        let appenders = sqlx::query!(
            r#"select process, acknowledged, unknown, closed,
                      extract(epoch from clock_timestamp() - noted_at)::float8 as "age!"
               from appends where shard = $1 and not folded order by process"#,
            shard as ShardId,
        )
        .fetch_all(&self.pool)
        .await?;
        let appenders = appenders.into_iter().map(|row| Producer {
            process: row.process,
            acknowledged: row.acknowledged,
            unknown: row.unknown.max(0),
            dead_for: (!row.closed && row.age > DEAD_SECONDS).then_some(row.age),
            unaccounted: row.unknown == UNACCOUNTED || (!row.closed && row.age > SILENT_SECONDS),
            former: row.closed && row.unknown == 0 && row.age > FOLD_AFTER_SECONDS,
        });
        Ok(Books { applied: row.applied, lost: row.lost, folded: row.folded_appends, appenders: appenders.collect() })
    }

    /// Speaks the last word for a process that died without it. `count`: how many entries Redis has of it, beside which
    /// those of unknown outcome stay what they were, where that is all (`accounted`); else it appended more, maybe.
    ///
    /// # Errors
    /// When Postgres cannot be written.
    pub async fn bury_appender(&self, process: &str, shard: ShardId, count: i64, accounted: bool) -> Result<(), Error> {
        sqlx::query!(
            "update appends set acknowledged = greatest(acknowledged, $3), unknown = coalesce($4, unknown), closed = true
             where process = $1 and shard = $2 and not closed",
            process,
            shard as ShardId,
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
    pub async fn note_lost(&self, shard: ShardId, fence: &Lease, lost: i64) -> Result<i64, Error> {
        let before = sqlx::query_scalar!(
            "with stood as (
                 select lost from shards where shard = $1 and epoch = $2 and token = $3 and owner is not null for update
             )
             update shards set lost = greatest(shards.lost, $4) from stood where shard = $1 returning stood.lost",
            shard as ShardId,
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

/// Takes a process out of the sums that it was folded into, on one shard or on all. Returns whether it was in one.
async fn unfold(connection: &mut PgConnection, process: &str, shard: Option<ShardId>) -> Result<bool, Error> {
    let unfolded = sqlx::query!(
        "with unfolded as (
             update appends set folded = false
             where process = $1 and folded and shard = coalesce($2, shard)
             returning shard, acknowledged
         )
         update shards set folded_appends = folded_appends - unfolded.acknowledged
         from unfolded where shards.shard = unfolded.shard",
        process,
        shard as Option<ShardId>,
    )
    .execute(connection)
    .await?;
    Ok(unfolded.rows_affected() > 0)
}

#[cfg(test)]
mod tests {
    use sqlx::PgPool;

    use super::*;

    #[sqlx::test(migrations = "../migrations")]
    async fn counts_rise_and_the_last_word_closes(pool: PgPool) {
        let store = Store::of_test(pool.clone());
        let count = |acknowledged, unknown| ShardAppends { shard: ShardId::new(3), acknowledged, unknown };
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
    #[sqlx::test(migrations = "../migrations")]
    async fn folded_processes_are_one_sum_until_they_note_again(pool: PgPool) {
        let store = Store::of_test(pool.clone());
        sqlx::query("insert into shards (shard) values (3), (4) on conflict do nothing")
            .execute(&pool)
            .await
            .expect("shards");
        let count = |shard, acknowledged| ShardAppends { shard, acknowledged, unknown: 0 };
        for process in ["p", "q"] {
            store
                .note_appends(process, || vec![count(ShardId::new(3), 5), count(ShardId::new(4), 7)], true)
                .await
                .expect("noted");
        }
        store.note_appends("lives", || vec![count(ShardId::new(3), 2)], false).await.expect("noted");
        let books = async || {
            let books = store.books(ShardId::new(3)).await.expect("books");
            let names: Vec<_> = books.appenders.iter().map(|by| (by.process.clone(), by.former)).collect();
            (books.folded, names)
        };
        let named = |names: &[(&str, bool)]| names.iter().map(|(name, former)| ((*name).to_owned(), *former)).collect();
        assert_eq!(books().await, (0, named(&[("lives", false), ("p", false), ("q", false)])), "closed just now");
        sqlx::query("update appends set noted_at = noted_at - interval '2 days'").execute(&pool).await.expect("aged");
        assert_eq!(books().await, (0, named(&[("lives", false), ("p", true), ("q", true)])));
        let all = ["lives", "p", "q"].map(str::to_owned);
        assert_eq!(store.fold_appenders(ShardId::new(3), &all).await.expect("folded"), ["p", "q"]);
        assert!(store.fold_appenders(ShardId::new(3), &all).await.expect("folded").is_empty(), "once");
        assert_eq!(books().await, (10, named(&[("lives", false)])));
        assert!(store.note_appender("p", ShardId::new(3), 5).await.expect("noted"), "Redis had it again");
        assert!(!store.note_appender("p", ShardId::new(3), 5).await.expect("noted"));
        assert_eq!(books().await, (5, named(&[("lives", false), ("p", true)])));
        // It was taken for dead.
        store
            .note_appends("q", || vec![count(ShardId::new(3), 6), count(ShardId::new(4), 7)], false)
            .await
            .expect("noted");
        assert_eq!(books().await, (0, named(&[("lives", false), ("p", true), ("q", false)])));
        assert_eq!(store.books(ShardId::new(4)).await.expect("books").folded, 0);
    }
}
