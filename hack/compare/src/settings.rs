//! The settings of a round: the load, and the pipeline that takes it.
//!
//! Pure. A sweep varies one of them.

use clap::{Args, ValueEnum, value_parser};
use serde::Serialize;

use crate::{load::record::Records, round::Mode};

/// Most keys that have a record ahead of the measurement.
const MOST_PRIMED: usize = 1_000;
/// Records that requests of `batches` hold at once, where the connections allow it.
const IN_REQUESTS: usize = 2_000;

/// The settings of a round.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Args)]
pub(crate) struct Settings {
    /// Records of a round of `batches` and of `preloaded`
    #[arg(long, default_value_t = 200_000)]
    pub(crate) records: usize,
    /// Records of a round of `singles`
    #[arg(long, default_value_t = 40_000)]
    pub(crate) singles: usize,
    /// Records a second of `latency`, `wait` and `answers`
    #[arg(long, default_value_t = 1_000.0)]
    pub(crate) rate: f64,
    /// Seconds of `latency`, `wait` and `answers`
    #[arg(long, default_value_t = 20.0)]
    pub(crate) seconds: f64,
    /// Shards of each pipeline
    #[arg(long, default_value_t = 16)]
    pub(crate) shards: u16,
    /// Destinations of the records
    #[arg(long, default_value_t = 1_000)]
    pub(crate) keys: usize,
    /// Destinations by Zipf's law, so that of 1,000 the first has every tenth record
    #[arg(long)]
    pub(crate) zipf: bool,
    /// Ids of records in no order, as UUIDs are
    #[arg(long)]
    pub(crate) random_ids: bool,
    /// Percentage of the records that repeat an earlier one
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u8).range(..=90))]
    pub(crate) duplicates: u8,
    /// Records of a request of `batches`
    #[arg(long, default_value_t = 500)]
    pub(crate) batch: usize,
    /// Characters of attributes that each record has
    #[arg(long, default_value_t = 0)]
    pub(crate) attributes: usize,
    /// Processes that work
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u16).range(1..=16))]
    pub(crate) workers: u16,
    /// Most records of a transaction (MILLRACE_BATCH)
    #[arg(long, default_value_t = 1_000)]
    pub(crate) commit: u16,
    /// Sinks of all processed records, beside the two that are read
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u16).range(..=14))]
    pub(crate) more_sinks: u16,
    /// Declared rollups per hour and destination
    #[arg(long, default_value_t = 0, value_parser = value_parser!(u16).range(..=8))]
    pub(crate) rollups: u16,
    /// Rows that SQL inserts before a round: records with their ids
    #[arg(long, default_value_t = 0)]
    pub(crate) rows: u64,
    /// Partitions of earlier periods, without rows
    #[arg(long, default_value_t = 0)]
    pub(crate) partitions: u16,
    /// Maximum backlog of a shard
    #[arg(long, default_value_t = 1_000_000_000)]
    pub(crate) backlog_limit: u64,
    /// Another client, beside the load
    #[arg(long, value_enum, default_value_t)]
    pub(crate) beside: Beside,
}

/// A client that sends two records at once, to two destinations, until the load ends. They are not counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Beside {
    /// There is none
    #[default]
    Nobody,
    /// Both records have ids of their own
    TwoIds,
    /// Both have one id, in two shards
    OneId,
}

impl Settings {
    /// The records of a round.
    pub(crate) fn records(&self, mode: Mode) -> Records {
        let keys = self.keys.min(MOST_PRIMED);
        let (primed, measured) = match mode {
            Mode::Batches => (keys, self.records),
            Mode::Singles => (keys, self.singles),
            // Without a worker nothing can go ahead.
            Mode::Preloaded | Mode::AcceptBatches => (0, self.records),
            Mode::AcceptSingles => (0, self.singles),
            Mode::Latency | Mode::Wait | Mode::Answers => (keys, (self.rate * self.seconds) as usize),
        };
        Records {
            keys: self.keys,
            zipf: self.zipf,
            primed,
            measured,
            random_ids: self.random_ids,
            duplicates: self.duplicates,
            attributes: self.attributes,
        }
    }

    /// Connections of `batches`: four with the usual batch, more where batches are smaller.
    pub(crate) fn batch_connections(&self) -> usize {
        (IN_REQUESTS / self.batch).clamp(2, 64)
    }
}
