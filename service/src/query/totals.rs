//! `GET /totals`: the totals of a destination or a key, now or at a past instant.

use poem::web::Data;
use poem_openapi::{Object, OpenApi, param::Query, types::Example};
use serde::Serialize;

use super::{
    Tags,
    aggregations::Total,
    answer::{Answer, invalid_parameter},
    types::{Time, Word},
};
use crate::{
    domain::{DestinationId, Reference, ShardId, Unit, render_nanos, render_time},
    http::{App, auth::Reader, problem::Failure},
    store::{KeyTotal, TotalFilter},
};

/// Totals per unit.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none, example)]
#[serde(rename_all = "camelCase")]
pub(super) struct Totals {
    /// When the snapshot was taken from which the whole response is read.
    pub as_of: Time,
    /// The instant of the totals; absent: they are those of `asOf`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<Time>,
    /// The destination.
    pub destination_id: String,
    /// The reference; absent: all of the destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    /// Ordered by unit. A unit without a record is absent.
    pub totals: Vec<Total>,
}

impl Example for Totals {
    fn example() -> Self {
        Self {
            as_of: Time::example(),
            at: Some(Time::example()),
            destination_id: "account-42".to_owned(),
            reference: Some("invoice-9".to_owned()),
            totals: vec![Total { unit: "EUR".to_owned(), count: 2, total: "125.40".to_owned() }],
        }
    }
}

/// `/totals`.
#[derive(Debug)]
pub struct TotalsApi;

#[OpenApi(tag = "Tags::Sums")]
impl TotalsApi {
    /// Totals of a destination or a key
    ///
    /// Of a destination, or with `reference` of a key, per unit. With `at` they are those of a past instant by the time of
    /// processing: of all records that were processed before it. They also count records that are no longer kept. An instant
    /// before what retention deleted is a 410 `totals_expired`, which names the first instant that can be asked for. A commit
    /// that is under way counts once it is visible: the totals of the last seconds can still change.
    #[oai(path = "/totals", method = "get", operation_id = "getTotals")]
    async fn totals(
        &self,
        app: Data<&App>,
        reader: Reader,
        /// The destination.
        #[oai(name = "destinationId")]
        destination_id: Query<Word>,
        /// Only records of this reference.
        reference: Query<Option<Word>>,
        /// Only records of this unit.
        unit: Query<Option<Word>>,
        /// The instant, which has passed; absent: now.
        at: Query<Option<Time>>,
    ) -> Result<Answer<Totals>, Failure> {
        let destination_id = DestinationId::from(destination_id.0.0);
        let limit = reader.0.limit();
        if limit.sources().is_some() {
            let detail = "totals are of records of all sources, and this API key or access token is limited to some; use \
                          GET /records/aggregations?records=false, or a key without this limit";
            return Err(Failure::new(403, "limited_key", detail));
        }
        let shard = ShardId::of(&destination_id, app.manifest.borrow().manifest.spec.shards);
        let reference = reference.0.map(|reference| Reference::from(reference.0));
        let unit = unit.0.map(|unit| Unit::from(unit.0));
        let filter = TotalFilter { destination_id, shard, reference, unit };
        let mut snapshot = app.store.snapshot().await?;
        let as_of = snapshot.as_of;
        let keys = match at.0 {
            _ if !limit.allows_destination(&filter.destination_id) => Vec::new(),
            None => snapshot.key_totals(&filter).await?,
            Some(Time(at)) if at > as_of => {
                return Err(invalid_parameter("at", "must have passed, by the clock of Postgres"));
            }
            Some(Time(at)) => {
                if let Some(since) = snapshot.processed_since().await?.filter(|since| at < *since) {
                    let detail = format!(
                        "records that were processed before {} are no longer kept: totals are known at that instant and later",
                        render_time(since)
                    );
                    return Err(Failure::new(410, "totals_expired", detail));
                }
                snapshot.key_totals_at(&filter, at).await?
            }
        };
        snapshot.finish().await?;
        let TotalFilter { destination_id, reference, .. } = filter;
        Ok(Answer(Totals {
            as_of: Time(as_of),
            at: at.0,
            destination_id: destination_id.to_string(),
            reference: reference.map(|reference| reference.to_string()),
            totals: per_unit(keys),
        }))
    }
}

/// The sums of keys per unit, in the order of units.
fn per_unit(keys: Vec<KeyTotal>) -> Vec<Total> {
    let mut units: std::collections::BTreeMap<Unit, (i64, i128, u32)> = std::collections::BTreeMap::new();
    for KeyTotal { unit, count, nanos, scale, .. } in keys {
        let sum = units.entry(unit).or_default();
        *sum = (sum.0 + count, sum.1 + nanos, sum.2.max(scale));
    }
    let total = |(unit, (count, nanos, scale)): (Unit, (i64, i128, u32))| Total {
        unit: unit.to_string(),
        count,
        total: render_nanos(nanos, scale),
    };
    units.into_iter().map(total).collect()
}
