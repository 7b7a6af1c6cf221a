//! The content of an entry of an input stream: many records in one value.
//!
//! Format 1, the fields of an entry: `format` (`1`), `offsets` (`<first>-<last>`, given by the append), `records`. The value
//! of `records` is a CRC-32C of the rest in four bytes, and then one frame for each record:
//!
//! | part | bytes | |
//! |---|---|---|
//! | flags | 1 | 1: time and trace context are those of the record before; 2: a replay |
//! | time of receipt | 8 | microseconds since the epoch; only without flag 1 |
//! | trace context | 1 + n | length and text; only without flag 1 |
//! | dead letter | 1 + n | length and id; only with flag 2 |
//! | record | 4 + n | length and JSON: but for a replay, the bytes of `Record::to_json` |
//!
//! Numbers are little-endian. A change of anything above is another format: a worker that does not support the format of
//! an entry returns its shard. Must never make records of bytes whose checksum is wrong.

use std::{collections::HashMap, sync::Arc};

use bytes::{Buf as _, Bytes};
use chrono::{DateTime, Utc};
use crc::{CRC_32_ISCSI, Crc, Table};
use redis::Value;

use super::{Error, SourceTag};
use crate::domain::{DeadLetterId, Entry, InputRecord, OffsetRange, StreamId, StreamPosition};

/// The format that this version writes, and the only one that it reads.
pub(super) const FORMAT: &str = "1";
/// The format of entries of one record, which had no name.
const BEFORE: &str = "0";
/// Maximum number of records in an entry.
pub(super) const MAX_RECORDS: usize = 200;
/// Number of bytes after which no further record is added to an entry.
const FULL_BYTES: usize = 64 << 10;

const SAME_CONTEXT: u8 = 1;
const REPLAY: u8 = 2;
const CHECKSUM_BYTES: usize = 4;

/// CRC-32C, the checksum of iSCSI, ext4 and Kafka.
static CHECKSUM: Crc<u32, Table<16>> = Crc::<u32, Table<16>>::new(&CRC_32_ISCSI);

/// A record to be appended.
#[derive(Debug, Clone)]
#[cfg_attr(test, derive(Default))]
pub struct Outgoing {
    /// The record as JSON, with its id.
    pub record: String,
    /// When it was received.
    pub received_at: DateTime<Utc>,
    /// W3C trace context of the request, at most 255 bytes.
    pub traceparent: Option<Arc<str>>,
    /// The dead letter whose replay this is.
    pub replay_of: Option<DeadLetterId>,
    /// Its source, which shares the backlog with others; `None`: a replay, or a record that belongs to no source.
    pub source: Option<SourceTag>,
}

/// The value `records` of an entry.
#[derive(Debug)]
pub(super) struct Packed {
    /// Number of records.
    pub(super) count: usize,
    /// The value.
    pub(super) bytes: Vec<u8>,
}

/// Packs records into entries, in order, as few as the limits allow.
pub(super) fn pack<'a>(records: impl IntoIterator<Item = &'a Outgoing>) -> Vec<Packed> {
    let mut entries = Vec::new();
    let mut packed = Packed { count: 0, bytes: vec![0; CHECKSUM_BYTES] };
    let mut before: Option<&Outgoing> = None;
    for record in records {
        let size = record.record.len() + 80;
        if packed.count > 0 && (packed.count == MAX_RECORDS || packed.bytes.len() + size > FULL_BYTES) {
            let next = Packed { count: 0, bytes: vec![0; CHECKSUM_BYTES] };
            entries.push(sealed(std::mem::replace(&mut packed, next)));
            before = None;
        }
        frame(&mut packed.bytes, record, before);
        packed.count += 1;
        before = Some(record);
    }
    if packed.count > 0 {
        entries.push(sealed(packed));
    }
    entries
}

fn sealed(mut packed: Packed) -> Packed {
    let checksum = CHECKSUM.checksum(&packed.bytes[CHECKSUM_BYTES..]);
    packed.bytes[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
    packed
}

fn frame(bytes: &mut Vec<u8>, record: &Outgoing, before: Option<&Outgoing>) {
    let same = before
        .is_some_and(|before| before.received_at == record.received_at && before.traceparent == record.traceparent);
    bytes.push(if same { SAME_CONTEXT } else { 0 } | if record.replay_of.is_some() { REPLAY } else { 0 });
    if !same {
        bytes.extend(record.received_at.timestamp_micros().to_le_bytes());
        short(bytes, record.traceparent.as_deref().unwrap_or_default());
    }
    if let Some(dead_letter) = record.replay_of {
        short(bytes, &dead_letter.to_string());
    }
    bytes.extend((record.record.len() as u32).to_le_bytes());
    bytes.extend(record.record.as_bytes());
}

fn short(bytes: &mut Vec<u8>, text: &str) {
    // A longer text is no trace context.
    let text = if text.len() > usize::from(u8::MAX) { "" } else { text };
    bytes.push(text.len() as u8);
    bytes.extend(text.as_bytes());
}

/// The records of a value; `None`: it is not what was appended.
pub(super) fn unpack(id: StreamId, offsets: OffsetRange, value: &Bytes) -> Option<Vec<InputRecord>> {
    let mut rest = value.clone();
    let checksum = rest.try_get_u32_le().ok()?;
    if CHECKSUM.checksum(&rest) != checksum {
        return None;
    }
    let mut records: Vec<InputRecord> = Vec::new();
    while !rest.is_empty() {
        let index = u16::try_from(records.len()).ok()?;
        let record = unframe(&mut rest, StreamPosition { entry: id, index }, records.last())?;
        records.push(InputRecord { offsets: Some(offsets.at(index)?), ..record });
    }
    (records.len() as i64 == offsets.count()).then_some(records)
}

fn unframe(rest: &mut Bytes, position: StreamPosition, before: Option<&InputRecord>) -> Option<InputRecord> {
    let flags = rest.try_get_u8().ok()?;
    let (received_at, traceparent) = if flags & SAME_CONTEXT == 0 {
        let received_at = DateTime::from_timestamp_micros(rest.try_get_i64_le().ok()?)?;
        let length = rest.try_get_u8().ok()?;
        let traceparent = text(rest, usize::from(length))?;
        (received_at, (!traceparent.is_empty()).then(|| Arc::from(traceparent)))
    } else {
        before.map(|before| (before.received_at, before.traceparent.clone()))?
    };
    let replay_of = if flags & REPLAY == 0 {
        None
    } else {
        let length = rest.try_get_u8().ok()?;
        Some(text(rest, usize::from(length))?.parse().ok()?)
    };
    let length = rest.try_get_u32_le().ok()?;
    let payload = part(rest, length as usize)?;
    let is_canonical = replay_of.is_none();
    let corrupted = false;
    Some(InputRecord { position, offsets: None, payload, received_at, traceparent, replay_of, is_canonical, corrupted })
}

fn part(rest: &mut Bytes, length: usize) -> Option<Bytes> {
    (rest.len() >= length).then(|| rest.split_to(length))
}

fn text(rest: &mut Bytes, length: usize) -> Option<String> {
    String::from_utf8(part(rest, length)?.to_vec()).ok()
}

/// Reads `[[id, [field, value, …]], …]`, with the number of deliveries of each; 1 where that is not given.
pub(super) fn entries(value: Option<Value>, deliveries: &[u64]) -> Result<Vec<Entry>, Error> {
    let Some(Value::Array(items)) = value else { return Ok(Vec::new()) };
    let mut entries = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let Value::Array(item) = item else { continue };
        let mut item = item.into_iter();
        let (Some(Value::BulkString(id)), Some(Value::Array(fields))) = (item.next(), item.next()) else { continue };
        let id = String::from_utf8_lossy(&id).into_owned();
        let texts = fields.into_iter().map(|field| match field {
            Value::BulkString(text) => Bytes::from(text),
            _ => Bytes::new(),
        });
        let deliveries = deliveries.get(index).copied().unwrap_or(1);
        entries.extend(entry(&id, deliveries, &texts.collect::<Vec<_>>())?);
    }
    Ok(entries)
}

/// One entry from its names and values, in turn. `None`: its id is none.
///
/// # Errors
/// [`Error::UnknownFormat`] when another version appended it.
pub(super) fn entry(id: &str, deliveries: u64, fields: &[Bytes]) -> Result<Option<Entry>, Error> {
    let Ok(id) = id.parse::<StreamId>() else { return Ok(None) };
    let named: HashMap<&[u8], &Bytes> = fields.chunks_exact(2).map(|pair| (&pair[0][..], &pair[1])).collect();
    let Some(format) = named.get(&b"format"[..]) else {
        let received_at = named.get(&b"receivedAt"[..]).filter(|time| time.iter().all(u8::is_ascii_digit));
        if received_at.is_some() && named.contains_key(&b"record"[..]) {
            return Err(Error::UnknownFormat { id, format: BEFORE.to_owned() });
        }
        return Ok(Some(Entry { id, deliveries, records: vec![external(id, &named, fields)] }));
    };
    if **format != FORMAT {
        return Err(Error::UnknownFormat { id, format: format.escape_ascii().to_string() });
    }
    let offsets = named.get(&b"offsets"[..]).and_then(|text| offsets(text));
    let value = named.get(&b"records"[..]).map(|value| Bytes::clone(value)).unwrap_or_default();
    let records = offsets.and_then(|offsets| unpack(id, offsets, &value)).unwrap_or_else(|| {
        let whole = InputRecord { offsets, corrupted: true, ..bare(id, value) };
        vec![whole]
    });
    Ok(Some(Entry { id, deliveries, records }))
}

fn offsets(text: &[u8]) -> Option<OffsetRange> {
    let (first, last) = std::str::from_utf8(text).ok()?.split_once('-')?;
    OffsetRange::new(first.parse().ok()?, last.parse().ok()?)
}

/// The record of an entry that another program appended: its field `record`, or else all fields, as a JSON object for a
/// person to read.
fn external(id: StreamId, named: &HashMap<&[u8], &Bytes>, fields: &[Bytes]) -> InputRecord {
    let payload = named.get(&b"record"[..]).map_or_else(
        || {
            let text = |bytes: &Bytes| String::from_utf8_lossy(bytes).into_owned();
            let pairs = fields.chunks_exact(2).map(|pair| (text(&pair[0]), text(&pair[1]).into()));
            serde_json::Value::Object(pairs.collect()).to_string().into()
        },
        |record| Bytes::clone(record),
    );
    bare(id, payload)
}

/// A record of which only the bytes are known. Its time of receipt is that of the id, where that is a time.
fn bare(id: StreamId, payload: Bytes) -> InputRecord {
    let received_at = i64::try_from(id.ms).ok().and_then(DateTime::from_timestamp_millis);
    let received_at = received_at.filter(|time| (0..=253_402_300_799).contains(&time.timestamp())).unwrap_or_default();
    let position = StreamPosition { entry: id, index: 0 };
    InputRecord {
        position,
        offsets: None,
        payload,
        received_at,
        traceparent: None,
        replay_of: None,
        is_canonical: false,
        corrupted: false,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::{Seq, ShardId};

    const ID: StreamId = StreamId { ms: 5, n: 1 };

    fn outgoing() -> impl Strategy<Value = Outgoing> {
        let trace = prop::option::of(prop_oneof![Just(Arc::from("00-a")), Just(Arc::from("00-b"))]);
        let replay = prop::option::weighted(0.2, 1..99_i64);
        (".{0,40}", 0..3_i64, trace, replay).prop_map(|(record, micros, traceparent, replay)| Outgoing {
            record,
            received_at: DateTime::from_timestamp_micros(1_700_000_000_000_000 + micros).expect("a time"),
            traceparent,
            replay_of: replay.map(|seq| DeadLetterId { shard: ShardId::new(3), seq: Seq::new(seq) }),
            source: None,
        })
    }

    fn offsets(first: i64, count: usize) -> OffsetRange {
        OffsetRange::new(first, first + count as i64 - 1).expect("a range")
    }

    proptest! {
        #[test]
        fn records_come_out_as_they_were_packed(sent in prop::collection::vec(outgoing(), 1..450)) {
            let mut records = sent.iter();
            let mut first = 10;
            for packed in pack(&sent) {
                prop_assert!(packed.count <= MAX_RECORDS);
                let range = offsets(first, packed.count);
                first += packed.count as i64;
                let got = unpack(ID, range, &packed.bytes.into()).expect("what was packed");
                for (index, (got, sent)) in got.iter().zip(records.by_ref()).enumerate() {
                    prop_assert_eq!(&got.payload, sent.record.as_bytes());
                    prop_assert_eq!((got.received_at, got.replay_of), (sent.received_at, sent.replay_of));
                    prop_assert_eq!(&got.traceparent, &sent.traceparent);
                    prop_assert_eq!(got.position, StreamPosition { entry: ID, index: index as u16 });
                    prop_assert_eq!(got.offsets, range.at(index as u16));
                }
            }
            prop_assert_eq!(first, 10 + sent.len() as i64, "every record is in an entry");
        }

        #[test]
        fn a_value_that_changed_is_not_read(
            sent in prop::collection::vec(outgoing(), 1..5),
            at in any::<prop::sample::Index>(),
            bit in 0..8_u32,
            cut in any::<prop::sample::Index>(),
        ) {
            let packed = pack(&sent).remove(0);
            let range = offsets(1, packed.count);
            let mut changed = packed.bytes.clone();
            changed[at.index(packed.bytes.len())] ^= 1 << bit;
            prop_assert!(unpack(ID, range, &changed.into()).is_none());
            let cut = packed.bytes[..cut.index(packed.bytes.len())].to_vec();
            prop_assert!(unpack(ID, range, &cut.into()).is_none());
            prop_assert!(unpack(ID, offsets(1, packed.count + 1), &packed.bytes.into()).is_none());
        }

        #[test]
        fn bytes_with_a_right_checksum_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let packed = sealed(Packed { count: 1, bytes: [vec![0; CHECKSUM_BYTES], bytes].concat() });
            unpack(ID, offsets(1, 1), &packed.bytes.into());
        }
    }

    #[test]
    fn an_entry_is_full_at_its_number_of_records_or_bytes() {
        let record = |bytes: usize| Outgoing {
            record: "x".repeat(bytes),
            received_at: DateTime::UNIX_EPOCH,
            traceparent: None,
            replay_of: None,
            source: None,
        };
        let counts = |records: &[Outgoing]| pack(records).iter().map(|packed| packed.count).collect::<Vec<_>>();
        assert_eq!(counts(&vec![record(10); 450]), [200, 200, 50]);
        assert_eq!(counts(&vec![record(16_000); 9]), [4, 4, 1]);
        assert_eq!(counts(&[record(100_000), record(1)]), [1, 1], "a record is never cut");
        assert!(pack(&[]).is_empty());
    }

    #[test]
    fn an_entry_of_the_format_before_is_refused_and_one_of_another_program_is_not() {
        let read = |fields: &[&'static str]| {
            let fields: Vec<Bytes> = fields.iter().map(|text| Bytes::from_static(text.as_bytes())).collect();
            entry("5-1", 1, &fields)
        };
        let refused = read(&["record", "{}", "receivedAt", "1700000000000000", "serve", "s"]);
        assert!(matches!(&refused, Err(Error::UnknownFormat { format, .. }) if format == "0"), "{refused:?}");
        assert!(read(&["record", "{}", "receivedAt", "yesterday"]).unwrap().is_some());
    }

    #[test]
    fn the_format_stays_as_it_is() {
        let record = Outgoing {
            record: "{}".to_owned(),
            received_at: DateTime::from_timestamp_micros(1).expect("a time"),
            traceparent: Some("t".into()),
            replay_of: Some(DeadLetterId { shard: ShardId::new(0), seq: Seq::new(7) }),
            source: None,
        };
        let packed = pack(&[record.clone(), Outgoing { replay_of: None, ..record }]).remove(0);
        let frames = b"\x02\x01\0\0\0\0\0\0\0\x01t\x040-d7\x02\0\0\0{}\x01\x02\0\0\0{}";
        assert_eq!(packed.bytes[CHECKSUM_BYTES..], frames[..]);
        assert_eq!(CHECKSUM.checksum(b"123456789"), 0xe306_9283, "the check value of CRC-32C");
    }
}
