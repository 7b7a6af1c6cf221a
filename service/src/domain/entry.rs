//! An entry of an input stream, as it was read.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};

use super::DeadLetterId;

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

/// One entry, delivered to this owner.
#[derive(Debug, Clone)]
pub struct Entry {
    /// Its id in the stream.
    pub id: StreamId,
    /// Number of deliveries, with this one.
    pub deliveries: u64,
    /// The record as JSON; of an entry of another program, any bytes.
    pub payload: Vec<u8>,
    /// When `serve` received it; of an entry of another program, the time of its id.
    pub received_at: DateTime<Utc>,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
    /// Whether a serve process appended it: only such entries count as received.
    pub marked: bool,
    /// The dead letter whose replay this is.
    pub replay_of: Option<DeadLetterId>,
}
