//! The fence at each step, against real servers: an owner that is out of date writes, reads, takes over and acks nothing.

use crate::{
    domain::{self, Item, Lease, OutcomeKind, Policy, Record, Seq, SeqRange, ShardId, ShardSeq, Watermarks},
    store::{self, testing::TestPipeline},
    streams::{self, By, Input, LossBound, Outgoing, Output, Published, Step, Streams, testing},
};
use std::sync::Arc;

use millrace_crds::status_api::PublisherState;

const SHARD: ShardId = ShardId::new(0);

fn watermarks(records: i64) -> Watermarks {
    Watermarks { records: Seq::new(records), ..Watermarks::default() }
}

fn at(seq: i64) -> ShardSeq {
    ShardSeq { shard: SHARD, seq: Seq::new(seq) }
}

fn fence(epoch: i64, token: &str) -> Lease {
    Lease { epoch, token: token.to_owned() }
}

/// A pipeline in both servers, whose shard 0 of 1 was taken.
async fn taken() -> (TestPipeline, Streams, Input, Lease) {
    let pipeline = TestPipeline::new("shards: 1").await;
    let streams = Streams::connect(&testing::url(), &pipeline.manifest.metadata.name).unwrap();
    let input = streams.input(&pipeline.pipeline.pipeline_id, SHARD, "one");
    let held = pipeline.store.take("one", SHARD, "first", 60_000).await.unwrap().unwrap();
    assert!(input.prepare(&held, "").await.unwrap().made, "the group is new");
    (pipeline, streams, input, held)
}

async fn append(pipeline: &TestPipeline, streams: &Streams, id: &str) {
    append_as(pipeline, streams, id, 0).await;
}

/// `known`: how many entries the process knows to have appended.
async fn append_as(pipeline: &TestPipeline, streams: &Streams, id: &str, known: i64) {
    let record = format!(
        r#"{{"recordId":"{id}","time":"2026-01-31T12:00:00Z","sourceId":"s","destinationId":"d","type":"positive","value":"1","unit":"EUR","reference":"r"}}"#
    );
    let received_at = chrono::DateTime::UNIX_EPOCH;
    let entry = Outgoing { record, received_at, traceparent: None, serve: Some("s".into()), replay_of: None };
    streams
        .append(SHARD, &pipeline.pipeline.pipeline_id, 100, Some(By { process: "s", appended: known }), &[entry])
        .await
        .unwrap();
}

fn is_fenced<T: std::fmt::Debug>(outcome: Result<T, streams::Error>) {
    assert!(matches!(outcome, Err(streams::Error::Fenced(_))), "{outcome:?}");
}

#[tokio::test]
async fn an_owner_that_is_out_of_date_commits_nothing() {
    let (pipeline, streams, input, held) = taken().await;
    append(&pipeline, &streams, "a").await;
    let Step::Done(fresh) = input.read(&held, 10).await.unwrap() else { panic!("the fence is right") };
    let batch: Vec<Item> = fresh
        .entries
        .into_iter()
        .map(|entry| Item { record: Record::parse(&entry.payload).map(Arc::new), entry, isolated: None })
        .collect();
    let policy = Policy::default();
    // Taken over by another, and the same epoch given twice by a server that went back.
    for out_of_date in [fence(held.epoch - 1, "first"), fence(held.epoch, "other"), fence(held.epoch + 1, "first")] {
        let refused = pipeline.store.begin_commit(SHARD, 1, &out_of_date, 1, false).await;
        assert!(matches!(refused, Err(store::Error::Fenced)), "{out_of_date:?}");
    }
    let mut commit = pipeline.store.begin_commit(SHARD, 1, &held, 1, false).await.unwrap();
    let known = commit.known(&batch, &policy).await.unwrap();
    let decision = domain::decide(&batch, known, &policy, commit.position);
    assert_eq!(
        commit.write(&batch, &decision, 1).await.unwrap(),
        store::AfterCommit { watermarks: watermarks(1), duplicates: 0 }
    );
}

#[tokio::test]
async fn an_owner_that_is_out_of_date_reads_takes_over_and_acks_nothing() {
    let (pipeline, streams, input, held) = taken().await;
    append(&pipeline, &streams, "a").await;
    append(&pipeline, &streams, "b").await;
    let Step::Done(fresh) = input.read(&held, 1).await.unwrap() else { panic!("the fence is right") };
    let ids: Vec<_> = fresh.entries.iter().map(|entry| entry.id).collect();
    let next = fence(held.epoch + 1, "second");
    let heir = streams.input(&pipeline.pipeline.pipeline_id, SHARD, "two");
    assert!(!heir.prepare(&next, "").await.unwrap().made, "the group is there");
    is_fenced(input.ack(&held, watermarks(1), 0, &ids).await);
    is_fenced(input.read(&held, 10).await);
    is_fenced(input.claim(&held, "-", 10).await);
    is_fenced(input.prepare(&held, "").await);
    // The same epoch under another token is another owner.
    let twin = fence(next.epoch, "third");
    is_fenced(input.read(&twin, 10).await);
    is_fenced(input.ack(&twin, watermarks(1), 0, &ids).await);
    // What the first took is pending still, and what it did not take was not taken.
    let Step::Done(claimed) = heir.claim(&next, "-", 10).await.unwrap() else { panic!("the fence is right") };
    assert_eq!(claimed.entries.iter().map(|entry| (entry.id, entry.deliveries)).collect::<Vec<_>>(), [(ids[0], 2)]);
    let Step::Done(fresh) = heir.read(&next, 10).await.unwrap() else { panic!("the fence is right") };
    assert_eq!(fresh.entries.len(), 1);
    let all: Vec<_> = ids.into_iter().chain(fresh.entries.iter().map(|entry| entry.id)).collect();
    assert!(matches!(heir.ack(&next, watermarks(2), 0, &all).await.unwrap(), Step::Done(0)), "acked and trimmed");
}

/// An id that is about to be stored by one shard, and taken by a dead letter of another: no index is over both tables.
#[tokio::test]
async fn while_a_dead_letter_is_opened_no_other_shard_commits() {
    let pipeline = TestPipeline::new("shards: 2").await;
    let one = pipeline.store.take("one", SHARD, "a", 60_000).await.unwrap().unwrap();
    let other = pipeline.store.take("one", ShardId::new(1), "b", 60_000).await.unwrap().unwrap();
    let storing = pipeline.store.begin_commit(SHARD, 2, &one, 1, false).await.unwrap();
    let also = pipeline.store.begin_commit(ShardId::new(1), 2, &other, 1, false).await.unwrap();
    drop(also);
    let opening = pipeline.store.begin_commit(ShardId::new(1), 2, &other, 1, true);
    let mut opening = Box::pin(opening);
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut opening).await;
    assert!(early.is_err(), "it waits for the other's commit, which began before");
    drop(storing);
    let opening = opening.await.unwrap();
    let storing = pipeline.store.begin_commit(SHARD, 2, &one, 1, false);
    let early = tokio::time::timeout(std::time::Duration::from_millis(300), storing).await;
    assert!(early.is_err(), "and who begins later waits for it");
    drop(opening);
}

#[tokio::test]
async fn what_is_pending_is_not_trimmed() {
    let (pipeline, streams, input, held) = taken().await;
    for id in ["a", "b", "c"] {
        append(&pipeline, &streams, id).await;
    }
    let Step::Done(fresh) = input.read(&held, 2).await.unwrap() else { panic!("the fence is right") };
    let ids: Vec<_> = fresh.entries.iter().map(|entry| entry.id).collect();
    // The second of two is acknowledged: the first is pending, the third was not delivered.
    assert!(matches!(input.ack(&held, watermarks(1), 0, &ids[1..]).await.unwrap(), Step::Done(3)));
    let Step::Done(claimed) = input.claim(&held, "-", 10).await.unwrap() else { panic!("the fence is right") };
    assert_eq!(claimed.entries.iter().map(|entry| entry.id).collect::<Vec<_>>(), ids[..1]);
    assert!(claimed.gone.is_empty());
    assert!(matches!(input.ack(&held, watermarks(2), 0, &ids[..1]).await.unwrap(), Step::Done(1)));
}

#[tokio::test]
async fn a_fence_that_was_rewound_is_raised_and_nothing_else_is_done_in_that_step() {
    let (pipeline, streams, input, held) = taken().await;
    append(&pipeline, &streams, "a").await;
    let next = fence(held.epoch + 5, "second");
    assert!(matches!(input.read(&next, 10).await.unwrap(), Step::Raised));
    let newer = fence(held.epoch + 6, "third");
    assert!(matches!(input.ack(&newer, watermarks(0), 0, &[]).await.unwrap(), Step::Raised));
    is_fenced(input.read(&next, 10).await);
    let Step::Done(fresh) = input.read(&newer, 10).await.unwrap() else { panic!("the fence is right") };
    assert_eq!(fresh.entries.len(), 1);
}

#[tokio::test]
async fn a_redis_that_was_rewound_under_the_same_fence_is_noticed_at_every_step() {
    let (pipeline, streams, input, held) = taken().await;
    for id in ["a", "b"] {
        append(&pipeline, &streams, id).await;
    }
    let Step::Done(fresh) = input.read(&held, 1).await.unwrap() else { panic!("the fence is right") };
    let first: Vec<_> = fresh.entries.iter().map(|entry| entry.id).collect();
    let Step::Done(_) = input.ack(&held, watermarks(1), 0, &first).await.unwrap() else { panic!("the fence is right") };
    // An ack of what is not pending, as where its delivery was forgotten: the numbers stay.
    assert!(matches!(input.ack(&held, watermarks(2), 0, &first).await.unwrap(), Step::Raised));
    assert_eq!(input.prepare(&held, "").await.unwrap().watermarks, watermarks(1));
    // The numbers, too, were forgotten.
    let mut redis = redis::Client::open(testing::url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let key = streams::keys::fence(&pipeline.manifest.metadata.name, SHARD);
    let _: () = redis::cmd("HSET").arg(&key).arg("records").arg(0).query_async(&mut redis).await.unwrap();
    assert!(matches!(input.read(&held, 1).await.unwrap(), Step::Raised));
    assert!(matches!(input.claim(&held, "-", 1).await.unwrap(), Step::Raised));
    assert!(matches!(input.ack(&held, watermarks(2), 0, &[]).await.unwrap(), Step::Raised));
    assert!(matches!(input.count(&held, 1, 0, &[]).await.unwrap(), Step::Raised));
    assert_eq!(input.prepare(&held, "").await.unwrap().watermarks, watermarks(0));
    assert!(matches!(input.read(&held, 1).await.unwrap(), Step::Done(_)));
}

#[tokio::test]
async fn what_was_appended_and_is_nowhere_is_missing() {
    let (pipeline, streams, input, held) = taken().await;
    let count = async |applied, known: &[(String, i64)]| match input.count(&held, applied, 0, known).await.unwrap() {
        Step::Done(census) => census,
        Step::Raised => panic!("the fence is right"),
    };
    for id in ["a", "b", "c"] {
        append(&pipeline, &streams, id).await;
    }
    let known = |count| vec![("s".to_owned(), count)];
    assert_eq!(count(0, &[]).await.strangers, known(3), "a process that nobody asked about");
    let census = count(0, &known(2)).await;
    assert_eq!(census.strangers, []);
    assert_eq!((census.missing, census.present, census.rewound, census.stood), (0, 3, 0, vec![3]));
    assert_eq!(count(1, &known(3)).await.missing, -1, "applied, and still in the stream");
    // Redis forgot one append and its count; another was removed.
    let mut redis = redis::Client::open(testing::url()).unwrap().get_multiplexed_async_connection().await.unwrap();
    let name = &pipeline.manifest.metadata.name;
    let (fence, stream) = (streams::keys::fence(name, SHARD), streams::keys::records(name, SHARD));
    let _: i64 = redis::cmd("XTRIM").arg(&stream).arg(&["MAXLEN", "1"]).query_async(&mut redis).await.unwrap();
    let _: i64 = redis::cmd("HSET").arg(&fence).arg("by:s").arg(2).query_async(&mut redis).await.unwrap();
    let census = count(0, &known(3)).await;
    assert_eq!((census.missing, census.present, census.rewound, census.stood), (2, 1, 1, vec![2]));
    assert_eq!(count(0, &known(3)).await.rewound, 0, "it was told");
    input.tell_most(&held, Some(2)).await.unwrap();
    assert_eq!(streams.backlog(1).await.unwrap()[0].lost_at_most, Some(2));
    input.tell_most(&held, None).await.unwrap();
    assert_eq!(streams.backlog(1).await.unwrap()[0].lost_at_most, None);
    assert_eq!(count(0, &[]).await.told, LossBound::Unknown);
    // More is applied than anyone counted: a process died that Redis forgot. What is lost then is seen all the same.
    let books = async |applied| {
        let census = count(applied, &known(3)).await;
        (census.missing, census.uncounted)
    };
    let _: i64 = redis::cmd("DEL").arg(&stream).query_async(&mut redis).await.unwrap();
    assert_eq!(books(8).await, (0, 5));
    append(&pipeline, &streams, "d").await;
    let _: i64 = redis::cmd("DEL").arg(&stream).query_async(&mut redis).await.unwrap();
    assert_eq!((books(8).await, books(7).await), ((1, 5), (2, 5)));
    // Until somebody knows of more than is counted here: it may know of those.
    assert_eq!(count(8, &known(6)).await.uncounted, 2, "a process that noted them");
    assert_eq!(count(8, &known(6)).await.missing, 0);
    append_as(&pipeline, &streams, "e", 7).await;
    assert_eq!(count(8, &known(6)).await.uncounted, 0, "a process that tells while it appends");
}

#[tokio::test]
async fn a_commit_is_not_made_where_the_log_stands_elsewhere() {
    let (pipeline, _, _, held) = taken().await;
    let left = pipeline.store.progress_of(SHARD).await.unwrap();
    let commit = pipeline.store.begin_commit(SHARD, 1, &held, 1, false).await.unwrap();
    assert!(left.is_where(&commit));
    let behind = store::ShardProgress { watermarks: watermarks(1), ..left };
    assert!(!behind.is_where(&commit), "the log went back, or a commit of unknown outcome was none");
    let another = store::ShardProgress { server: store::Server::default(), ..left };
    assert!(!another.is_where(&commit), "a fence that was good once is good again in a server that was restored");
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
    assert!(!streams.start_cursor(&older, &[at(0)], "").await.unwrap(), "a newer one stands there");
    assert_eq!(streams.retire_cursor(&output).await.unwrap(), Some(vec![at(3)]));
    assert_eq!(publish(&output, 3, 4).await, Published::Gone, "retired");
}

#[tokio::test]
async fn only_the_pipeline_that_the_annotation_names_is_taken_over() {
    let (pipeline, streams, input, held) = taken().await;
    append(&pipeline, &streams, "a").await;
    let Step::Done(fresh) = input.read(&held, 1).await.unwrap() else { panic!("the fence is right") };
    let ids: Vec<_> = fresh.entries.iter().map(|entry| entry.id).collect();
    append(&pipeline, &streams, "b").await;
    let Step::Done(_) = input.ack(&held, watermarks(1), 0, &ids).await.unwrap() else { panic!("the fence is right") };
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
    // Its epochs begin anew, below those that stand there.
    let heir = streams.input("new", SHARD, "two");
    let next = fence(0, "second");
    for adopt in ["", "new", "0123456789abcdef"] {
        refused(heir.prepare(&next, adopt).await.map(|_| ()));
        refused(streams.start_cursor(&sink("new", "s", "j"), &[at(0)], adopt).await.map(|_| ()));
    }
    refused(streams.start_cursor(&sink("new", "another", "j"), &[at(0)], old).await.map(|_| ()));
    assert_eq!(streams.backlog(1).await.unwrap()[0].pipeline_id.as_deref(), Some(old), "nothing changed");
    let next = fence(1, "second");
    assert!(!heir.prepare(&next, old).await.unwrap().made, "stream and group are there");
    streams.start_cursor(&sink("new", "s", "j"), &[at(0)], old).await.unwrap();

    let taken_over = streams.backlog(1).await.unwrap().remove(0);
    assert_eq!(taken_over.pipeline_id.as_deref(), Some("new"));
    assert_eq!(taken_over.committed, None, "the numbers of another log are gone");
    let Step::Done(fresh) = heir.read(&next, 10).await.unwrap() else { panic!("the fence is right") };
    assert_eq!(fresh.entries.len(), 1, "what was queued is the heir's");
    // Whoever owned it before is refused at each step.
    refused(input.read(&held, 10).await.map(|_| ()));
    refused(input.ack(&held, watermarks(2), 0, &[]).await.map(|_| ()));
    refused(input.prepare(&held, "").await.map(|_| ()));
    assert_eq!(streams.cursor(&sink(old, "s", "i"), SHARD).await.unwrap(), None);
    assert_eq!(streams.cursor(&sink("new", "s", "j"), SHARD).await.unwrap(), Some(Seq::ZERO));
}

#[tokio::test]
async fn an_owner_that_is_out_of_date_says_nothing_of_its_sinks() {
    let (pipeline, _streams, _input, held) = taken().await;
    let store = &pipeline.store;
    store.register_later(1, "{}").await;
    let sink = store::NewSink {
        name: "notifications",
        kind: OutcomeKind::Processed,
        stream: "stream",
        cursor_generation: "t1",
        from_beginning: false,
    };
    store.add_sink(&sink, 1).await.unwrap();
    let failing = store::SinkState { state: PublisherState::Failing, detail: "broken pipe".to_owned() };
    let says = async |fence: &Lease, state| {
        store.set_sink_state("notifications", SHARD, Some(&fence.token), state).await.unwrap();
        store.sink_states().await.unwrap().len()
    };
    assert_eq!(says(&held, Some(&failing)).await, 1);
    store.release(SHARD, &held).await.unwrap();
    let heir = store.take("two", SHARD, "second", 60_000).await.unwrap().unwrap();
    assert_eq!(says(&held, None).await, 1, "the first clears nothing");
    assert_eq!(says(&heir, None).await, 0);
    assert_eq!(says(&held, Some(&failing)).await, 0, "nor does it say anything");
}
