//! Invariants of entries of input streams, from any writer.

use bytes::Bytes;

use super::{
    Error,
    entry::{entry as read, pack},
};
use crate::{domain::Record, streams::Outgoing};

/// Checks one input: the fields of an entry. A name is one byte that selects a known name, or any text; 0xFF ends each
/// part.
pub fn entry(bytes: &[u8]) {
    const NAMES: [&[u8]; 4] = [b"format", b"offsets", b"records", b"record"];
    let mut parts = bytes.split(|byte| *byte == 0xFF);
    let id = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let parts: Vec<&[u8]> = parts.collect();
    let fields: Vec<Bytes> = parts
        .chunks(2)
        .flat_map(|pair| {
            let name = match pair[0] {
                [index @ 0..4] => NAMES[usize::from(*index)],
                other => other,
            };
            [Bytes::copy_from_slice(name), Bytes::copy_from_slice(pair.get(1).copied().unwrap_or_default())]
        })
        .collect();
    let entry = match read(&id, 3, &fields) {
        Ok(entry) => entry,
        Err(Error::UnknownFormat { .. }) => {
            return assert!(fields.chunks(2).any(|pair| pair[0] == "format" && pair[1] != "1"));
        }
        Err(error) => panic!("{error}"),
    };
    let Some(entry) = entry else {
        return assert!(
            id.split_once('-').is_none_or(|(ms, n)| ms.parse::<u64>().is_err() || n.parse::<u64>().is_err())
        );
    };
    assert_eq!((entry.id.to_string().parse(), entry.deliveries), (Ok(entry.id), 3));
    assert!(!entry.records.is_empty(), "an entry holds a record or becomes a dead letter");
    for (index, input) in entry.records.iter().enumerate() {
        assert_eq!((input.position.entry, usize::from(input.position.index)), (entry.id, index));
        assert!((0..=253_402_300_799).contains(&input.received_at.timestamp()), "Postgres can store the time");
        // The worker reads the same record that `serve` appended.
        if let Ok(record) = Record::parse(&input.payload) {
            let sent = Outgoing {
                record: record.to_json(),
                received_at: input.received_at,
                traceparent: input.traceparent.clone(),
                replay_of: input.replay_of,
                source: None,
            };
            let value = pack([&sent]).remove(0).bytes.into();
            let fields = [Bytes::from("format"), "1".into(), "offsets".into(), "7-7".into(), "records".into(), value];
            let again = read(&entry.id.to_string(), 1, &fields).expect("the format").expect("an id").records.remove(0);
            assert_eq!(Record::parse(&again.payload), Ok(record));
            assert_eq!((again.received_at, &again.traceparent), (input.received_at, &input.traceparent));
        }
    }
}
