//! Which of two steps came first, as their results show it: the numbers that a server compares only rise, unless it is
//! rewound. Must never judge by anything but results: lines of two processes have no order.

use super::trace::{Number, Sent, Server, Step, Word};

/// Whether a step came before another one of the same shard, if no server was rewound.
pub(super) fn is_before(first: &Step, second: &Step) -> bool {
    // Behind a rewind numbers come again, but not the lines of a process.
    let is_later = first.process == second.process && second.lines.1.is_some_and(|end| end < first.lines.0);
    let is_shown =
        is_below_fence(first, second) || is_refused_before(first, second) || is_at_lower_cursor(first, second);
    is_shown && !is_later
}

/// A step that a fence let through came before all steps of higher epochs at that server.
fn is_below_fence(first: &Step, second: &Step) -> bool {
    let server = first.sent.fenced_by();
    server.is_some()
        && server == second.sent.server()
        && word(first) == Some(Word::Done)
        && epoch(first) < epoch(second)
}

/// A step that found an epoch in Redis came before all of higher epochs there.
fn is_refused_before(first: &Step, second: &Step) -> bool {
    let is_redis = |step: &Step| step.sent.fenced_by() == Some(Server::Redis);
    let above = first.answer.as_ref().filter(|answer| answer.result == Word::Fenced).map(|answer| answer.above);
    is_redis(first) && is_redis(second) && above.is_some_and(|above| above < epoch(second))
}

/// A publisher that found a cursor came before those that moved it on, and before it was gone.
fn is_at_lower_cursor(first: &Step, second: &Step) -> bool {
    let (Some(there), Some(here)) = (cursor(first), cursor(second)) else { return false };
    if there != here {
        return false;
    }
    let (Some(before), Some(behind)) = (&first.answer, &second.answer) else { return false };
    match (before.result, behind.result, &first.sent, &second.sent) {
        (Word::Done, Word::Done, Sent::Publish { after: lower, .. }, Sent::Publish { after, .. }) => lower < after,
        (Word::Moved, Word::Done, _, Sent::Publish { after, .. }) => before.cursor <= *after,
        (Word::Moved | Word::Done, Word::Gone, Sent::Publish { .. }, _) => true,
        _ => false,
    }
}

/// Sink and generation of a publisher's step.
pub(super) fn cursor(step: &Step) -> Option<(&str, &str)> {
    match &step.sent {
        Sent::Publish { sink, generation, .. } | Sent::Start { sink, generation, .. } => Some((sink, generation)),
        _ => None,
    }
}

/// The epoch of a step's owner. A publisher follows its owner's acknowledgements, whatever the epoch.
pub(super) fn epoch(step: &Step) -> Number {
    match (&step.sent, &step.answer) {
        (Sent::Take { .. }, Some(answer)) => answer.epoch,
        (sent, _) => sent.fence().map(|(_, epoch)| epoch).unwrap_or_default(),
    }
}

fn word(step: &Step) -> Option<Word> {
    step.answer.as_ref().map(|answer| answer.result)
}

/// What a step compares or changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place<'a> {
    /// The row of the shard.
    Row,
    /// The stream, and the hash beside it.
    Stream,
    /// The cursor of a sink and a generation.
    Cursor(&'a str, &'a str),
}

/// Where a step takes effect.
pub(super) fn place(step: &Step) -> Place<'_> {
    if let Some((sink, generation)) = cursor(step) {
        return Place::Cursor(sink, generation);
    }
    let is_stream = step.sent.fenced_by() == Some(Server::Redis) || matches!(step.sent, Sent::Append { .. });
    if is_stream { Place::Stream } else { Place::Row }
}
