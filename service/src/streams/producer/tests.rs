//! The producer against a real Redis.

use super::*;
use crate::{
    domain::OffsetRange,
    streams::{keys, testing},
};

const SHARD: ShardId = ShardId::new(0);

fn start() -> (Streams, Producer) {
    let name = format!("producer-{:016x}", rand::random::<u64>());
    let streams = Streams::connect(&testing::url(), &name).unwrap();
    let producer = Producer::new(&streams, &"s".into(), 1);
    (streams, producer)
}

fn settings(backlog_limit: u64) -> AppendSettings {
    AppendSettings { pipeline_id: "id".into(), backlog_limit }
}

#[tokio::test]
async fn requests_that_come_together_are_appended_together_and_refused_alone() {
    let (streams, producer) = start();
    let record = |n: usize| Outgoing {
        record: format!("{n}"),
        received_at: chrono::DateTime::UNIX_EPOCH,
        traceparent: None,
        replay_of: None,
        source: None,
    };
    let settings = settings(300);
    let request = |records: usize| producer.append(SHARD, settings.clone(), (0..records).map(record).collect());
    // They come together. In their order, 299 do not fit, and the others do.
    let verdicts = tokio::join!(request(1), request(250), request(299), request(2), request(0));
    let count = |verdict: Result<Vec<StreamPosition>, AppendError>| verdict.map(|positions| positions.len());
    assert_eq!((count(verdicts.0).unwrap(), count(verdicts.1).unwrap()), (1, 250));
    assert!(matches!(verdicts.2, Err(AppendError::Backlog { room: 300 })), "{:?}", verdicts.2);
    assert_eq!((count(verdicts.3).unwrap(), count(verdicts.4).unwrap()), (2, 0));
    let entries = testing::entries(&streams, SHARD).await;
    assert_eq!(entries.iter().map(|entry| entry.records.len()).collect::<Vec<_>>(), [200, 53]);
    let records: Vec<_> = entries.iter().flat_map(|entry| &entry.records).collect();
    let offsets: Vec<_> = records.iter().map(|record| record.offsets).collect();
    assert_eq!(offsets, (1..=253).map(|n| OffsetRange::new(n, n)).collect::<Vec<_>>());
    assert!(matches!(request(48).await, Err(AppendError::Backlog { room: 47 })));
    assert_eq!(producer.counts()[0].appended, 253);
    // An empty stream has no backlog, whatever the counters hold.
    let stream = keys::records(&streams.pipeline, SHARD);
    let _: i64 =
        redis::cmd("XTRIM").arg(&stream).arg(&["MAXLEN", "0"]).query_async(&mut streams.shared(&stream)).await.unwrap();
    assert_eq!(count(request(300).await).unwrap(), 300);
}

#[tokio::test]
async fn a_stream_without_ids_accepts_nothing_and_its_counts_are_right() {
    let (streams, producer) = start();
    let stream = keys::records(&streams.pipeline, SHARD);
    let last_but_one = "18446744073709551615-18446744073709551614";
    let fields = ["records", "of another program"];
    let _: String = redis::cmd("XADD")
        .arg(&stream)
        .arg(last_but_one)
        .arg(&fields)
        .query_async(&mut streams.shared(&stream))
        .await
        .unwrap();
    let record = Outgoing {
        record: "x".repeat(40 << 10),
        received_at: chrono::DateTime::UNIX_EPOCH,
        traceparent: None,
        replay_of: None,
        source: None,
    };
    let settings = settings(100);
    // Two entries, and one id is left.
    let two = vec![record.clone(), record];
    let part = producer.append(SHARD, settings.clone(), two.clone()).await;
    assert!(matches!(part, Err(AppendError::Unknown(_))), "{part:?}");
    let refused = producer.append(SHARD, settings, two).await;
    assert!(matches!(refused, Err(AppendError::Exhausted(SHARD))), "{refused:?}");
    assert_eq!(producer.counts()[0].appended, 0);
    producer.close().await;
    assert_eq!(producer.counts()[0].appended, 1, "the count of Redis");
}
