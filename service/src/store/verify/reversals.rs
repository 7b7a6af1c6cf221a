//! The check of reversals, in one statement that reads them alone.

use futures::TryStreamExt as _;

use super::{Differences, Scope, Verification};
use crate::store::Error;

impl Verification {
    /// Checks that each reversal takes back an earlier record of its shard that is none itself, with all fields of that record
    /// but the type, and that what remains is the record's value without its reversals so far, never below zero. Nothing else may
    /// count as a reversal. A record that retention deleted cannot be compared.
    pub(super) async fn reversals(&mut self, scope: &Scope, differences: &mut Differences) -> Result<(), Error> {
        let mut rows = sqlx::query!(
            r#"select shard as "shard!", seq as "seq!", coalesce(reverses, '') as "reverses!", original_seq as "original!",
                      fits as "fits!", coalesce(derived::text, '') as "derived!", coalesce(rest::text, 'nothing') as "rest!"
               from (select coalesce(r.shard, v.shard) as shard, coalesce(r.seq, v.seq) as seq,
                            coalesce(r.original_seq, v.original_seq) as original_seq, r.reverses, r.processed_at, v.rest,
                            o.value - r.reversed as derived,
                            coalesce(o.record_id = r.reverses and o.destination_id = r.destination_id
                                     and o.source_id = r.source_id and o.reference = r.reference and o.unit = r.unit
                                     and o.time = r.time and o.positive <> r.positive and o.reverses is null
                                     and o.seq < r.seq, false) as fits
                     from (select *, sum(value) over (partition by shard, original_seq order by seq) as reversed
                           from records where original_seq is not null) r
                     full join reversals v on v.shard = r.shard and v.original_seq = r.original_seq and v.seq = r.seq
                       and v.period = r.period
                     left join records o on o.shard = r.shard and o.seq = r.original_seq) compared
               where original_seq > coalesce((select upto from expired_counts e
                                              where e.shard = compared.shard and kind = 'records' and destination_id = ''), 0)
                 and (not fits or derived < 0 or derived is distinct from rest)
                 and ($1::int[] is null or shard = any($1)) and ($2::timestamptz is null or processed_at >= $2)"#,
            scope.numbers() as Option<Vec<i32>>,
            scope.since
        )
        .fetch(&mut *self.snapshot);
        while let Some(row) = rows.try_next().await? {
            let place = format!("record {}-{}", row.shard, row.seq);
            if row.fits {
                let expected = format!("{} of its record remains, and not less than 0", row.derived);
                differences.add("reversal", place, expected, row.rest);
            } else {
                let expected = "the reversal of an earlier record, with all of its fields but the type";
                differences.add(
                    "reversal",
                    place,
                    expected,
                    format!("one of {}, number {}", row.reverses, row.original),
                );
            }
        }
        Ok(())
    }
}
