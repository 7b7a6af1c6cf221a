//! `GET /audit/summary`: counts over the audit trail.
//!
//! Counts of the whole trail are kept by the commits. With a filter by record, destination or time the facts are counted.

use std::collections::BTreeMap;

use poem::web::Data;
use poem_openapi::{Object, OpenApi, param::Query};
use serde::Serialize;

use super::{
    Tags,
    answer::{Answer, Paging, in_order},
    audit::{Action, filter},
    types::{Time, Word},
};
use crate::{
    domain::Text,
    http::{App, auth::ReaderOfAll, problem::Failure},
    store::{AuditFilter, Error, OutcomeCounts, Store},
};

/// Counts of actions for one destination.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct DestinationCounts {
    /// The destination.
    pub destination_id: String,
    /// Action → count.
    pub actions: BTreeMap<String, i64>,
}

/// Counts of actions by one worker.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase")]
#[serde(rename_all = "camelCase")]
pub(super) struct WorkerCounts {
    /// The worker.
    pub worker: String,
    /// Action → count.
    pub actions: BTreeMap<String, i64>,
}

/// Counts over the audit trail.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct AuditSummary {
    /// Action → count, over all destinations and workers.
    pub actions: BTreeMap<String, i64>,
    /// Per worker, ordered by its name.
    pub workers: Vec<WorkerCounts>,
    /// Per destination, ordered by destinationId: one page.
    pub destinations: Vec<DestinationCounts>,
    /// Send it as `cursor`, with the same filters, for more destinations; absent on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// Counts over the audit trail.
#[derive(Debug, Clone, Default)]
pub struct AuditSummaryApi;

#[OpenApi(tag = "Tags::Audit")]
impl AuditSummaryApi {
    /// Count what happened
    ///
    /// Per action, per worker and per destination; destinations come in pages. Without a filter, or with one by action
    /// alone, the counts are kept ones: they also count records that are no longer kept. Any other filter scans the facts.
    #[oai(path = "/audit/summary", method = "get", operation_id = "summarizeAudit")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn summary(
        &self,
        app: Data<&App>,
        _reader: ReaderOfAll,
        /// Only this action; repeat it for several.
        #[oai(default)]
        action: Query<Vec<Action>>,
        /// Only facts of this record.
        #[oai(name = "recordId")]
        record_id: Query<Option<Word>>,
        /// Only facts of this destination.
        #[oai(name = "destinationId")]
        destination_id: Query<Option<Word>>,
        /// Only facts at or after this time.
        #[oai(name = "startTime")]
        start_time: Query<Option<Time>>,
        /// Only facts before this time.
        #[oai(name = "endTime")]
        end_time: Query<Option<Time>>,
        /// Maximum number of destinations on the page.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::default_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the previous page, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<AuditSummary>, Failure> {
        in_order(start_time.0, end_time.0)?;
        let filter = filter(action.0, record_id.0, destination_id.0, start_time.0, end_time.0);
        let paging = Paging::<Word>::new("/audit/summary", &filter, cursor.0, limit.0)?;
        let after = paging.after.as_ref().map_or("", |Word(destination)| destination.as_str());
        // Only callers without a limit come here.
        let is_whole_trail = matches!(
            filter,
            AuditFilter { actions: _, record_id: None, destination_id: None, start: None, end: None, limit: _ }
        );
        let counts = if is_whole_trail {
            kept_counts(&app.store, &filter, after, paging.rows()).await?
        } else {
            scanned_counts(&app.store, &filter, after, paging.rows()).await?
        };
        let Counts { actions, workers, destinations } = counts;
        let page = paging.page(destinations, |row| Word(Text::stored(row.destination_id.as_str())), |row| row);
        Ok(Answer(AuditSummary {
            actions,
            workers: workers.into_iter().map(|(worker, actions)| WorkerCounts { worker, actions }).collect(),
            destinations: page.items,
            next_cursor: page.next_cursor,
        }))
    }
}

/// Counts by action.
type ByAction = BTreeMap<String, i64>;

/// Counts of a filter, with a page of destinations.
#[derive(Default)]
struct Counts {
    actions: ByAction,
    workers: BTreeMap<String, ByAction>,
    destinations: Vec<DestinationCounts>,
}

/// The counts that the commits keep, of the actions of the filter.
async fn kept_counts(store: &Store, filter: &AuditFilter, after: &str, rows: i64) -> Result<Counts, Error> {
    let wanted = |facts: BTreeMap<&'static str, i64>| -> ByAction {
        let is_wanted = |action: &str| filter.actions.as_ref().is_none_or(|all| all.iter().any(|one| one == action));
        facts.into_iter().filter(|(action, _)| is_wanted(action)).map(|(action, n)| (action.to_owned(), n)).collect()
    };
    let trail = store.trail_counts().await?;
    let mut all = OutcomeCounts { replayed: trail.replayed, discarded: trail.discarded, ..OutcomeCounts::default() };
    trail.workers.iter().for_each(|worker| all.add(worker));
    let mut facts = all.facts();
    facts.extend((trail.admin > 0).then_some(("ADMIN", trail.admin)));
    let mut counts = Counts { actions: wanted(facts), ..Counts::default() };
    let workers = trail.workers.into_iter().map(|worker| (wanted(worker.facts_of_worker()), worker.of));
    counts.workers = workers.filter(|(facts, _)| !facts.is_empty()).map(|(facts, worker)| (worker, facts)).collect();
    let mut after = after.to_owned();
    // Destinations without a fact of these actions are left out, so a page can need several reads.
    while (counts.destinations.len() as i64) < rows {
        let page = store.destination_counts(&after, rows).await?;
        let is_last = (page.len() as i64) < rows;
        if let Some(last) = page.last() {
            after.clone_from(&last.of);
        }
        let destinations = page.into_iter().map(|row| (wanted(row.facts()), row.of));
        let destinations = destinations.filter(|(actions, _)| !actions.is_empty());
        counts
            .destinations
            .extend(destinations.map(|(actions, destination_id)| DestinationCounts { destination_id, actions }));
        if is_last {
            break;
        }
    }
    counts.destinations.truncate(usize::try_from(rows).unwrap_or(usize::MAX));
    Ok(counts)
}

/// The counts of the facts that match.
async fn scanned_counts(store: &Store, filter: &AuditFilter, after: &str, rows: i64) -> Result<Counts, Error> {
    let mut counts = Counts::default();
    for total in store.audit_totals(filter).await? {
        *counts.actions.entry(total.action.clone()).or_default() += total.count;
        if let Some(worker) = total.worker {
            counts.workers.entry(worker).or_default().insert(total.action, total.count);
        }
    }
    for row in store.audit_destinations(filter, after, rows).await? {
        if counts.destinations.last().is_none_or(|last| last.destination_id != row.destination_id) {
            let destination_id = row.destination_id;
            counts.destinations.push(DestinationCounts { destination_id, actions: BTreeMap::new() });
        }
        if let Some(last) = counts.destinations.last_mut() {
            last.actions.insert(row.action, row.count);
        }
    }
    Ok(counts)
}
