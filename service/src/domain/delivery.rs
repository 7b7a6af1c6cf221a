//! Deliveries of webhooks that did not succeed.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{OutcomeKind, Seq, ShardId};

/// One request of a delivery.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// When it ended.
    pub at: DateTime<Utc>,
    /// From the request to the head of the answer, in milliseconds.
    pub latency_ms: u64,
    /// The status of the answer.
    pub status: Option<u16>,
    /// Why there was no answer.
    pub error: Option<String>,
}

/// The state of a delivery that did not succeed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DeliveryState {
    /// It is retried.
    Waiting,
    /// Its retries ended.
    Failed,
}

impl DeliveryState {
    /// The word in SQL and answers.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Failed => "failed",
        }
    }

    /// The state of a word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Waiting, Self::Failed].into_iter().find(|state| state.as_str() == word)
    }
}

/// The id of a notification: `<shard>-<seq>`, with `-alert` behind an alert, `d` or `c` before the number of a dead letter or a
/// conflict. Behind `-total` each alert of a total has the name of its threshold, too.
#[must_use]
pub fn notification_id(kind: OutcomeKind, shard: ShardId, seq: Seq) -> String {
    match kind {
        OutcomeKind::Processed => format!("{shard}-{seq}"),
        OutcomeKind::Alert => format!("{shard}-{seq}-alert"),
        OutcomeKind::TotalAlert => format!("{shard}-{seq}-total"),
        OutcomeKind::DeadLettered => format!("{shard}-d{seq}"),
        OutcomeKind::Conflicted => format!("{shard}-c{seq}"),
    }
}

/// The id of a delivery: `<sink>.<id of the notification>`. Alerts of totals by one record are one delivery,
/// `<sink>.<shard>-<seq>-total`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryId {
    /// The sink.
    pub sink: String,
    /// The shard.
    pub shard: ShardId,
    /// The number of the outcome.
    pub seq: Seq,
    /// The kind of the outcome.
    pub kind: OutcomeKind,
}

impl fmt::Display for DeliveryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.sink, notification_id(self.kind, self.shard, self.seq))
    }
}

impl FromStr for DeliveryId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (sink, id) = text.split_once('.').ok_or(())?;
        let (shard, number) = id.split_once('-').ok_or(())?;
        let (kind, digits) = if let Some(digits) = number.strip_prefix('d') {
            (OutcomeKind::DeadLettered, digits)
        } else if let Some(digits) = number.strip_prefix('c') {
            (OutcomeKind::Conflicted, digits)
        } else if let Some(digits) = number.strip_suffix("-alert") {
            (OutcomeKind::Alert, digits)
        } else if let Some(digits) = number.strip_suffix("-total") {
            (OutcomeKind::TotalAlert, digits)
        } else {
            (OutcomeKind::Processed, number)
        };
        let id = Self {
            sink: sink.to_owned(),
            shard: ShardId::new(shard.parse().map_err(|_| ())?),
            seq: Seq::new(digits.parse().map_err(|_| ())?),
            kind,
        };
        // Only the issued spelling.
        if id.to_string() == text { Ok(id) } else { Err(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_a_delivery_is_read_as_it_is_written() {
        for text in ["hooks.3-17", "a-b.0-5-alert", "a-b.0-5-total", "x.255-d1", "x.1-c9"] {
            assert_eq!(text.parse::<DeliveryId>().expect(text).to_string(), text);
        }
        for wrong in [
            "",
            "hooks",
            "hooks.3",
            "hooks.3-",
            "hooks.03-1",
            "hooks.3-+1",
            "hooks.3-d1-alert",
            "hooks.3-1-total-a",
            "hooks.999999-1",
        ] {
            assert!(wrong.parse::<DeliveryId>().is_err(), "{wrong}");
        }
    }
}
