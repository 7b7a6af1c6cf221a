//! Reversals never add up to more than their record, and are refused only where that would be so.

use sqlx::PgConnection;

use super::{Check, Wrong};

/// The sum of the reversals of each record, and the number of those that do not fit it.
const SUMS: &str = "
    select o.record_id, o.value, coalesce(sum(r.value), 0) as reversed, min(v.rest) as rest,
           count(*) filter (where (r.shard, r.destination_id, r.reference, r.unit, r.time, r.source_id, r.positive)
                                  is distinct from (o.shard, o.destination_id, o.reference, o.unit, o.time, o.source_id, not o.positive))
               as misfits
    from records o join records r on r.reverses = o.record_id
    left join reversals v on v.shard = r.shard and v.original_seq = r.original_seq and v.seq = r.seq
    group by o.record_id, o.value";

impl Check {
    /// Adds up the reversals of each record by the rows alone.
    pub(super) async fn reversals(&mut self, sql: &mut PgConnection) -> anyhow::Result<()> {
        let wrong = format!(
            "select record_id || ' of ' || value || ': ' || reversed || ' reversed, ' || coalesce(rest::text, 'nothing')
                    || ' remains, ' || misfits || ' of other fields'
             from ({SUMS}) s where reversed > value or rest is distinct from value - reversed or misfits > 0"
        );
        let wrong: Vec<String> = sqlx::query_scalar(sqlx::AssertSqlSafe(wrong)).fetch_all(&mut *sql).await?;
        for row in wrong {
            self.wrong(Wrong::Miscounted, || format!("reversals of {row}"));
        }
        // Each reversal of the campaign has the same value: one was refused, so no other fits now.
        let refused = "
            select d.record_id from dead_letters d
            cross join lateral (select convert_from(d.payload, 'UTF8')::json as sent) p
            join records o on o.record_id = p.sent ->> 'reverses'
            where d.reason = 'reversal_exceeds_original' and d.state = 'open'
              and (p.sent ->> 'value')::numeric <= o.value - (
                  select coalesce(sum(r.value), 0) from records r where r.reverses = o.record_id)";
        let refused: Vec<String> = sqlx::query_scalar(refused).fetch_all(&mut *sql).await?;
        for id in refused {
            self.wrong(Wrong::Miscounted, || format!("the reversal {id} was refused, and fits"));
        }
        let stored: i64 =
            sqlx::query_scalar("select count(*) from records where reverses is not null").fetch_one(&mut *sql).await?;
        let due = self.counts.reversals;
        if stored != due {
            self.wrong(Wrong::Miscounted, || format!("{stored} reversals are stored, not {due}"));
        }
        Ok(())
    }
}
