//! A reader that follows the order of processing gets every record once, however commits overlap.

use std::collections::BTreeMap;

use sqlx::{Connection as _, PgConnection};

use super::*;

/// A destination of each shard.
fn destinations() -> [String; 2] {
    let of = |shard| {
        let names = (0..100).map(|n| format!("d{n}"));
        names.clone().find(|name| ShardId::of(&DestinationId::stored(name.as_str()), SHARDS) == ShardId::new(shard))
    };
    [of(0).expect("a destination"), of(1).expect("a destination")]
}

/// A reader, with the records that it has got.
struct Reader<'a> {
    world: &'a World,
    query: &'a str,
    cursor: Option<String>,
    seen: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(world: &'a World, query: &'a str) -> Self {
        Self { world, query, cursor: None, seen: Vec::new() }
    }

    /// Reads a page; returns the number of its items.
    async fn page(&mut self, limit: usize) -> usize {
        let cursor = self.cursor.as_ref().map_or_else(String::new, |cursor| format!("&cursor={cursor}"));
        let path = format!("/records?order=processed&limit={limit}{}{cursor}", self.query);
        let page = self.world.get(&path).await;
        let items = page["items"].as_array().expect("items");
        self.seen.extend(ids(items, "recordId"));
        self.cursor = Some(page["nextCursor"].as_str().expect("a cursor on every page").to_owned());
        assert!(items.len() <= limit);
        items.len()
    }

    /// Reads until a page is short.
    async fn read_to_end(&mut self, limit: usize) {
        while self.page(limit).await == limit {}
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn pages_of_any_size_have_the_order_of_processing(pool: PgPool) {
    let mut world = World::new(pool).await;
    let [a, b] = destinations();
    let mut expected = Vec::new();
    // Shard 0 has most of the records; both continue in the next partition.
    for n in 0..60 {
        let id = format!("r{n:02}");
        let processed_at = format!("2026-02-01T00:00:{n:02}Z");
        let row = Row {
            id: &id,
            destination: if n % 7 == 3 { &b } else { &a },
            processed_at: &processed_at,
            period: if n < 40 { "2026-11-01" } else { "2026-12-01" },
            unit: if n % 5 == 0 { "min" } else { "EUR" },
            ..ROW
        };
        world.add(row).await;
        expected.push((id, n % 5 == 0));
    }
    for limit in [1, 2, 7, 59, 60, 1000] {
        let mut reader = Reader::new(&world, "");
        reader.read_to_end(limit).await;
        assert_eq!(reader.seen, expected.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), "pages of {limit}");
        assert_eq!(reader.page(limit).await, 0, "nothing follows");
        let mut reader = Reader::new(&world, "&unit=min");
        reader.read_to_end(limit).await;
        let rare: Vec<_> = expected.iter().filter(|(_, rare)| *rare).map(|(id, _)| id.clone()).collect();
        assert_eq!(reader.seen, rare, "pages of {limit}");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_commit_that_becomes_visible_late_is_not_missed(pool: PgPool) {
    let world = World::new(pool).await;
    let [a, b] = destinations();
    let early = Row { id: "early", destination: &a, processed_at: "2026-02-01T00:00:01Z", ..ROW };
    let late = Row { id: "late", destination: &b, processed_at: "2026-02-01T00:00:02Z", ..ROW };
    let mut connection = world.pool.acquire().await.expect("a connection");
    let mut open = connection.begin().await.expect("a transaction");
    early.store(1, &mut open).await;
    late.store(1, &mut world.pool.acquire().await.expect("a connection")).await;
    let mut reader = Reader::new(&world, "");
    reader.read_to_end(10).await;
    assert_eq!(reader.seen, ["late"]);
    open.commit().await.expect("committed");
    reader.read_to_end(10).await;
    assert_eq!(reader.seen, ["late", "early"]);
}

#[sqlx::test(migrations = "../migrations")]
async fn a_clock_that_was_set_back_hides_no_record(pool: PgPool) {
    let mut world = World::new(pool).await;
    let [a, b] = destinations();
    for (n, second) in [50, 10, 20, 55, 5, 30].into_iter().enumerate() {
        for (destination, shard) in [(&a, "a"), (&b, "b")] {
            let (id, processed_at) = (format!("{shard}{n}"), format!("2026-02-01T00:00:{second:02}Z"));
            world.add(Row { id: &id, destination, processed_at: &processed_at, ..ROW }).await;
        }
    }
    for limit in 1..=12 {
        let mut reader = Reader::new(&world, "");
        reader.read_to_end(limit).await;
        for shard in ["a", "b"] {
            let of_shard: Vec<_> = reader.seen.iter().filter(|id| id.starts_with(shard)).cloned().collect();
            assert_eq!(of_shard, (0..6).map(|n| format!("{shard}{n}")).collect::<Vec<_>>(), "pages of {limit}");
        }
    }
}

/// Commits `count` records of a shard in transactions of one to four, which overlap those of other shards.
async fn commit(mut connection: PgConnection, destination: String, count: i64) {
    let mut seq = 0;
    while seq < count {
        let mut transaction = connection.begin().await.expect("a transaction");
        for _ in 0..=seq % 4 {
            seq += 1;
            let now: DateTime<Utc> =
                sqlx::query_scalar("select clock_timestamp()").fetch_one(&mut *transaction).await.expect("a time");
            let id = format!("{destination}-{seq:04}");
            let processed_at = crate::domain::render_time(now);
            let period = if seq <= count / 2 { "2026-11-01" } else { "2026-12-01" };
            let row = Row { id: &id, destination: &destination, processed_at: &processed_at, period, ..ROW };
            row.store(seq, &mut transaction).await;
        }
        transaction.commit().await.expect("committed");
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_reader_misses_nothing_while_shards_commit_concurrently(pool: PgPool) {
    const COUNT: i64 = 300;
    let world = World::new(pool).await;
    let mut writers = Vec::new();
    for destination in destinations() {
        let connection = world.pool.acquire().await.expect("a connection").detach();
        writers.push(tokio::spawn(commit(connection, destination, COUNT)));
    }
    let mut reader = Reader::new(&world, "");
    let mut pages = 0;
    while !writers.iter().all(tokio::task::JoinHandle::is_finished) {
        reader.page(7).await;
        pages += 1;
    }
    for writer in writers {
        writer.await.expect("committed");
    }
    assert!(pages > 10, "the reader followed the commits");
    reader.read_to_end(7).await;
    let mut by_destination: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for id in &reader.seen {
        let (destination, number) = id.split_once('-').expect("an id");
        by_destination.entry(destination.to_owned()).or_default().push(number.to_owned());
    }
    let every: Vec<String> = (1..=COUNT).map(|seq| format!("{seq:04}")).collect();
    for destination in destinations() {
        let seen = &by_destination[&destination];
        assert!(seen.is_sorted(), "the order of processing");
        assert!(seen.starts_with(&every), "{} of {COUNT} records of {destination}", seen.len());
    }
}

#[sqlx::test(migrations = "../migrations")]
async fn a_cursor_of_another_order_or_of_other_shards_is_refused(pool: PgPool) {
    let mut world = World::new(pool).await;
    for n in 0..3 {
        world.add(Row { id: &format!("r{n}"), ..ROW }).await;
    }
    let log = world.get("/records?limit=1").await["nextCursor"].as_str().expect("more").to_owned();
    let mut reader = Reader::new(&world, "");
    reader.page(1).await;
    let processed = reader.cursor.expect("a cursor");
    for path in [
        format!("/records?order=processed&cursor={log}"),
        format!("/records?cursor={processed}"),
        format!("/records?order=processed&unit=EUR&cursor={processed}"),
    ] {
        assert_eq!(world.refusal(&path).await, (400, "invalid_cursor".to_owned(), false), "{path}");
    }
    let filter = crate::store::RecordFilter::default();
    let paging =
        super::super::answer::Paging::<Vec<crate::domain::Seq>>::new("/records?order=processed", &filter, None, 1);
    for numbers in [vec![], vec![0], vec![0, 0, 0], vec![0, -1]] {
        let place = numbers.iter().map(|number| crate::domain::Seq::new(*number)).collect();
        let cursor = paging.as_ref().expect("paging").cursor(&place).expect("a cursor");
        let refusal = world.refusal(&format!("/records?order=processed&cursor={cursor}")).await;
        assert_eq!(refusal.1, "invalid_cursor", "{numbers:?}");
    }
    assert_eq!(world.refusal("/records?order=backwards").await.0, 400);
}
