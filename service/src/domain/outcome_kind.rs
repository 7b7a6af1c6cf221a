//! Kinds of outcomes that sinks carry.

use millrace_crds::SinkEvent;

use super::Sequence;

/// Outcomes of a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OutcomeKind {
    /// Every processed record.
    Processed,
    /// Processed records above their threshold.
    Alert,
    /// Processed records that took a total over a threshold: an entry for each, under the number of the record.
    TotalAlert,
    /// Dead letters.
    DeadLettered,
    /// Conflicts.
    Conflicted,
}

impl OutcomeKind {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Processed, Self::Alert, Self::TotalAlert, Self::DeadLettered, Self::Conflicted];

    /// The word in SQL and in manifests.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Processed => "Processed",
            Self::Alert => "Alert",
            Self::TotalAlert => "TotalAlert",
            Self::DeadLettered => "DeadLettered",
            Self::Conflicted => "Conflicted",
        }
    }

    /// The outcomes of a stored word; `None`: of another version.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// The sequence that numbers them.
    #[must_use]
    pub fn sequence(self) -> Sequence {
        match self {
            Self::Processed | Self::Alert | Self::TotalAlert => Sequence::Records,
            Self::DeadLettered => Sequence::DeadLetters,
            Self::Conflicted => Sequence::Conflicts,
        }
    }
}

impl From<SinkEvent> for OutcomeKind {
    fn from(event: SinkEvent) -> Self {
        match event {
            SinkEvent::Processed => Self::Processed,
            SinkEvent::Alert => Self::Alert,
            SinkEvent::TotalAlert => Self::TotalAlert,
            SinkEvent::DeadLettered => Self::DeadLettered,
            SinkEvent::Conflicted => Self::Conflicted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcome_kinds_are_read_as_they_are_written() {
        for kind in OutcomeKind::ALL {
            assert_eq!(OutcomeKind::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(OutcomeKind::parse("Reversed"), None);
    }

    #[test]
    fn alerts_have_the_numbers_of_their_records() {
        for kind in [OutcomeKind::Alert, OutcomeKind::TotalAlert] {
            assert_eq!(kind.sequence(), OutcomeKind::Processed.sequence());
        }
    }
}
