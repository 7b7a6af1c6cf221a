//! What the servers are like, beside what the pipeline has stored in them: durability of Redis, and clocks.

use millrace_crds::{
    Reason,
    status_api::{Problem, RedisDurability},
};

use super::clocks;
use crate::{
    config::Setup,
    streams::{RedisPromises, Weakness},
};

/// The problems of the servers' settings and clocks, and whether Redis is durable, unless it does not answer.
pub(super) async fn gather(setup: &Setup) -> (Vec<Problem>, Option<RedisDurability>) {
    let (promises, mut problems) = tokio::join!(setup.streams.promises(), clocks::problems(setup));
    let Ok(promises) = promises else { return (problems, None) };
    problems.extend(promises.weaknesses().iter().map(problem));
    (problems, Some(durability(&promises)))
}

fn problem(weakness: &Weakness) -> Problem {
    let reason = match weakness {
        Weakness::NotDurable(_) => Reason::RedisNotDurable,
        Weakness::Evicts(_) => Reason::RedisEvicts,
    };
    Problem::new(reason, weakness.to_string())
}

fn durability(promises: &RedisPromises) -> RedisDurability {
    match (promises.weaknesses().is_empty(), promises.are_unknown()) {
        (false, _) => RedisDurability::NotDurable,
        (true, true) => RedisDurability::Unknown,
        (true, false) => RedisDurability::Durable,
    }
}
