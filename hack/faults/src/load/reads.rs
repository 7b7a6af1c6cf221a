//! The reads of each client, checked against its own history: no read is older than the one before, and a record whose
//! outcome was answered is in the next one. No more is claimed: reads of different clients have no order.

use std::{collections::HashMap, time::Duration};

use serde_json::Value;

use super::{
    KEY, Load,
    record::{Code, Content},
};

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What a client reads: how many records a key has, of all clients or of itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Question {
    client: u16,
    filter: String,
}

/// The counts that clients have read.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    last: HashMap<Question, i64>,
    /// How many reads were checked.
    pub(crate) checked: u64,
    /// Reads that were older than their client's history.
    pub(crate) stale: Vec<String>,
}

impl Reads {
    /// Checks a count that a client has read; `more`: so many records of it have an outcome since the last read.
    fn check(&mut self, question: Question, count: i64, more: i64) {
        let Question { client, filter } = &question;
        if let Some(last) = self.last.get(&question) {
            self.checked += 1;
            if count < last + more {
                self.stale.push(format!(
                    "client {client} read {count} records of {filter}; before it was {last}, and it was answered the outcome of \
                     {more} more"
                ));
            }
        }
        self.last.insert(question, count);
    }

    /// Postgres was rewound: what was read before is no lower bound any more.
    pub(crate) fn clear(&mut self) {
        self.last.clear();
        self.stale.clear();
    }
}

impl Load {
    /// Reads the counts of a record's key, before or behind the answer of its outcome; `more` as above.
    pub(super) async fn read_key(&self, url: &str, code: Code, more: i64) {
        let Content { destination, reference, unit, .. } = Content::of(self.seed, code);
        let key = format!("destinationId={destination}&reference={reference}&unit={unit}");
        let own = format!("{key}&sourceId=source-{}", code.author());
        for filter in [key, own] {
            let address = format!("{url}/records/aggregations?records=false&{filter}");
            let request = self.http.get(address).bearer_auth(KEY).timeout(TIMEOUT);
            // Without an answer there is no read.
            let Ok(answer) = request.send().await.and_then(reqwest::Response::error_for_status) else { continue };
            let Ok(body) = answer.json::<Value>().await else { continue };
            let question = Question { client: code.author(), filter };
            self.history().reads.check(question, count_of(&body), more);
        }
    }
}

fn count_of(body: &Value) -> i64 {
    let groups = body["groups"].as_array().into_iter().flatten();
    let totals = groups.flat_map(|group| group["totals"].as_array().into_iter().flatten());
    totals.map(|total| total["count"].as_i64().unwrap_or(0)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_that_is_older_than_the_history_of_its_client_is_found() {
        let mut reads = Reads::default();
        let question = |client| Question { client, filter: "destinationId=d1".to_owned() };
        reads.check(question(1), 3, 0);
        reads.check(question(1), 3, 0);
        reads.check(question(1), 4, 1);
        // Another client may read an older state.
        reads.check(question(2), 2, 0);
        assert!(reads.stale.is_empty(), "{:?}", reads.stale);
        reads.check(question(1), 3, 0);
        assert_eq!(reads.stale.len(), 1, "it falls");
        reads.check(question(2), 2, 1);
        assert_eq!(reads.stale.len(), 2, "a record that was answered is missing");
        assert_eq!(reads.checked, 4);
    }
}
