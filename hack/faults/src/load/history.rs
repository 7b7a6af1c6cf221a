//! The sent entries and their answers: four bytes a record.

use std::collections::{HashMap, HashSet};

use super::{
    reads::Reads,
    record::{AUTHORS, Code, VARIANTS},
};

/// The answer about one sent entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// 202, or an outcome: it was accepted.
    Taken,
    /// None, or an unknown outcome.
    Unknown,
}

/// The counts and flags of an id.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Known {
    /// Entries that were accepted, those with an unknown outcome, and those that have an outcome.
    pub(crate) taken: u8,
    pub(crate) unknown: u8,
    pub(crate) applied: u8,
    flags: u8,
}

/// It is in the log.
pub(crate) const PROCESSED: u8 = 1;
/// It has an open dead letter.
pub(crate) const DEAD_LETTERED: u8 = 2;
/// It has no order among its client's records: the client gave it up, or a fault that may lose it lost it.
pub(crate) const UNORDERED: u8 = 4;
/// An answer named its outcome: no loss of Redis may undo that.
pub(crate) const PROMISED: u8 = 8;
/// Other content was sent under its id, with another value or to another destination.
pub(crate) const VARIED: u8 = 16;
/// Its counts overflowed and mean nothing any more.
pub(crate) const MANY: u8 = 32;

impl Known {
    /// Whether a flag is set.
    pub(crate) fn is(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sets or clears a flag.
    pub(crate) fn set(&mut self, flag: u8, on: bool) {
        self.flags = if on { self.flags | flag } else { self.flags & !flag };
    }
}

/// Answers, for the report.
#[derive(Debug, Default, Clone, serde::Serialize)]
pub(crate) struct Answers {
    /// Entries sent, each attempt counted.
    pub(crate) sent: u64,
    /// Of them: accepted, unknown, and refused for now.
    pub(crate) taken: u64,
    pub(crate) unknown: u64,
    pub(crate) refused: u64,
    /// Requests by their result: a status, or an error.
    pub(crate) requests: std::collections::BTreeMap<String, u64>,
}

/// An outcome that an answer named.
#[derive(Debug, Clone)]
pub(crate) struct Promise {
    pub(crate) code: Code,
    pub(crate) outcome: Final,
}

/// The final outcome of an entry.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Final {
    /// It is in the log, or the same content is: shard and number, where the answer named them.
    Processed(Option<(usize, i64)>),
    Conflict,
    DeadLetter,
}

/// How a dead letter was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Closed {
    /// Its record was decided again: that is the outcome of its entry.
    Replayed,
    /// It stays the outcome of its entry, and its id is free.
    Discarded,
}

/// An id under which several contents were sent: of each, how many entries were accepted and how many are unknown.
#[derive(Debug, Clone, Default)]
pub(crate) struct Varied {
    pub(crate) taken: [u16; VARIANTS],
    pub(crate) unknown: [u16; VARIANTS],
    /// The content that counts, or has the dead letter.
    pub(crate) first: Option<u8>,
    /// How many conflicts there were.
    pub(crate) conflicts: u16,
    /// Some of its entries may have been lost: its counts prove nothing any more.
    pub(crate) ambiguous: bool,
}

/// The history of all clients.
#[derive(Debug)]
pub(crate) struct History {
    known: Vec<Vec<Known>>,
    /// Ids that changed since the last check.
    pub(crate) touched: HashSet<Code>,
    pub(crate) promises: Vec<Promise>,
    /// By the code of the record without a variant.
    pub(crate) varied: HashMap<Code, Varied>,
    /// Records at which workers die or panic.
    pub(crate) poisoned: HashSet<Code>,
    /// Records whose dead letter is closed, until the check has seen it.
    pub(crate) closed: HashMap<Code, Closed>,
    /// Duplicates that were sent because a fault wants them, and batches with poison.
    pub(crate) duplicates: u64,
    pub(crate) placed: u64,
    pub(crate) answers: Answers,
    pub(crate) reads: Reads,
}

impl Default for History {
    fn default() -> Self {
        Self {
            known: vec![Vec::new(); usize::from(AUTHORS)],
            touched: HashSet::new(),
            promises: Vec::new(),
            varied: HashMap::new(),
            poisoned: HashSet::new(),
            closed: HashMap::new(),
            duplicates: 0,
            placed: 0,
            answers: Answers::default(),
            reads: Reads::default(),
        }
    }
}

impl History {
    /// The next number of an author.
    pub(crate) fn begin(&mut self, author: u16) -> Code {
        let known = &mut self.known[usize::from(author)];
        known.push(Known::default());
        Code::new(author, (known.len() - 1) as u32)
    }

    /// How many ids an author has.
    pub(crate) fn count(&self, author: u16) -> u32 {
        self.known[usize::from(author)].len() as u32
    }

    /// How many ids there are.
    pub(crate) fn ids(&self) -> u64 {
        self.known.iter().map(|known| known.len() as u64).sum()
    }

    /// The state of an id; `None`: it was never sent.
    pub(crate) fn known(&mut self, code: Code) -> Option<&mut Known> {
        self.known.get_mut(usize::from(code.author()))?.get_mut(code.n() as usize)
    }

    /// Notes the answer about an entry.
    pub(crate) fn note_answer(&mut self, code: Code, answer: Answer) {
        match answer {
            Answer::Taken => self.answers.taken += 1,
            Answer::Unknown => self.answers.unknown += 1,
        }
        let meant = code.with_variant(0);
        self.touched.insert(meant);
        let before = self.known(code).copied().unwrap_or_default();
        if code.variant() > 0 || before.is(VARIED) {
            let varied = self.varied.entry(meant).or_insert_with(|| {
                let mut varied = Varied::default();
                (varied.taken[0], varied.unknown[0]) = (before.taken.into(), before.unknown.into());
                varied
            });
            let counts = if answer == Answer::Taken { &mut varied.taken } else { &mut varied.unknown };
            counts[usize::from(code.variant())] += 1;
        }
        if let Some(known) = self.known(code) {
            let count = if answer == Answer::Taken { &mut known.taken } else { &mut known.unknown };
            *count = count.saturating_add(1);
            let many = *count == u8::MAX;
            known.set(MANY, many || known.is(MANY));
            known.set(VARIED, known.is(VARIED) || code.variant() > 0);
        }
    }

    /// Sets or clears a flag of an id.
    pub(crate) fn flag(&mut self, code: Code, flag: u8, on: bool) {
        if let Some(known) = self.known(code) {
            known.set(flag, on);
        }
    }

    /// Notes that an entry of this id has an outcome, of any kind. False: no such id was sent.
    pub(crate) fn apply(&mut self, code: Code) -> bool {
        self.touched.insert(code.with_variant(0));
        let Some(known) = self.known(code) else { return false };
        known.applied = known.applied.saturating_add(1);
        let many = known.applied == u8::MAX || known.is(MANY);
        known.set(MANY, many);
        true
    }

    /// Undoes an outcome of this id: the server that held it lost it.
    pub(crate) fn unapply(&mut self, code: Code) {
        self.touched.insert(code.with_variant(0));
        if let Some(known) = self.known(code) {
            known.applied = known.applied.saturating_sub(1);
        }
    }
}
