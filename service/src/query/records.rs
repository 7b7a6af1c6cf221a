//! `GET /records`: processed records in the order of the log.

use poem::web::Data;
use poem_openapi::{OpenApi, param::Query};

use super::{
    Tags,
    answer::{Answer, Page, Paging},
    types::{Time, Word},
    views::{RecordParams, RecordType, RecordView},
};
use crate::http::{App, auth::Reader, problem::Failure};

/// Lists of records.
#[derive(Debug, Clone, Default)]
pub struct RecordList;

#[OpenApi(tag = "Tags::Records")]
impl RecordList {
    /// List processed records
    ///
    /// Ordered by (shard, seq). Per destination this is the order of processing, which is the order of arrival. Pages
    /// follow the shards: a record that is processed while a client reads pages appears on a later page only if the
    /// client has not reached the end of its shard. To see a record of an earlier shard, read from the beginning again.
    /// No record appears twice.
    #[oai(path = "/records", method = "get", operation_id = "listRecords")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn list(
        &self,
        app: Data<&App>,
        _reader: Reader,
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
        /// Maximum number of items on the page.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::default_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the previous page, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<Page<RecordView>>, Failure> {
        let params = RecordParams {
            record_id: record_id.0,
            destination_id: destination_id.0,
            reference: reference.0,
            source_id: source_id.0,
            r#type: r#type.0,
            unit: unit.0,
            start_time: start_time.0,
            end_time: end_time.0,
            alerted: alerted.0,
        };
        let filter = params.filter(app.0)?;
        let paging = Paging::<(i32, i64)>::new("/records", &filter, cursor.0, limit.0)?;
        let rows = app.store.list_records(&filter, paging.after.unwrap_or((-1, 0)), paging.rows()).await?;
        Ok(Answer(paging.page(rows, |row| (row.shard, row.seq), RecordView::from)))
    }
}
