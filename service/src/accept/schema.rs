//! Bodies of `POST /records` and `POST /records/batch`: raw bytes to us, a schema to the reader of the document.

use poem::{Request, RequestBody};
use poem_openapi::{
    ApiExtractor, ApiExtractorType, ExtractParamOptions,
    registry::{MetaMediaType, MetaRequest, MetaSchema, MetaSchemaRef, Registry},
};
use serde_json::{Value, json};

use super::body::{self, Format, Reader};
use crate::http::problem::Failure;

/// The body of one record.
pub(super) struct OneRecord(pub(super) Reader);

/// The body of a reversal.
pub(super) struct OneReversal(pub(super) Reader);

/// The body of many records.
pub(super) struct ManyRecords {
    pub(super) format: Format,
    pub(super) reader: Reader,
}

const NAME: &str = "RecordInput";
const REVERSAL: &str = "ReversalInput";

fn raw(request: &Request, body: &mut RequestBody) -> poem::Result<Reader> {
    Ok(body::reader(request, body.take()?)?)
}

/// The body of a path that takes one JSON object; `other` is the remedy for another format.
fn one(request: &Request, body: &mut RequestBody, other: &'static str) -> poem::Result<Reader> {
    if body::format(request, other)? != Format::Json {
        return Err(Failure::new(415, "unsupported_media_type", other).into());
    }
    body::refuse_unsent(request, body::RECORD_BYTES)?;
    raw(request, body)
}

impl<'a> ApiExtractor<'a> for OneRecord {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        registry.create_schema::<Self, _>(NAME.to_owned(), |_| record());
    }

    fn request_meta() -> Option<MetaRequest> {
        let content = vec![MetaMediaType { content_type: "application/json", schema: reference() }];
        let description =
            Some("One record, at most 16 KiB; `Content-Encoding: gzip` is taken. A byte order mark is passed over.");
        Some(MetaRequest { description, content, required: true })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        Ok(Self(one(request, body, "send one record as Content-Type: application/json")?))
    }
}

impl<'a> ApiExtractor<'a> for OneReversal {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        registry.create_schema::<Self, _>(REVERSAL.to_owned(), |_| reversal());
    }

    fn request_meta() -> Option<MetaRequest> {
        let schema = MetaSchemaRef::Reference(REVERSAL.to_owned());
        let content = vec![MetaMediaType { content_type: "application/json", schema }];
        Some(MetaRequest { description: Some("How much to reverse, and why."), content, required: true })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        Ok(Self(one(request, body, "send the reversal as Content-Type: application/json")?))
    }
}

impl<'a> ApiExtractor<'a> for ManyRecords {
    const TYPES: &'static [ApiExtractorType] = &[ApiExtractorType::RequestObject];
    type ParamType = ();
    type ParamRawType = ();

    fn register(registry: &mut Registry) {
        OneRecord::register(registry);
    }

    fn request_meta() -> Option<MetaRequest> {
        let array = MetaSchema { items: Some(Box::new(reference())), ..MetaSchema::new("array") };
        let lines = MetaSchema {
            description: Some("One record a line, each at most 16 KiB."),
            example: Some(Value::from(format!("{}\n", example()))),
            ..MetaSchema::new("string")
        };
        let content = vec![
            MetaMediaType { content_type: "application/json", schema: MetaSchemaRef::Inline(Box::new(array)) },
            MetaMediaType { content_type: "application/x-ndjson", schema: MetaSchemaRef::Inline(Box::new(lines)) },
        ];
        let description = Some(
            "A JSON array of at most 16 MiB and 100,000 items, or NDJSON of any length, also as `application/ndjson`, \
             `application/jsonl` or `application/x-jsonl`; `Content-Encoding: gzip` is taken. A byte order mark is passed over.",
        );
        Some(MetaRequest { description, content, required: true })
    }

    async fn from_request(
        request: &'a Request,
        body: &mut RequestBody,
        _: ExtractParamOptions<()>,
    ) -> poem::Result<Self> {
        let other = "send an array as Content-Type: application/json, or lines as Content-Type: application/x-ndjson";
        let format = body::format(request, other)?;
        if format == Format::Json {
            body::refuse_unsent(request, body::BATCH_BYTES)?;
        }
        Ok(Self { format, reader: raw(request, body)? })
    }
}

fn reference() -> MetaSchemaRef {
    MetaSchemaRef::Reference(NAME.to_owned())
}

fn example() -> Value {
    json!({
        "recordId": "order-1001",
        "time": "2026-01-31T12:00:00Z",
        "sourceId": "shop-7",
        "destinationId": "account-42",
        "type": "positive",
        "value": "125.50",
        "unit": "EUR",
        "reference": "invoice-9"
    })
}

/// The part of the rule for texts that a pattern can say.
fn text_pattern() -> String {
    // Control characters, and those that show nothing or turn the direction of text.
    let refused = r"\u0000-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff";
    let space = r" \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000";
    format!("^[^{refused}{space}]([^{refused}]*[^{refused}{space}])?$")
}

fn inline(schema: MetaSchema) -> MetaSchemaRef {
    MetaSchemaRef::Inline(Box::new(schema))
}

fn text(description: &'static str, nullable: bool) -> MetaSchemaRef {
    inline(MetaSchema {
        description: Some(description),
        min_length: Some(1),
        max_length: Some(200),
        pattern: Some(text_pattern()),
        nullable,
        ..MetaSchema::new("string")
    })
}

fn decimal(description: &'static str, nullable: bool) -> MetaSchemaRef {
    let decimal = MetaSchema { pattern: Some(r"^[0-9]{1,15}(\.[0-9]{1,9})?$".to_owned()), ..MetaSchema::new("string") };
    let number = MetaSchema { minimum: Some(0.0), maximum: Some(999_999_999_999_999.0), ..MetaSchema::new("number") };
    inline(MetaSchema {
        description: Some(description),
        one_of: vec![inline(decimal), inline(number)],
        nullable,
        ..MetaSchema::ANY
    })
}

/// The schema of a request for a reversal.
fn reversal() -> MetaSchema {
    MetaSchema {
        description: Some("A request for a reversal. Unknown fields are refused; null means absent."),
        required: vec!["reason"],
        properties: vec![
            (
                "recordId",
                text(
                    "The id of the reversal. With a value it is required, or an Idempotency-Key header in its place. Without a \
                     value it is refused: the id is derived from the record.",
                    true,
                ),
            ),
            (
                "value",
                decimal("How much of the record, above zero; absent: what remains of it when this is processed.", true),
            ),
            ("reason", text("Why. The reversal has it in its attributes, as `reason`.", false)),
        ],
        example: Some(json!({ "reason": "the order was cancelled" })),
        ..MetaSchema::new("object")
    }
}

/// The schema of a record as it comes in.
fn record() -> MetaSchema {
    let value = decimal(
        "Unsigned decimal of at most 15 integer and 9 fractional digits, without an exponent, as a string or a number. \
         A program that writes numbers with exponents sends a string. A number is read digit by digit, never through a float.",
        false,
    );
    let kind = MetaSchema {
        description: Some("The sign of the value."),
        enum_items: vec!["positive".into(), "negative".into()],
        ..MetaSchema::new("string")
    };
    let time = MetaSchema {
        description: Some(
            "When it happened: RFC 3339 with an offset and at most 6 fractional digits, zeros behind them not counted.",
        ),
        ..MetaSchema::new_with_format("string", "date-time")
    };
    let attributes = MetaSchema {
        description: Some("Anything else, at most 8 KiB; returned as the bytes received."),
        nullable: true,
        ..MetaSchema::new("object")
    };
    let record_id = "Unique over all shards and times. Left out beside an Idempotency-Key header, from which it is then \
                     derived; a record has either, not both.";
    MetaSchema {
        description: Some(
            "One record. Unknown fields are refused; null means absent. Ids, unit and reference compare byte by byte: they have \
             at most 400 bytes in UTF-8, no white space at either end, and none of U+200B, U+FEFF, bidirectional controls and \
             control characters.",
        ),
        required: vec!["time", "sourceId", "destinationId", "type", "value", "unit", "reference"],
        properties: vec![
            ("recordId", text(record_id, true)),
            ("time", inline(time)),
            ("sourceId", text("Who or what it comes from.", false)),
            ("destinationId", text("What it is counted for; decides the shard.", false)),
            ("type", inline(kind)),
            ("value", value),
            (
                "unit",
                text(
                    "Of what; amounts of different units are never added up. `eur` is another unit than `EUR`.",
                    false,
                ),
            ),
            ("reference", text("With the destination, the key under which totals are kept.", false)),
            (
                "reverses",
                text(
                    "The id of the record that this one takes back, as an exported reversal has it. Other clients reverse a record \
                     by POST /records/{recordId}/reversal.",
                    true,
                ),
            ),
            ("attributes", inline(attributes)),
        ],
        example: Some(example()),
        ..MetaSchema::new("object")
    }
}

#[cfg(test)]
mod tests {
    use crate::domain::Record;

    #[test]
    fn the_example_is_a_record() {
        Record::parse(super::example().to_string().as_bytes()).expect("the example in the document is valid");
    }
}
