//! One form for states that differ by nothing but names.

use std::sync::Arc;

use crate::state::{Own, State};

/// One form for states that differ by nothing but names: workers are alike, and only equality of tokens counts.
pub(crate) fn normalise(state: &mut State) {
    state.workers.iter_mut().for_each(|worker| worker.transactions.sort_unstable());
    state.discards.sort_unstable();
    state.workers.sort_unstable();
    let mut names: Vec<u8> = vec![0];
    tokens(state, |token| {
        if !names.contains(&token) {
            names.push(token);
        }
    });
    if !names.is_sorted_by(|a, b| a + 1 == *b) {
        rename(state, |token| names.iter().position(|name| *name == token).unwrap_or_default() as u8);
        state.workers.sort_unstable();
    }
    // The lease of an owner that exists no more runs out at some time.
    for (index, shard) in state.postgres.shards.iter_mut().enumerate() {
        let held = |own: &Own| own.fence == shard.fence;
        if !state.workers.iter().any(|worker| worker.owns[index].as_ref().is_some_and(held)) {
            shard.free = true;
        }
    }
}

fn tokens(state: &State, mut each: impl FnMut(u8)) {
    let of_postgres = state.backup.iter().map(|backup| &**backup).chain([&state.postgres]);
    of_postgres.flat_map(|postgres| &postgres.shards).for_each(|shard| each(shard.fence.token));
    let of_redis = state.synced.iter().map(|synced| &**synced).chain([&state.redis]);
    of_redis.flat_map(|redis| &redis.inputs).for_each(|input| each(input.fence.token));
    state.workers.iter().flat_map(|worker| worker.owns.iter().flatten()).for_each(|own| each(own.fence.token));
}

fn rename(state: &mut State, name: impl Fn(u8) -> u8) {
    let State { postgres, redis, backup, synced, workers, .. } = state;
    let of_postgres = backup.iter_mut().map(Arc::make_mut).chain([postgres]);
    let of_redis = synced.iter_mut().map(Arc::make_mut).chain([redis]);
    let fences = of_postgres.flat_map(|postgres| &mut postgres.shards).map(|shard| &mut shard.fence);
    let fences = fences.chain(of_redis.flat_map(|redis| &mut redis.inputs).map(|input| &mut input.fence));
    let owns = workers.iter_mut().flat_map(|worker| worker.owns.iter_mut().flatten());
    for fence in fences.chain(owns.map(|own| &mut own.fence)) {
        fence.token = name(fence.token);
    }
}
