//! Queries over stored data: Postgres only, in constant memory. Only the history of one record also reads the input
//! streams.
//!
//! It must never pass a sum through a type that rounds, and must never let a part of a response look complete.

mod aggregations;
mod answer;
mod audit;
mod audit_summary;
mod conflicts;
mod dead_letter_view;
mod dead_letters;
mod deliveries;
mod follow;
mod format;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;
mod history;
mod history_view;
mod key_view;
mod keys;
mod losses;
mod policies;
mod record_filter;
mod record_page;
mod record_text;
mod records;
mod rollups;
mod sinks;
pub(crate) mod stats;
mod stats_view;
mod stream;
#[cfg(test)]
mod tests;
mod total_alerts;
mod totals;
mod types;
mod views;
mod workers;

pub use aggregations::AggregationsApi;
pub use audit::AuditApi;
pub use audit_summary::AuditSummaryApi;
pub use conflicts::ConflictsApi;
pub use dead_letters::DeadLettersApi;
pub use deliveries::DeliveriesApi;
pub use history::HistoryApi;
pub use keys::KeysApi;
pub use losses::LossesApi;
pub use policies::PoliciesApi;
pub use records::RecordList;
pub use rollups::RollupsApi;
pub use sinks::SinksApi;
pub use stats::StatsApi;
pub use totals::TotalsApi;
pub use workers::WorkersApi;

/// The tags by which the OpenAPI document groups paths.
#[derive(poem_openapi::Tags)]
enum Tags {
    /// Processed records, one by one.
    Records,
    /// Exact sums over records.
    Sums,
    /// Entries that could not be applied.
    DeadLetters,
    /// Deliveries of webhooks that did not succeed.
    Deliveries,
    /// The audit trail, and counts.
    Audit,
    /// API keys.
    Keys,
    /// What works for the pipeline, and by which policy.
    Pipeline,
}

/// The APIs of all queries.
pub type Apis = (
    RecordList,
    AggregationsApi,
    RollupsApi,
    ConflictsApi,
    DeadLettersApi,
    DeliveriesApi,
    LossesApi,
    KeysApi,
    AuditApi,
    AuditSummaryApi,
    HistoryApi,
    StatsApi,
    WorkersApi,
    PoliciesApi,
    SinksApi,
    TotalsApi,
);

/// Creates the APIs of all queries. Aggregations and rollups share one bound on concurrent streamed responses.
#[must_use]
pub fn apis() -> Apis {
    let slots = stream::Slots::default();
    (
        RecordList,
        AggregationsApi { slots: slots.clone() },
        RollupsApi { slots },
        ConflictsApi,
        DeadLettersApi,
        DeliveriesApi,
        LossesApi,
        KeysApi,
        AuditApi,
        AuditSummaryApi,
        HistoryApi,
        StatsApi::default(),
        WorkersApi,
        PoliciesApi,
        SinksApi,
        TotalsApi,
    )
}

fn default_limit() -> u32 {
    answer::DEFAULT_LIMIT
}

fn max_limit() -> u32 {
    answer::MAX_LIMIT
}
