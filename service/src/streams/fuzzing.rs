//! Invariants of entries of input streams, from any writer.

use super::input::entry as read;
use crate::domain::Record;

/// Checks one input: the fields of an entry. A name is one byte that selects a known name, or any text; 0xFF ends each
/// part.
pub fn entry(bytes: &[u8]) {
    const NAMES: [&[u8]; 5] = [b"record", b"receivedAt", b"traceparent", b"serve", b"replayOf"];
    let mut parts = bytes.split(|byte| *byte == 0xFF);
    let id = String::from_utf8_lossy(parts.next().unwrap_or_default()).into_owned();
    let parts: Vec<&[u8]> = parts.collect();
    let fields: Vec<(Vec<u8>, Vec<u8>)> = parts
        .chunks(2)
        .map(|pair| {
            let name = match pair[0] {
                [index @ 0..5] => NAMES[usize::from(*index)],
                other => other,
            };
            (name.to_vec(), pair.get(1).copied().unwrap_or_default().to_vec())
        })
        .collect();
    let values =
        |name: &'static str| fields.iter().filter(move |(key, _)| key == name.as_bytes()).map(|(_, value)| value);
    let Some(entry) = read(&id, 3, fields.clone()) else {
        return assert!(
            id.split_once('-').is_none_or(|(ms, n)| ms.parse::<u64>().is_err() || n.parse::<u64>().is_err())
        );
    };
    assert_eq!(entry.id.to_string().parse(), Ok(entry.id));
    assert_eq!(entry.deliveries, 3);
    assert!((0..=253_402_300_799).contains(&entry.received_at.timestamp()), "Postgres can store the time");
    assert_eq!(entry.marked, values("serve").count() > 0);
    if let Some(traceparent) = &entry.traceparent {
        assert!(traceparent.len() <= 64 && !traceparent.contains('\0'));
        assert!(values("traceparent").any(|value| value == traceparent.as_bytes()));
    }
    if let Some(dead_letter) = entry.replay_of {
        assert!(values("replayOf").any(|value| *value == dead_letter.to_string().into_bytes()), "one spelling only");
    }
    match values("record").next_back() {
        Some(record) => assert_eq!(&entry.payload, record),
        None => {
            let shown: serde_json::Value = serde_json::from_slice(&entry.payload).expect("JSON for a person");
            assert!(shown.is_object());
        }
    }
    // The worker reads the same record that `serve` appended.
    if let Ok(record) = Record::parse(&entry.payload) {
        let micros = entry.received_at.timestamp_micros().to_string();
        let sent = [("record", record.to_json()), ("receivedAt", micros)];
        let sent = sent.map(|(name, value)| (name.as_bytes().to_vec(), value.into_bytes()));
        let again = read(&entry.id.to_string(), 1, sent.to_vec()).expect("an entry");
        assert_eq!(Record::parse(&again.payload), Ok(record));
        assert_eq!(again.received_at, entry.received_at);
    }
}
