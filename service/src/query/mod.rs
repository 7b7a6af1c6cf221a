//! Queries over what is stored: Postgres only, in constant memory; only one record's life also looks into the streams.
//!
//! Must never pass a sum through a type that rounds, and must never let a part of an answer look whole.

mod aggregations;
mod answer;
mod audit;
mod conflicts;
mod dead_letter_view;
mod dead_letters;
mod format;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod history;
mod records;
mod rollups;
mod stats;
mod stream;
#[cfg(test)]
mod tests;
mod types;
mod views;

pub use aggregations::AggregationsApi;
pub use audit::AuditApi;
pub use conflicts::ConflictsApi;
pub use dead_letters::DeadLettersApi;
pub use history::HistoryApi;
pub use records::RecordList;
pub use rollups::RollupsApi;
pub use stats::StatsApi;

/// What the document sorts paths by.
#[derive(poem_openapi::Tags)]
enum Tags {
    /// Processed records, one by one.
    Records,
    /// Exact sums over records.
    Sums,
    /// Entries that could not be applied.
    DeadLetters,
    /// What happened, and how much of it.
    Audit,
}

/// All paths that ask.
pub type Apis = (RecordList, AggregationsApi, RollupsApi, ConflictsApi, DeadLettersApi, AuditApi, HistoryApi, StatsApi);

/// The paths that ask; streamed answers share one bound on how many there are at the same time.
#[must_use]
pub fn apis() -> Apis {
    let slots = stream::Slots::default();
    (
        RecordList,
        AggregationsApi { slots: slots.clone() },
        RollupsApi { slots },
        ConflictsApi,
        DeadLettersApi,
        AuditApi,
        HistoryApi,
        StatsApi::default(),
    )
}

fn default_limit() -> u32 {
    answer::DEFAULT_LIMIT
}
