//! Dead letters: ids, states and reasons.

use std::{fmt, str::FromStr};

use poem_openapi::Enum;
use serde::Serialize;

use super::{Seq, ShardId};

/// A dead letter's id: `<shard>-d<seq>`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeadLetterId {
    /// Its shard.
    pub shard: ShardId,
    /// Its number in the shard, from 1.
    pub seq: Seq,
}

impl fmt::Display for DeadLetterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-d{}", self.shard, self.seq)
    }
}

impl FromStr for DeadLetterId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (shard, seq) = text.split_once("-d").ok_or(())?;
        let shard = ShardId::new(shard.parse().map_err(drop)?);
        let id = Self { shard, seq: Seq::new(seq.parse().map_err(drop)?) };
        // One spelling only: an id is compared as text elsewhere.
        if id.seq > Seq::ZERO && id.to_string() == text { Ok(id) } else { Err(()) }
    }
}

/// State of a dead letter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum DeadLetterState {
    /// It takes its id, and waits for a person.
    Open,
    /// Its payload was decided again.
    Replayed,
    /// A person gave it up; its id is free.
    Discarded,
}

impl DeadLetterState {
    /// The word in the API and in SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Replayed => "replayed",
            Self::Discarded => "discarded",
        }
    }

    /// The state of a stored word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Open, Self::Replayed, Self::Discarded].into_iter().find(|state| state.as_str() == word)
    }
}

/// Why an entry became a dead letter; docs/errors.md describes each reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Enum, Serialize)]
#[oai(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub enum DeadLetterReason {
    /// Its destination's total would be below `policy.minimumTotal`.
    BelowMinimumTotal,
    /// The total of its key would have more than 19 integer digits.
    TotalOutOfBounds,
    /// It reverses a record that its destination does not have, or that is no longer kept.
    OriginalNotFound,
    /// It reverses a reversal.
    ReversalOfReversal,
    /// It is no reversal of the record that it names: another field than its type differs, or its type does not.
    ReversalMismatch,
    /// It reverses more than remains of the record.
    ReversalExceedsOriginal,
    /// It is not a record.
    Malformed,
    /// It is in the stream of another shard than its destination's.
    WrongShard,
    /// Postgres refuses the row.
    RefusedByStore,
    /// Deciding it panicked.
    Panicked,
    /// Workers crashed at it before it was decided.
    CrashedWorker,
    /// Its entry does not have the content that was appended.
    Corrupted,
}

impl DeadLetterReason {
    const ALL: [Self; 12] = [
        Self::BelowMinimumTotal,
        Self::TotalOutOfBounds,
        Self::OriginalNotFound,
        Self::ReversalOfReversal,
        Self::ReversalMismatch,
        Self::ReversalExceedsOriginal,
        Self::Malformed,
        Self::WrongShard,
        Self::RefusedByStore,
        Self::Panicked,
        Self::CrashedWorker,
        Self::Corrupted,
    ];

    /// The code in the API and in SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::BelowMinimumTotal => "below_minimum_total",
            Self::TotalOutOfBounds => "total_out_of_bounds",
            Self::OriginalNotFound => "original_not_found",
            Self::ReversalOfReversal => "reversal_of_reversal",
            Self::ReversalMismatch => "reversal_mismatch",
            Self::ReversalExceedsOriginal => "reversal_exceeds_original",
            Self::Malformed => "malformed",
            Self::WrongShard => "wrong_shard",
            Self::RefusedByStore => "refused_by_store",
            Self::Panicked => "panicked",
            Self::CrashedWorker => "crashed_worker",
            Self::Corrupted => "corrupted",
        }
    }

    /// The reason of a stored code.
    #[must_use]
    pub fn parse(code: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == code)
    }

    /// Whether Millrace or its servers are at fault, rather than the record.
    #[must_use]
    pub fn is_fault(self) -> bool {
        matches!(self, Self::Panicked | Self::RefusedByStore | Self::CrashedWorker | Self::Corrupted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_words_are_read_as_they_are_written() {
        for reason in DeadLetterReason::ALL {
            assert_eq!(DeadLetterReason::parse(reason.as_str()), Some(reason));
            assert_eq!(serde_json::to_value(reason).unwrap(), reason.as_str());
        }
        for state in [DeadLetterState::Open, DeadLetterState::Replayed, DeadLetterState::Discarded] {
            assert_eq!(DeadLetterState::parse(state.as_str()), Some(state));
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        let id = DeadLetterId { shard: ShardId::new(3), seq: Seq::new(14) };
        assert_eq!("3-d14".parse(), Ok(id));
        for wrong in ["3-d014", "03-d14", "3-d0", "3-d-1", "3-14", "3-d", ""] {
            assert_eq!(wrong.parse::<DeadLetterId>(), Err(()), "{wrong}");
        }
    }
}
