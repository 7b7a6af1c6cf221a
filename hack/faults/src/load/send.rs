//! One request, and the outcome of each of its entries.

use std::time::Duration;

use serde_json::Value;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    time::{sleep, timeout},
};

use super::{
    KEY, Load,
    history::{Answer, Final, PROMISED, Promise},
    record::{Code, Content},
};

/// How entries are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Many, as a JSON array.
    Array,
    /// Many, as NDJSON.
    Lines,
    /// One.
    Single,
    /// One, with a wait for its outcome.
    Waited,
    /// One, as the reversal of its record.
    Reversal,
}

/// The outcome of one entry, by the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Taken,
    /// Taken, and processed.
    Processed,
    Unknown,
    /// Surely not accepted, for now.
    Refused,
    /// Surely not accepted, and never will be: nothing remains to be reversed.
    Exceeds,
}

/// Longest wait for an answer.
const TIMEOUT: Duration = Duration::from_secs(5);

impl Load {
    /// Sends entries once.
    pub(super) async fn attempt(&self, url: &str, codes: &[Code], how: How) -> Vec<Outcome> {
        let path = match (how, codes) {
            (How::Array | How::Lines, _) => "/records/batch".to_owned(),
            (How::Reversal, [code]) => {
                format!("/records/{}/reversal", code.reverses().unwrap_or(*code).id())
            }
            _ => "/records".to_owned(),
        };
        let mut request = self.http.post(format!("{url}{path}")).bearer_auth(KEY).timeout(TIMEOUT);
        request = request.header("content-type", content_type(how)).body(self.body(codes, how));
        if how == How::Waited {
            request = request.header("prefer", "wait=3");
        }
        let answered = match request.send().await {
            Ok(answer) => {
                let status = answer.status().as_u16();
                answer.text().await.map(|text| (status, text))
            }
            Err(error) => Err(error),
        };
        let (result, outcomes) = match answered {
            Ok((status, text)) => {
                let body = serde_json::from_str(&text).unwrap_or(Value::Null);
                if let (How::Waited, [code]) = (how, codes) {
                    self.promised(*code, status, &body);
                }
                let code = body["code"].as_str().unwrap_or_default();
                (format!("{status} {code}").trim().to_owned(), outcomes(codes.len(), status, &body))
            }
            Err(error) if error.is_connect() => ("not connected".to_owned(), vec![Outcome::Refused; codes.len()]),
            Err(error) => {
                let result = if error.is_timeout() { "timed out" } else { "cut" };
                (result.to_owned(), vec![Outcome::Unknown; codes.len()])
            }
        };
        *self.history().answers.requests.entry(result).or_default() += 1;
        outcomes
    }

    /// Sends a part of a request and closes the connection. Of an array no entry may be accepted then, of lines the
    /// complete ones may.
    pub(super) async fn cut_upload(&self, codes: &[Code], how: How, part: f64) {
        let body = self.body(codes, how);
        let at = (body.len() as f64 * part) as usize;
        let url = &self.urls[at % self.urls.len()];
        let head = format!(
            "POST /records/batch HTTP/1.1\r\nHost: millrace\r\nAuthorization: Bearer {KEY}\r\nContent-Type: {}\r\nContent-Length: {}\r\n\r\n",
            content_type(how),
            body.len()
        );
        let address = url.trim_start_matches("http://");
        let sent = timeout(TIMEOUT, async {
            let mut stream = TcpStream::connect(address).await?;
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&body.as_bytes()[..at]).await?;
            sleep(Duration::from_millis(30)).await;
            stream.shutdown().await
        });
        let sent = sent.await.is_ok_and(|sent| sent.is_ok());
        let mut history = self.history();
        *history.answers.requests.entry("upload cut".to_owned()).or_default() += u64::from(sent);
        history.answers.sent += codes.len() as u64;
        if how == How::Lines {
            for code in codes {
                history.note_answer(*code, Answer::Unknown);
            }
        } else {
            history.answers.refused += codes.len() as u64;
        }
    }

    fn body(&self, codes: &[Code], how: How) -> String {
        if how == How::Reversal {
            return codes.iter().map(|code| Content::of(self.seed, *code).reversal_json()).collect();
        }
        let records: Vec<String> = codes.iter().map(|code| Content::of(self.seed, *code).json()).collect();
        match how {
            How::Array => format!("[{}]", records.join(",")),
            How::Lines => records.join("\n") + "\n",
            How::Single | How::Waited | How::Reversal => records.concat(),
        }
    }

    /// Notes an outcome that the answer names.
    fn promised(&self, code: Code, status: u16, body: &Value) {
        let mut history = self.history();
        let outcome = match status {
            200 => {
                let place = body["shard"].as_u64().zip(body["seq"].as_i64());
                Final::Processed(place.map(|(shard, seq)| (shard as usize, seq)))
            }
            409 => Final::Conflict,
            422 if body["code"] == "dead_lettered" => Final::DeadLetter,
            _ => return,
        };
        history.promises.push(Promise { code, outcome });
        if status != 409 {
            history.flag(code, PROMISED, true);
        }
    }
}

fn content_type(how: How) -> &'static str {
    if how == How::Lines { "application/x-ndjson" } else { "application/json" }
}

/// The outcome of each of `n` entries by an answer.
fn outcomes(n: usize, status: u16, body: &Value) -> Vec<Outcome> {
    let of_code = |code: &Value| match code.as_str() {
        Some("outcome_unknown") | None => Outcome::Unknown,
        Some("already_reversed" | "exceeds_original") => Outcome::Exceeds,
        Some(_) => Outcome::Refused,
    };
    let rest = match status {
        200 => Outcome::Processed,
        202 => Outcome::Taken,
        409 if body["code"] == "record_conflict" => Outcome::Taken,
        422 if body["code"] == "dead_lettered" => Outcome::Taken,
        500 => Outcome::Unknown,
        _ => of_code(&body["code"]),
    };
    let mut outcomes = vec![rest; n];
    for error in body["errors"].as_array().into_iter().flatten() {
        if let Some(outcome) = error["index"].as_u64().and_then(|index| outcomes.get_mut(index as usize)) {
            *outcome = of_code(&error["code"]);
        }
    }
    if let Some(next) = body["nextIndex"].as_u64() {
        outcomes.iter_mut().skip(next as usize).for_each(|outcome| *outcome = Outcome::Refused);
    }
    outcomes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_an_outcome_for_each_entry() {
        use Outcome::{Processed, Refused, Taken, Unknown};
        let body = serde_json::json!({"errors": [{"index": 1, "code": "outcome_unknown"}, {"index": 2, "code": "redis_full"}]});
        assert_eq!(outcomes(4, 202, &body), [Taken, Unknown, Refused, Taken]);
        assert_eq!(outcomes(1, 200, &serde_json::json!({"status": "processed"})), [Processed]);
        assert_eq!(outcomes(1, 503, &serde_json::json!({"code": "outcome_unknown"})), [Unknown]);
        assert_eq!(outcomes(1, 429, &serde_json::json!({"code": "backlog_full"})), [Refused]);
        assert_eq!(outcomes(1, 422, &serde_json::json!({"code": "dead_lettered"})), [Taken]);
        assert_eq!(outcomes(1, 500, &serde_json::json!({"code": "internal"})), [Unknown]);
        assert_eq!(outcomes(1, 502, &Value::Null), [Unknown]);
        assert_eq!(outcomes(1, 409, &serde_json::json!({"code": "record_conflict"})), [Taken]);
        assert_eq!(outcomes(1, 409, &serde_json::json!({"code": "already_reversed"})), [Outcome::Exceeds]);
    }
}
