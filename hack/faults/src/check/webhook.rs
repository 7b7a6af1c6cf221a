//! Deliveries of the webhook: at least once, in order per destination, each naming the one before, and few repetitions.

use std::collections::{BTreeMap, HashMap};

use super::{Check, Line, Wrong, stored::Gaps};
use crate::{
    endpoint::Delivery,
    world::{IN_FLIGHT, SHARDS},
};

/// What was delivered so far.
#[derive(Debug, Default)]
pub(super) struct Delivered {
    /// Per shard, the numbers that were answered 2xx.
    numbers: [BTreeMap<i64, u32>; SHARDS],
    /// The last number of each destination, since Postgres was rewound last.
    last: HashMap<(usize, String), i64>,
    /// Whether Postgres was rewound: a destination without a last number may have had one.
    is_partial: bool,
    /// The epoch of each shard after the last round.
    epochs: HashMap<usize, i64>,
}

impl Check {
    /// Checks the deliveries of a round, in the order of their answers. `epochs`: of each shard. `is_bounded`: only workers
    /// ended in it, so the number of repetitions has a bound.
    pub(super) fn deliveries(
        &mut self,
        deliveries: Vec<Delivery>,
        gaps: &Gaps,
        epochs: &[(i32, i64)],
        is_bounded: bool,
    ) {
        let rewound = self.allowed.postgres_lost;
        let mut known = std::mem::take(&mut self.delivered);
        known.is_partial |= rewound;
        let mut repeats = [0_i64; SHARDS];
        for delivery in deliveries {
            let Delivery { shard, seq, previous, destination, digest, is_signed } = delivery;
            let place = format!("delivery {shard}-{seq}");
            if !is_signed {
                self.wrong(Wrong::Miscounted, || format!("{place} has a wrong signature or id"));
            }
            let Some(numbers) = known.numbers.get_mut(shard) else {
                self.wrong(Wrong::Ghost, || place);
                continue;
            };
            let before = numbers.insert(seq, digest);
            if before.is_some() {
                repeats[shard] += 1;
                if before != Some(digest) && !rewound {
                    self.wrong(Wrong::Doubled, || format!("{place} was repeated with other content"));
                }
                continue;
            }
            let before = known.last.insert((shard, destination.clone()), seq);
            if rewound || before.is_none() && known.is_partial {
                continue;
            }
            if before.is_some_and(|before| before > seq) {
                self.wrong(Wrong::Reordered, || format!("{place} came after {before:?} to {destination}"));
            } else if previous != before {
                self.wrong(Wrong::Lost, || {
                    format!("{place} to {destination} names {previous:?} as the one before, which was {before:?}")
                });
            }
        }
        if rewound {
            known.last.clear();
        }
        self.compare_with_log(&known, gaps);
        for (shard, epoch) in epochs {
            let shard = *shard as usize;
            let takeovers = epoch - known.epochs.insert(shard, *epoch).unwrap_or_default();
            let most = IN_FLIGHT * takeovers;
            if is_bounded && !rewound && repeats[shard] > most {
                let again = repeats[shard];
                self.wrong(Wrong::Doubled, || {
                    format!("{again} deliveries of shard {shard} were repeated after {takeovers} takeovers")
                });
            }
        }
        self.delivered = known;
    }

    /// Each record of the log was delivered, and nothing else.
    fn compare_with_log(&mut self, known: &Delivered, gaps: &Gaps) {
        for (shard, numbers) in known.numbers.iter().enumerate() {
            let lines: Vec<Line> = self.shards[shard].log.clone();
            for (seq, line) in (1_i64..).zip(&lines).filter(|(_, line)| line.digest != 0) {
                if gaps.have(shard, "records", seq) {
                    continue;
                }
                match numbers.get(&seq) {
                    None => self.wrong(Wrong::Lost, || format!("{shard}-{seq} was not delivered to the webhook")),
                    Some(digest) if *digest != line.digest => {
                        self.wrong(Wrong::Miscounted, || format!("{shard}-{seq} was delivered with other content"));
                    }
                    Some(_) => {}
                }
            }
            let highest = lines.len() as i64;
            if let Some((seq, _)) = numbers.last_key_value().filter(|(seq, _)| **seq > highest) {
                self.wrong(Wrong::Ghost, || format!("{shard}-{seq} was delivered, and the log ends at {highest}"));
            }
        }
    }
}
