//! What was sent, and what each client was told: four bytes a record.

use std::collections::{HashMap, HashSet};

use super::record::{AUTHORS, Code, VARIANTS};

/// What a client was told about one entry that it sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// 202, or an outcome: it was taken.
    Taken,
    /// Nothing, or that nobody knows.
    Unknown,
}

/// What is known of an id.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Known {
    /// Entries that were taken, those of which it is unknown, and those that came out as one thing or the other.
    pub(crate) taken: u8,
    pub(crate) unknown: u8,
    pub(crate) applied: u8,
    flags: u8,
}

/// It stands in the log.
pub(crate) const PROCESSED: u8 = 1;
/// It has an open dead letter.
pub(crate) const LETTERED: u8 = 2;
/// Its place among its client's records means nothing: it was given up, or lost where that may be.
pub(crate) const UNORDERED: u8 = 4;
/// A client was told its outcome: no loss of Redis may undo that.
pub(crate) const PROMISED: u8 = 8;
/// Other content was sent under its id, by value or to another destination.
pub(crate) const VARIED: u8 = 16;
/// Counted so often that its counts mean nothing any more.
pub(crate) const MANY: u8 = 32;

impl Known {
    /// Whether a flag is set.
    pub(crate) fn is(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Sets or takes away a flag.
    pub(crate) fn set(&mut self, flag: u8, on: bool) {
        self.flags = if on { self.flags | flag } else { self.flags & !flag };
    }
}

/// Answers, for the report.
#[derive(Debug, Default, Clone, serde::Serialize)]
pub(crate) struct Answers {
    /// Entries sent, each attempt counted.
    pub(crate) sent: u64,
    /// Of them: taken, unknown, and refused for now.
    pub(crate) taken: u64,
    pub(crate) unknown: u64,
    pub(crate) refused: u64,
    /// Requests by what became of them: a status, or an error.
    pub(crate) requests: std::collections::BTreeMap<String, u64>,
}

/// An outcome that a client was told.
#[derive(Debug, Clone)]
pub(crate) struct Promise {
    pub(crate) code: Code,
    pub(crate) outcome: Final,
}

/// What became of an entry, finally.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Final {
    /// It stands in the log, or the same does: shard and number, where they were told.
    Processed(Option<(usize, i64)>),
    Conflict,
    DeadLetter,
}

/// An id under which several contents were sent: of each, as many entries as were taken and as are unknown.
#[derive(Debug, Clone, Default)]
pub(crate) struct Varied {
    pub(crate) taken: [u16; VARIANTS],
    pub(crate) unknown: [u16; VARIANTS],
    /// The one that counts, or has the dead letter.
    pub(crate) first: Option<u8>,
    /// How many conflicts came out.
    pub(crate) conflicts: u16,
    /// Some of its entries may have been lost: nothing can be said of it any more.
    pub(crate) murky: bool,
}

/// The history of all clients.
#[derive(Debug)]
pub(crate) struct History {
    known: Vec<Vec<Known>>,
    /// What changed since the last check.
    pub(crate) touched: HashSet<Code>,
    pub(crate) promises: Vec<Promise>,
    /// By the code of the record as it is meant.
    pub(crate) varied: HashMap<Code, Varied>,
    /// Records of which workers are made to die or to panic.
    pub(crate) poisoned: HashSet<Code>,
    /// Entries sent because duplicates were asked for, and batches in which poison was placed.
    pub(crate) duplicates: u64,
    pub(crate) placed: u64,
    pub(crate) answers: Answers,
}

impl Default for History {
    fn default() -> Self {
        Self {
            known: vec![Vec::new(); usize::from(AUTHORS)],
            touched: HashSet::new(),
            promises: Vec::new(),
            varied: HashMap::new(),
            poisoned: HashSet::new(),
            duplicates: 0,
            placed: 0,
            answers: Answers::default(),
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

    /// What is known of an id; `None`: it was never sent.
    pub(crate) fn known(&mut self, code: Code) -> Option<&mut Known> {
        self.known.get_mut(usize::from(code.author()))?.get_mut(code.n() as usize)
    }

    /// Notes what a client was told of an entry.
    pub(crate) fn told(&mut self, code: Code, told: Told) {
        match told {
            Told::Taken => self.answers.taken += 1,
            Told::Unknown => self.answers.unknown += 1,
        }
        let meant = code.with_variant(0);
        self.touched.insert(meant);
        let before = self.known(code).copied().unwrap_or_default();
        if code.variant() > 0 || before.is(VARIED) {
            let varied = self.varied.entry(meant).or_insert_with(|| Varied {
                taken: [before.taken.into(), 0, 0],
                unknown: [before.unknown.into(), 0, 0],
                ..Varied::default()
            });
            let counts = if told == Told::Taken { &mut varied.taken } else { &mut varied.unknown };
            counts[usize::from(code.variant())] += 1;
        }
        if let Some(known) = self.known(code) {
            let count = if told == Told::Taken { &mut known.taken } else { &mut known.unknown };
            *count = count.saturating_add(1);
            let many = *count == u8::MAX;
            known.set(MANY, many || known.is(MANY));
            known.set(VARIED, known.is(VARIED) || code.variant() > 0);
        }
    }

    /// Sets a flag of an id.
    pub(crate) fn flag(&mut self, code: Code, flag: u8, on: bool) {
        if let Some(known) = self.known(code) {
            known.set(flag, on);
        }
    }

    /// Notes that an entry of this id came out, as whatever. False: no such id was sent.
    pub(crate) fn apply(&mut self, code: Code) -> bool {
        self.touched.insert(code.with_variant(0));
        let Some(known) = self.known(code) else { return false };
        known.applied = known.applied.saturating_add(1);
        let many = known.applied == u8::MAX || known.is(MANY);
        known.set(MANY, many);
        true
    }

    /// Takes an outcome of this id back: the server that had it lost it.
    pub(crate) fn unapply(&mut self, code: Code) {
        self.touched.insert(code.with_variant(0));
        if let Some(known) = self.known(code) {
            known.applied = known.applied.saturating_sub(1);
        }
    }
}
