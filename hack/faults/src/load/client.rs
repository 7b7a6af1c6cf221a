//! A client: sends its records one request after the other, each again until an answer accepts it.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::time::{Instant, sleep};

use super::{
    Load, Mode,
    history::{Answer, UNORDERED},
    record::{CLIENTS, Code, Content, ELSEWHERE, HERD, HOT, OTHER_VALUE, REVERSALS, REVERSED},
    send::{How, Outcome},
};

/// One author and its state.
pub(super) struct Client {
    load: Arc<Load>,
    author: u16,
    dice: StdRng,
    /// How many records of its last request were answered to be processed.
    processed: i64,
}

impl Client {
    /// A client whose choices follow from the seed, its number and the round's.
    pub(super) fn new(load: &Arc<Load>, author: u16, round: u64) -> Self {
        let dice = StdRng::seed_from_u64(load.seed ^ round << 16 ^ u64::from(author) << 8);
        Self { load: Arc::clone(load), author, dice, processed: 0 }
    }

    /// Sends until the load ends, and then until requests in flight are answered.
    pub(super) async fn run(mut self) {
        while !self.load.is_over() {
            let began = Instant::now();
            let sends = match self.author {
                HERD => self.load.has(Mode::HERD),
                HOT => self.load.has(Mode::HOT),
                REVERSED => true,
                author => author < CLIENTS,
            };
            if !sends || self.load.is_held() {
                sleep(Duration::from_millis(50)).await;
                continue;
            }
            self.load.requests.fetch_add(1, Ordering::Relaxed);
            let sent = match self.author {
                HERD => self.herd().await,
                HOT => self.batch().await,
                REVERSED => self.reverse().await,
                _ => match self.dice.random_range(0..20) {
                    0..2 => self.contradict().await,
                    2..5 => self.one().await,
                    _ => self.batch().await,
                },
            };
            self.load.requests.fetch_sub(1, Ordering::Relaxed);
            let share = self.load.rate / f64::from(CLIENTS);
            let pace = Duration::from_secs_f64(sent as f64 / share.max(1.0));
            sleep(pace.saturating_sub(began.elapsed())).await;
        }
    }

    /// Sends these records in one request, again until each is accepted.
    pub(super) async fn large(mut self, codes: Vec<Code>) {
        self.deliver(codes, How::Array).await;
    }

    /// New records and some old ones, as an array or as lines.
    async fn batch(&mut self) -> usize {
        let n = self.dice.random_range(1..150);
        let again = if self.load.has(Mode::DUPLICATES) { 50 } else { 8 };
        let mut codes = Vec::new();
        for _ in 0..n {
            codes.push(self.load.history().begin(self.author));
            if self.dice.random_range(0..100) < again {
                codes.extend(self.earlier());
            }
        }
        if self.load.has(Mode::DUPLICATES) {
            self.load.history().duplicates += codes.len().saturating_sub(n) as u64;
        }
        if self.load.has(Mode::POISON) {
            self.place_poison(&mut codes);
        }
        let how = if self.dice.random_bool(0.5) { How::Array } else { How::Lines };
        if self.load.has(Mode::CUT) && self.dice.random_bool(0.3) {
            self.load.cut_upload(&codes, how, self.dice.random_range(0.05..0.95)).await;
        }
        self.deliver(codes, how).await
    }

    /// One record, often with a wait for its outcome.
    async fn one(&mut self) -> usize {
        let (code, is_new) = match self.earlier() {
            Some(code) if self.dice.random_bool(0.2) => (code, false),
            _ => (self.load.history().begin(self.author), true),
        };
        if self.dice.random_bool(0.3) {
            return self.deliver(vec![code], How::Single).await;
        }
        let url = |dice: &mut StdRng| self.load.urls[dice.random_range(0..self.load.urls.len())].clone();
        let (before, behind) = (url(&mut self.dice), url(&mut self.dice));
        self.load.read_key(&before, code, 0).await;
        let sent = self.deliver(vec![code], How::Waited).await;
        let more = if is_new { self.processed } else { 0 };
        self.load.read_key(&behind, code, more).await;
        sent
    }

    /// Sends an id again with other content: after its record, or beside it to a destination of another shard, which
    /// may take it first.
    async fn contradict(&mut self) -> usize {
        if self.dice.random_bool(0.3) {
            let code = self.load.history().begin(self.author);
            self.load.history().flag(code, UNORDERED, true);
            let mut other = Self::new(&self.load, self.author, self.dice.random());
            let (one, two) = tokio::join!(
                self.deliver(vec![code], How::Single),
                other.deliver(vec![code.with_variant(ELSEWHERE)], How::Single)
            );
            return one + two;
        }
        let Some(code) = self.earlier() else { return self.one().await };
        let how = if self.dice.random_bool(0.3) { How::Waited } else { How::Single };
        self.deliver(vec![code.with_variant(OTHER_VALUE)], how).await
    }

    /// Sends the same ids five times at once.
    async fn herd(&mut self) -> usize {
        let n = self.dice.random_range(1..20);
        let codes: Vec<Code> = (0..n).map(|_| self.load.history().begin(HERD)).collect();
        let five: Vec<_> = (0..5)
            .map(|k| {
                let mut one = Self::new(&self.load, HERD, self.dice.random());
                let codes = codes.clone();
                tokio::task::spawn_local(async move {
                    one.deliver(codes, if k % 2 == 0 { How::Array } else { How::Lines }).await
                })
            })
            .collect();
        let mut sent = 0;
        for one in five {
            sent += one.await.unwrap_or(0);
        }
        sent
    }

    /// Sends a record, and its reversals at once: together they are more than the record.
    async fn reverse(&mut self) -> usize {
        let codes: Vec<Code> = {
            let mut history = self.load.history();
            let codes: Vec<Code> = (0..=REVERSALS).map(|_| history.begin(REVERSED)).collect();
            codes.iter().for_each(|code| history.flag(*code, UNORDERED, true));
            codes
        };
        self.deliver(vec![codes[0]], How::Waited).await;
        let reversals: Vec<_> = codes[1..]
            .iter()
            .map(|code| {
                let (mut one, code) = (Self::new(&self.load, REVERSED, self.dice.random()), *code);
                tokio::task::spawn_local(async move { one.request_reversal(code).await })
            })
            .collect();
        for one in reversals {
            let _ = one.await;
        }
        // Few of them: these are requests of one record each.
        sleep(Duration::from_millis(200)).await;
        codes.len()
    }

    /// Requests a reversal until it is accepted, or nothing remains. Its record can be lost, or still queued.
    async fn request_reversal(&mut self, code: Code) {
        for _ in 0..20 {
            let url = &self.load.urls[self.dice.random_range(0..self.load.urls.len())];
            let outcomes = self.load.attempt(url, &[code], How::Reversal).await;
            if self.note(vec![code], &outcomes).is_empty() || self.load.gives_up() {
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    }

    /// An id of its own that was surely accepted.
    fn earlier(&mut self) -> Option<Code> {
        let mut history = self.load.history();
        let count = history.count(self.author);
        if count == 0 {
            return None;
        }
        // Mostly recent ids, sometimes old ones.
        let back = if self.dice.random_bool(0.8) { count.min(2_000) } else { count };
        let code = Code::new(self.author, count - 1 - self.dice.random_range(0..back));
        history.known(code).is_some_and(|known| known.taken > 0).then_some(code)
    }

    /// Moves records that become dead letters to the first, middle or last place of a batch.
    fn place_poison(&mut self, codes: &mut Vec<Code>) {
        let seed = self.load.seed;
        let is_poison = |code: &Code| Content::of(seed, *code).is_poison();
        while !codes.iter().any(is_poison) && codes.len() < 600 {
            codes.push(self.load.history().begin(self.author));
        }
        let (poison, mut rest): (Vec<Code>, Vec<Code>) = codes.iter().partition(|code| is_poison(code));
        let at = [0, rest.len() / 2, rest.len()][self.dice.random_range(0..3)];
        self.load.history().placed += u64::from(!poison.is_empty());
        rest.splice(at..at, poison);
        *codes = rest;
    }

    /// Sends entries until each was accepted. Those that are not when the load gives up have no order any more.
    async fn deliver(&mut self, codes: Vec<Code>, how: How) -> usize {
        let (n, mut rest) = (codes.len(), codes);
        self.processed = 0;
        let mut pause = Duration::from_millis(20);
        loop {
            let url = &self.load.urls[self.dice.random_range(0..self.load.urls.len())];
            let outcomes = self.load.attempt(url, &rest, how).await;
            rest = self.note(rest, &outcomes);
            if rest.is_empty() {
                return n;
            }
            if self.load.gives_up() {
                rest.into_iter().for_each(|code| self.load.history().flag(code, UNORDERED, true));
                return n;
            }
            sleep(pause).await;
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    }

    /// Notes the outcome of each entry; returns those that have to be sent again, in their order.
    fn note(&mut self, codes: Vec<Code>, outcomes: &[Outcome]) -> Vec<Code> {
        let processed = outcomes.iter().filter(|outcome| **outcome == Outcome::Processed).count();
        self.processed += processed.cast_signed() as i64;
        let mut history = self.load.history();
        history.answers.sent += codes.len() as u64;
        let mut again = Vec::new();
        for (code, outcome) in codes.into_iter().zip(outcomes) {
            match outcome {
                Outcome::Taken | Outcome::Processed => history.note_answer(code, Answer::Taken),
                Outcome::Unknown => {
                    history.note_answer(code, Answer::Unknown);
                    again.push(code);
                }
                Outcome::Refused => {
                    history.answers.refused += 1;
                    again.push(code);
                }
                Outcome::Exceeds => history.answers.refused += 1,
            }
        }
        again
    }
}
