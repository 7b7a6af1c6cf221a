//! The Redis for tests.

use super::{Streams, entry, keys};
use crate::domain::{Entry, InputRecord, ShardId};

/// Its URL. `hack/with-servers` starts a Redis and sets the variable.
pub(crate) fn url() -> String {
    std::env::var("MILLRACE_TEST_REDIS_URL")
        .expect("MILLRACE_TEST_REDIS_URL names a Redis; hack/with-servers starts one")
}

/// The entries of a shard's input stream, in order.
pub(crate) async fn entries(streams: &Streams, shard: ShardId) -> Vec<Entry> {
    let key = keys::records(&streams.pipeline, shard);
    let mut command = redis::cmd("XRANGE");
    command.arg(&key).arg("-").arg("+");
    let range: Vec<(String, Vec<Vec<u8>>)> = command.query_async(&mut streams.shared(&key)).await.expect("readable");
    range
        .into_iter()
        .map(|(id, fields)| {
            let fields: Vec<_> = fields.into_iter().map(Into::into).collect();
            entry::entry(&id, 1, &fields).expect("a known format").expect("an id")
        })
        .collect()
}

/// The records of a shard's input stream, in order.
pub(crate) async fn records(streams: &Streams, shard: ShardId) -> Vec<InputRecord> {
    entries(streams, shard).await.into_iter().flat_map(|entry| entry.records).collect()
}
