//! Compares declared rollups with the stored records.

use std::time::Duration;

use sqlx::PgConnection;
use tokio::time::{Instant, sleep};

use super::{Check, Wrong};

/// Longest wait until each declared rollup is complete, once the pipeline is idle.
const COMPLETE: Duration = Duration::from_secs(60);

/// Declared rollups that are not complete: a shard runs an older version, or its build has records left.
const INCOMPLETE: &str = "
    select count(*) from rollups r cross join shards s where removed is null and not (
        s.policy_version >= r.version and exists (
            select from rollup_builds b where b.rollup_id = r.id and b.shard = s.shard and b.next_seq >= b.until_seq))";

/// The rows of a rollup that differ from the records, over all shards.
macro_rules! differ {
    ($name:literal, $window:literal, $group:literal) => {
        concat!(
            "with stored as (
                 select window_start, concat_ws(' ', nullif(destination_id, ''), nullif(t.reference, ''), nullif(source_id, ''))
                        as of, unit, positive, sum(count) as count, sum(sum) as sum
                 from rollup_totals t join rollups r on r.id = rollup_id
                 where r.name = '", $name, "' and r.removed is null group by 1, 2, 3, 4
             ), due as (
                 select date_trunc('", $window, "', time, 'UTC') as window_start, concat_ws(' ', ", $group, ") as of, unit,
                        positive, count(*) as count, sum(value) as sum
                 from records group by 1, 2, 3, 4
             )
             select concat_ws(' ', window_start, of, unit, positive, ': stored', s.count, s.sum, ', not', d.count, d.sum)
             from stored s full join due d using (window_start, of, unit, positive)
             where (s.count, s.sum) is distinct from (d.count, d.sum) limit 5"
        )
    };
}

const ROLLUPS: [(&str, &str); 2] = [
    ("hourly", differ!("hourly", "hour", "destination_id")),
    ("daily", differ!("daily", "day", "reference, source_id")),
];

impl Check {
    /// Each declared rollup becomes complete, and is the sums of the records.
    pub(super) async fn rollups(&mut self, sql: &mut PgConnection) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let incomplete: i64 = sqlx::query_scalar(INCOMPLETE).fetch_one(&mut *sql).await?;
            if incomplete == 0 {
                break;
            }
            if began.elapsed() > COMPLETE {
                self.wrong(Wrong::Stuck, || format!("{incomplete} builds of rollups do not end"));
                return Ok(());
            }
            sleep(Duration::from_millis(200)).await;
        }
        let declared: i64 =
            sqlx::query_scalar("select count(*) from rollups where removed is null").fetch_one(&mut *sql).await?;
        if declared != ROLLUPS.len() as i64 {
            self.wrong(Wrong::Stuck, || format!("{declared} rollups are declared, not {}", ROLLUPS.len()));
            return Ok(());
        }
        for (name, query) in ROLLUPS {
            let rows: Vec<String> = sqlx::query_scalar(query).fetch_all(&mut *sql).await?;
            for row in rows {
                self.wrong(Wrong::Miscounted, || format!("a row of the rollup {name}: {row}"));
            }
        }
        Ok(())
    }
}
