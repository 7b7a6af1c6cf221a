//! Pages of records in the order of processing. The position is the highest returned number of each shard.
//!
//! Must never move a position over a record that matches and was not returned.

use std::collections::BTreeMap;

use super::{
    answer::{Page, Paging, invalid_cursor},
    views::RecordView,
};
use crate::{
    domain::{Seq, SeqRange, ShardId, ShardSeq},
    http::{App, problem::Failure},
    store::{RecordFilter, ShardPage, StoredRecord},
};

/// Least number of records that are read of a shard.
const LEAST: i64 = 16;

/// The page after the position of the cursor, or the first one.
pub(super) async fn follow(
    app: &App,
    filter: &RecordFilter,
    paging: &Paging<Vec<Seq>>,
) -> Result<Page<RecordView>, Failure> {
    let shards = usize::from(app.manifest.borrow().manifest.spec.shards);
    let mut position = paging.after.clone().unwrap_or_else(|| vec![Seq::ZERO; shards]);
    if position.len() != shards || position.iter().any(|seq| *seq < Seq::ZERO) {
        return Err(invalid_cursor());
    }
    let ends = app.store.log_ends().await?;
    let mut items = Vec::new();
    loop {
        let left = paging.limit() - items.len();
        let pages = pages(&position, &ends, filter.shard, left as i64);
        if pages.is_empty() || left == 0 {
            break;
        }
        let rows = app.store.list_processed(filter, &pages).await?;
        items.extend(taken(rows, &pages, left, &mut position).into_iter().map(RecordView::from));
    }
    let page = Page { items, next_cursor: paging.cursor(&position), complete_since: None };
    Ok(page.kept_since(app.store.kept_since().await?.records, filter.start))
}

/// The parts of shards to read for so many records: of each shard about twice its share of the unread records. Where the
/// filter has a shard, no other one has a match.
fn pages(position: &[Seq], ends: &[ShardSeq], only: Option<ShardId>, limit: i64) -> Vec<ShardPage> {
    let parts = ends.iter().filter(|end| only.is_none_or(|shard| shard == end.shard)).filter_map(|end| {
        let after = *position.get(usize::from(end.shard.get()))?;
        (end.seq > after).then_some((end.shard, SeqRange { after, upto: end.seq }))
    });
    let parts: Vec<(ShardId, SeqRange)> = parts.collect();
    let unread = |range: &SeqRange| range.upto.above(range.after);
    let all: i64 = parts.iter().map(|(_, range)| unread(range)).sum();
    let limit_of = |range: &SeqRange| (2 * limit * unread(range) / all + LEAST).min(limit);
    parts.into_iter().map(|(shard, range)| ShardPage { shard, range, limit: limit_of(&range) }).collect()
}

/// Takes the first rows, at most `limit`, and moves the position. Behind the last row of a part that was not read to its
/// end nothing is taken: a row that comes before the others can follow there.
fn taken(rows: Vec<StoredRecord>, pages: &[ShardPage], limit: usize, position: &mut [Seq]) -> Vec<StoredRecord> {
    let mut left: BTreeMap<ShardId, usize> = BTreeMap::new();
    rows.iter().for_each(|row| *left.entry(row.shard).or_default() += 1);
    // Parts that were read to their end.
    let whole: BTreeMap<ShardId, Seq> = pages
        .iter()
        .filter(|page| left.get(&page.shard).is_none_or(|read| (*read as i64) < page.limit))
        .map(|page| (page.shard, page.range.upto))
        .collect();
    let mut taken = Vec::with_capacity(limit.min(rows.len()));
    for row in rows {
        if taken.len() == limit {
            break;
        }
        position[usize::from(row.shard.get())] = row.seq;
        let of_shard = left.entry(row.shard).or_default();
        *of_shard -= 1;
        let is_last_read = *of_shard == 0 && !whole.contains_key(&row.shard);
        taken.push(row);
        if is_last_read {
            break;
        }
    }
    for (shard, end) in whole {
        if left.get(&shard).is_none_or(|left| *left == 0) {
            position[usize::from(shard.get())] = end;
        }
    }
    taken
}
