//! Compares the rows in Postgres with the outcomes: the log, duplicates, totals, and skipped numbers.

use std::collections::HashMap;

use sqlx::{PgConnection, Row as _};

use super::{Check, Key, Sum, Wrong};
use crate::{
    decimal,
    load::{
        history::{DEAD_LETTERED, PROCESSED},
        record::{AUTHORS, Code},
    },
    world::SHARDS,
};

/// Noted gaps, by shard and kind.
#[derive(Debug, Default)]
pub(super) struct Gaps(Vec<(usize, String, i64, i64)>);

impl Gaps {
    /// One gap.
    #[cfg(test)]
    pub(super) fn noted(shard: usize, kind: &str, from: i64, to: i64) -> Self {
        Self(vec![(shard, kind.to_owned(), from, to)])
    }

    /// Whether a number is in a gap.
    pub(super) fn have(&self, shard: usize, kind: &str, n: i64) -> bool {
        self.of(shard, kind).any(|(from, to)| (from..=to).contains(&n))
    }

    /// First and last number of each gap, in order.
    pub(super) fn of<'a>(&'a self, shard: usize, kind: &'a str) -> impl Iterator<Item = (i64, i64)> + 'a {
        self.0.iter().filter(move |gap| gap.0 == shard && gap.1 == kind).map(|gap| (gap.2, gap.3))
    }
}

impl Check {
    /// All noted gaps. Only a rewound Postgres has any.
    pub(super) async fn new_gaps(&mut self, sql: &mut PgConnection) -> anyhow::Result<Gaps> {
        let rows: Vec<(i32, String, i64, i64)> =
            sqlx::query_as("select shard, kind, from_n, to_n from gaps order by shard, kind, from_n")
                .fetch_all(sql)
                .await?;
        let gaps = Gaps(rows.into_iter().map(|(shard, kind, from, to)| (shard as usize, kind, from, to)).collect());
        let new = gaps.0.len() - self.noted_gaps;
        self.noted_gaps = gaps.0.len();
        if new > 0 && !self.allowed.postgres_lost {
            self.wrong(Wrong::Miscounted, || format!("{new} gaps were noted in the log, for no reason"));
        }
        Ok(gaps)
    }

    /// Counts duplicates that were noted since the last round.
    pub(super) async fn duplicates(&mut self, sql: &mut PgConnection) -> anyhow::Result<()> {
        let query = "select record_id, xmin::text::bigint from duplicates where xmin::text::bigint > $1 order by 2";
        for row in sqlx::query(query).bind(self.counted_until).fetch_all(sql).await? {
            let (id, transaction): (String, i64) = (row.try_get(0)?, row.try_get(1)?);
            self.counts.duplicates += 1;
            self.counted_until = transaction;
            if !Code::of_id(&id).is_some_and(|code| self.load.history().apply(code)) {
                self.wrong(Wrong::Ghost, || format!("a duplicate of {id:?}, which was never sent"));
            }
        }
        Ok(())
    }

    /// After a loss of Postgres: counts every id again by the stored rows.
    pub(super) async fn recount(&mut self, sql: &mut PgConnection) -> anyhow::Result<()> {
        {
            let mut history = self.load.history();
            for author in 0..AUTHORS {
                for n in 0..history.count(author) {
                    let code = Code::new(author, n);
                    history.touched.insert(code);
                    if let Some(known) = history.known(code) {
                        known.applied = 0;
                        known.set(PROCESSED, false);
                        known.set(DEAD_LETTERED, false);
                    }
                }
            }
        }
        let queries = [
            ("select record_id from records", PROCESSED),
            ("select record_id from dead_letters where state <> 'replayed'", DEAD_LETTERED),
            ("select record_id from duplicates", 0),
            ("select record_id from conflicts", 0),
        ];
        let mut found = [0; 4];
        for (count, (query, flag)) in found.iter_mut().zip(queries) {
            let ids: Vec<Option<String>> = sqlx::query_scalar(query).fetch_all(&mut *sql).await?;
            *count = ids.len() as i64;
            let mut history = self.load.history();
            for code in ids.into_iter().flatten().filter_map(|id| Code::of_id(&id)) {
                history.apply(code);
                history.flag(code, flag, true);
            }
        }
        // Replayed ones take no id, and count all the same.
        let replayed = "select count(*) from dead_letters where state = 'replayed'";
        found[1] += sqlx::query_scalar::<_, i64>(replayed).fetch_one(&mut *sql).await?;
        let newest = "select coalesce(max(xmin::text::bigint), 0) from duplicates";
        self.counted_until = sqlx::query_scalar(newest).fetch_one(sql).await?;
        (self.counts.dead_letters, self.counts.duplicates, self.counts.conflicts) = (found[1], found[2], found[3]);
        self.shards.iter_mut().for_each(|shard| shard.compared = 0);
        Ok(())
    }

    /// The stored log and the published one are the same, and the period of a shard never falls.
    pub(super) async fn stored(&mut self, sql: &mut PgConnection) -> anyhow::Result<()> {
        for shard in 0..SHARDS {
            let from = self.shards[shard].compared;
            let query = "select seq, record_id, period::text from records where shard = $1 and seq > $2 order by seq";
            let rows: Vec<(i64, String, String)> =
                sqlx::query_as(query).bind(shard as i32).bind(from as i64).fetch_all(&mut *sql).await?;
            let before = if from == 0 { String::new() } else { std::mem::take(&mut self.shards[shard].period) };
            let periods = std::iter::once(&before).chain(rows.iter().map(|(_, _, period)| period));
            if !periods.is_sorted() {
                self.wrong(Wrong::Reordered, || format!("the period of shard {shard} fell: records above {from}"));
            }
            self.shards[shard].period = rows.last().map_or(before, |(_, _, period)| period.clone());
            let rows: Vec<(i64, String)> = rows.into_iter().map(|(seq, id, _)| (seq, id)).collect();
            let log = &self.shards[shard].log;
            let published = log.iter().enumerate().skip(from).filter(|(_, line)| line.code != Code::NONE);
            let published: Vec<(i64, String)> = published.map(|(n, line)| (n as i64 + 1, line.code.id())).collect();
            self.shards[shard].compared = log.len();
            if rows != published {
                let at = rows.iter().zip(&published).position(|(stored, came)| stored != came);
                let at = at.unwrap_or(rows.len().min(published.len()));
                self.wrong(Wrong::Miscounted, || {
                    format!("shard {shard}: stored is {:?}, published was {:?}", rows.get(at), published.get(at))
                });
            }
        }
        Ok(())
    }

    /// Totals are the sums of the log.
    pub(super) async fn totals(&mut self, sql: &mut PgConnection) -> anyhow::Result<()> {
        let rows: Vec<(String, String, String, i64, String)> =
            sqlx::query_as("select destination_id, reference, unit, count, total::text from totals")
                .fetch_all(sql)
                .await?;
        let stored: HashMap<Key, Sum> = rows
            .into_iter()
            .map(|(destination, reference, unit, count, total)| {
                ((destination, reference, unit), Sum { count, total: decimal::parse(&total).unwrap_or(i128::MAX) })
            })
            .collect();
        // A key whose records are all lost may remain with zeros.
        let differ =
            |key: &Key| stored.get(key).copied().unwrap_or_default() != self.keys.get(key).copied().unwrap_or_default();
        let wrong: Vec<Key> = stored
            .keys()
            .chain(self.keys.keys().filter(|key| !stored.contains_key(*key)))
            .filter(|key| differ(key))
            .cloned()
            .collect();
        for key in wrong {
            let (is, due) = (stored.get(&key).copied(), self.keys.get(&key).copied());
            self.wrong(Wrong::Miscounted, || format!("the total of {key:?} is {is:?}, not {due:?}"));
        }
        Ok(())
    }
}
