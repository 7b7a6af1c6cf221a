//! Records to send, with the expected results.

use serde_json::{Value, json};

/// A positive record of 1 EUR. Fields can be set by indexing.
pub(crate) fn record(id: &str, destination: &str) -> Value {
    json!({
        "recordId": id, "time": "2026-01-31T12:00:00Z", "sourceId": "source", "destinationId": destination,
        "type": "positive", "value": "1", "unit": "EUR", "reference": "reference",
    })
}

/// Records with a common prefix of ids, some of them duplicates. `attributes.n` rises, so that their order can be
/// checked.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// The records to send, in order.
    pub(crate) records: Vec<Value>,
    /// The ids that must be processed, each once.
    pub(crate) ids: Vec<String>,
    /// How many of `records` are duplicates.
    pub(crate) duplicates: usize,
}

impl Load {
    /// The number of records to send.
    pub(crate) fn entries(&self) -> i64 {
        self.records.len() as i64
    }

    /// `n` records over 20 destinations; one of ten records to send is a duplicate. Values reach from 0.25 to 249.25.
    pub(crate) fn new(prefix: &str, n: usize) -> Self {
        Self::from(prefix, 0, n)
    }

    /// The `n` records that follow the first `start` of that prefix.
    pub(crate) fn from(prefix: &str, start: usize, n: usize) -> Self {
        let one = |k: usize| {
            let mut record = record(&format!("{prefix}-{k}"), &format!("destination-{}", k % 20));
            record["value"] = format!("{}.25", k % 250).into();
            record["type"] = if k.is_multiple_of(3) { "negative" } else { "positive" }.into();
            record["reference"] = format!("reference-{}", k % 7).into();
            record["attributes"] = json!({ "n": k });
            record
        };
        let mut records = Vec::with_capacity(n + n / 9);
        for k in start..start + n {
            records.push(one(k));
            if k % 9 == 8 {
                // Some duplicates follow at once, some in another batch.
                records.push(one(k - if k.is_multiple_of(2) { 0 } else { (k - start).min(400) }));
            }
        }
        let duplicates = records.len() - n;
        Self { records, ids: (start..start + n).map(|k| format!("{prefix}-{k}")).collect(), duplicates }
    }
}
