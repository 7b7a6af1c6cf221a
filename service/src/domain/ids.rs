//! Types of ids, shards and numbers, so that none is taken for another.

use std::fmt;

use millrace_crds::InvalidText;
use serde::{Deserialize, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// A text of a record. Texts compare byte by byte; [`millrace_crds::check_text`] has the rule.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Text(String);

impl Text {
    /// Checks a text.
    ///
    /// # Errors
    /// The rule that it breaks.
    pub fn parse(text: impl Into<String>) -> Result<Self, InvalidText> {
        let text = text.into();
        millrace_crds::check_text(&text)?;
        Ok(Self(text))
    }

    /// A stored text, which was checked before.
    #[must_use]
    pub fn stored(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Serialize for Text {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl fmt::Display for Text {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

macro_rules! texts {
    ($($(#[$doc:meta])* $name:ident,)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Text);

        impl $name {
            /// A stored text, which was checked before.
            #[must_use]
            pub fn stored(text: impl Into<String>) -> Self {
                Self(Text::stored(text))
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                self.0.as_str()
            }
        }

        impl From<Text> for $name {
            fn from(text: Text) -> Self {
                Self(text)
            }
        }

        impl From<$name> for String {
            fn from(text: $name) -> Self {
                text.0.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    )+};
}

texts! {
    /// Id of a record; unique as long as the record is kept.
    RecordId,
    /// Source of a record.
    SourceId,
    /// Destination of a record: its totals count the record, and it decides the shard.
    DestinationId,
    /// Reference of a record: with destination and unit, the key of a total.
    Reference,
    /// Unit of an amount; amounts of different units are never added up.
    Unit,
}

/// A shard, from 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ShardId(u16);

impl ShardId {
    /// The shard of this index.
    #[must_use]
    pub const fn new(index: u16) -> Self {
        Self(index)
    }

    /// The shard that records of a destination go to.
    #[must_use]
    pub fn of(destination_id: &DestinationId, shards: u16) -> Self {
        let digest = Sha256::digest(destination_id.as_str().as_bytes());
        let head = u64::from_be_bytes(std::array::from_fn(|index| digest[index]));
        Self((head % u64::from(shards)) as u16)
    }

    /// Its index.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// All shards of a pipeline, ascending.
    pub fn all(shards: u16) -> impl DoubleEndedIterator<Item = Self> + ExactSizeIterator {
        (0..shards).map(Self)
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A sequence number of a shard, from 1 and without gaps but for those of a rewound Postgres; 0: none yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Seq(i64);

impl Seq {
    /// Before the first.
    pub const ZERO: Self = Self(0);

    /// The number.
    #[must_use]
    pub const fn new(number: i64) -> Self {
        Self(number)
    }

    /// The number, for servers.
    #[must_use]
    pub const fn get(self) -> i64 {
        self.0
    }

    /// The number that is `count` further.
    #[must_use]
    pub const fn plus(self, count: usize) -> Self {
        Self(self.0 + count as i64)
    }

    /// The next number.
    #[must_use]
    pub const fn next(self) -> Self {
        self.plus(1)
    }

    /// Numbers above `other`, up to this one; 0 when it is not below.
    #[must_use]
    pub const fn above(self, other: Self) -> i64 {
        let count = self.0 - other.0;
        if count > 0 { count } else { 0 }
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A number of a shard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ShardSeq {
    /// The shard.
    pub shard: ShardId,
    /// The number.
    pub seq: Seq,
}

/// Numbers of a shard with `after` < number ≤ `upto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeqRange {
    /// Below the first.
    pub after: Seq,
    /// The last.
    pub upto: Seq,
}

/// The three sequences of a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Sequence {
    /// Of processed records.
    Records,
    /// Of dead letters.
    DeadLetters,
    /// Of conflicts.
    Conflicts,
}

/// A number of each sequence of a shard: the highest that is given, or acknowledged, or that may be published.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Watermarks {
    /// Of records.
    pub records: Seq,
    /// Of dead letters.
    pub dead_letters: Seq,
    /// Of conflicts.
    pub conflicts: Seq,
}

impl Watermarks {
    /// The number of one sequence.
    #[must_use]
    pub fn of(self, sequence: Sequence) -> Seq {
        match sequence {
            Sequence::Records => self.records,
            Sequence::DeadLetters => self.dead_letters,
            Sequence::Conflicts => self.conflicts,
        }
    }

    /// Raises one sequence to a number, where it is lower.
    pub fn raise(&mut self, sequence: Sequence, number: Seq) {
        let current = match sequence {
            Sequence::Records => &mut self.records,
            Sequence::DeadLetters => &mut self.dead_letters,
            Sequence::Conflicts => &mut self.conflicts,
        };
        *current = number.max(*current);
    }

    /// Whether a sequence is below that of `other`.
    #[must_use]
    pub fn is_below(self, other: Self) -> bool {
        self.records < other.records || self.dead_letters < other.dead_letters || self.conflicts < other.conflicts
    }

    /// As facts of the protocol trace: the inside of a JSON object.
    #[must_use]
    pub fn facts(self) -> String {
        let Self { records, dead_letters, conflicts } = self;
        format!("\"numbers\":[{records},{conflicts},{dead_letters}]")
    }

    /// Outcomes that have numbers.
    #[must_use]
    pub fn sum(self) -> i64 {
        self.records.get() + self.dead_letters.get() + self.conflicts.get()
    }

    /// The lower number of each sequence.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self {
            records: self.records.min(other.records),
            dead_letters: self.dead_letters.min(other.dead_letters),
            conflicts: self.conflicts.min(other.conflicts),
        }
    }
}

impl fmt::Display for Watermarks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.records, self.dead_letters, self.conflicts)
    }
}

/// A stream of a sink.
#[derive(Debug, Clone)]
pub struct SinkStream {
    /// The key of the stream.
    pub stream: String,
    /// Name of the sink.
    pub sink: String,
}

/// The right to work a shard: number and secret that fence off earlier owners.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// Rises with each owner.
    pub epoch: i64,
    /// The fencing token: of one owner only.
    pub token: String,
}

impl Lease {
    /// As facts of the protocol trace.
    #[must_use]
    pub fn facts(&self) -> String {
        format!("\"token\":\"{}\",\"epoch\":{}", self.token, self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watermarks(records: i64, dead_letters: i64, conflicts: i64) -> Watermarks {
        let [records, dead_letters, conflicts] = [records, dead_letters, conflicts].map(Seq::new);
        Watermarks { records, dead_letters, conflicts }
    }

    #[test]
    fn watermarks_compare_each_sequence() {
        let at = watermarks(5, 2, 1);
        for (other, below) in [((5, 2, 1), false), ((4, 1, 0), false), ((0, 0, 2), true), ((6, 0, 0), true)] {
            assert_eq!(at.is_below(watermarks(other.0, other.1, other.2)), below, "{other:?}");
        }
        assert_eq!(at.min(watermarks(7, 0, 1)), watermarks(5, 0, 1));
        let mut raised = at;
        raised.raise(Sequence::DeadLetters, Seq::new(9));
        raised.raise(Sequence::Records, Seq::new(1));
        assert_eq!(raised, watermarks(5, 9, 1));
    }
}
