//! Problems for errors of a server that may be those of TLS: they name the Secret to change.

use millrace_crds::status_api::Problem;

use super::{of_postgres, of_redis};
use crate::{
    store::{self, Store},
    streams::{self, Streams},
};

/// The problem for an error of this Postgres.
pub(crate) fn of_store(store: &Store, error: &store::Error) -> Problem {
    store.tls_problem(error).unwrap_or_else(|| of_postgres(error))
}

/// The problem for an error of this Redis.
pub(crate) fn of_streams(streams: &Streams, error: &streams::Error) -> Problem {
    if let Some(problem) = streams.tls_problem(error) {
        return problem;
    }
    let mut problem = of_redis(error);
    if let Some(hint) = streams.scheme_hint(error) {
        problem.message = format!("{}: {hint}", problem.message);
    }
    problem
}
