//! Problems for errors of the servers.

use std::time::Duration;

use millrace_crds::{Reason, status_api::Problem};

use crate::{
    store::{self, Store},
    streams,
};

/// Longest wait for an answer of Postgres.
const LONGEST: Duration = Duration::from_secs(2);

/// The problem of a schema that is missing or too old.
pub(crate) fn not_migrated() -> Problem {
    Problem::new(
        Reason::NotMigrated,
        "the pipeline's schema is not there, or older than this millrace: run `millrace migrate`",
    )
}

/// The problem for an error of Postgres.
pub(crate) fn of_postgres(error: &store::Error) -> Problem {
    let reason = match error {
        store::Error::TooNew(_) => Reason::SchemaTooNew,
        store::Error::OtherPipeline(_) => Reason::OtherPipeline,
        store::Error::PreviousWorkersActive(_) => Reason::UidNotClaimed,
        store::Error::Refused(_) => Reason::ManifestRefused,
        store::Error::Session(_) => Reason::SecretInvalid,
        error if error.misses_schema() => return not_migrated(),
        error if error.misses_partition() => Reason::PartitionMissing,
        error if error.refuses_write() => Reason::PostgresReadOnlyOrFull,
        _ => Reason::PostgresUnreachable,
    };
    Problem::new(reason, error.to_string())
}

/// The problem of a Postgres that did not answer in time: the error of the pool has no cause.
pub(crate) async fn silent(store: &Store) -> Problem {
    match tokio::time::timeout(LONGEST, store.probe()).await {
        Ok(Err(error)) => of_postgres(&error),
        Ok(Ok(())) => Problem::new(Reason::PostgresUnreachable, "it answers, but not within 2 s"),
        Err(_) => Problem::new(Reason::PostgresUnreachable, "it did not answer within 2 s"),
    }
}

/// The problem for an error of Redis.
pub(crate) fn of_redis(error: &streams::Error) -> Problem {
    let reason = match error {
        streams::Error::Denied(_) => Reason::RedisAccessDenied,
        _ => Reason::RedisUnreachable,
    };
    Problem::new(reason, error.to_string())
}
