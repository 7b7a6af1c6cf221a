//! A sink that moves to another stream.

use super::*;
use crate::store::testing::TestPipeline;

#[tokio::test]
async fn a_move_continues_from_the_last_started_stream() {
    let pipeline = TestPipeline::new("shards: 1").await;
    let store = &pipeline.store;
    let policy = "insert into policies (version, uid, generation, spec) values (1, '', 1, '{}')";
    sqlx::query(policy).execute(&store.pool).await.unwrap();
    let names: Vec<String> =
        [store.cursor_generation().await.unwrap(), store.cursor_generation().await.unwrap()].into();
    assert!(names.is_sorted() && names[0] != names[1], "{names:?}");
    let sink = NewSink {
        name: "s",
        kind: OutcomeKind::Processed,
        stream: Some("one"),
        cursor_generation: "a",
        begins: SinkBegins::Beginning,
        until: None,
    };
    store.add_sink(&sink, 1).await.unwrap();
    let row = async || store.sinks().await.unwrap().remove(0);
    let old = async || row().await.old_stream.zip(row().await.old_cursor_generation);
    store.move_sink(&row().await, "two", "b", 1).await.unwrap();
    assert_eq!(old().await, None, "nothing was published to the first");
    assert!(!store.sink_started("s", "a").await.unwrap(), "the generation of an abandoned start");
    assert!(store.sink_started("s", "b").await.unwrap());
    store.move_sink(&row().await, "three", "c", 1).await.unwrap();
    let two = Some(("two".to_owned(), "b".to_owned()));
    assert_eq!(old().await, two);
    store.move_sink(&row().await, "four", "d", 1).await.unwrap();
    assert_eq!(old().await, two, "the third was never started");
    assert!(store.sink_started("s", "d").await.unwrap());
    // A move while the old cursor still exists.
    store.move_sink(&row().await, "five", "e", 1).await.unwrap();
    assert_eq!(old().await, Some(("four".to_owned(), "d".to_owned())));
}
