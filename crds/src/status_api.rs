//! `/status` of a process, and the termination message of a job: written by the service, read by the operator.
//!
//! Both sides may be of different versions: an unknown field is left out, an absent one has its default, and an unknown
//! reason is kept as it is. Must never hold a record, a key or a password: `/status` is served without a key.

use serde::{Deserialize, Serialize};

use crate::Reason;

/// The body of `/status`. Shards, sinks and counts are of the whole pipeline, and absent while they are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProcessStatus {
    /// `serve`, `work` or `dev`.
    pub role: String,
    /// Version of Millrace.
    pub software: String,
    /// Name of the process.
    pub process: String,
    /// Name of the pipeline.
    pub pipeline: Option<String>,
    /// Id of the pipeline in Postgres.
    pub pipeline_id: Option<String>,
    /// The manifest's file as the process last read it.
    pub manifest: Option<ManifestOrigin>,
    /// The version that this process runs.
    pub active: Option<ActivePolicy>,
    /// Why the manifest's file is not active.
    pub refusal: Option<String>,
    /// The current problems, the worst first.
    pub problems: Vec<Problem>,
    /// Loops of the process that are stalled.
    pub stalled_tasks: Vec<String>,
    /// All shards, ascending.
    pub shards: Option<Vec<ShardStatus>>,
    /// Shards that this process owns.
    pub owned: Vec<u16>,
    /// Publishers that are halted, waiting or failing.
    pub sinks: Option<Vec<PublisherStatus>>,
    /// Counts of the pipeline.
    pub counts: Option<PipelineCounts>,
    /// Whether Redis keeps what it acknowledged; absent while Redis does not answer.
    pub redis_durability: Option<RedisDurability>,
    /// Age of shards, sinks, counts and durability in milliseconds.
    pub age_ms: Option<u64>,
}

/// Whether Redis keeps the records that it acknowledged when it crashes or is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum RedisDurability {
    /// By its settings it keeps all.
    Durable,
    /// It may lose some; a problem names the setting.
    NotDurable,
    /// It does not show its settings. Also a word of another version.
    #[serde(other)]
    Unknown,
}

/// The object that a manifest was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestOrigin {
    /// The resource's uid; absent for a file that is written by hand.
    pub uid: Option<String>,
    /// The resource's generation; 0 for a file that is written by hand.
    pub generation: i64,
}

/// A version of the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivePolicy {
    /// The version in Postgres.
    pub version: i64,
    /// The uid of the manifest that registered it.
    pub uid: String,
    /// The generation of that manifest.
    pub generation: i64,
}

/// A current problem.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Problem {
    /// For programs.
    pub reason: Reason,
    /// For people; never a secret.
    pub message: String,
}

impl Problem {
    /// A problem.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// A shard's state in Postgres.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardStatus {
    /// The shard.
    pub shard: u16,
    /// Whether a worker owns it now.
    pub leased: bool,
    /// Name of the owner.
    pub owner: Option<String>,
    /// The policy version that it runs; 0 before the first.
    pub version: i64,
    /// The uid of the manifest that it runs.
    pub uid: Option<String>,
    /// The generation of the manifest that it runs.
    pub generation: Option<i64>,
}

/// A publisher that does not publish.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublisherStatus {
    /// The sink.
    pub sink: String,
    /// The shard.
    pub shard: u16,
    /// Its state.
    pub state: PublisherState,
    /// The cause.
    pub detail: String,
}

/// State of a publisher that does not publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublisherState {
    /// Until the sink is resumed by hand.
    Halted,
    /// The endpoint answered that it is gone; until the sink is resumed by hand.
    Disabled,
    /// The stream is full, or as many deliveries as there may be wait for a retry.
    Waiting,
    /// A server is unavailable; the publisher retries. Also a state of another version.
    #[serde(other)]
    Failing,
}

impl PublisherState {
    /// The state of a word; a word of another version is a failure.
    #[must_use]
    pub fn parse(word: &str) -> Self {
        match word {
            "halted" => Self::Halted,
            "disabled" => Self::Disabled,
            "waiting" => Self::Waiting,
            _ => Self::Failing,
        }
    }

    /// The word in `/status`, `/stats`, logs and SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Halted => "halted",
            Self::Disabled => "disabled",
            Self::Waiting => "waiting",
            Self::Failing => "failing",
        }
    }

    /// Whether nothing is published until the sink is resumed by hand.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Halted | Self::Disabled)
    }
}

/// Counts of the whole pipeline.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PipelineCounts {
    /// Records that are not applied.
    pub backlog: u64,
    /// Outcomes that are not published yet, of the sink that has most of them.
    pub unpublished: i64,
    /// Records processed.
    pub processed: i64,
    /// Records above their threshold.
    pub alerts: i64,
    /// Dead letters that are open.
    pub dead_letters: i64,
    /// Entries that were lost before they were applied.
    pub lost: i64,
}

/// The termination message of a job, one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TerminationMessage {
    /// How the job ended.
    pub reason: Reason,
    /// For people.
    #[serde(default)]
    pub message: String,
    /// Numbers of the schema.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<SchemaNumbers>,
    /// Id of the pipeline in Postgres.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pipeline_id: Option<String>,
    /// Number of contracting steps that wait for `--contract`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contract: Option<usize>,
}

/// The schema's number before and after a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SchemaNumbers {
    /// Before; 0: no schema.
    pub from: i64,
    /// After.
    pub to: i64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_another_version_is_read() {
        let answer = r#"{"role": "work", "extra": 1, "problems": [{"reason": "Novel", "message": "m"}],
            "sinks": [{"sink": "s", "shard": 3, "state": "resting", "detail": "d"}], "counts": {"backlog": 7}, "redisDurability": "Perhaps"}"#;
        let status: ProcessStatus = serde_json::from_str(answer).unwrap();
        assert_eq!(status.problems, [Problem::new(Reason::Other("Novel".to_owned()), "m")]);
        assert_eq!(status.sinks.unwrap()[0].state, PublisherState::Failing);
        assert_eq!(status.counts.unwrap(), PipelineCounts { backlog: 7, ..PipelineCounts::default() });
        assert_eq!((status.shards, status.age_ms), (None, None));
        assert_eq!(status.redis_durability, Some(RedisDurability::Unknown));
        let written = serde_json::to_value(&status.problems[0]).unwrap();
        assert_eq!(written["reason"], "Novel");
    }

    #[test]
    fn a_termination_message_needs_only_its_reason() {
        let message: TerminationMessage = serde_json::from_str(r#"{"reason": "Migrated"}"#).unwrap();
        assert_eq!((message.reason, message.schema), (Reason::Migrated, None));
    }
}
