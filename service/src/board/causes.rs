//! Problems for errors of the servers.

use std::time::Duration;

use millrace_crds::{Reason, status_api::Problem};

use super::of_store;
use crate::{
    store::{self, NoWrites, Store},
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

/// The reason for an error of Postgres, or of the connection to it.
pub(crate) fn reason_of_postgres(error: &store::Error) -> Reason {
    match error {
        store::Error::TooNew(_) => Reason::SchemaTooNew,
        store::Error::OtherPipeline(_) => Reason::OtherPipeline,
        store::Error::PreviousWorkersActive(_) => Reason::UidNotClaimed,
        store::Error::Refused(_) => Reason::ManifestRefused,
        store::Error::Pooler(_) => Reason::PoolerInTransactionMode,
        error if error.misses_schema() => Reason::NotMigrated,
        error if error.misses_partition() => Reason::PartitionMissing,
        error if error.denies_access() => Reason::PostgresAccessDenied,
        error if error.misses_database() => Reason::PostgresDatabaseNotFound,
        error if error.lacks_right() => Reason::PostgresPermissionDenied,
        error if error.met_lock() => Reason::PostgresLocked,
        error if error.refuses_write() => Reason::PostgresReadOnlyOrFull,
        _ => Reason::PostgresUnreachable,
    }
}

/// The problem for an error of Postgres.
pub(crate) fn of_postgres(error: &store::Error) -> Problem {
    match reason_of_postgres(error) {
        Reason::NotMigrated => not_migrated(),
        reason => Problem::new(reason, error.to_string()),
    }
}

/// The problem of a Postgres that accepts no writes.
pub(crate) fn of_no_writes(why: NoWrites) -> Problem {
    let reason = match why {
        NoWrites::Standby => Reason::PostgresStandby,
        NoWrites::ReadOnly => Reason::PostgresReadOnlyOrFull,
        NoWrites::Locked => Reason::PostgresLocked,
    };
    Problem::new(reason, why.to_string())
}

/// The problem for an error of Postgres. A query finds why it refused a write: the error does not distinguish a standby from
/// a server that is read-only by a setting.
pub(crate) async fn cause(store: &Store, error: &store::Error) -> Problem {
    if error.refuses_write()
        && let Ok(Ok(Some(why))) = tokio::time::timeout(LONGEST, store.takes_no_writes()).await
    {
        return of_no_writes(why);
    }
    of_store(store, error)
}

/// The problem of a Postgres that did not answer in time: the error of the pool has no cause.
pub(crate) async fn silent(store: &Store) -> Problem {
    match tokio::time::timeout(LONGEST, store.probe()).await {
        Ok(Err(error)) => of_store(store, &error),
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
