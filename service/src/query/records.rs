//! `GET /records`: processed records in the order of the log, or in the order of processing.

use poem::http::HeaderMap;
use poem_openapi::{Enum, param::Query};

use super::{
    Tags,
    answer::Paging,
    follow::follow,
    format::Format,
    record_filter::filtered_operation,
    record_page::RecordPage,
    types::{Time, Word},
    views::{RecordType, RecordView},
};
use crate::{
    domain::{Seq, ShardSeq},
    http::{App, auth::Reader, problem::Failure},
};

/// The order of a list of records.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Enum)]
#[oai(rename_all = "lowercase")]
pub(super) enum Order {
    /// By shard, then number.
    #[default]
    Log,
    /// By the time of processing.
    Processed,
}

/// Lists of records.
#[derive(Debug, Clone, Default)]
pub struct RecordList;

filtered_operation! {
    "Tags::Records" RecordList;
    /// List processed records
    ///
    /// `order=log`: by (shard, seq). Per destination this is the order of processing, which is the order of arrival. Pages
    /// follow the shards: a record that is processed while a client reads pages appears on a later page only if the
    /// client has not reached the end of its shard. To see a record of an earlier shard, read from the beginning again.
    ///
    /// `order=processed`: by the time of processing, for a reader that follows the records. `nextCursor` is on every page.
    /// A page with fewer than `limit` items is the last one at that time: its cursor later returns the records that were
    /// processed since. A reader that follows the cursors gets every matching record once, and those of a destination in
    /// the order of processing.
    ///
    /// No record appears twice. `Accept` selects JSON, or for an export NDJSON (one record a line) or CSV: then the header
    /// `Millrace-Next-Cursor` has the cursor. `millrace export` reads all pages into a file, and continues one that was cut.
    #[oai(path = "/records", method = "get", operation_id = "listRecords")]
    async fn list(self, app, filter; [
        headers: &HeaderMap,
        /// The order of the list.
        #[oai(default)]
        order: Query<Order>,
    ] [
        /// Maximum number of items on the page.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::default_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the previous page, with the same filters and order.
        cursor: Query<Option<String>>,
    ]) -> RecordPage {
        let format = Format::of(headers)?;
        if order.0 == Order::Processed {
            let paging = Paging::<Vec<Seq>>::new("/records?order=processed", &filter, cursor.0, limit.0)?;
            return follow(app.0, &filter, &paging).await.map(|page| RecordPage { format, page });
        }
        let paging = Paging::<ShardSeq>::new("/records", &filter, cursor.0, limit.0)?;
        let rows = app.store.list_records(&filter, paging.after.unwrap_or_default(), paging.rows()).await?;
        let page = paging.page(rows, |row| ShardSeq { shard: row.shard, seq: row.seq }, RecordView::from);
        let page = page.kept_since(app.store.kept_since().await?.records, filter.start);
        Ok(RecordPage { format, page })
    }
}
