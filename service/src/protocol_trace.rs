//! Protocol traces: the steps of the protocol as lines that `hack/model` judges. Without the feature `fault-points` they are
//! nothing; with it, `MILLRACE_PROTOCOL_TRACE` names the file that they are appended to.
//!
//! A step is written before it is sent, and its result after the answer: a step without a result may have taken effect.
//! Must never change a step, and must never hold a time: clocks decide nothing.

use std::fmt;

/// Whether this build can write traces, so that facts have to be collected for them.
pub const IS_BUILT: bool = cfg!(feature = "fault-points");

/// A step that was sent. Dropped without [`Self::end`], its outcome is unknown.
#[must_use]
#[derive(Debug)]
pub struct Step {
    #[cfg(feature = "fault-points")]
    number: Option<u64>,
}

/// Writes that a step of a shard is about to be sent. `facts` is the inside of a JSON object.
#[inline]
pub fn begin<F: fmt::Display>(shard: u16, step: &'static str, facts: impl FnOnce() -> F) -> Step {
    #[cfg(feature = "fault-points")]
    return Step {
        number: armed::number().inspect(|number| {
            let facts = facts();
            armed::write(&format!("{{\"n\":{number},\"shard\":{shard},\"step\":\"{step}\",{facts}}}\n"));
        }),
    };
    #[cfg(not(feature = "fault-points"))]
    {
        let _ = (shard, step, facts);
        Step {}
    }
}

/// As [`begin`], for the commit of several shards in one transaction.
pub fn begin_group<F: fmt::Display>(shards: impl ExactSizeIterator<Item = (u16, F)>) -> Vec<Step> {
    #[cfg(feature = "fault-points")]
    if let Some(group) = armed::number() {
        let step = |(shard, facts)| begin(shard, "commit", || format!("\"group\":{group},{facts}"));
        return shards.map(step).collect();
    }
    drop(shards);
    Vec::new()
}

impl Step {
    /// Writes the result: a word, and the inside of a JSON object, or nothing.
    #[inline]
    pub fn end<F: fmt::Display>(self, result: &'static str, facts: impl FnOnce() -> F) {
        #[cfg(feature = "fault-points")]
        if let Some(number) = self.number {
            let facts = facts().to_string();
            let comma = if facts.is_empty() { "" } else { "," };
            armed::write(&format!("{{\"n\":{number},\"result\":\"{result}\"{comma}{facts}}}\n"));
        }
        #[cfg(not(feature = "fault-points"))]
        let _ = (self, result, facts);
    }

    /// Writes a result without facts.
    pub fn is(self, result: &'static str) {
        self.end(result, || "");
    }
}

/// Texts as the elements of a JSON array. They must need no escapes: ids, tokens, names of sinks.
pub fn list<T: fmt::Display>(texts: impl IntoIterator<Item = T>) -> String {
    texts.into_iter().map(|text| format!("\"{text}\"")).collect::<Vec<_>>().join(",")
}

#[cfg(feature = "fault-points")]
mod armed {
    use std::{
        fs::{File, OpenOptions},
        io::Write as _,
        sync::{
            LazyLock,
            atomic::{AtomicU64, Ordering},
        },
    };

    static TRACE: LazyLock<Option<File>> = LazyLock::new(|| {
        let path = std::env::var_os("MILLRACE_PROTOCOL_TRACE")?;
        OpenOptions::new().create(true).append(true).open(path).ok()
    });
    static NEXT: AtomicU64 = AtomicU64::new(0);

    /// The number of a step; `None`: no trace is written.
    pub(super) fn number() -> Option<u64> {
        TRACE.as_ref().map(|_| NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// Appends a line by one call, so that a process that is killed leaves whole lines.
    pub(super) fn write(line: &str) {
        if let Some(mut file) = TRACE.as_ref() {
            let _ = file.write_all(line.as_bytes());
        }
    }
}
