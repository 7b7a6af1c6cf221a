//! Entries of an input stream with their records, as they were read.

use std::{fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use chrono::{DateTime, Utc};

use super::{DeadLetterId, OffsetRange};

/// A Redis stream id. Ids may be rewound or come again after a failover: never trust one alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId {
    /// Milliseconds of the server's clock.
    pub ms: u64,
    /// Number within the millisecond.
    pub n: u64,
}

impl fmt::Display for StreamId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.n)
    }
}

impl FromStr for StreamId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (ms, n) = text.split_once('-').ok_or(())?;
        Ok(Self { ms: ms.parse().map_err(drop)?, n: n.parse().map_err(drop)? })
    }
}

/// The identity of a record in an input stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamPosition {
    /// Id of its entry.
    pub entry: StreamId,
    /// Index in the entry, from 0.
    pub index: u16,
}

impl fmt::Display for StreamPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.entry, self.index)
    }
}

/// One entry, delivered to this owner.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its id in the stream.
    pub id: StreamId,
    /// Number of deliveries, with this one.
    pub deliveries: u64,
    /// Its records, in order; at least one.
    pub records: Vec<InputRecord>,
}

/// A record as it came in an input stream.
#[derive(Debug, Clone)]
pub struct InputRecord {
    /// Its place in the stream.
    pub position: StreamPosition,
    /// Its number in the shard; all numbers of the entry where `corrupted`. `None`: the entry is of another program, which
    /// gave it none.
    pub offsets: Option<OffsetRange>,
    /// The record as JSON; of an entry of another program, any bytes.
    pub payload: Bytes,
    /// When `serve` received it; of an entry of another program, the time of its id.
    pub received_at: DateTime<Utc>,
    /// W3C trace context of the request.
    pub traceparent: Option<Arc<str>>,
    /// The dead letter whose replay this is.
    pub replay_of: Option<DeadLetterId>,
    /// Whether `payload` has the bytes of [`Record::to_json`](super::Record::to_json): the format of entries promises it.
    pub is_canonical: bool,
    /// Whether this is a whole entry that does not have the content that was appended: `payload` holds its bytes.
    pub corrupted: bool,
}
