//! Answers for random filters equal a count by hand, while records arrive in two partitions, with and without declared
//! rollups.

mod plan;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::RangeInclusive,
    sync::atomic::{AtomicUsize, Ordering},
};

use chrono::{DateTime, Utc};
use proptest::{
    strategy::{Strategy as _, ValueTree as _},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use rust_decimal::Decimal;
use tokio::sync::mpsc;

use super::*;
use plan::{BEFORE, CASES, DECLARED, Filters, GROUPS, Planned, RECORDS, filters, records};

/// Random filters after a drop.
const DROPPED_CASES: usize = 80;

/// Count and total by group and unit.
type Sums = BTreeMap<(Vec<String>, String), (i64, Decimal)>;

fn sums<'a>(records: impl IntoIterator<Item = &'a Planned>, group: impl Fn(&Planned) -> Vec<String>) -> Sums {
    let mut sums = Sums::new();
    for record in records {
        let sum = sums.entry((group(record), record.unit.to_owned())).or_default();
        *sum = (sum.0 + 1, sum.1 + record.signed());
    }
    sums
}

/// The same from an answer.
fn returned(rows: &Value, group: impl Fn(&Value) -> Vec<String>) -> Sums {
    let mut sums = Sums::new();
    for row in rows.as_array().expect("rows") {
        let mut count = 0;
        for total in row["totals"].as_array().expect("totals") {
            let sum = (
                total["count"].as_i64().expect("count"),
                total["total"].as_str().expect("total").parse().expect("a sum"),
            );
            count += sum.0;
            assert_eq!(sums.insert((group(row), total["unit"].as_str().expect("unit").to_owned()), sum), None);
        }
        assert_eq!(row["count"], count);
    }
    sums
}

/// The answer of a snapshot: that of the records that were stored at some time of the request.
fn of_one_moment<T: PartialEq + std::fmt::Debug>(
    during: RangeInclusive<usize>,
    found: &T,
    expected: impl Fn(usize) -> T,
) -> Result<(), String> {
    let expected: Vec<T> = during.map(expected).collect();
    if expected.contains(found) { Ok(()) } else { Err(format!("{found:?}\nis none of\n{expected:?}")) }
}

/// The group of an aggregation.
fn destination(row: &Value) -> Vec<String> {
    vec![row["destinationId"].as_str().expect("an id").to_owned()]
}

struct Check<'a> {
    world: &'a World,
    plan: &'a [Planned],
    stored: &'a AtomicUsize,
    /// Records with an earlier time were dropped.
    since: Option<DateTime<Utc>>,
}

impl Check<'_> {
    /// Whether an answer says that it lacks dropped records; none lacks any from `since` on.
    fn lacks(&self, filters: &Filters, answer: &Value) -> Result<bool, String> {
        let lacks = answer.get("completeSince").is_some();
        if lacks && (self.since.is_none() || filters.start >= self.since) {
            return Err(format!("{} since {:?}", answer["completeSince"], self.since));
        }
        Ok(lacks)
    }

    /// The answer of a path, with the numbers of records that may have been stored when it was made.
    async fn ask<T>(&self, answer: impl Future<Output = T>) -> (T, RangeInclusive<usize>) {
        let before = self.stored.load(Ordering::SeqCst);
        let answer = answer.await;
        // One more can be committed and not yet counted.
        (answer, before..=(self.stored.load(Ordering::SeqCst) + 1).min(RECORDS))
    }

    async fn answers(&self, filters: &Filters) -> Result<(), String> {
        self.world.leave_declared(&filters.declared).await;
        self.totals(filters).await?;
        self.aggregation(filters).await?;
        self.rollup(filters).await?;
        self.lists(filters).await
    }

    /// Those of the first `n` records that match.
    fn matching(&self, filters: &Filters, n: usize) -> Vec<&Planned> {
        self.plan[..n].iter().filter(|record| filters.lets(record)).collect()
    }

    fn by_destination(&self, filters: &Filters, n: usize) -> Sums {
        sums(self.matching(filters, n), |record| vec![record.destination.to_owned()])
    }

    async fn totals(&self, filters: &Filters) -> Result<(), String> {
        let path = format!("/records/aggregations?records=false{}", filters.query());
        let (answer, during) = self.ask(self.world.get(&path)).await;
        if self.lacks(filters, &answer)? {
            return Ok(());
        }
        of_one_moment(during, &returned(&answer["groups"], destination), |n| self.by_destination(filters, n))
    }

    async fn aggregation(&self, filters: &Filters) -> Result<(), String> {
        let path = format!("/records/aggregations?records=true{}", filters.query());
        let (answer, during) = self.ask(self.world.get(&path)).await;
        if self.lacks(filters, &answer)? {
            return Ok(());
        }
        let groups = answer["groups"].as_array().expect("groups");
        let records = groups.iter().flat_map(|group| ids(group["records"].as_array().expect("records"), "recordId"));
        let found: (Sums, Vec<String>) = (returned(&answer["groups"], destination), records.collect());
        of_one_moment(during, &found, |n| {
            let mut records = self.matching(filters, n);
            records.sort_by_key(|record| record.destination);
            (self.by_destination(filters, n), records.into_iter().map(|record| record.id.clone()).collect())
        })
    }

    async fn rollup(&self, filters: &Filters) -> Result<(), String> {
        let window = filters.window.map_or_else(String::new, |window| {
            let zone = window.zone.map_or_else(String::new, |zone| format!("&timeZone={zone}"));
            format!("&window={}{zone}", window.name)
        });
        let groups = filters.groups.iter().fold(String::new(), |all, name| format!("{all}&groupBy={name}"));
        let distinct = if filters.distinct { "&distinct=sourceId" } else { "" };
        let path = format!("/records/rollups?{}{window}{groups}{distinct}", filters.query());
        let (answer, during) = self.ask(self.world.get(&path)).await;
        if self.lacks(filters, &answer)? {
            return Ok(());
        }
        let group = |row: &Value| {
            let window = filters.window.map(|_| "windowStart").into_iter();
            let names = window.chain(GROUPS.into_iter().filter(|name| filters.groups.contains(name)));
            names.map(|name| row[name].as_str().expect(name).to_owned()).collect::<Vec<_>>()
        };
        let sources = |row: &Value| row.get("distinctSourceIds").map(|sources| sources.as_i64().expect("a count"));
        let rows = answer["items"].as_array().expect("items").iter();
        let sources: BTreeMap<Vec<String>, Option<i64>> = rows.map(|row| (group(row), sources(row))).collect();
        of_one_moment(during, &(returned(&answer["items"], group), sources), |n| {
            let mut sources: BTreeMap<Vec<String>, BTreeSet<&str>> = BTreeMap::new();
            for record in self.matching(filters, n) {
                sources.entry(filters.group(record)).or_default().insert(&record.source);
            }
            let count = |sources: BTreeSet<&str>| filters.distinct.then_some(sources.len() as i64);
            let sources = sources.into_iter().map(|(group, sources)| (group, count(sources))).collect();
            (sums(self.matching(filters, n), |record| filters.group(record)), sources)
        })
    }

    /// Pages are no snapshot: they have all that was stored before, and nothing that does not match.
    async fn lists(&self, filters: &Filters) -> Result<(), String> {
        for order in ["log", "processed"] {
            let path = format!("/records?order={order}{}", filters.query());
            if self.since.is_some() && self.lacks(filters, &self.world.get(&path).await)? {
                continue;
            }
            let (listed, during) = self.ask(self.listed(&path, filters.limit)).await;
            let distinct: BTreeSet<&String> = listed.iter().collect();
            let least = self.matching(filters, *during.start());
            let most = self.matching(filters, *during.end());
            let has_all = least.iter().all(|record| distinct.contains(&record.id));
            let has_only = distinct.iter().all(|id| most.iter().any(|record| record.id == **id));
            if distinct.len() != listed.len() || !has_all || !has_only {
                return Err(format!("order={order}: {listed:?}"));
            }
        }
        Ok(())
    }

    async fn listed(&self, path: &str, limit: u32) -> Vec<String> {
        let (mut listed, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.world.get(&format!("{path}&limit={limit}{cursor}")).await;
            let items = page["items"].as_array().expect("items");
            listed.extend(ids(items, "recordId"));
            match page.get("nextCursor") {
                Some(next) if items.len() == limit as usize => {
                    cursor = format!("&cursor={}", next.as_str().expect("a cursor"))
                }
                _ => return listed,
            }
        }
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn answers_equal_a_count_by_hand_for_random_filters_while_records_arrive(pool: PgPool) {
    let seed: u64 =
        std::env::var("MILLRACE_SEED").map_or_else(|_| rand::random(), |seed| seed.parse().expect("a number"));
    println!("MILLRACE_SEED={seed}");
    let bytes: [u8; 32] = std::array::from_fn(|index| seed.to_le_bytes()[index % 8]);
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);
    let plan = Arc::new(records().new_tree(&mut runner).expect("records").current());
    let world = World::new(pool).await;
    let stored = Arc::new(AtomicUsize::new(0));
    let (arrive, mut due) = mpsc::unbounded_channel();
    (0..BEFORE).for_each(|_| arrive.send(()).expect("a writer"));
    let writer = tokio::spawn({
        let (plan, stored) = (Arc::clone(&plan), Arc::clone(&stored));
        let mut connection = world.pool.acquire().await.expect("a connection").detach();
        async move {
            let mut seqs: HashMap<ShardId, i64> = HashMap::new();
            for (n, record) in plan.iter().enumerate() {
                due.recv().await.expect("as many as records");
                let shard = ShardId::of(&DestinationId::stored(record.destination), SHARDS);
                let seq = seqs.entry(shard).or_default();
                *seq += 1;
                record.store(n, *seq, &mut connection).await;
                stored.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    while stored.load(Ordering::SeqCst) < BEFORE {
        tokio::task::yield_now().await;
    }
    for declared in DECLARED {
        world.declare(declared).await;
    }
    let mut check = Check { world: &world, plan: &plan, stored: &stored, since: None };
    for case in 0..CASES {
        // One record arrives during the requests of each case.
        arrive.send(()).expect("a writer");
        let filters = filters().new_tree(&mut runner).expect("filters").current();
        let outcome = check.answers(&filters).await;
        assert_eq!(outcome, Ok(()), "MILLRACE_SEED={seed}, case {case}: {filters:?}");
    }
    writer.await.expect("stored");
    let everything = Filters::default();
    assert_eq!(check.answers(&everything).await, Ok(()), "MILLRACE_SEED={seed}: all records");

    // Half of the records are dropped: an answer that does not say so counts them all.
    world.leave_declared(&DECLARED.map(|declared| declared.name)).await;
    let store = crate::store::Store::of_test(world.pool.clone());
    let mut turn = store.begin_retention().await.expect("Postgres").expect("the turn");
    let period = crate::domain::Period::stored(chrono::NaiveDate::from_ymd_opt(2026, 11, 1).expect("a date"));
    turn.note(period, None).await.expect("noted");
    turn.drop_partition(period).await.expect("dropped");
    check.since = store.kept_since().await.expect("Postgres").records;
    assert!(check.since.is_some());
    let mut complete = 0;
    for case in 0..DROPPED_CASES {
        let filters = filters().new_tree(&mut runner).expect("filters").current();
        for start in [filters.start, filters.start.max(check.since)] {
            if filters.end.is_some_and(|end| Some(end) < start) {
                continue;
            }
            let mut filters = filters.clone();
            filters.start = start;
            let outcome = check.answers(&filters).await;
            assert_eq!(outcome, Ok(()), "MILLRACE_SEED={seed}, dropped, case {case}: {filters:?}");
            let path = format!("/records/rollups?{}", filters.query());
            complete += usize::from(start < check.since && world.get(&path).await.get("completeSince").is_none());
        }
    }
    assert!(complete > 0, "rollups count dropped records");
}
