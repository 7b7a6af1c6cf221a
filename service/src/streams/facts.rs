//! The facts of an owner's steps for the protocol trace.

use redis::{Script, ToRedisArgs, Value};

use super::{
    Error,
    input::{Acknowledged, End, Input, Read},
};
use crate::{
    domain::{Entry, Lease, StreamId},
    protocol_trace,
};

/// A fact of the protocol trace: the step reads.
pub(super) const READS: &str = ",\"reads\":true";

/// The facts of an acknowledgement, for the protocol trace.
pub(super) fn acks(acknowledged: Acknowledged, ids: &[StreamId]) -> String {
    format!(",\"acks\":{{{},\"ids\":[{}]}}", acknowledged.facts(), protocol_trace::list(ids))
}

/// Entries as facts of the protocol trace: id, first and last offset; offsets of 0 where another program appended it.
pub(super) fn facts_of(entries: &[Entry]) -> String {
    let facts = entries.iter().map(|entry| {
        let first = entry.records.first().and_then(|record| record.offsets).map_or(0, |offsets| offsets.first().get());
        let last = entry.records.last().and_then(|record| record.offsets).map_or(0, |offsets| offsets.last().get());
        format!("[\"{}\",{first},{last}]", entry.id)
    });
    facts.collect::<Vec<_>>().join(",")
}

impl Acknowledged {
    /// As facts of the protocol trace.
    pub(super) fn facts(&self) -> String {
        format!("{},\"offset\":{}", self.watermarks.facts(), self.offset)
    }
}

impl Read {
    /// As facts of the protocol trace.
    pub(super) fn facts(&self) -> String {
        match self {
            Self::Entries(entries) => format!("\"entries\":[{}]", facts_of(entries)),
            Self::Nothing(End { last, appended, pending }) => {
                format!("\"entries\":[],\"last\":\"{last}\",\"appended\":{appended},\"pending\":{pending}")
            }
        }
    }
}

impl Input {
    /// Runs a script as a step of the protocol trace, with the values that the script compares. The caller ends the step.
    pub(super) async fn traced(
        &self,
        script: &'static Script,
        name: &'static str,
        lease: &Lease,
        args: &[impl ToRedisArgs],
        facts: impl FnOnce() -> String,
    ) -> Result<(Vec<Value>, protocol_trace::Step), Error> {
        let known = *self.known();
        let step = protocol_trace::begin(self.shard().get(), name, || {
            format!("{},\"known\":{{{}}}{}", lease.facts(), known.facts(), facts())
        });
        match self.run(script, lease, args).await {
            Ok(reply) => Ok((reply, step)),
            Err(error) => {
                match error {
                    Error::Fenced(above) => step.end("fenced", || format!("\"above\":{above}")),
                    Error::NoGroup => step.is("no_group"),
                    _ => {}
                }
                Err(error)
            }
        }
    }
}
