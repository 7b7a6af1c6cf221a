//! Steps of a trace in Redis: each is judged by the model's step and by the values before it.

use super::{
    postgres::highest_of,
    shard::{Held, N, Shard, Why, ensure},
    trace::{Acks, Answered, Beside, Number, Sent, Step, Word},
};
use crate::{
    guards::Guard,
    state::{Batch, InputRecord, Next, Stage},
    steps::{self, Answer},
};

impl Shard {
    /// Sets the fence of an owner, and returns what the script found.
    pub(super) fn set_fence(&mut self, token: N) -> Result<Answer<N>, Why> {
        let mut held = self.owner_of(token)?;
        // After any error an owner prepares again; pending entries show what is not applied.
        held.own.stage = Stage::Prepare;
        (held.rest, held.claimed_all) = (Vec::new(), false);
        if !self.is_beside_known {
            self.input.fence = held.own.fence;
        }
        let answer = steps::prepare(self.guards(), &mut self.input, &mut held.own);
        self.owners.insert(token, held);
        Ok(answer)
    }

    pub(super) fn prepared(&mut self, token: N, epoch: N, answer: &Answered) -> Result<(), Why> {
        let fence = self.owner(token)?.own.fence;
        ensure!(fence.epoch == epoch, "the epoch of its owner is {}", fence.epoch);
        if !self.is_beside_known && answer.result == Word::Done {
            self.input.fence = fence;
            self.input.watermarks = answer.numbers.map(|number| number.0);
            self.input.acknowledged = answer.offset.0;
            self.is_beside_known = true;
        }
        match (self.set_fence(token)?, answer.result) {
            (Answer::Higher(there), Word::Fenced) => ensure!(there == answer.above.0, "Redis has epoch {there}"),
            (Answer::Done, Word::Done) => {
                let beside = (self.input.watermarks, self.input.acknowledged);
                let is_same = beside == (answer.numbers.map(|number| number.0), answer.offset.0);
                ensure!(is_same, "beside the stream are {beside:?}");
                if answer.created {
                    ensure!(!self.has_group || self.was_rewound, "the group exists");
                    self.input.delivered = 0;
                    self.input.pending.clear();
                }
                self.has_group = true;
            }
            (found, _) => return Err(format!("it would be {found:?}")),
        }
        Ok(())
    }

    /// Whether an owner passes the values beside the stream that it holds.
    fn check_known(&self, held: &Held, known: &Beside) -> Result<(), Why> {
        let Some(watermarks) = held.own.watermarks else { return Err("its owner has not prepared".to_owned()) };
        // The script compares the watermarks that were read; the log may have had lower ones only where it was rewound.
        let numbers = known.numbers.map(|number| number.0);
        let is_same = numbers == watermarks && known.offset.0 == held.own.acknowledged;
        ensure!(is_same, "its owner holds {watermarks:?}, {}", held.own.acknowledged);
        Ok(())
    }

    pub(super) fn claimed(&mut self, token: N, known: &Beside, start: N, answer: &Answered) -> Result<(), Why> {
        let mut held = self.owner_of(token)?;
        let Stage::Claim(above) = held.own.stage else {
            return Err(format!("its next step is {:?}", held.own.stage));
        };
        self.check_known(&held, known)?;
        ensure!(above <= start, "it continues above {above}");
        if answer.result == Word::Done && (!self.is_stream_known || answer.deleted > 0) {
            self.learn_pending(start, answer)?;
        } else if answer.result == Word::Done {
            self.deliver_late(&answer.entries);
        }
        let most = answer.entries.len().max(1);
        let found = steps::claim(self.guards(), &mut self.input, &mut held.own, start, most);
        match (found, answer.result) {
            (Answer::Done, Word::Done) => check_entries(&held.own.stage, &answer.entries)?,
            (Answer::Nothing, Word::Done) => {
                ensure!(answer.entries.is_empty(), "nothing is pending above {start}");
                self.may_be_delivered = false;
            }
            (found, word) => self.check_refusal(found, word, answer)?,
        }
        held.claimed_all = answer.result == Word::Done && !answer.more;
        self.owners.insert(token, held);
        Ok(())
    }

    /// A script that did nothing.
    fn check_refusal(&mut self, found: Answer<N>, word: Word, answer: &Answered) -> Result<(), Why> {
        match (found, word) {
            (Answer::Raised, Word::Raised) => {}
            (Answer::Higher(there), Word::Fenced) => ensure!(there == answer.above.0, "Redis has epoch {there}"),
            (_, Word::Raised | Word::Fenced | Word::NoGroup) if !self.is_beside_known => {}
            (_, Word::NoGroup) if self.was_rewound => {}
            (found, _) => return Err(format!("it would be {found:?}")),
        }
        Ok(())
    }

    /// Entries that a read of unknown outcome has delivered.
    fn deliver_late(&mut self, claimed: &[[Number; 3]]) {
        let Some(last) = claimed.last().map(|entry| entry[0].0).filter(|_| self.may_be_delivered) else { return };
        let delivered = self.input.delivered;
        let mut sids: Vec<N> = self.input.entries.iter().map(|entry| entry.sid).collect();
        sids.retain(|sid| *sid > delivered && *sid <= last);
        sids.dedup();
        self.input.pending.extend(sids);
        self.input.delivered = delivered.max(last);
    }

    /// The stream is unknown: its pending entries are those that a claim returns.
    fn learn_pending(&mut self, start: N, answer: &Answered) -> Result<(), Why> {
        let is_claimed = |sid: N| answer.entries.iter().any(|entry| entry[0].0 == sid);
        let input = &mut self.input;
        let upto = if answer.more { answer.entries.last().map_or(start, |entry| entry[0].0) } else { N::MAX };
        input.pending.retain(|sid| *sid <= start || *sid > upto || is_claimed(*sid));
        for entry in &answer.entries {
            let sid = entry[0].0;
            if !input.entries.iter().any(|there| there.sid == sid) {
                let at = input.entries.partition_point(|there| there.sid < sid);
                input.entries.splice(at..at, expand(entry));
            }
            if !input.pending.contains(&sid) {
                input.pending.push(sid);
            }
            input.delivered = input.delivered.max(sid);
        }
        input.pending.sort_unstable();
        Ok(())
    }

    pub(super) fn acked(&mut self, token: N, acks: &Acks) -> Result<Answer<N>, Why> {
        let mut held = self.owner_of(token)?;
        let Stage::Ack(batch) = held.own.stage.clone() else {
            return Err(format!("its next step is {:?}", held.own.stage));
        };
        let mut sids: Vec<N> = batch.records.iter().map(|record| record.sid).collect();
        sids.dedup();
        ensure!(acks.ids.iter().map(|id| id.0).eq(sids), "it has committed other entries");
        let committed = (acks.beside.numbers.map(|number| number.0), acks.beside.offset.0);
        ensure!(committed == (held.own.numbers, held.own.accounted), "it has committed {:?}", held.own.numbers);
        let found = steps::ack(self.guards(), &mut self.input, &mut held.own, batch, |_, _| {});
        if found == Answer::Done {
            if let Some(watermarks) = held.own.watermarks {
                held.publishable = highest_of(held.publishable, watermarks);
            }
            self.after_ack(&mut held)?;
        }
        self.owners.insert(token, held);
        Ok(found)
    }

    /// The next batch of what was read; or the end of the pending entries, where the last claim has found it.
    fn after_ack(&mut self, held: &mut Held) -> Result<(), Why> {
        let rest = std::mem::take(&mut held.rest);
        match held.own.stage {
            Stage::Claim(above) if !rest.is_empty() => {
                held.own.stage = Stage::Commit(Batch { records: rest, next: Next::Claim(above) });
            }
            Stage::Read if !rest.is_empty() => {
                held.own.stage = Stage::Commit(Batch { records: rest, next: Next::Read });
            }
            Stage::Claim(above) if held.claimed_all => {
                let found = steps::claim(self.guards(), &mut self.input, &mut held.own, above, 1);
                ensure!(found == Answer::Nothing, "the claim before has not returned all pending entries");
            }
            _ => {}
        }
        Ok(())
    }

    pub(super) fn turned(
        &mut self,
        token: N,
        known: &Beside,
        acks: Option<&Acks>,
        reads: bool,
        answer: &Answered,
    ) -> Result<(), Why> {
        self.check_known(self.owner(token)?, known)?;
        if let Some(acks) = acks {
            if answer.result == Word::Done && !self.is_stream_known {
                // Entries that were delivered before the rewind are pending, or the answer were another.
                let missing: Vec<N> = acks.ids.iter().map(|id| id.0).collect();
                let pending = &self.input.pending;
                let missing: Vec<N> = missing.into_iter().filter(|sid| !pending.contains(sid)).collect();
                self.input.pending.extend(missing);
            }
            let found = self.acked(token, acks)?;
            if found != Answer::Done || answer.result != Word::Done {
                return self.check_refusal(found, answer.result, answer);
            }
        }
        if reads { self.was_read(token, answer) } else { Ok(()) }
    }

    fn was_read(&mut self, token: N, answer: &Answered) -> Result<(), Why> {
        let mut held = self.owner_of(token)?;
        ensure!(held.own.stage == Stage::Read, "its next step is {:?}", held.own.stage);
        if answer.result == Word::Done && !self.is_stream_known {
            self.learn_read(answer);
        } else if self.disturbed.redis {
            self.add_external(answer);
        }
        let most = answer.entries.len().max(1);
        let found = steps::read(self.guards(), &mut self.input, &mut held.own, most);
        match (found, answer.result) {
            (Answer::Done, Word::Done) => check_entries(&held.own.stage, &answer.entries)?,
            (Answer::Nothing, Word::Done) => {
                let Answered { last, appended, pending, .. } = answer;
                let input = &self.input;
                let end = (input.delivered, input.appended, input.pending.len() as N);
                ensure!(answer.entries.is_empty(), "the stream is at its end");
                ensure!(end == (last.0, appended.0, pending.0), "its end is {end:?}");
                self.may_be_delivered = false;
                if pending.0 > 0 && self.guards().has(Guard::NothingPending) {
                    held.own.stage = Stage::Prepare;
                } else if appended.0 > held.own.accounted {
                    held.own.stage = Stage::Lose(appended.0);
                }
            }
            (found, word) => self.check_refusal(found, word, answer)?,
        }
        self.owners.insert(token, held);
        Ok(())
    }

    /// Entries of other programs, which have no offsets, come with a fault.
    fn add_external(&mut self, answer: &Answered) {
        for entry in answer.entries.iter().filter(|entry| entry[1].0 == 0) {
            let at = self.input.entries.partition_point(|there| there.sid < entry[0].0);
            if self.input.entries.get(at).is_none_or(|there| there.sid != entry[0].0) {
                self.input.entries.splice(at..at, expand(entry));
            }
        }
    }

    /// The stream is unknown: a read shows its next entries, or its end.
    fn learn_read(&mut self, answer: &Answered) {
        let input = &mut self.input;
        if answer.entries.is_empty() {
            input.entries.retain(|entry| input.pending.contains(&entry.sid));
            (input.delivered, input.appended) = (answer.last.0, answer.appended.0);
            (input.last, self.known_from) = (input.delivered, input.delivered);
            self.is_stream_known = answer.pending.0 == input.pending.len() as N;
            return;
        }
        let first = answer.entries[0][0].0;
        let is_read = |sid: N| answer.entries.iter().any(|entry| entry[0].0 == sid);
        input.entries.retain(|entry| input.pending.contains(&entry.sid) && !is_read(entry.sid));
        input.entries.extend(answer.entries.iter().flat_map(expand));
        input.delivered = first - 1;
    }

    pub(super) fn reconciled(&mut self, token: N, known: &Beside, answer: &Answered) -> Result<(), Why> {
        let held = self.owner_of(token)?;
        ensure!(held.own.stage == Stage::Read, "its next step is {:?}", held.own.stage);
        self.check_known(&held, known)?;
        let is_same = steps::is_same(self.guards(), self.input.fence, held.own.fence);
        let fits = is_same && !steps::is_rewound(self.guards(), &self.input, &held.own);
        if answer.result != Word::Done {
            let found = if fits { Answer::Done } else { Answer::Raised };
            let found = match self.input.fence.epoch {
                there if !is_same && there >= held.own.fence.epoch => Answer::Higher(there),
                _ => found,
            };
            self.check_refusal(found, answer.result, answer)?;
            return self.set_stage(token, Stage::Prepare);
        }
        ensure!(fits || !self.is_beside_known, "the fence or the watermarks beside the stream are others");
        let appended = answer.appended.0;
        if !self.is_stream_known {
            self.input.appended = appended;
        } else if answer.raised.0 > 0 && self.disturbed.redis {
            self.input.appended = self.input.appended.max(appended);
        }
        ensure!(appended == self.input.appended, "{} records were appended", self.input.appended);
        Ok(())
    }

    fn set_stage(&mut self, token: N, stage: Stage<N>) -> Result<(), Why> {
        let mut held = self.owner_of(token)?;
        held.own.stage = stage;
        self.owners.insert(token, held);
        Ok(())
    }

    /// Appends entries of so many records.
    pub(super) fn appended(&mut self, producer: &str, known: N, counts: &[u8], answer: &Answered) -> Result<(), Why> {
        if answer.result != Word::Done {
            return Ok(());
        }
        ensure!(answer.ids.len() == counts.len(), "its ids are unknown");
        let by = self.producers.len();
        let by = *self.producers.entry(producer.to_owned()).or_insert(by);
        if self.input.by.len() <= by {
            self.input.by.resize(by + 1, 0);
        }
        if answer.ids.last().is_some_and(|last| last.0 <= self.known_from) || !self.is_stream_known {
            // The stream's end shows it.
            self.input.by[by] = self.input.by[by].max(answer.count.0);
            return Ok(());
        }
        if self.was_rewound && !self.disturbed.redis {
            // Since the rewind an owner has raised the counts to those that the producers hold.
            self.input.by[by] = self.input.by[by].max(known);
        }
        steps::raise_in_append(self.guards(), &mut self.input, by, known);
        for (id, count) in answer.ids.iter().zip(counts) {
            if self.disturbed.redis && !self.read.contains(id) {
                // It was removed before it was read, perhaps with the stream, whose ids then begin again.
                let count = N::from(*count);
                (self.input.appended, self.input.by[by]) = (self.input.appended + count, self.input.by[by] + count);
                continue;
            }
            ensure!(id.0 > self.input.last, "the last id of the stream is {:?}", Number(self.input.last));
            self.input.last = id.0;
            for index in 0..*count {
                steps::append(&mut self.input, Some(by), (id.0, index), (0, 0, 0));
            }
        }
        let count = self.input.by[by];
        let is_counted = !self.was_rewound && !self.uncounted.contains(producer);
        ensure!(answer.count.0 == 0 || count == answer.count.0 || !is_counted, "its producer has appended {count}");
        self.input.by[by] = count.max(answer.count.0);
        Ok(())
    }

    pub(super) fn published(&mut self, step: &Step, answer: &Answered) -> Result<(), Why> {
        let Sent::Publish { sink, generation, r#type, after, upto } = &step.sent else { return Ok(()) };
        let sequence = match r#type.as_str() {
            "record.conflicted" => 1,
            "record.dead_lettered" => 2,
            _ => 0,
        };
        let key = (sink.clone(), generation.clone());
        let known = self.cursors.get(&key).copied();
        let is_gone = matches!(answer.result, Word::Gone);
        ensure!(known.is_some() || is_gone || self.was_rewound, "its cursor was not started");
        match answer.result {
            Word::Done => {
                let at = known.unwrap_or(after.0);
                ensure!(steps::is_unmoved(self.guards(), at, after.0), "the cursor is {at}");
                let of_process = self.owners.values().filter(|held| held.process == step.process);
                let watermark = of_process.map(|held| held.publishable[sequence]).max().unwrap_or_default();
                ensure!(steps::may_publish(self.guards(), upto.0, watermark), "the watermark is {watermark}");
                ensure!(after < upto, "it publishes nothing");
                ensure!(answer.cursor >= *after && answer.cursor <= *upto, "the cursor behind it is beyond its page");
                self.cursors.insert(key, answer.cursor.0);
            }
            Word::Moved => {
                let at = known.unwrap_or(answer.cursor.0);
                ensure!(at == answer.cursor.0 && at != after.0, "the cursor is {at}");
                self.cursors.insert(key, at);
            }
            _ => {
                self.cursors.remove(&key);
            }
        }
        Ok(())
    }
}

/// The records of an entry. One of another program has no offset.
fn expand(entry: &[Number; 3]) -> Vec<InputRecord<N>> {
    let [sid, first, last] = entry.map(|number| number.0);
    let record = |(index, offset)| InputRecord { sid, index, offset, uid: 0, record: 0, replay_of: 0 };
    (0..=u8::MAX).zip(first..=last).map(record).collect()
}

/// Whether the batch of an owner has these entries.
fn check_entries(stage: &Stage<N>, entries: &[[Number; 3]]) -> Result<(), Why> {
    let Stage::Commit(batch) = stage else { return Err(format!("its next step is {stage:?}")) };
    let mut found: Vec<[Number; 3]> = Vec::new();
    for record in &batch.records {
        match found.last_mut().filter(|entry| entry[0].0 == record.sid) {
            Some(entry) => entry[2] = Number(record.offset),
            None => found.push([Number(record.sid), Number(record.offset), Number(record.offset)]),
        }
    }
    ensure!(found == entries, "the entries are {found:?}");
    Ok(())
}
