//! The periods of a part of a shard's log, so that a query opens the partitions of that part alone.
//!
//! Must never leave out a period that has a record of the part.

use chrono::NaiveDate;
use sqlx::PgExecutor;

use super::Error;
use crate::domain::{SeqRange, ShardId};

/// The first and the last period that can have records of a part, as arguments of a statement that is planned for its
/// values; `None`: any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Periods {
    pub(super) first: Option<NaiveDate>,
    pub(super) last: Option<NaiveDate>,
}

impl Periods {
    /// Of the records of a shard with `after` < seq ≤ `upto`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub(super) async fn of(postgres: impl PgExecutor<'_>, shard: ShardId, range: SeqRange) -> Result<Self, Error> {
        // A shard's period never falls.
        let periods = sqlx::query_as!(
            Self,
            "select max(period) filter (where from_seq <= $2::bigint + 1) as first, max(period) filter (where from_seq <= $3) as last
             from shard_periods where shard = $1",
            shard as ShardId,
            range.after.get(),
            range.upto.get(),
        );
        Ok(periods.fetch_one(postgres).await?)
    }
}

#[cfg(test)]
mod tests {
    use sqlx::PgPool;

    use super::*;
    use crate::domain::Seq;

    #[sqlx::test(migrations = "../migrations")]
    async fn a_part_of_a_log_has_the_periods_from_its_first_record_to_its_last(pool: PgPool) {
        let day = |day| NaiveDate::from_ymd_opt(2026, 1, day);
        for (period, from_seq) in [(day(1), 11), (day(2), 21), (day(4), 31)] {
            let row = "insert into shard_periods (shard, period, from_seq) values (3, $1, $2), (4, '2025-01-01', 1)
                       on conflict do nothing";
            sqlx::query(row).bind(period).bind(from_seq).execute(&pool).await.unwrap();
        }
        for (after, upto, first, last) in [
            (0, 10, None, None),
            (0, 25, None, day(2)),
            (10, 20, day(1), day(1)),
            (19, 20, day(1), day(1)),
            (20, 20, day(2), day(1)),
            (20, 30, day(2), day(2)),
            (15, 31, day(1), day(4)),
            (31, 900, day(4), day(4)),
        ] {
            let range = SeqRange { after: Seq::new(after), upto: Seq::new(upto) };
            let found = Periods::of(&pool, ShardId::new(3), range).await.unwrap();
            assert_eq!(found, Periods { first, last }, "{after} to {upto}");
        }
    }
}
