//! Appends without an answer: those that took effect show by the ids that were read and that no other append has.
//! Must never give an append an id that its process's order rules out.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    search::Search,
    trace::{Answered, Number, Sent, Step, Word},
};

/// What the appends around one without an answer show of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Shown {
    /// Its producer has appended more before its next append: this one, or another one without an answer.
    Counted,
    /// Its producer has not appended again.
    Unknown,
    /// It did not take effect before the next append of its producer.
    Uncounted,
}

/// An append without an answer.
struct Unanswered {
    shown: Shown,
    at: usize,
    /// Its ids lie between these.
    above: Number,
    below: Number,
}

impl Search {
    /// Finds the ids of appends without an answer.
    pub(super) fn find_unanswered_appends(&mut self, steps: &mut [Step]) {
        let places: Vec<usize> = self.open.values().flatten().copied().collect();
        let mut seen: BTreeMap<Number, u128> = BTreeMap::new();
        for at in &places {
            let entries = steps[*at].answer.iter().flat_map(|answer| &answer.entries);
            seen.extend(entries.filter(|entry| entry[1].0 > 0).map(|entry| (entry[0], entry[2].0 - entry[1].0 + 1)));
        }
        let answers = places.iter().filter_map(|at| steps[*at].answer.as_ref());
        let mut known: BTreeSet<Number> = answers.flat_map(|answer| &answer.ids).copied().collect();
        known.extend(self.state.input.entries.iter().map(|entry| Number(entry.sid)));
        let is_new = |id: &Number| id.0 > self.state.input.delivered || self.state.disturbed.redis;
        seen.retain(|id, _| !known.contains(id) && is_new(id));
        let mut unanswered: Vec<Unanswered> = Vec::new();
        for list in self.open.values() {
            for at in list.iter().copied() {
                if let (Sent::Append { producer, .. }, None) = (&steps[at].sent, &steps[at].answer) {
                    self.state.uncounted.insert(producer.clone());
                    unanswered.push(self.shown(steps, list, at));
                }
            }
        }
        unanswered.sort_by_key(|append| (append.shown, append.at));
        for append in unanswered {
            let Sent::Append { counts, .. } = &steps[append.at].sent else { continue };
            let between = seen.iter().filter(|(id, _)| **id > append.above && **id < append.below);
            let ids: Vec<(Number, u128)> = between.map(|(id, count)| (*id, *count)).collect();
            let is_it = |ids: &&[(Number, u128)]| {
                ids.iter().zip(counts).all(|((_, there), count)| *there == u128::from(*count))
            };
            if let Some(found) = ids.windows(counts.len().max(1)).find(is_it) {
                let ids: Vec<Number> = found.iter().map(|(id, _)| *id).collect();
                seen.retain(|id, _| !ids.contains(id));
                steps[append.at].answer = Some(Answered { result: Word::Done, ids, ..Answered::default() });
            }
        }
    }

    /// What the other appends of a process show of one without an answer.
    fn shown(&self, steps: &[Step], list: &[usize], at: usize) -> Unanswered {
        let (mut shown, mut above, mut below) = (Shown::Unknown, Number(0), Number(u128::MAX));
        let Sent::Append { known, .. } = &steps[at].sent else { return Unanswered { shown, at, above, below } };
        for other in list.iter().map(|other| &steps[*other]) {
            let (Sent::Append { counts, .. }, Some(answer)) = (&other.sent, &other.answer) else { continue };
            let (Some(first), Some(last)) = (answer.ids.first(), answer.ids.last()) else { continue };
            if other.lines.1.is_some_and(|end| end < steps[at].lines.0) {
                above = above.max(*last);
            } else if shown == Shown::Unknown && answer.count.0 > 0 {
                let before = answer.count.0 - counts.iter().map(|count| u128::from(*count)).sum::<u128>();
                shown = if before > known.0 { Shown::Counted } else { Shown::Uncounted };
                below = if shown == Shown::Counted { *first } else { below };
            }
        }
        // A stream that was deleted gives lower ids.
        if self.state.disturbed.redis {
            (above, below) = (Number(0), Number(u128::MAX));
        }
        Unanswered { shown, at, above, below }
    }
}
