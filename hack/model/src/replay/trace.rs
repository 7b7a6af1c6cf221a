//! The lines of a protocol trace, as processes write them: a step before it is sent, its answer behind it.

use std::{collections::HashMap, fmt};

use serde::{Deserialize, Deserializer, de};

/// A number of a trace. A stream id is its milliseconds times 2^64 and its number; a token is its digits; nothing is 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Number(pub u128);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Number;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, a stream id or a token")
            }
            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Number, E> {
                Ok(Number(number.into()))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Number, E> {
                number(text).map(Number).ok_or_else(|| E::invalid_value(de::Unexpected::Str(text), &self))
            }
        }
        from.deserialize_any(Visitor)
    }
}

fn number(text: &str) -> Option<u128> {
    match text.split_once('-') {
        _ if text.is_empty() || text == "-" => Some(0),
        Some((ms, n)) => Some(u128::from(ms.parse::<u64>().ok()?) << 64 | u128::from(n.parse::<u64>().ok()?)),
        None => u128::from_str_radix(text, 16).ok(),
    }
}

impl fmt::Debug for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> 64 {
            0 => write!(f, "{}", self.0),
            ms => write!(f, "{ms}-{}", self.0 as u64),
        }
    }
}

/// Numbers of a shard's row: of records, of conflicts, of dead letters.
pub type Numbers = [Number; 3];

/// The values of a shard's row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Progress {
    /// The highest numbers.
    pub numbers: Numbers,
    /// All records up to this offset are applied or lost.
    pub accounted: Number,
    /// The highest id of an entry that was ever applied.
    pub applied: Number,
    /// The start of Postgres.
    pub server: Number,
}

/// The values beside a stream, as an owner holds or stores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct Beside {
    /// The watermarks.
    pub numbers: Numbers,
    /// The acknowledged offset.
    pub offset: Number,
}

/// What is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Acks {
    /// What is stored beside the stream.
    #[serde(flatten)]
    pub beside: Beside,
    /// The entries.
    pub ids: Vec<Number>,
}

/// A server that holds a fence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Server {
    /// The row of the shard.
    Postgres,
    /// The hash beside the stream.
    Redis,
}

/// A step as it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
#[expect(missing_docs, reason = "the fields are those of the model's steps")]
pub enum Sent {
    /// Postgres: a worker takes a free shard.
    Take { token: Number },
    /// Postgres: an owner raises its epoch.
    Raise { token: Number, epoch: Number, above: Number },
    /// Postgres: an owner releases its shard.
    Release { token: Number, epoch: Number },
    /// Postgres: a shard runs a policy version.
    Policy { token: Number, epoch: Number, version: Number },
    /// Postgres: the account of a shard is opened.
    Account { token: Number, epoch: Number, acknowledged: Number },
    /// Postgres: an owner compares the log with Redis.
    Compare { token: Number, epoch: Number },
    /// Postgres: an owner has seen that Postgres was rewound, and skips numbers.
    Skip { token: Number, epoch: Number, numbers: Numbers },
    /// Postgres: the rest of a stream is lost.
    Lose { token: Number, epoch: Number, accounted: Number, appended: Number },
    /// Postgres: a shard leaves a transaction.
    Left {
        token: Number,
        epoch: Number,
        version: Number,
        #[serde(flatten)]
        own: Progress,
    },
    /// Postgres: a batch is committed.
    Commit {
        group: u64,
        token: Number,
        epoch: Number,
        version: [Number; 2],
        before: Progress,
        after: Progress,
        entries: Vec<Number>,
    },
    /// Redis: an owner sets its fence.
    Prepare { token: Number, epoch: Number },
    /// Redis: an owner reclaims pending entries.
    Claim { token: Number, epoch: Number, known: Beside, start: Number },
    /// Redis: an owner acknowledges, reads, or both.
    Turn {
        token: Number,
        epoch: Number,
        known: Beside,
        #[serde(default)]
        acks: Option<Acks>,
        #[serde(default)]
        reads: bool,
    },
    /// Redis: an owner raises the counts.
    Reconcile { token: Number, epoch: Number, known: Beside },
    /// Redis: a producer appends entries of so many records.
    Append { producer: String, known: Number, counts: Vec<u8> },
    /// Redis: a sink's cursor is made for a generation, unless it is there.
    Start { sink: String, generation: String, at: Number },
    /// Redis: a publisher appends to a sink's stream.
    Publish { sink: String, generation: String, r#type: String, after: Number, upto: Number },
}

impl Sent {
    /// Whether it can show later that it took effect, though it has no answer. An append shows by its ids.
    #[must_use]
    pub fn shows_late(&self) -> bool {
        let nothing = matches!(
            self,
            Self::Account { .. }
                | Self::Compare { .. }
                | Self::Left { .. }
                | Self::Claim { .. }
                | Self::Reconcile { .. }
        );
        !nothing && !matches!(self, Self::Append { .. })
    }

    /// The server that lets it through only under its owner's fence. An owner compares the log before it opens the account,
    /// which is fenced, and its answer comes behind both.
    #[must_use]
    pub fn fenced_by(&self) -> Option<Server> {
        match self {
            Self::Raise { .. }
            | Self::Policy { .. }
            | Self::Account { .. }
            | Self::Compare { .. }
            | Self::Skip { .. }
            | Self::Lose { .. }
            | Self::Commit { .. } => Some(Server::Postgres),
            Self::Prepare { .. } | Self::Claim { .. } | Self::Turn { .. } | Self::Reconcile { .. } => {
                Some(Server::Redis)
            }
            _ => None,
        }
    }

    /// The server that it shows the fence of.
    #[must_use]
    pub fn server(&self) -> Option<Server> {
        if matches!(self, Self::Take { .. }) { Some(Server::Postgres) } else { self.fenced_by() }
    }

    /// Token and epoch of its owner; `None`: it has none yet, or is no step of an owner.
    #[must_use]
    pub fn fence(&self) -> Option<(Number, Number)> {
        match self {
            Self::Raise { token, epoch, .. }
            | Self::Release { token, epoch }
            | Self::Policy { token, epoch, .. }
            | Self::Account { token, epoch, .. }
            | Self::Compare { token, epoch }
            | Self::Skip { token, epoch, .. }
            | Self::Lose { token, epoch, .. }
            | Self::Left { token, epoch, .. }
            | Self::Commit { token, epoch, .. }
            | Self::Prepare { token, epoch }
            | Self::Claim { token, epoch, .. }
            | Self::Turn { token, epoch, .. }
            | Self::Reconcile { token, epoch, .. } => Some((*token, *epoch)),
            Self::Take { .. } | Self::Append { .. } | Self::Start { .. } | Self::Publish { .. } => None,
        }
    }
}

/// What an answer says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// It took effect.
    Done,
    /// The fence was lower, or the server was rewound.
    Raised,
    /// Another owner has the shard.
    Fenced,
    /// The group is missing.
    NoGroup,
    /// The cursor is elsewhere.
    Moved,
    /// The cursor is missing.
    Gone,
    /// The shard was not free.
    None,
    /// The log is not where the owner left it.
    Changed,
    /// The shard runs a newer policy version.
    OldPolicy,
    /// There is no room.
    Refused,
}

/// The answer to a step. Which values it has follows from the step.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[expect(missing_docs, reason = "the fields are those of the model's steps")]
pub struct Answered {
    pub result: Word,
    pub epoch: Number,
    pub now: Number,
    pub above: Number,
    pub cursor: Number,
    pub accounted: Number,
    pub applied: Number,
    pub server: Number,
    pub offset: Number,
    pub appended: Number,
    pub raised: Number,
    pub pending: Number,
    pub last: Number,
    pub count: Number,
    pub numbers: Numbers,
    /// Id, first and last offset of each.
    pub entries: Vec<[Number; 3]>,
    pub ids: Vec<Number>,
    pub created: bool,
    pub deleted: u64,
    pub more: bool,
}

impl Default for Answered {
    fn default() -> Self {
        let zero = Number(0);
        Self {
            result: Word::Done,
            epoch: zero,
            now: zero,
            above: zero,
            cursor: zero,
            accounted: zero,
            applied: zero,
            server: zero,
            offset: zero,
            appended: zero,
            raised: zero,
            pending: zero,
            last: zero,
            count: zero,
            numbers: [zero; 3],
            entries: Vec::new(),
            ids: Vec::new(),
            created: false,
            deleted: 0,
            more: false,
        }
    }
}

/// A step of a process, with its answer where it has one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Which process.
    pub process: usize,
    /// Its shard.
    pub shard: u16,
    /// The line that it was sent in, and the line of its answer.
    pub lines: (usize, Option<usize>),
    /// The step.
    pub sent: Sent,
    /// Its answer; `None`: it may have taken effect at any time behind its line, or never.
    pub answer: Option<Answered>,
}

#[derive(Deserialize)]
struct SentLine {
    n: u64,
    shard: u16,
    #[serde(flatten)]
    sent: Sent,
}

/// The trace of one process, as far as it is read.
#[derive(Debug, Default)]
pub struct Process {
    lines: usize,
    /// The last line, where it is not whole.
    rest: String,
    /// By number of the step: its place among the steps.
    open: HashMap<u64, usize>,
}

impl Process {
    /// Reads more of a trace. Steps come to the end of `steps`; answers are set in it, as far as their steps are in it.
    ///
    /// # Errors
    /// A line that is none of a trace.
    pub fn read(&mut self, process: usize, text: &str, steps: &mut Vec<Step>) -> Result<(), String> {
        self.rest.push_str(text);
        let whole = self.rest.rfind('\n').map_or(0, |end| end + 1);
        let rest = self.rest.split_off(whole);
        for line in std::mem::replace(&mut self.rest, rest).lines() {
            self.lines += 1;
            let error = |error: serde_json::Error| format!("line {}: {error}: {line}", self.lines);
            if line.contains("\"step\"") {
                let SentLine { n, shard, sent } = serde_json::from_str(line).map_err(error)?;
                self.open.insert(n, steps.len());
                steps.push(Step { process, shard, lines: (self.lines, None), sent, answer: None });
            } else {
                #[derive(Deserialize)]
                struct Of {
                    n: u64,
                }
                let Of { n } = serde_json::from_str(line).map_err(error)?;
                let answer = serde_json::from_str(line).map_err(error)?;
                if let Some(step) = self.open.remove(&n).and_then(|at| steps.get_mut(at)) {
                    (step.lines.1, step.answer) = (Some(self.lines), Some(answer));
                }
            }
        }
        Ok(())
    }
}
