//! A page of records as JSON, or as lines for a program that exports: the cursor is then in a header, and every line is a
//! record.

use poem::{IntoResponse, Response, http::header::VARY};
use poem_openapi::{
    ApiResponse,
    registry::{MetaHeader, MetaMediaType, MetaResponses, MetaSchema, MetaSchemaRef, Registry},
    types::Type,
};

use super::{
    answer::{Answer, COMPLETE_SINCE, Page, response},
    format::{Format, csv_line},
    record_text::{self, COLUMNS},
    views::RecordView,
};
use crate::{domain::render_time, http::problem::Failure};

/// The header with the cursor of the next page.
const NEXT_CURSOR: &str = "Millrace-Next-Cursor";

/// A page in the requested format.
#[derive(Debug)]
pub(super) struct RecordPage {
    pub(super) format: Format,
    pub(super) page: Page<RecordView>,
}

impl RecordPage {
    fn body(&self) -> Result<Vec<u8>, serde_json::Error> {
        let mut body = Vec::new();
        if self.format == Format::Csv {
            csv_line(&mut body, COLUMNS);
        }
        for record in &self.page.items {
            match self.format {
                Format::Csv => record_text::csv_view(&mut body, record),
                Format::Json | Format::Ndjson => {
                    let from = body.len();
                    serde_json::to_writer(&mut body, record)?;
                    record_text::on_one_line(&mut body[from..]);
                    body.push(b'\n');
                }
            }
        }
        Ok(body)
    }
}

impl IntoResponse for RecordPage {
    fn into_response(self) -> Response {
        let mut answer = if self.format == Format::Json {
            Answer::<_, 200>(self.page).into_response()
        } else {
            let mut answer = Response::builder().content_type(self.format.content_type());
            if let Some(cursor) = &self.page.next_cursor {
                answer = answer.header(NEXT_CURSOR, cursor);
            }
            if let Some(since) = self.page.complete_since {
                answer = answer.header(COMPLETE_SINCE, render_time(since.0));
            }
            match self.body() {
                Ok(body) => answer.body(body),
                Err(error) => Failure::internal(&error).into_response(),
            }
        };
        answer.headers_mut().insert(VARY, poem::http::HeaderValue::from_static("Accept"));
        answer
    }
}

impl ApiResponse for RecordPage {
    fn meta() -> MetaResponses {
        let text = |description| {
            let schema = MetaSchema { description: Some(description), ..MetaSchema::new("string") };
            MetaSchemaRef::Inline(Box::new(schema))
        };
        let content = vec![
            MetaMediaType { content_type: Format::Json.media_type(), schema: Page::<RecordView>::schema_ref() },
            MetaMediaType {
                content_type: Format::Ndjson.media_type(),
                schema: text("One record per line, as in `items`. Only U+000A ends a line."),
            },
            MetaMediaType {
                content_type: Format::Csv.media_type(),
                schema: text("RFC 4180, with a header line on each page."),
            },
        ];
        let header = |name: &str, description: &str| MetaHeader {
            name: name.to_owned(),
            description: Some(description.to_owned()),
            required: false,
            deprecated: false,
            schema: MetaSchemaRef::Inline(Box::new(MetaSchema::new("string"))),
        };
        let mut page = response("The page, in the format that `Accept` selects.", 200, content);
        page.headers = vec![
            header(NEXT_CURSOR, "In NDJSON and CSV: `nextCursor`."),
            header(COMPLETE_SINCE, "In NDJSON and CSV: `completeSince`."),
        ];
        MetaResponses { responses: vec![page] }
    }

    fn register(registry: &mut Registry) {
        Page::<RecordView>::register(registry);
    }
}
