//! `GET /records`: processed records in the order of the log.

use poem_openapi::param::Query;

use super::{
    Tags,
    answer::{Answer, Page, Paging},
    record_filter::filtered_operation,
    types::{Time, Word},
    views::{RecordType, RecordView},
};
use crate::{
    domain::ShardSeq,
    http::{App, auth::Reader, problem::Failure},
};

/// Lists of records.
#[derive(Debug, Clone, Default)]
pub struct RecordList;

filtered_operation! {
    "Tags::Records" RecordList;
    /// List processed records
    ///
    /// Ordered by (shard, seq). Per destination this is the order of processing, which is the order of arrival. Pages
    /// follow the shards: a record that is processed while a client reads pages appears on a later page only if the
    /// client has not reached the end of its shard. To see a record of an earlier shard, read from the beginning again.
    /// No record appears twice.
    #[oai(path = "/records", method = "get", operation_id = "listRecords")]
    async fn list(self, app, filter; [
    ] [
        /// Maximum number of items on the page.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::default_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the previous page, with the same filters.
        cursor: Query<Option<String>>,
    ]) -> Answer<Page<RecordView>> {
        let paging = Paging::<ShardSeq>::new("/records", &filter, cursor.0, limit.0)?;
        let rows = app.store.list_records(&filter, paging.after.unwrap_or_default(), paging.rows()).await?;
        Ok(Answer(paging.page(rows, |row| ShardSeq { shard: row.shard, seq: row.seq }, RecordView::from)))
    }
}
