//! The fence of positions: an owner that is out of date delivers and stores nothing.

use super::*;
use crate::{
    domain::OutcomeKind,
    store::{NewSink, testing::TestPipeline},
};

const SHARD: ShardId = ShardId::new(0);

fn claim(lease: &Lease) -> WebhookClaim {
    WebhookClaim { sink: "hooks".to_owned(), shard: SHARD, lease: lease.clone() }
}

fn row(seq: i64) -> DeliveryRow {
    DeliveryRow {
        seq: Seq::new(seq),
        destination_id: "d".to_owned(),
        state: DeliveryState::Waiting,
        ordered: true,
        attempts: 1,
        first_attempt_at: DateTime::UNIX_EPOCH,
        next_attempt_at: DateTime::UNIX_EPOCH,
        failed_at: None,
        log: vec![Attempt { at: DateTime::UNIX_EPOCH, latency_ms: 3, status: None, error: Some("why".to_owned()) }],
    }
}

fn changes<'a>(cursor: i64, rows: &'a [DeliveryRow], removed: &'a [Seq]) -> WebhookChanges<'a> {
    WebhookChanges { cursor: Seq::new(cursor), done: &[], failing_since: None, rows, removed }
}

#[tokio::test]
async fn an_owner_that_is_out_of_date_stores_no_delivery() {
    let pipeline = TestPipeline::new("shards: 1").await;
    let store = &pipeline.store;
    store.register_later(1, "{}").await;
    let (kind, filter) = (OutcomeKind::Processed, OutcomeFilter::default());
    let begins = crate::store::SinkBegins::Beginning;
    let sink = NewSink { name: "hooks", kind, stream: None, cursor_generation: "a", begins, until: None };
    store.add_sink(&sink, 1).await.unwrap();
    let first = store.take("one", SHARD, "first", 60_000).await.unwrap().unwrap();
    assert!(store.claim_webhook(&claim(&first), "a", &filter).await.unwrap().is_none(), "it is not started");
    assert!(store.start_webhook("hooks", "a").await.unwrap());
    assert!(store.claim_webhook(&claim(&first), "b", &filter).await.unwrap().is_none(), "another generation");
    let (position, rows) = store.claim_webhook(&claim(&first), "a", &filter).await.unwrap().unwrap();
    assert_eq!((position.cursor, rows), (Seq::ZERO, Vec::new()));
    store.store_deliveries(&claim(&first), changes(7, &[row(5)], &[])).await.unwrap();

    store.release(SHARD, &first).await.unwrap();
    let second = store.take("two", SHARD, "second", 60_000).await.unwrap().unwrap();
    // Until the successor claims the position, the first may store what it delivered.
    store.store_deliveries(&claim(&first), changes(8, &[], &[])).await.unwrap();
    let (position, rows) = store.claim_webhook(&claim(&second), "a", &filter).await.unwrap().unwrap();
    assert_eq!((position.cursor, rows), (Seq::new(8), vec![row(5)]));
    let fenced = [
        store.store_deliveries(&claim(&first), changes(9, &[row(9)], &[Seq::new(5)])).await,
        store.store_retry(&claim(&first), Seq::new(5), None).await,
    ];
    assert!(fenced.iter().all(|outcome| matches!(outcome, Err(Error::Fenced))), "{fenced:?}");
    assert!(store.claim_webhook(&claim(&first), "a", &filter).await.unwrap().is_none());
    store.disable_webhook(&claim(&first), "a").await.unwrap();
    let (position, rows) = store.claim_webhook(&claim(&second), "a", &filter).await.unwrap().unwrap();
    assert_eq!((position.cursor, rows), (Seq::new(8), vec![row(5)]), "nothing changed");

    // A sink that starts again fences its own publisher, and drops what waits.
    assert!(store.resume_sink("hooks", "b", false, &crate::store::Actor::command(None)).await.unwrap());
    assert!(store.start_webhook("hooks", "b").await.unwrap());
    let fenced = store.store_deliveries(&claim(&second), changes(9, &[], &[])).await;
    assert!(matches!(fenced, Err(Error::Fenced)), "{fenced:?}");
    let (position, rows) = store.claim_webhook(&claim(&second), "b", &filter).await.unwrap().unwrap();
    assert_eq!((position.cursor, rows), (Seq::ZERO, Vec::new()), "the log is empty");
}
