//! Columns of the domain's types: the only place where SQL values become these types, and the other way round.

use sqlx::{
    Decode, Encode, Postgres, Type,
    encode::IsNull,
    error::BoxDynError,
    postgres::{PgArgumentBuffer, PgHasArrayType, PgTypeInfo, PgValueRef},
};

use crate::domain::{
    DeadLetterReason, DeadLetterState, DestinationId, Offset, OutcomeKind, RecordId, Reference, Seq, ShardId, SourceId,
    StreamId, StreamPosition, Unit,
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
    DeadLetterReason as String: |word| Self::parse(&word).ok_or_else(|| unknown(&word)), |reason| reason.as_str();
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
