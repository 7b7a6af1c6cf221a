//! The numbers up to which every sink has published: what may be deleted.
//!
//! It must never pass over a sink whose position is unknown: such a one has published nothing.

use std::collections::BTreeMap;

use crate::{
    domain::{Seq, Sequence, ShardId},
    store::{SinkRow, Store},
    streams::Streams,
};

/// The lowest number up to which a sequence of a shard is published, and the sink whose position it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Floor {
    /// The number.
    pub seq: Seq,
    /// The name of the sink.
    pub sink: String,
}

/// The lowest positions in a sequence, by shard; a shard that is absent has no sink that still publishes.
///
/// # Errors
/// When a server does not answer.
pub async fn floors(
    store: &Store,
    streams: &Streams,
    sequence: Sequence,
    shards: u16,
) -> anyhow::Result<BTreeMap<ShardId, Floor>> {
    let mut floors: BTreeMap<ShardId, Floor> = BTreeMap::new();
    for sink in store.sinks().await? {
        if sink.removed || sink.completed || sink.kind.sequence() != sequence {
            continue;
        }
        let positions = positions(store, streams, &sink).await?;
        for shard in ShardId::all(shards) {
            let seq = positions.get(&shard).copied().unwrap_or_default();
            let floor = floors.entry(shard).or_insert_with(|| Floor { seq, sink: sink.name.clone() });
            if seq < floor.seq {
                *floor = Floor { seq, sink: sink.name.clone() };
            }
        }
    }
    Ok(floors)
}

/// The numbers up to which a sink has published; none while it starts or moves, or its cursor is not its own.
async fn positions(store: &Store, streams: &Streams, sink: &SinkRow) -> anyhow::Result<BTreeMap<ShardId, Seq>> {
    if !sink.started || sink.old_stream.is_some() {
        return Ok(BTreeMap::new());
    }
    let Some(stream) = &sink.stream else {
        let delivered = store.webhook_floors(&sink.name).await?;
        return Ok(delivered.into_iter().map(|place| (place.shard, place.seq)).collect());
    };
    let snapshot = streams.sink_snapshot(stream).await?;
    let is_its_own = snapshot.cursor_generation.as_deref() == Some(&sink.cursor_generation);
    Ok(if is_its_own { snapshot.cursor } else { BTreeMap::new() })
}
