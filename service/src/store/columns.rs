//! Columns of the domain's types: the only place where SQL values become these types, and the other way round.

use sqlx::{
    Decode, Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef, types::Oid},
};

use super::Error;
use crate::domain::{
    ContentDigest, DeadLetterReason, DeadLetterState, DeliveryState, DestinationId, Offset, OutcomeKind, RecordId,
    Reference, Seq, ShardId, ShardSeq, SourceId, StreamId, StreamPosition, TotalAlert, Unit,
};

/// `type as column: reads a column's value into a Result, writes a value as the column's`.
macro_rules! columns {
    ($($type:ty as $column:ty: $read:expr, |$value:ident| $write:expr;)+) => {$(
        impl Type<Postgres> for $type {
            fn type_info() -> PgTypeInfo {
                <$column as Type<Postgres>>::type_info()
            }

            fn compatible(info: &PgTypeInfo) -> bool {
                <$column as Type<Postgres>>::compatible(info)
            }
        }

        impl PgHasArrayType for $type {
            fn array_type_info() -> PgTypeInfo {
                <$column as PgHasArrayType>::array_type_info()
            }

            fn array_compatible(info: &PgTypeInfo) -> bool {
                <$column as PgHasArrayType>::array_compatible(info)
            }
        }

        impl Encode<'_, Postgres> for $type {
            fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
                let $value = self;
                Encode::<Postgres>::encode($write, buffer)
            }
        }

        impl<'r> Decode<'r, Postgres> for $type {
            fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
                let read: fn($column) -> Result<$type, BoxDynError> = $read;
                read(<$column as Decode<Postgres>>::decode(value)?)
            }
        }
    )+};
}

columns! {
    ShardId as i32: |index| Ok(Self::new(u16::try_from(index)?)), |shard| i32::from(shard.get());
    Seq as i64: |number| Ok(Self::new(number)), |seq| seq.get();
    RecordId as String: |text| Ok(Self::stored(text)), |text| text.as_str();
    SourceId as String: |text| Ok(Self::stored(text)), |text| text.as_str();
    DestinationId as String: |text| Ok(Self::stored(text)), |text| text.as_str();
    Reference as String: |text| Ok(Self::stored(text)), |text| text.as_str();
    Offset as i64: |number| Ok(Self::new(number)), |offset| offset.get();
    StreamId as String: |text| text.parse().map_err(|()| unknown(&text)), |id| id.to_string();
    Unit as String: |text| Ok(Self::stored(text)), |text| text.as_str();
    OutcomeKind as String: |word| Self::parse(&word).ok_or_else(|| unknown(&word)), |kind| kind.as_str();
    DeadLetterState as String: |word| Self::parse(&word).ok_or_else(|| unknown(&word)), |state| state.as_str();
    DeliveryState as String: |word| Self::parse(&word).ok_or_else(|| unknown(&word)), |state| state.as_str();
    DeadLetterReason as String: |word| Self::parse(&word).ok_or_else(|| unknown(&word)), |reason| reason.as_str();
}

/// Postgres's own numbers for `uuid` and `uuid[]`, the same in every database.
const UUID: Oid = Oid(2950);
const UUID_ARRAY: Oid = Oid(2951);

/// A `uuid` is Postgres's only column of 16 bytes without a length. No other type of this crate is one.
impl Type<Postgres> for ContentDigest {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(UUID)
    }
}

impl PgHasArrayType for ContentDigest {
    fn array_type_info() -> PgTypeInfo {
        PgTypeInfo::with_oid(UUID_ARRAY)
    }
}

impl Encode<'_, Postgres> for ContentDigest {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        buffer.extend_from_slice(self.as_bytes());
        Ok(IsNull::No)
    }
}

impl<'r> Decode<'r, Postgres> for ContentDigest {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        Ok(Self::stored(value.as_bytes()?.try_into()?))
    }
}

/// The alerts of totals by a record, as their column.
pub(super) fn total_alerts_column(alerts: &[TotalAlert]) -> Option<String> {
    // A list of texts and numbers is JSON.
    (!alerts.is_empty()).then(|| serde_json::to_string(alerts).unwrap_or_default())
}

/// The alerts of totals in their column.
pub(super) fn total_alerts(column: Option<&str>) -> Result<Vec<TotalAlert>, Error> {
    let read = column.map_or(Ok(Vec::new()), serde_json::from_str);
    read.map_err(|error| Error::Sql(sqlx::Error::Decode(Box::new(error))))
}

/// Places as two columns, for `unnest`.
pub(super) fn unzipped(places: &[ShardSeq]) -> (Vec<ShardId>, Vec<Seq>) {
    places.iter().map(|place| (place.shard, place.seq)).unzip()
}

/// The column of a place's index in its entry.
pub(super) fn index_column(position: StreamPosition) -> i16 {
    i16::try_from(position.index).unwrap_or(i16::MAX)
}

/// The place of two columns.
pub(super) fn stream_position(entry: StreamId, index: i16) -> StreamPosition {
    StreamPosition { entry, index: u16::try_from(index).unwrap_or_default() }
}

fn unknown(word: &str) -> BoxDynError {
    format!("{word:?} is a word of another version of Millrace").into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{domain::Record, store::testing::TestPipeline};

    fn digests() -> Vec<ContentDigest> {
        let record = |value: u32| {
            let json = format!(
                r#"{{"recordId":"r","time":"2026-01-31T12:00:00Z","sourceId":"s","destinationId":"d","type":"positive",
                     "value":{value},"unit":"EUR","reference":"f"}}"#
            );
            ContentDigest::of(&Record::parse(json.as_bytes()).unwrap())
        };
        (0..1000).map(record).chain([ContentDigest::stored([0; 16]), ContentDigest::stored([0xff; 16])]).collect()
    }

    #[tokio::test]
    async fn a_digest_survives_the_round_trip_alone_and_in_an_array() {
        let test = TestPipeline::new("threshold: '1'").await;
        let digests = digests();
        let rows = sqlx::query!(
            r#"select digest as "digest!: ContentDigest", digest::text as "text!"
               from unnest($1::uuid[]) with ordinality as u (digest, n) order by n"#,
            &digests as &[ContentDigest]
        )
        .fetch_all(&test.store.pool)
        .await
        .unwrap();
        assert_eq!(rows.iter().map(|row| row.digest).collect::<Vec<_>>(), digests);
        let texts: Vec<_> = rows.iter().map(|row| row.text.replace('-', "")).collect();
        assert_eq!(texts, digests.iter().map(ToString::to_string).collect::<Vec<_>>(), "Postgres has the same bytes");
        let (one, all) = (digests[0], digests.as_slice());
        let row = sqlx::query!(
            r#"select $1::uuid as "one!: ContentDigest", $2::uuid[] as "all!: Vec<ContentDigest>",
                      array[]::uuid[] as "empty!: Vec<ContentDigest>", null::uuid as "none: ContentDigest""#,
            one as ContentDigest,
            all as &[ContentDigest]
        )
        .fetch_one(&test.store.pool)
        .await
        .unwrap();
        assert_eq!((row.one, row.all.as_slice(), row.empty.len(), row.none), (one, all, 0, None));
    }

    #[tokio::test]
    async fn a_column_of_another_type_is_no_digest() {
        let test = TestPipeline::new("threshold: '1'").await;
        for sql in ["select '\\x00112233445566778899aabbccddeeff'::bytea", "select 'sixteen bytes in'::text"] {
            let read = sqlx::query_scalar::<_, ContentDigest>(sql).fetch_one(&test.store.pool).await;
            assert!(read.is_err(), "{sql}: {read:?}");
        }
    }
}
