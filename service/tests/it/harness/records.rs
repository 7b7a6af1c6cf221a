//! Records to send: many, with what must come of them.

use serde_json::{Value, json};

/// A record, positive, of 1 EUR. Fields can be set by indexing.
pub(crate) fn record(id: &str, destination: &str) -> Value {
    json!({
        "recordId": id, "time": "2026-01-31T12:00:00Z", "sourceId": "source", "destinationId": destination,
        "type": "positive", "value": "1", "unit": "EUR", "reference": "reference",
    })
}

/// Records of a name of their own, some of them sent again, in an order that can be checked: `attributes.n` rises.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    /// What to send, in order.
    pub(crate) records: Vec<Value>,
    /// What must be processed, each once.
    pub(crate) ids: Vec<String>,
    /// How many of `records` were there before.
    pub(crate) duplicates: usize,
}

impl Load {
    /// How many entries it is.
    pub(crate) fn entries(&self) -> i64 {
        self.records.len() as i64
    }

    /// `n` records over 20 destinations; of every ten that are sent one was sent before. Values reach from 0.25 to 249.25.
    pub(crate) fn new(prefix: &str, n: usize) -> Self {
        Self::from(prefix, 0, n)
    }

    /// What comes after the first `start` of that name.
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
                // Some right behind, some in another batch.
                records.push(one(k - if k.is_multiple_of(2) { 0 } else { (k - start).min(400) }));
            }
        }
        let duplicates = records.len() - n;
        Self { records, ids: (start..start + n).map(|k| format!("{prefix}-{k}")).collect(), duplicates }
    }
}
