//! Points in the log: where the outcomes at or after a time begin, and from where on they are still held.

use chrono::{DateTime, Utc};

use super::{Error, Store, slow::Watch};
use crate::domain::{OutcomeKind, Seq, ShardId, ShardSeq, Watermarks};

/// From where on a shard holds its outcomes, where the first ones were dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The shard.
    pub shard: ShardId,
    /// All outcomes above it are held.
    pub after: Seq,
    /// All outcomes at or after it are held; `None`: no outcome is.
    pub since: Option<DateTime<Utc>>,
}

impl Store {
    /// The highest numbers of a kind, per shard. It waits for commits under way: what is committed later was decided later.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn heads(&self, kind: OutcomeKind) -> Result<Vec<ShardSeq>, Error> {
        let shards = sqlx::query_scalar!(r#"select shard as "shard: ShardId" from shards order by shard"#)
            .fetch_all(&self.pool)
            .await?;
        let mut heads = Vec::with_capacity(shards.len());
        // One by one: a statement that waits for several locks may wait for one that waits for it.
        for shard in shards {
            let row = sqlx::query!(
                r#"select records as "records: Seq", dead_letters as "dead_letters: Seq", conflicts as "conflicts: Seq"
                   from shards where shard = $1 for share"#,
                shard as ShardId,
            )
            .fetch_one(&self.pool)
            .await?;
            let numbers = Watermarks { records: row.records, dead_letters: row.dead_letters, conflicts: row.conflicts };
            heads.push(ShardSeq { shard, seq: numbers.of(kind.sequence()) });
        }
        Ok(heads)
    }

    /// For each shard, the number before its first outcome that was committed at or after `time`; where there is none, its
    /// highest number. `time` has passed.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn before_time(&self, kind: OutcomeKind, time: DateTime<Utc>) -> Result<Vec<ShardSeq>, Error> {
        let _watch = Watch::start("points.before_time");
        let mut points = self.heads(kind).await?;
        let first = match kind {
            OutcomeKind::Processed | OutcomeKind::Alert | OutcomeKind::TotalAlert => {
                sqlx::query_as!(
                    ShardSeq,
                    r#"select shard as "shard: ShardId", min(seq) as "seq!: Seq" from records
                       where processed_at >= $1 group by shard"#,
                    time
                )
                .fetch_all(&self.pool)
                .await?
            }
            OutcomeKind::DeadLettered => {
                sqlx::query_as!(
                    ShardSeq,
                    r#"select shard as "shard: ShardId", min(n) as "seq!: Seq" from dead_letters
                       where opened_at >= $1 group by shard"#,
                    time
                )
                .fetch_all(&self.pool)
                .await?
            }
            OutcomeKind::Conflicted => {
                sqlx::query_as!(
                    ShardSeq,
                    r#"select shard as "shard: ShardId", min(n) as "seq!: Seq" from conflicts
                       where noted_at >= $1 group by shard"#,
                    time
                )
                .fetch_all(&self.pool)
                .await?
            }
        };
        for point in &mut points {
            if let Some(first) = first.iter().find(|first| first.shard == point.shard) {
                point.seq = point.seq.min(Seq::new(first.seq.get() - 1));
            }
        }
        Ok(points)
    }

    /// The shards that no longer hold their first outcomes, skipped numbers aside.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn kept(&self, kind: OutcomeKind) -> Result<Vec<Kept>, Error> {
        // Records are dropped by their period: those before the period of the first are gone.
        let rows = sqlx::query!(
            r#"with firsts as (
                   select h.shard, r.seq as n, r.period::timestamp at time zone 'UTC' as since, h.records as highest,
                          'records' as kind
                   from shards h left join lateral
                       (select seq, period from records r where r.shard = h.shard order by seq limit 1) r on true
                   where $1 in ('Processed', 'Alert', 'TotalAlert')
                   union all
                   select h.shard, d.n, d.opened_at, h.dead_letters, 'dead_letters'
                   from shards h left join lateral
                       (select n, opened_at from dead_letters d where d.shard = h.shard order by n limit 1) d on true
                   where $1 = 'DeadLettered'
                   union all
                   select h.shard, c.n, c.noted_at, h.conflicts, 'conflicts'
                   from shards h left join lateral
                       (select n, noted_at from conflicts c where c.shard = h.shard order by n limit 1) c on true
                   where $1 = 'Conflicted'
               ), below as (
                   select f.*, coalesce(f.n - 1, f.highest) as last from firsts f
               )
               select b.shard as "shard!: ShardId", b.last as "last!: Seq", b.since
               from below b
               where b.last > (select coalesce(sum(g.to_n - g.from_n + 1), 0) from gaps g
                               where g.shard = b.shard and g.kind = b.kind and g.to_n <= b.last)
               order by b.shard"#,
            kind as OutcomeKind,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.into_iter().map(|row| Kept { shard: row.shard, after: row.last, since: row.since }).collect())
    }
}
