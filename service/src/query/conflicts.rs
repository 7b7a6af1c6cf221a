//! `GET /conflicts`: entries that were refused because other content has their id, with both contents.

use poem::web::Data;
use poem_openapi::{Object, OpenApi, param::Query};
use serde::Serialize;

use super::{
    Tags,
    answer::{Answer, Page, Paging, in_order},
    dead_letter_view::Shown,
    types::{RawJson, Time, Word},
    views::RecordView,
};
use crate::{
    domain::ShardSeq,
    http::{App, auth::Reader, problem::Failure},
    store::{ConflictFilter, StoredConflict},
};

/// An entry that was refused because other content has its id.
#[derive(Debug, Object, Serialize)]
#[oai(rename_all = "camelCase", skip_serializing_if_is_none)]
#[serde(rename_all = "camelCase")]
pub(super) struct Conflict {
    /// `<shard>-c<n>`.
    pub id: String,
    /// The id that both claim.
    pub record_id: String,
    /// When it was refused.
    pub time: Time,
    /// When the refused entry was received.
    pub received_at: Time,
    /// The content that has the id, when it is a processed record that the caller may reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub record: Option<RecordView>,
    /// The content that has, or had, the id, when it is a dead letter that the caller may reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_letter: Option<RawJson>,
    /// The refused content, byte for byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<RawJson>,
    /// The refused content, when it is JSON that is nested deeper than a record can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused_text: Option<String>,
    /// The refused content, when it is not JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused_base64: Option<String>,
}

impl From<StoredConflict> for Conflict {
    fn from(conflict: StoredConflict) -> Self {
        let (refused, refused_text, refused_base64) = Shown::of(conflict.payload).fields();
        Self {
            id: format!("{}-c{}", conflict.shard, conflict.seq),
            record_id: conflict.record_id.into(),
            time: Time(conflict.noted_at),
            received_at: Time(conflict.received_at),
            record: conflict.record.map(RecordView::from),
            dead_letter: conflict.dead_letter.and_then(|payload| Shown::of(payload).fields().0),
            refused,
            refused_text,
            refused_base64,
        }
    }
}

/// Conflicts.
#[derive(Debug, Clone, Default)]
pub struct ConflictsApi;

#[OpenApi(tag = "Tags::Records")]
impl ConflictsApi {
    /// List conflicts
    ///
    /// Ordered by (shard, number).
    #[oai(path = "/conflicts", method = "get", operation_id = "listConflicts")]
    #[expect(clippy::too_many_arguments, reason = "each is a parameter in the document")]
    async fn list(
        &self,
        app: Data<&App>,
        reader: Reader,
        /// Only conflicts about this id.
        #[oai(name = "recordId")]
        record_id: Query<Option<Word>>,
        /// Only conflicts whose refused content has this destination.
        #[oai(name = "destinationId")]
        destination_id: Query<Option<Word>>,
        /// Only conflicts stored at or after this time.
        #[oai(name = "startTime")]
        start_time: Query<Option<Time>>,
        /// Only conflicts stored before this time.
        #[oai(name = "endTime")]
        end_time: Query<Option<Time>>,
        /// Maximum number of items on the page.
        #[oai(validator(minimum(value = "1"), maximum(value = "1000")), default = "super::default_limit")]
        limit: Query<u32>,
        /// `nextCursor` of the previous page, with the same filters.
        cursor: Query<Option<String>>,
    ) -> Result<Answer<Page<Conflict>>, Failure> {
        in_order(start_time.0, end_time.0)?;
        let filter = ConflictFilter {
            record_id: record_id.0.map(|id| id.0.into()),
            destination_id: destination_id.0.map(|id| id.0.into()),
            start: start_time.0.map(|time| time.0),
            end: end_time.0.map(|time| time.0),
            limit: reader.0.limit().clone(),
        };
        let paging = Paging::<ShardSeq>::new("/conflicts", &filter, cursor.0, limit.0)?;
        let rows = app.store.list_conflicts(&filter, paging.after.unwrap_or_default(), paging.rows()).await?;
        let page = paging.page(rows, |row| ShardSeq { shard: row.shard, seq: row.seq }, Conflict::from);
        Ok(Answer(page.kept_since(app.store.kept_since().await?.conflicts, filter.start)))
    }
}
