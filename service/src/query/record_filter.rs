//! Parameters of the record filter, which lists of records and sums over them share.

use super::{
    answer::{in_order, invalid_parameter},
    types::{Time, Word},
    views::RecordType,
};
use crate::{
    domain::{AccessLimit, DestinationId, RecordId, Reference, ShardId, SourceId, Unit},
    http::{App, problem::Failure},
    store::RecordFilter,
};

/// Most ids of one filter.
const IDS: usize = 100;

/// The filter as the request has it.
#[derive(Debug, Default)]
pub(super) struct RecordParams {
    pub(super) record_id: Vec<Word>,
    pub(super) destination_id: Option<Word>,
    pub(super) reference: Option<Word>,
    pub(super) source_id: Option<Word>,
    pub(super) r#type: Option<RecordType>,
    pub(super) unit: Option<Word>,
    pub(super) start_time: Option<Time>,
    pub(super) end_time: Option<Time>,
    pub(super) alerted: Option<bool>,
}

impl RecordParams {
    pub(super) fn filter(self, app: &App, limit: &AccessLimit) -> Result<RecordFilter, Failure> {
        if self.record_id.len() > IDS {
            return Err(invalid_parameter("recordId", "may be given up to 100 times"));
        }
        in_order(self.start_time, self.end_time)?;
        let shards = app.manifest.borrow().manifest.spec.shards;
        let destination_id = self.destination_id.map(|id| DestinationId::from(id.0));
        let ids: Vec<RecordId> = self.record_id.into_iter().map(|id| id.0.into()).collect();
        Ok(RecordFilter {
            record_ids: (!ids.is_empty()).then_some(ids),
            shard: destination_id.as_ref().map(|id| ShardId::of(id, shards)),
            destination_id,
            reference: self.reference.map(|reference| Reference::from(reference.0)),
            source_id: self.source_id.map(|id| SourceId::from(id.0)),
            positive: self.r#type.map(|kind| kind == RecordType::Positive),
            unit: self.unit.map(|unit| Unit::from(unit.0)),
            start: self.start_time.map(|time| time.0),
            end: self.end_time.map(|time| time.0),
            alerted: self.alerted,
            limit: limit.clone(),
        })
    }
}

/// An API of one operation with the parameters of the record filter, between its own ones. In the body, the filter is
/// checked and read.
macro_rules! filtered_operation {
    (
        $tag:literal $api:ident;
        $(#[$operation:meta])*
        async fn $name:ident($self:ident, $app:ident, $filter:ident; [$($before:tt)*] [$($after:tt)*]) -> $answer:ty
        $body:block
    ) => {
        #[poem_openapi::OpenApi(tag = $tag)]
        impl $api {
            $(#[$operation])*
            #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
            async fn $name(
                &$self,
                $app: poem::web::Data<&App>,
                reader: Reader,
                $($before)*
                /// Only records with one of these ids; up to 100 times.
                #[oai(name = "recordId", default)]
                record_id: Query<Vec<Word>>,
                /// Only this destination.
                #[oai(name = "destinationId")]
                destination_id: Query<Option<Word>>,
                /// Only this reference.
                reference: Query<Option<Word>>,
                /// Only this source.
                #[oai(name = "sourceId")]
                source_id: Query<Option<Word>>,
                /// Only records of this type.
                r#type: Query<Option<RecordType>>,
                /// Only this unit.
                unit: Query<Option<Word>>,
                /// Only records whose `time` is at or after this.
                #[oai(name = "startTime")]
                start_time: Query<Option<Time>>,
                /// Only records whose `time` is before this.
                #[oai(name = "endTime")]
                end_time: Query<Option<Time>>,
                /// Only records that raised an alert, or only those that did not.
                alerted: Query<Option<bool>>,
                $($after)*
            ) -> Result<$answer, Failure> {
                let $filter = crate::query::record_filter::RecordParams {
                    record_id: record_id.0,
                    destination_id: destination_id.0,
                    reference: reference.0,
                    source_id: source_id.0,
                    r#type: r#type.0,
                    unit: unit.0,
                    start_time: start_time.0,
                    end_time: end_time.0,
                    alerted: alerted.0,
                }
                .filter($app.0, reader.0.limit())?;
                $body
            }
        }
    };
}

pub(super) use filtered_operation;
