//! Sums without reversed records, against a count by hand.

use std::collections::BTreeMap;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use rust_decimal::Decimal;

use super::*;

/// A record, and how it is reversed.
struct Planned {
    id: String,
    destination: String,
    source: String,
    value: i64,
    time: String,
    /// The values of its reversals, in order.
    parts: Vec<i64>,
}

fn planned(dice: &mut StdRng) -> Vec<Planned> {
    let mut one = |n: usize| {
        let value = dice.random_range(1..100);
        let mut rest = value;
        let mut parts = Vec::new();
        while parts.len() < 3 && dice.random_bool(0.5) && rest > 0 {
            let part = if dice.random_bool(0.5) { rest } else { dice.random_range(1..=rest) };
            rest -= part;
            parts.push(part);
        }
        Planned {
            id: format!("r{n}"),
            destination: format!("d{}", n % 5),
            source: format!("s{}", n % 3),
            value: if dice.random_bool(0.3) { -value } else { value },
            time: format!("2026-01-01T{:02}:00:00Z", n % 24),
            parts,
        }
    };
    (0..120).map(&mut one).collect()
}

async fn store(world: &mut World, plan: &[Planned]) {
    let mut numbers = Vec::new();
    for record in plan {
        let value = record.value.to_string();
        let (id, destination, source, time) = (&record.id, &record.destination, &record.source, &record.time);
        numbers.push(world.add(Row { id, destination, source, value: &value, time, ..ROW }).await.1);
    }
    // Behind all records, one part of each after the other.
    for part in 0..3 {
        for (record, original) in plan.iter().zip(&numbers).filter(|(record, _)| record.parts.len() > part) {
            let id = format!("{}-{part}", record.id);
            let value = (-record.value.signum() * record.parts[part]).to_string();
            let rest = record.value.abs() - record.parts[..=part].iter().sum::<i64>();
            let (destination, source, time) = (&record.destination, &record.source, &record.time);
            world.add(Row { id: &id, destination, source, value: &value, time, ..ROW }).await;
            let done = sqlx::query(
                "with reversed as (
                     update records set reverses = $1, original_seq = $2 where record_id = $4
                     returning shard, original_seq, seq, period
                 )
                 insert into reversals select *, $3::numeric from reversed",
            );
            let done = done.bind(&record.id).bind(original).bind(rest.to_string()).bind(&id);
            done.execute(&world.pool).await.expect("update");
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn sums_leave_out_what_is_wholly_reversed_and_stay_the_same(pool: PgPool) {
    let mut world = World::new(pool).await;
    let plan = planned(&mut StdRng::seed_from_u64(7));
    let is_whole = |record: &Planned| record.parts.iter().sum::<i64>() == record.value.abs();
    let (whole, partly): (Vec<&Planned>, Vec<&Planned>) =
        plan.iter().filter(|record| !record.parts.is_empty()).partition(|record| is_whole(record));
    assert!(whole.len() > 20 && partly.len() > 10 && whole.iter().any(|record| record.parts.len() > 1));
    store(&mut world, &plan).await;
    for (query, lets) in [
        ("", &(|_: &Planned| true) as &dyn Fn(&Planned) -> bool),
        ("&destinationId=d2", &|record| record.destination == "d2"),
        ("&sourceId=s1", &|record| record.source == "s1"),
        ("&startTime=2026-01-01T03:00:00Z&endTime=2026-01-01T09:00:00Z", &|record| {
            ("2026-01-01T03".."2026-01-01T09").contains(&record.time.as_str())
        }),
    ] {
        let mut expected: BTreeMap<String, (i64, Decimal)> = BTreeMap::new();
        for record in plan.iter().filter(|record| lets(record) && !is_whole(record)) {
            let sum = expected.entry(record.destination.clone()).or_default();
            let reversed = record.value.signum() * record.parts.iter().sum::<i64>();
            *sum = (sum.0 + 1 + record.parts.len() as i64, sum.1 + Decimal::from(record.value - reversed));
        }
        let mut answers = Vec::new();
        for records in ["true", "false"] {
            let path = format!("/records/aggregations?records={records}&reversed=exclude{query}");
            let answer = world.get(&path).await;
            let groups = answer["groups"].as_array().expect("groups");
            let sum = |group: &Value| {
                let total = &group["totals"][0];
                let sum: Decimal = total["total"].as_str().expect("a total").parse().expect("a decimal");
                (
                    group["destinationId"].as_str().expect("an id").to_owned(),
                    (total["count"].as_i64().expect("a count"), sum),
                )
            };
            assert_eq!(groups.iter().map(sum).collect::<BTreeMap<_, _>>(), expected, "{path}");
            answers.push(groups.clone());
        }
        let ids: Vec<&str> = answers[0]
            .iter()
            .flat_map(|group| group["records"].as_array().expect("records"))
            .map(|record| record["recordId"].as_str().expect("an id"))
            .collect();
        assert_eq!(ids.len() as i64, expected.values().map(|(count, _)| count).sum::<i64>());
        let is_of_whole = |id: &str| whole.iter().any(|record| id.split('-').next() == Some(&record.id));
        assert!(!ids.iter().any(|id| is_of_whole(id)), "{ids:?}");
        // With all of them the sums are the same, where there are any.
        let all = world.get(&format!("/records/aggregations?records=false{query}")).await;
        for group in all["groups"].as_array().expect("groups") {
            let total: Decimal = group["totals"][0]["total"].as_str().expect("a total").parse().expect("a decimal");
            let of = expected.get(group["destinationId"].as_str().expect("an id"));
            assert_eq!(of.map_or(Decimal::ZERO, |(_, sum)| *sum), total, "{query}: {group}");
        }
    }
    assert_eq!(world.refusal("/records/aggregations?reversed=yes").await.1, "invalid_parameter");
    let record = &partly[0];
    let history = world.get(&format!("/records/{}", record.id)).await;
    let rest = record.value.abs() - record.parts.iter().sum::<i64>();
    assert_eq!(history["reversals"]["rest"], rest.to_string(), "{history}");
    assert_eq!(history["reversals"]["count"], record.parts.len());
    assert_eq!(history["reversals"]["newest"].as_array().expect("reversals").len(), record.parts.len());
    world.clean().await;
}
