//! Dead letters and conflicts: each number once, in order, and of an entry that was sent.

use serde_json::Value;

use super::{Check, Line, Wrong, digest, stored::Gaps};
use crate::{
    decimal,
    load::{
        history::{Closed, DEAD_LETTERED, PROCESSED},
        record::{Code, Content, MINIMUM_TOTAL},
    },
    read::Entry,
    world::SHARDS,
};

impl Check {
    /// Checks dead letters in the order of the stream.
    pub(super) fn dead_letters(&mut self, entries: &[Entry], gaps: &Gaps) {
        for entry in entries {
            let Some(data) = self.next(entry, "dead_letters", gaps) else { continue };
            self.counts.dead_letters += 1;
            let reason = data["reason"].as_str().unwrap_or_default().to_owned();
            let Some(id) = data["recordId"].as_str() else {
                self.counts.external += 1;
                if self.counts.external as u64 > self.allowed.external {
                    self.wrong(Wrong::Ghost, || {
                        format!("dead letter {} without an entry that the campaign appended: {data}", entry.id)
                    });
                }
                continue;
            };
            let sent = Code::of_id(id).and_then(|code| Some((code, *self.load.history().known(code)?)));
            let Some((code, known)) = sent else {
                self.wrong(Wrong::Ghost, || format!("dead letter {} of {id:?}, which was never sent", entry.id));
                continue;
            };
            let content = self.content_of(code, &data["payload"]);
            let due = match reason.as_str() {
                "reversal_exceeds_original" => code.reverses().is_some(),
                // Postgres lost the record, and then its reversal came.
                "original_not_found" => code.reverses().is_some() && self.allowed.postgres_lost,
                "below_minimum_total" => content.as_ref().is_some_and(|content| self.may_fall_below(content)),
                "crashed_worker" | "panicked" => self.load.history().poisoned.contains(&code),
                _ => false,
            };
            if !due {
                self.wrong(Wrong::Miscounted, || format!("{id} became a dead letter, {reason}: {}", data["detail"]));
            }
            // One that a fault closed has no id any more. There is one of each: another is checked as any other.
            let closed = self.load.history().closed.remove(&code);
            if let Some(closed) = closed {
                if closed == Closed::Discarded {
                    self.load.history().apply(code);
                }
                continue;
            }
            // A dead letter that Postgres lost does not count: its entry is decided again, by other totals.
            let in_gap = entry.place().is_some_and(|(shard, n)| gaps.have(shard, "dead_letters", n));
            if !in_gap && (known.is(PROCESSED) || known.is(DEAD_LETTERED)) {
                self.wrong(Wrong::Doubled, || format!("{id} counts already and became dead letter {}", entry.id));
            }
            let mut history = self.load.history();
            history.apply(code);
            if in_gap {
                continue;
            }
            history.flag(code, DEAD_LETTERED, true);
            if let Some(varied) = history.varied.get_mut(&code) {
                varied.first = content.map(|content| content.code.variant());
            }
            drop(history);
            if let Some(line) = entry.place().and_then(|(shard, _)| self.shards[shard].dead_letters.last_mut()) {
                line.code = code;
            }
        }
    }

    /// Checks conflicts in the order of the stream.
    pub(super) fn conflicts(&mut self, entries: &[Entry], gaps: &Gaps) {
        for entry in entries {
            let Some(data) = self.next(entry, "conflicts", gaps) else { continue };
            self.counts.conflicts += 1;
            let id = data["recordId"].as_str().unwrap_or_default();
            let Some(code) = Code::of_id(id).filter(|code| self.load.history().apply(*code)) else {
                self.wrong(Wrong::Ghost, || format!("conflict {} of {id:?}, which was never sent", entry.id));
                continue;
            };
            let noted = self.load.history().varied.get_mut(&code).map(|varied| {
                varied.conflicts = varied.conflicts.saturating_add(1);
            });
            if noted.is_none() {
                self.wrong(Wrong::Miscounted, || format!("conflict {} of {id}, which was sent one way only", entry.id));
            }
        }
    }

    /// The content under an id that a payload has; there values that were sent as numbers are text.
    fn content_of(&self, code: Code, payload: &Value) -> Option<Content> {
        let mut contents = code.variants().map(|variant| Content::of(self.load.seed, variant));
        contents.find(|content| {
            let mut sent: Value = serde_json::from_str(&content.json()).unwrap_or_default();
            sent["value"] = content.value.clone().into();
            sent == *payload
        })
    }

    /// Whether at some moment of this round the record would have brought its total below the minimum. The log alone
    /// does not show when it was decided.
    fn may_fall_below(&self, content: &Content) -> bool {
        let key = (content.destination.clone(), content.unit);
        let lowest = self.lows.get(&key).or_else(|| self.balances.get(&key)).copied().unwrap_or_default();
        // Records that Postgres lost counted for a while, or not.
        self.allowed.postgres_lost || Some(lowest + content.signed()) < decimal::parse(MINIMUM_TOTAL)
    }

    /// The data of an entry that is the next of its shard; `None`: a repeated entry, or one without a number.
    fn next(&mut self, entry: &Entry, kind: &'static str, gaps: &Gaps) -> Option<Value> {
        let Some((shard, n)) = entry.place().filter(|(shard, _)| *shard < SHARDS) else {
            self.wrong(Wrong::Ghost, || format!("an entry of {kind} with id {:?}", entry.id));
            return None;
        };
        self.check_envelope(entry, if kind == "conflicts" { "record.conflicted" } else { "record.dead_lettered" }, "");
        let (digest, skipped) =
            (digest(&entry.data), gaps.of(shard, kind).filter(|(_, to)| *to < n).map(|(_, to)| to).max());
        let log = self.numbers(shard, kind);
        if let Some(to) = skipped.filter(|to| *to > log.len() as i64) {
            log.resize(to as usize, Line::of_none(0));
        }
        let due = log.len() as i64 + 1;
        if n < due {
            let before = log[(n - 1).max(0) as usize].digest;
            self.repeated(entry, before);
            return None;
        }
        if n > due {
            self.wrong(Wrong::Reordered, || format!("{} came where {due} of shard {shard} was due", entry.id));
            self.numbers(shard, kind).resize((n - 1) as usize, Line::of_none(0));
        }
        self.numbers(shard, kind).push(Line::of_none(digest));
        Some(serde_json::from_str(&entry.data).unwrap_or_default())
    }

    fn numbers(&mut self, shard: usize, kind: &str) -> &mut Vec<Line> {
        let shard = &mut self.shards[shard];
        if kind == "conflicts" { &mut shard.conflicts } else { &mut shard.dead_letters }
    }
}
