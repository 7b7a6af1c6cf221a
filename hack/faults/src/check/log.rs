//! Notifications and alerts: each number once, in order, with the summary that follows from the log.

use serde_json::Value;

use super::{Check, Key, Line, Sum, Wrong, digest, stored::Gaps, totals::Step};
use crate::{
    decimal,
    load::{
        history::{DEAD_LETTERED, PROCESSED, UNORDERED, VARIED},
        record::{Code, Content, MINIMUM_TOTAL, OTHER_VALUE, VARIANTS},
    },
    read::Entry,
    world::SHARDS,
};

impl Check {
    /// Checks notifications in the order of the stream.
    pub(super) fn notifications(&mut self, entries: Vec<Entry>, gaps: &Gaps) {
        self.free_ids_in_gaps(gaps);
        for entry in entries {
            let Some((shard, seq)) = entry.place().filter(|(shard, _)| *shard < SHARDS) else {
                self.wrong(Wrong::Ghost, || format!("a notification with id {:?}", entry.id));
                continue;
            };
            self.check_envelope(&entry, "record.processed", "");
            self.skip(shard, seq, gaps);
            let next = self.shards[shard].log.len() as i64 + 1;
            let digest = digest(&entry.data);
            if seq < next {
                let before = self.shards[shard].log[(seq - 1).max(0) as usize].digest;
                self.repeated(&entry, before);
            } else if seq > next {
                self.wrong(Wrong::Reordered, || {
                    format!("notification {shard}-{seq} came where {shard}-{next} was due")
                });
                self.shards[shard].log.resize((seq - 1) as usize, Line::of_none(0));
                self.apply(shard, seq, &entry, digest, gaps);
            } else {
                self.apply(shard, seq, &entry, digest, gaps);
            }
        }
        // Gaps behind the last notification.
        for shard in 0..SHARDS {
            self.skip(shard, i64::MAX, gaps);
        }
    }

    /// A number that came before: allowed only after a rewind of Redis, and then with the same content.
    pub(super) fn repeated(&mut self, entry: &Entry, before: u32) {
        let Entry { id, data, .. } = entry;
        if digest(data) != before {
            self.wrong(Wrong::Doubled, || format!("{id} was given twice (digest {before:08x}), now to {data}"));
        } else if !self.allowed.sinks_lost {
            self.wrong(Wrong::Doubled, || format!("{id} was published twice"));
        }
    }

    /// Records, dead letters and conflicts in a new gap count no more: their ids are free.
    ///
    /// Called before anything else: the ids may count again in another shard, whose notifications may be read first.
    fn free_ids_in_gaps(&mut self, gaps: &Gaps) {
        let kinds = [("records", PROCESSED), ("dead_letters", DEAD_LETTERED), ("conflicts", 0)];
        for (shard, (kind, flag)) in (0..SHARDS).flat_map(|shard| kinds.map(|kind| (shard, kind))) {
            for (from, to) in gaps.of(shard, kind) {
                if self.gaps.contains_key(&(shard, kind.to_owned(), from)) {
                    continue;
                }
                let lines = self.shards[shard].lines(kind).iter().take(to as usize).skip(from as usize - 1);
                let mut history = self.load.history();
                lines.for_each(|line| history.flag(line.code, flag, false));
                // Gaps of the log are noted when their sums are undone.
                if kind != "records" {
                    self.gaps.insert((shard, kind.to_owned(), from), to);
                }
            }
        }
    }

    /// Applies noted gaps that end below a number: records in them count no more.
    fn skip(&mut self, shard: usize, below: i64, gaps: &Gaps) {
        for (from, to) in gaps.of(shard, "records").filter(|(_, to)| *to < below) {
            if self.gaps.insert((shard, "records".to_owned(), from), to).is_some() {
                continue;
            }
            for seq in from..=to.min(self.shards[shard].log.len() as i64) {
                self.uncount(shard, seq);
            }
            let log = &mut self.shards[shard].log;
            if (log.len() as i64) < to {
                log.resize(to as usize, Line::of_none(0));
            }
        }
    }

    /// Undoes the count of a record that Postgres lost.
    fn uncount(&mut self, shard: usize, seq: i64) {
        let line = &mut self.shards[shard].log[(seq - 1) as usize];
        let code = std::mem::replace(&mut line.code, Code::NONE);
        if code == Code::NONE {
            return;
        }
        self.counts.total_alerts -= i64::from(std::mem::take(&mut line.total_alerts));
        self.shards[shard].total_alerts.drop_of(seq);
        let content = Content::of(self.load.seed, code);
        let signed = content.signed();
        if content.alerts() {
            self.counts.alerts -= 1;
            self.shards[shard].alerts.retain(|due| *due != seq);
        }
        self.counts.processed -= 1;
        self.counts.reversals -= i64::from(code.reverses().is_some());
        *self.balances.entry((content.destination.clone(), content.unit)).or_default() -= signed;
        let sum = self.keys.entry(key(content)).or_default();
        (sum.count, sum.total) = (sum.count - 1, sum.total - signed);
        let mut history = self.load.history();
        history.flag(code, UNORDERED, true);
        history.unapply(code);
    }

    /// Counts the next record of a shard.
    fn apply(&mut self, shard: usize, seq: i64, entry: &Entry, digest: u32, gaps: &Gaps) {
        let data: Value = serde_json::from_str(&entry.data).unwrap_or_default();
        let record = &data["record"];
        let id = record["recordId"].as_str().unwrap_or_default();
        let sent = Code::of_id(id).and_then(|code| Some((code, *self.load.history().known(code)?)));
        let Some((code, known)) = sent else {
            self.wrong(Wrong::Ghost, || format!("record {shard}-{seq} with id {id:?} was never sent"));
            self.shards[shard].log.push(Line::of_none(digest));
            return;
        };
        let variants = code.variants().take(if known.is(VARIED) { VARIANTS } else { 1 });
        let mut contents = variants.map(|variant| Content::of(self.load.seed, variant));
        let Some(content) = contents.find(|content| content.matches(record)) else {
            self.wrong(Wrong::Miscounted, || {
                format!("record {shard}-{seq} differs from the record that was sent as {id}: {record}")
            });
            self.shards[shard].log.push(Line { code, digest, total_alerts: 0 });
            return;
        };
        // A record that Postgres lost does not count, though its notification came; its id may count in another shard.
        let in_gap = gaps.have(shard, "records", seq);
        if !in_gap && (known.is(PROCESSED) || known.is(DEAD_LETTERED)) {
            self.wrong(Wrong::Doubled, || format!("{id} counts again as record {shard}-{seq}"));
        }
        {
            let mut history = self.load.history();
            history.apply(code);
            if !in_gap {
                history.flag(code, PROCESSED, true);
                if let Some(varied) = history.varied.get_mut(&code) {
                    varied.first = Some(content.code.variant());
                }
            }
        }
        // This variant goes to the destination of its record, after it.
        if content.code.variant() == OTHER_VALUE && !known.is(UNORDERED) && !self.allowed.loses() {
            self.wrong(Wrong::Reordered, || {
                format!("{id} counts by the content that was sent after it, as record {shard}-{seq}")
            });
        }
        self.shards[shard].log.push(Line { code: content.code, digest, total_alerts: 0 });
        self.counts.processed += 1;
        self.counts.reversals += i64::from(code.reverses().is_some());
        // After a loss, a repeated send can take the place of the first one.
        let again = self.allowed.loses() && u16::from(known.taken) + u16::from(known.unknown) > 1;
        self.order_of(&content, again || known.is(UNORDERED));
        if content.alerts() {
            self.shards[shard].alerts.push_back(seq);
            self.counts.alerts += 1;
        }
        self.summary(shard, seq, content, &data["summary"]);
    }

    /// One client's sequential sends to one destination stay in order.
    fn order_of(&mut self, content: &Content, unordered: bool) {
        let (author, n) = (content.code.author(), content.code.n());
        if unordered || content.code.variant() > 0 || author == crate::load::record::HERD {
            return;
        }
        let last = self.order.entry((author, content.destination.clone())).or_insert(n);
        let before = *last;
        *last = before.max(n);
        if before > n {
            self.wrong(Wrong::Reordered, || {
                format!("c{author}-{n} came after c{author}-{before} to {}", content.destination)
            });
        }
    }

    /// The summary covers all earlier records on the same key.
    fn summary(&mut self, shard: usize, seq: i64, content: Content, summary: &Value) {
        let (signed, unit) = (content.signed(), content.unit);
        let balance = self.balances.entry((content.destination.clone(), unit)).or_default();
        let low = self.lows.entry((content.destination.clone(), unit)).or_insert(*balance);
        let of_destination = Step { before: *balance, after: *balance + signed };
        *balance += signed;
        *low = (*low).min(*balance);
        if signed < 0 && Some(*balance) < decimal::parse(MINIMUM_TOTAL) {
            let id = content.code.id();
            self.wrong(Wrong::Miscounted, || format!("{id} was processed, below policy.minimumTotal"));
        }
        let sum = self.keys.entry(key(content)).or_default();
        let before = *sum;
        *sum = Sum { count: before.count + 1, total: before.total + signed };
        let of_key = Step { before: before.total, after: before.total + signed };
        self.total_alerts_due(shard, seq, unit, of_key, of_destination);
        let total = summary["previousTotal"].as_str().and_then(decimal::parse);
        if summary["previousCount"] != before.count || total != Some(before.total) || summary["unit"] != unit {
            self.wrong(Wrong::Miscounted, || {
                format!("the summary of record {shard}-{seq} is {summary}; before it were {before:?} billionths")
            });
        }
    }

    /// Checks alerts: exactly those of the log, in its order.
    pub(super) fn alerts(&mut self, entries: &[Entry], gaps: &Gaps) {
        for entry in entries {
            let Some((shard, seq)) = entry.place().filter(|(shard, _)| *shard < SHARDS) else {
                self.wrong(Wrong::Ghost, || format!("an alert with id {:?}", entry.id));
                continue;
            };
            self.check_envelope(entry, "record.alert", "-alert");
            let alerted = self.shards[shard].alerted;
            if seq <= alerted {
                if !self.allowed.sinks_lost {
                    self.wrong(Wrong::Doubled, || format!("alert {} came again", entry.id));
                }
                continue;
            }
            self.shards[shard].alerted = seq;
            // A record that Postgres lost may have been an alert before it was a notification.
            let in_gap = gaps.have(shard, "records", seq);
            if in_gap && self.allowed.postgres_lost && self.shards[shard].alerts.front() != Some(&seq) {
                continue;
            }
            let due = self.shards[shard].alerts.pop_front();
            if due != Some(seq) {
                self.wrong(Wrong::Miscounted, || format!("alert {} came where {due:?} was due", entry.id));
                continue;
            }
            let data: Value = serde_json::from_str(&entry.data).unwrap_or_default();
            let code = self.shards[shard].log.get((seq - 1) as usize).map_or(Code::NONE, |line| line.code);
            let content = Content::of(self.load.seed, code);
            let above = data["threshold"].as_str().and_then(decimal::parse);
            if code == Code::NONE || !content.matches(&data["record"]) || above != decimal::parse(content.threshold()) {
                self.wrong(Wrong::Miscounted, || format!("alert {} has {data}", entry.id));
            }
        }
        for shard in 0..SHARDS {
            let missing = std::mem::take(&mut self.shards[shard].alerts);
            if let Some(first) = missing.front() {
                self.wrong(Wrong::Lost, || {
                    format!("{} alerts of shard {shard} did not come, from {first}", missing.len())
                });
            }
        }
    }

    /// Checks a sink's whole stream. `sink`: the place in `SINKS` whose events it carries. Each number is there once,
    /// in order, with the content that was read; only numbers that Postgres lost may be missing.
    pub(crate) fn stream(&mut self, sink: usize, entries: &[(Entry, u32)]) {
        let name = crate::world::SINKS[sink].0;
        let kind = match name {
            "dead-letters" => "dead_letters",
            "conflicts" => "conflicts",
            _ => "records",
        };
        let mut found: Vec<Vec<i64>> = vec![Vec::new(); SHARDS];
        for (entry, digest) in entries {
            let Some((shard, n)) = entry.place().filter(|(shard, _)| *shard < SHARDS) else { continue };
            // A record can raise several alerts of totals.
            let several = name == "total-alerts" && found[shard].last() == Some(&n);
            if found[shard].last().is_some_and(|last| *last >= n) && !several {
                self.wrong(Wrong::Doubled, || format!("{} is in {name} behind {:?}", entry.id, found[shard].last()));
                continue;
            }
            found[shard].push(n);
            let line = self.shards[shard].lines(kind).get((n - 1).max(0) as usize);
            if !name.ends_with("alerts") && line.map(|line| line.digest) != Some(*digest) {
                self.wrong(Wrong::Doubled, || {
                    format!("{} is in {name} with other content than the reader read", entry.id)
                });
            }
        }
        for (shard, found) in found.iter().enumerate() {
            let alerts = |line: &Line| line.code != Code::NONE && Content::of(self.load.seed, line.code).alerts();
            let due = |line: &Line| match name {
                "alerts" => line.digest != 0 && alerts(line),
                "total-alerts" => line.has_total_alerts(),
                _ => line.digest != 0,
            };
            let due = self.shards[shard].lines(kind).iter().enumerate().filter(|(_, line)| due(line));
            let skipped = |n: i64| {
                self.gaps.iter().any(|(gap, to)| gap.0 == shard && gap.1 == kind && (gap.2..=*to).contains(&n))
            };
            let mut missing = due.map(|(n, _)| n as i64 + 1).filter(|n| found.binary_search(n).is_err());
            let missing = missing.find(|n| !skipped(*n));
            if let Some(n) = missing {
                self.wrong(Wrong::Lost, || format!("number {n} of shard {shard} is not in {name} any more"));
            }
        }
    }

    /// Checks type, source and id.
    pub(super) fn check_envelope(&mut self, entry: &Entry, kind: &str, end: &str) {
        let source = format!("{}/", crate::world::NAME);
        if entry.kind != kind || !entry.source.starts_with(&source) || !entry.id.ends_with(end) {
            self.wrong(Wrong::Miscounted, || format!("{} is a {} of {}", entry.id, entry.kind, entry.source));
        }
    }
}

/// The key by which a record is added up.
fn key(content: Content) -> Key {
    (content.destination, content.reference, content.unit.to_owned())
}
