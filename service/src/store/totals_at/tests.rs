//! Totals at an instant against plain sums of rows that SQL makes, before and after their partition was dropped.

use std::collections::BTreeMap;

use chrono::TimeDelta;

use super::*;
use crate::{
    domain::Period,
    store::{Dropped, testing::TestPipeline},
};

/// 600 records of shard 0 for four destinations, in pairs with one time, and with keys of which some end early, some begin late,
/// and one has two records far apart. The first 200 are in the present partition, the others in the next.
const RECORDS: &str = "
    insert into records (shard, seq, period, epoch, received_at, processed_at, time, previous_count, positive, record_id,
        source_id, destination_id, reference, unit, stream_id, value, previous_total)
    select 0, seq, (select (array_agg(distinct period order by period))[case when seq <= 200 then 1 else 2 end] from partitions),
        1, at, at, at, count(*) over key - 1, positive, 'r' || seq, 's', destination, reference, unit, '1-' || seq, value,
        coalesce(sum(case when positive then value else -value end)
                 over (partition by destination, reference, unit order by seq rows between unbounded preceding and 1 preceding), 0)
    from (select seq, timestamptz '2026-01-01 00:00:00Z' + seq / 2 * interval '1 minute' as at, seq % 5 > 0 as positive,
                 'd' || seq % 4 as destination,
                 case when seq in (4, 560) then 'rare' when seq < 150 and seq % 3 = 0 then 'early'
                      when seq > 400 and seq % 3 = 0 then 'late' else 'f' || seq % 7 end as reference,
                 case when seq % 11 = 0 then 'USD' else 'EUR' end as unit, round((seq % 97)::numeric / 4, 2) as value
          from generate_series(1, 600) seq where seq not between 300 and 310) r
    window key as (partition by destination, reference, unit order by seq);
    insert into totals (shard, destination_id, reference, unit, positive_count, negative_count, positive_sum, negative_sum,
        first_seq, last_seq)
    select 0, destination_id, reference, unit, count(*) filter (where positive), count(*) filter (where not positive),
        coalesce(sum(value) filter (where positive), 0), coalesce(sum(value) filter (where not positive), 0), min(seq), max(seq)
    from records group by 2, 3, 4;
    update shards set records = 600 where shard = 0;";

type Totals = BTreeMap<(String, String), (i64, i128)>;

/// The sums of the stored rows.
async fn plain(test: &TestPipeline, destination: &str, at: DateTime<Utc>) -> Totals {
    let rows: Vec<(String, String, i64, String)> = sqlx::query_as(
        "select reference, unit, count(*), (sum(case when positive then value else -value end) * 1000000000)::numeric(60, 0)::text
         from records where destination_id = $1 and processed_at < $2 group by 1, 2",
    )
    .bind(destination)
    .bind(at)
    .fetch_all(&test.store.pool)
    .await
    .unwrap();
    rows.into_iter().map(|(reference, unit, count, sum)| ((reference, unit), (count, sum.parse().unwrap()))).collect()
}

async fn found(test: &TestPipeline, filter: &TotalFilter, at: DateTime<Utc>) -> Totals {
    let mut snapshot = test.store.snapshot().await.unwrap();
    let totals = snapshot.key_totals_at(filter, at).await.unwrap();
    snapshot.finish().await.unwrap();
    totals.into_iter().map(|key| ((key.reference.to_string(), key.unit.to_string()), (key.count, key.nanos))).collect()
}

fn filter(destination: &str) -> TotalFilter {
    let destination_id = DestinationId::stored(destination);
    TotalFilter { destination_id, shard: ShardId::new(0), reference: None, unit: None }
}

/// Each time of a record, one just behind it, one between, and some around all of them.
fn instants() -> Vec<DateTime<Utc>> {
    let at = |minutes: i64, micros: i64| {
        let start: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().unwrap();
        start + TimeDelta::minutes(minutes) + TimeDelta::microseconds(micros)
    };
    (0..=301)
        .step_by(7)
        .chain([1, 2, 3, 99, 100, 101, 149, 150, 155, 156, 280, 300])
        .flat_map(|minute| [at(minute, 0), at(minute, 1)])
        .collect()
}

#[tokio::test]
async fn totals_at_an_instant_are_the_sums_of_the_records_before_it() {
    let test = TestPipeline::new("shards: 1").await;
    sqlx::raw_sql(RECORDS).execute(&test.store.pool).await.unwrap();
    let mut before = Vec::new();
    for at in instants() {
        for destination in ["d0", "d1", "d2", "d3", "none"] {
            let expected = plain(&test, destination, at).await;
            assert_eq!(found(&test, &filter(destination), at).await, expected, "{destination} at {at}");
            before.push((destination, at, expected));
        }
    }
    let rare = TotalFilter { reference: Some(Reference::stored("rare")), ..filter("d0") };
    let at = "2026-01-01T04:00:00Z".parse().unwrap();
    let expected: Totals =
        plain(&test, "d0", at).await.into_iter().filter(|((reference, _), _)| reference == "rare").collect();
    assert_eq!(expected.len(), 1);
    assert_eq!(found(&test, &rare, at).await, expected);

    let oldest: chrono::NaiveDate =
        sqlx::query_scalar("select min(period) from records").fetch_one(&test.store.pool).await.unwrap();
    let mut turn = test.store.begin_retention().await.unwrap().unwrap();
    turn.note(Period::stored(oldest), None).await.unwrap();
    assert_eq!(turn.drop_partition(Period::stored(oldest)).await.unwrap(), Dropped::Done);
    let mut snapshot = test.store.snapshot().await.unwrap();
    let since = snapshot.processed_since().await.unwrap().unwrap();
    snapshot.finish().await.unwrap();
    assert_eq!(since, "2026-01-01T01:40:00.000001Z".parse::<DateTime<Utc>>().unwrap());
    let mut compared = 0;
    for (destination, at, expected) in before.into_iter().filter(|(_, at, _)| *at >= since) {
        assert_eq!(found(&test, &filter(destination), at).await, expected, "{destination} at {at}, after the drop");
        compared += 1;
    }
    assert!(compared > 100, "{compared}");
}
