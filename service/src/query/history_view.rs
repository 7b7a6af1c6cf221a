//! The history of one record as the API returns it.

use poem_openapi::{Enum, Object};
use serde::Serialize;

use super::{total_alerts::TotalAlertView, types::Time, views::RecordView};
use crate::{
    domain::{DeadLetterState, ShardId},
    store::{ReversalOf, Reversed, StoredDeadLetter},
};

/// The status of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename = "RecordStatus", rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub(super) enum Status {
    /// Its entry is in the input stream and not decided yet.
    Queued,
    /// It is processed and counts in the totals.
    Processed,
    /// It could not be applied; its dead letter is open.
    DeadLettered,
    /// It could not be applied, and its dead letter was discarded.
    Discarded,
}

/// Whether a sink has carried the record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Enum, Serialize)]
#[oai(rename_all = "snake_case")]
#[serde(rename_all = "snake_case")]
pub(super) enum PublishedState {
    /// It was appended to the sink's stream, or delivered.
    Published,
    /// Its delivery failed, and its retries ended.
    Failed,
    /// The sink will carry it.
    Waiting,
    /// The sink began after it.
    BeforeStart,
    /// Redis cannot be reached now.
    Unknown,
}

/// One sink, and whether it has carried the record.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename = "Published")]
pub(super) struct SinkPublished {
    /// The sink.
    pub sink: String,
    /// Whether it has carried the record.
    pub state: PublishedState,
}

/// The records of the same key and unit before this record.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename = "RecordSummary", rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct Summary {
    /// Number of records.
    pub previous_count: i64,
    /// Their signed sum, exact.
    pub previous_total: String,
    /// The unit.
    pub unit: String,
}

/// A dead letter of the record.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct RecordDeadLetter {
    /// `<shard>-d<n>`.
    pub id: String,
    /// Its state.
    pub state: DeadLetterState,
    /// A stable code.
    pub reason: String,
    /// When it was opened.
    pub opened_at: Time,
    /// When it was closed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Time>,
}

/// A reversal of the record.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename = "ReversalOfRecord", rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct ReversalView {
    /// Its id.
    pub record_id: String,
    /// `<shard>-<seq>`: the id of its notifications.
    pub id: String,
    /// How much of the record it takes back.
    pub value: String,
    /// What remained of the record after it.
    pub rest: String,
    /// When it was processed.
    pub processed_at: Time,
}

/// The reversals of the record.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename = "ReversalsOfRecord", rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct Reversals {
    /// Their number.
    pub count: i64,
    /// What remains of the record's value.
    pub rest: String,
    /// The newest ones, newest first, at most 100.
    pub newest: Vec<ReversalView>,
}

/// The history of one record.
#[derive(Debug, Clone, Object, Serialize)]
#[oai(rename = "RecordHistory", rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct History {
    /// The id.
    pub record_id: String,
    /// Its status.
    pub status: Status,
    /// Its content; absent when only a dead letter with unreadable content remains, and of a reversal of what remains of a
    /// record until it is processed: only then it has a value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<RecordView>,
    /// `<shard>-<seq>`: the id of its notifications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Its shard.
    pub shard: u16,
    /// Its sequence number in the shard, once it is processed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seq: Option<i64>,
    /// When it was received.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub received_at: Option<Time>,
    /// When it was appended to the input stream, by Redis's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_at: Option<Time>,
    /// When it was processed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processed_at: Option<Time>,
    /// The records of its key and unit before it, once it is processed. Absent for a key that is limited to some sources.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<Summary>,
    /// The threshold that its value exceeds; absent: no alert.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<String>,
    /// The id of the record that it takes back; absent if it is no reversal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reverses: Option<String>,
    /// Its reversals; absent if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reversals: Option<Reversals>,
    /// The thresholds on totals that it took a total over. None are shown to a key that is limited to some sources.
    pub total_alerts: Vec<TotalAlertView>,
    /// The sinks of the manifest that carry it, once it is processed.
    pub published: Vec<SinkPublished>,
    /// Entries with the same id and content that were dropped.
    pub duplicates: i64,
    /// Entries with the same id and other content that were refused, as far as the caller may reach them.
    pub conflicts: i64,
    /// Its dead letters, oldest first.
    pub dead_letters: Vec<RecordDeadLetter>,
}

/// The reversals of a record of this shard; `None`: it has none.
pub(super) fn reversals(shard: ShardId, reversed: Reversed) -> Option<Reversals> {
    let rest = reversed.rest()?.to_owned();
    let view = |reversal: ReversalOf| ReversalView {
        record_id: reversal.record_id.into(),
        id: format!("{shard}-{}", reversal.seq),
        value: reversal.value,
        rest: reversal.rest,
        processed_at: Time(reversal.processed_at),
    };
    Some(Reversals { count: reversed.count, rest, newest: reversed.newest.into_iter().map(view).collect() })
}

/// A dead letter in a history.
pub(super) fn dead_letter(dead_letter: &StoredDeadLetter) -> RecordDeadLetter {
    RecordDeadLetter {
        id: format!("{}-d{}", dead_letter.shard, dead_letter.seq),
        state: dead_letter.state,
        reason: dead_letter.reason.as_str().to_owned(),
        opened_at: Time(dead_letter.opened_at),
        closed_at: dead_letter.closed_at.map(Time),
    }
}
