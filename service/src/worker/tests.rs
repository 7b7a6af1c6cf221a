//! The comparison of the lease at each step, with real servers: an owner that is out of date writes nothing.

use millrace_crds::{Partition, status_api::PublisherState};

use super::parse;
use crate::{
    domain::{
        self, Entry, Lease, Offset, OffsetRange, OutcomeKind, Policy, Seq, SeqRange, ShardId, ShardSeq, StreamId,
        Watermarks,
    },
    store::{self, DecidedPart, LeftOut, Part, testing::TestPipeline},
    streams::{
        self, Acknowledged, AppendSettings, End, Input, Outgoing, Output, Producer, ProducerCount, Published, Read,
        Step, Streams, testing,
    },
};

const SHARD: ShardId = ShardId::new(0);

fn watermarks(records: i64) -> Watermarks {
    Watermarks { records: Seq::new(records), ..Watermarks::default() }
}

fn at(seq: i64) -> ShardSeq {
    ShardSeq { shard: SHARD, seq: Seq::new(seq) }
}

fn lease(epoch: i64, token: &str) -> Lease {
    Lease { epoch, token: token.to_owned() }
}

/// A pipeline in both servers, whose shard 0 of 1 was taken.
async fn taken() -> (TestPipeline, Streams, Input, Lease) {
    let pipeline = TestPipeline::new("shards: 1").await;
    let streams = Streams::connect(&testing::url(), &pipeline.manifest.metadata.name).unwrap();
    let input = streams.input(&pipeline.pipeline.pipeline_id, SHARD, "one");
    let held = pipeline.store.take("one", SHARD, "first", 60_000).await.unwrap().unwrap();
    assert!(input.prepare(&held, "").await.unwrap().created, "the group is new");
    (pipeline, streams, input, held)
}

async fn append(pipeline: &TestPipeline, producer: &Producer, id: &str) {
    let record = format!(
        r#"{{"recordId":"{id}","time":"2026-01-31T12:00:00Z","sourceId":"s","destinationId":"d","type":"positive","value":"1","unit":"EUR","reference":"r"}}"#
    );
    let record = Outgoing { record, ..Outgoing::default() };
    let settings = AppendSettings { pipeline_id: pipeline.pipeline.pipeline_id.as_str().into(), backlog_limit: 100 };
    producer.append(SHARD, settings, vec![record]).await.unwrap();
}

async fn not_acknowledged(streams: &Streams) -> i64 {
    streams.backlog(1).await.unwrap().iter().map(|shard| shard.above(shard.acknowledged)).sum()
}

fn producer(streams: &Streams) -> Producer {
    Producer::new(streams, &"s".into(), 1)
}

/// Reads up to so many entries; a test appends entries of one record.
async fn read(input: &Input, lease: &Lease, entries: usize) -> Vec<Entry> {
    match input.read(lease, entries).await.unwrap() {
        Step::Done(Read::Entries(entries)) => entries,
        other => panic!("{other:?}"),
    }
}

fn acknowledged(records: i64, offset: i64) -> Acknowledged {
    Acknowledged { watermarks: watermarks(records), offset: Offset::new(offset) }
}

fn is_fenced<T: std::fmt::Debug>(outcome: Result<T, streams::Error>) {
    assert!(matches!(outcome, Err(streams::Error::Fenced(_))), "{outcome:?}");
}

#[tokio::test]
async fn an_owner_that_is_out_of_date_commits_nothing() {
    let (pipeline, streams, input, held) = taken().await;
    append(&pipeline, &producer(&streams), "a").await;
    let batch = parse::batch(read(&input, &held, 10).await).items;
    let (store, policy) = (&pipeline.store, Policy::default());
    let left = store.progress_of(SHARD).await.unwrap();
    // Another owner, and an epoch that a rewound server has given again.
    for out_of_date in [lease(held.epoch - 1, "first"), lease(held.epoch, "other"), lease(held.epoch + 1, "first")] {
        let mut commit = store.begin_group(&[SHARD], 1, true).await.unwrap();
        let comparison = commit.compare(SHARD, &out_of_date, &left, 1);
        assert!(matches!(comparison, Err(LeftOut::Fenced)), "{out_of_date:?}: {comparison:?}");
    }
    let mut commit = store.begin_group(&[SHARD], 1, true).await.unwrap();
    assert!(matches!(commit.compare(SHARD, &held, &left, 1), Ok(())));
    commit.set_period(Partition::Month);
    let part = Part { shard: SHARD, batch: &batch };
    let mut known = commit.known(&[part], &policy).await.unwrap();
    let of_shard = known.shards.remove(&SHARD).unwrap();
    let position = commit.shard(SHARD).position;
    let decision = domain::decide(&batch, of_shard, &mut known.ids, &policy, position);
    commit.write(&[DecidedPart { part, decision: &decision }], &known.ids, &policy).await.unwrap();
    let after = commit.finish(1, 60_000).await.unwrap().remove(&SHARD).unwrap();
    assert_eq!((after.progress.watermarks, after.progress.accounted, after.lost), (watermarks(1), Offset::new(1), 0));
    assert_eq!(store.progress_of(SHARD).await.unwrap(), after.progress);
}

#[tokio::test]
async fn an_owner_that_is_out_of_date_reads_reclaims_and_acknowledges_nothing() {
    let (pipeline, streams, input, held) = taken().await;
    let producer = producer(&streams);
    append(&pipeline, &producer, "a").await;
    append(&pipeline, &producer, "b").await;
    let ids: Vec<_> = read(&input, &held, 1).await.iter().map(|entry| entry.id).collect();
    let next = lease(held.epoch + 1, "second");
    let successor = streams.input(&pipeline.pipeline.pipeline_id, SHARD, "two");
    assert!(!successor.prepare(&next, "").await.unwrap().created, "the group exists");
    is_fenced(input.ack(&held, acknowledged(1, 1), &ids).await);
    is_fenced(input.read(&held, 10).await);
    is_fenced(input.claim(&held, "-", 10).await);
    is_fenced(input.prepare(&held, "").await);
    is_fenced(input.reconcile(&held, 0, &[]).await);
    // The same epoch with another token is another owner.
    let twin = lease(next.epoch, "third");
    is_fenced(input.read(&twin, 10).await);
    is_fenced(input.ack(&twin, acknowledged(1, 1), &ids).await);
    // The entry of the first is still pending, and the other one was not delivered.
    let Step::Done(claimed) = successor.claim(&next, "-", 10).await.unwrap() else { panic!("the lease is set") };
    assert_eq!(claimed.entries.iter().map(|entry| (entry.id, entry.deliveries)).collect::<Vec<_>>(), [(ids[0], 2)]);
    let new = read(&successor, &next, 10).await;
    assert_eq!(new.len(), 1);
    let all: Vec<_> = ids.into_iter().chain(new.iter().map(|entry| entry.id)).collect();
    assert_eq!(successor.ack(&next, acknowledged(2, 2), &all).await.unwrap(), Step::Done(()));
    assert_eq!(not_acknowledged(&streams).await, 0, "acknowledged and trimmed");
}

#[tokio::test]
async fn a_locked_row_is_left_out_of_a_transaction_and_counts_as_held() {
    let pipeline = TestPipeline::new("shards: 2").await;
    let (store, other) = (&pipeline.store, ShardId::new(1));
    let held = store.take("one", SHARD, "a", 60_000).await.unwrap().unwrap();
    let also_held = store.take("one", other, "b", 60_000).await.unwrap().unwrap();
    let (left, other_left) = (store.progress_of(SHARD).await.unwrap(), store.progress_of(other).await.unwrap());
    let mut first = store.begin_group(&[SHARD], 2, false).await.unwrap();
    assert!(matches!(first.compare(SHARD, &held, &left, 1), Ok(())));
    let mut second = store.begin_group(&[SHARD, other], 2, false).await.unwrap();
    assert!(matches!(second.compare(SHARD, &held, &left, 1), Err(LeftOut::Locked)));
    assert!(matches!(second.compare(other, &also_held, &other_left, 1), Ok(())));
    // A renewal does not wait for either.
    let leases = [(SHARD, held.clone()), (other, lease(also_held.epoch, "another"))].into();
    assert_eq!(store.renew(&leases, 60_000).await.unwrap(), [SHARD], "the other lease is not this one");
}

#[tokio::test]
async fn a_pending_entry_is_not_trimmed() {
    let (pipeline, streams, input, held) = taken().await;
    let producer = producer(&streams);
    for id in ["a", "b", "c"] {
        append(&pipeline, &producer, id).await;
    }
    let ids: Vec<_> = read(&input, &held, 2).await.iter().map(|entry| entry.id).collect();
    // The second of two is acknowledged: the first is pending, the third was not delivered.
    assert_eq!(input.ack(&held, acknowledged(1, 0), &ids[1..]).await.unwrap(), Step::Done(()));
    assert_eq!(not_acknowledged(&streams).await, 3);
    assert_eq!(testing::entries(&streams, SHARD).await.len(), 3);
    let Step::Done(claimed) = input.claim(&held, "-", 10).await.unwrap() else { panic!("the lease is set") };
    assert_eq!(claimed.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), ids[..1]);
    assert_eq!(claimed.deleted, 0);
    assert_eq!(input.ack(&held, acknowledged(2, 2), &ids[..1]).await.unwrap(), Step::Done(()));
    assert_eq!(not_acknowledged(&streams).await, 1);
    assert_eq!(testing::entries(&streams, SHARD).await.len(), 1);
}

#[tokio::test]
async fn an_acknowledgement_and_the_next_read_are_one_step() {
    let (pipeline, streams, input, held) = taken().await;
    let producer = producer(&streams);
    for id in ["a", "b", "c"] {
        append(&pipeline, &producer, id).await;
    }
    let ids = |entries: &[Entry]| entries.iter().map(|entry| entry.id).collect::<Vec<_>>();
    let first = ids(&read(&input, &held, 2).await);
    let turn = input.ack_and_read(&held, acknowledged(2, 2), &first, 10).await.unwrap();
    let Step::Done(Ok(Read::Entries(entries))) = turn else { panic!("one is left") };
    let second = ids(&entries);
    assert_eq!(not_acknowledged(&streams).await, 1);
    let turn = input.ack_and_read(&held, acknowledged(3, 3), &second, 10).await.unwrap();
    let end = End { last: second[0].to_string(), appended: Offset::new(3), pending: 0 };
    assert!(matches!(turn, Step::Done(Ok(Read::Nothing(found))) if found == end));
    append(&pipeline, &producer, "d").await;
    // Not pending any more: nothing is read.
    assert!(matches!(input.ack_and_read(&held, acknowledged(3, 3), &second, 10).await.unwrap(), Step::Raised));
    is_fenced(input.ack_and_read(&lease(held.epoch, "twin"), acknowledged(3, 3), &[], 10).await);
    assert_eq!(read(&input, &held, 10).await.len(), 1);
}

#[tokio::test]
async fn a_lease_that_was_rewound_is_raised_and_nothing_else_is_done_in_that_step() {
    let (pipeline, streams, input, held) = taken().await;
    append(&pipeline, &producer(&streams), "a").await;
    let next = lease(held.epoch + 5, "second");
    assert!(matches!(input.read(&next, 10).await.unwrap(), Step::Raised));
    let newer = lease(held.epoch + 6, "third");
    assert!(matches!(input.ack(&newer, acknowledged(0, 0), &[]).await.unwrap(), Step::Raised));
    is_fenced(input.read(&next, 10).await);
    assert_eq!(read(&input, &newer, 10).await.len(), 1);
}

#[tokio::test]
async fn a_redis_that_was_rewound_under_the_same_lease_is_noticed_at_every_step() {
    let (pipeline, streams, input, held) = taken().await;
    let producer = producer(&streams);
    for id in ["a", "b"] {
        append(&pipeline, &producer, id).await;
    }
    let first: Vec<_> = read(&input, &held, 1).await.iter().map(|entry| entry.id).collect();
    assert_eq!(input.ack(&held, acknowledged(1, 1), &first).await.unwrap(), Step::Done(()));
    assert_eq!(not_acknowledged(&streams).await, 1);
    // The acknowledgement of an entry that is not pending, as after a rewind to before its delivery.
    assert!(matches!(input.ack(&held, acknowledged(2, 2), &first).await.unwrap(), Step::Raised));
    assert_eq!(input.prepare(&held, "").await.unwrap().acknowledged, acknowledged(1, 1));
    let mut redis = connection().await;
    let key = streams::keys::fence(&pipeline.manifest.metadata.name, SHARD);
    for (field, left) in [("records", acknowledged(0, 1)), ("acknowledged", acknowledged(0, 0))] {
        let _: () = redis::cmd("HSET").arg(&key).arg(field).arg(0).query_async(&mut redis).await.unwrap();
        assert!(matches!(input.read(&held, 1).await.unwrap(), Step::Raised));
        assert!(matches!(input.claim(&held, "-", 1).await.unwrap(), Step::Raised));
        assert!(matches!(input.ack(&held, acknowledged(2, 2), &[]).await.unwrap(), Step::Raised));
        assert!(matches!(input.reconcile(&held, 0, &[]).await.unwrap(), Step::Raised));
        assert_eq!(input.prepare(&held, "").await.unwrap().acknowledged, left);
    }
    assert!(matches!(input.read(&held, 1).await.unwrap(), Step::Done(_)));
}

#[tokio::test]
async fn counts_of_a_rewound_redis_are_raised_to_those_of_the_producers() {
    let (pipeline, streams, input, held) = taken().await;
    let producer = producer(&streams);
    for id in ["a", "b", "c"] {
        append(&pipeline, &producer, id).await;
    }
    let known = |count| vec![ProducerCount { producer: "s".to_owned(), count }];
    let reconcile = async |folded, known: &[ProducerCount]| match input.reconcile(&held, folded, known).await.unwrap() {
        Step::Done(counts) => counts,
        Step::Raised => panic!("the lease is set"),
    };
    assert_eq!(reconcile(0, &[]).await.unknown_producers, known(3), "a producer that Postgres does not hold");
    let counts = reconcile(0, &known(2)).await;
    assert_eq!((counts.appended, counts.counted, counts.raised), (Offset::new(3), Offset::new(3), 0));
    assert_eq!((counts.held, counts.unknown_producers), (vec![3], vec![]));
    // Redis loses two appends with tsuccessor counts, and the producer continues: no offset is given again.
    let mut redis = connection().await;
    let name = &pipeline.manifest.metadata.name;
    let (beside, stream) = (streams::keys::fence(name, SHARD), streams::keys::records(name, SHARD));
    let _: i64 = redis::cmd("XTRIM").arg(&stream).arg(&["MAXLEN", "0"]).query_async(&mut redis).await.unwrap();
    let _: i64 =
        redis::cmd("HSET").arg(&beside).arg(&["by:s", "1", "appended", "1"]).query_async(&mut redis).await.unwrap();
    append(&pipeline, &producer, "d").await;
    let records = testing::records(&streams, SHARD).await;
    assert_eq!(records[0].offsets, OffsetRange::new(4, 4));
    // It loses them again, and the owner raises the counts before the producer does.
    let _: i64 = redis::cmd("HDEL").arg(&beside).arg(&["by:s", "appended"]).query_async(&mut redis).await.unwrap();
    let counts = reconcile(5, &known(4)).await;
    assert_eq!((counts.appended, counts.counted, counts.raised), (Offset::new(9), Offset::new(9), 4));
    append(&pipeline, &producer, "e").await;
    let records = testing::records(&streams, SHARD).await;
    assert_eq!(records[1].offsets, OffsetRange::new(10, 10));
    assert_eq!(producer.counts()[0].appended, 5);
}

async fn connection() -> redis::aio::MultiplexedConnection {
    redis::Client::open(testing::url()).unwrap().get_multiplexed_async_connection().await.unwrap()
}

#[tokio::test]
async fn a_commit_is_not_made_where_the_log_stands_elsewhere() {
    let (pipeline, _, _, held) = taken().await;
    let left = pipeline.store.progress_of(SHARD).await.unwrap();
    let comparison = async |left: &store::ShardProgress| {
        let mut commit = pipeline.store.begin_group(&[SHARD], 1, true).await.unwrap();
        commit.compare(SHARD, &held, left, 1)
    };
    assert!(matches!(comparison(&left).await, Ok(())));
    let behind = store::ShardProgress { watermarks: watermarks(1), ..left };
    assert!(matches!(comparison(&behind).await, Err(LeftOut::Changed)), "the log was rewound");
    let another = store::ShardProgress { server: store::Server::default(), ..left };
    assert!(
        matches!(comparison(&another).await, Err(LeftOut::Changed)),
        "a fence that was good once is good again in a server that was restored"
    );
    let later = store::ShardProgress { applied: Some(StreamId { ms: 1, n: 1 }), ..left };
    assert!(matches!(comparison(&later).await, Err(LeftOut::Changed)), "another entry is the highest applied one");
}

#[tokio::test]
async fn entries_are_published_only_from_where_the_cursor_stands() {
    let (pipeline, streams, ..) = taken().await;
    let output = Output {
        pipeline_id: pipeline.pipeline.pipeline_id.clone(),
        sink: "s".to_owned(),
        stream: format!("{}.s", pipeline.manifest.metadata.name),
        cursor_generation: "i".to_owned(),
        max_length: 0,
        trim_unread: false,
    };
    let publish = async |output: &Output, from: i64, to: i64| {
        let notice = |number| streams::Notice {
            seq: Seq::new(number),
            id: format!("0-{number}"),
            received_at: None,
            time: String::new(),
            traceparent: None,
            data: "{}".to_owned(),
        };
        let notices: Vec<_> = (from + 1..=to).map(notice).collect();
        let range = SeqRange { after: Seq::new(from), upto: Seq::new(to) };
        streams.publish(output, SHARD, "record.processed", range, &notices).await.unwrap()
    };
    assert_eq!(publish(&output, 0, 1).await, Published::Gone, "no cursor was made");
    streams.start_cursor(&output, &[at(0)], "").await.unwrap();
    assert_eq!(publish(&output, 0, 2).await, Published::All { trimmed_unread: 0 });
    assert_eq!(publish(&output, 0, 2).await, Published::Moved(Seq::new(2)), "a retry of what took effect");
    assert_eq!(publish(&output, 1, 3).await, Published::Moved(Seq::new(2)));
    assert_eq!(publish(&output, 3, 4).await, Published::Moved(Seq::new(2)), "nothing is skipped");
    assert_eq!(publish(&output, 2, 3).await, Published::All { trimmed_unread: 0 });
    let other = Output { cursor_generation: "j".to_owned(), ..output.clone() };
    assert_eq!(publish(&other, 3, 4).await, Published::Gone, "another start of the sink");
    let older = Output { cursor_generation: "h".to_owned(), ..output.clone() };
    assert!(!streams.start_cursor(&older, &[at(0)], "").await.unwrap(), "a newer one exists");
    assert_eq!(streams.retire_cursor(&output).await.unwrap(), Some(vec![at(3)]));
    assert_eq!(publish(&output, 3, 4).await, Published::Gone, "retired");
}

#[tokio::test]
async fn only_the_pipeline_that_the_annotation_names_is_adopted() {
    let (pipeline, streams, input, held) = taken().await;
    let producer = producer(&streams);
    append(&pipeline, &producer, "a").await;
    let ids: Vec<_> = read(&input, &held, 1).await.iter().map(|entry| entry.id).collect();
    append(&pipeline, &producer, "b").await;
    let Step::Done(_) = input.ack(&held, acknowledged(1, 1), &ids).await.unwrap() else { panic!("the lease is set") };
    let old = pipeline.pipeline.pipeline_id.as_str();
    let sink = |pipeline_id: &str, sink: &str, cursor_generation: &str| Output {
        pipeline_id: pipeline_id.to_owned(),
        sink: sink.to_owned(),
        stream: format!("{}.s", pipeline.manifest.metadata.name),
        cursor_generation: cursor_generation.to_owned(),
        max_length: 0,
        trim_unread: false,
    };
    streams.start_cursor(&sink(old, "s", "i"), &[at(1)], "").await.unwrap();

    let refused = |outcome: Result<(), streams::Error>| {
        assert!(matches!(outcome, Err(streams::Error::Refused(_))), "{outcome:?}");
    };
    // Its epochs begin again, below those beside the stream.
    let successor = streams.input("new", SHARD, "two");
    let next = lease(0, "second");
    for adopt in ["", "new", "0123456789abcdef"] {
        refused(successor.prepare(&next, adopt).await.map(|_| ()));
        refused(streams.start_cursor(&sink("new", "s", "j"), &[at(0)], adopt).await.map(|_| ()));
    }
    refused(streams.start_cursor(&sink("new", "another", "j"), &[at(0)], old).await.map(|_| ()));
    assert_eq!(streams.backlog(1).await.unwrap()[0].pipeline_id.as_deref(), Some(old), "nothing changed");
    let next = lease(1, "second");
    let prepared = successor.prepare(&next, old).await.unwrap();
    assert!(!prepared.created, "stream and group exist");
    assert_eq!(
        prepared.acknowledged,
        acknowledged(0, 1),
        "the watermarks of another log are removed, the offsets stay"
    );
    streams.start_cursor(&sink("new", "s", "j"), &[at(0)], old).await.unwrap();

    let adopted = streams.backlog(1).await.unwrap().remove(0);
    assert_eq!(adopted.pipeline_id.as_deref(), Some("new"));
    assert_eq!(adopted.records(), 1);
    assert_eq!(read(&successor, &next, 10).await.len(), 1, "the queued entry is the successor's");
    // The former owner is refused at each step.
    refused(input.read(&held, 10).await.map(|_| ()));
    refused(input.ack(&held, acknowledged(2, 2), &[]).await.map(|_| ()));
    refused(input.prepare(&held, "").await.map(|_| ()));
    assert_eq!(streams.cursor(&sink(old, "s", "i"), SHARD).await.unwrap(), None);
    assert_eq!(streams.cursor(&sink("new", "s", "j"), SHARD).await.unwrap(), Some(Seq::ZERO));
}

#[tokio::test]
async fn an_owner_that_is_out_of_date_says_nothing_of_its_sinks() {
    let (pipeline, _streams, _input, held) = taken().await;
    let store = &pipeline.store;
    store.register_later(1, "{}").await;
    let (kind, stream, begins) = (OutcomeKind::Processed, Some("stream"), store::SinkBegins::Now);
    let sink = store::NewSink { name: "notifications", kind, stream, cursor_generation: "t1", begins, until: None };
    store.add_sink(&sink, 1).await.unwrap();
    let failing = store::SinkState { state: PublisherState::Failing, detail: "broken pipe".to_owned() };
    let says = async |fence: &Lease, state| {
        store.set_sink_state("notifications", SHARD, Some(&fence.token), state).await.unwrap();
        store.sink_states().await.unwrap().len()
    };
    assert_eq!(says(&held, Some(&failing)).await, 1);
    store.release(SHARD, &held).await.unwrap();
    let successor = store.take("two", SHARD, "second", 60_000).await.unwrap().unwrap();
    assert_eq!(says(&held, None).await, 1, "the first clears nothing");
    assert_eq!(says(&successor, None).await, 0);
    assert_eq!(says(&held, Some(&failing)).await, 0, "nor does it say anything");
}
