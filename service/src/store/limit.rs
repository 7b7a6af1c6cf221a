//! Limits in time of what waits for Postgres.
//!
//! It must never take a step that was abandoned for one that wrote nothing.

use std::time::Duration;

use super::Error;

/// Timeout of a background step. A host that is lost during a statement never answers, and no packet ends the
/// connection.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest wait for an answer to [`super::Store::probe`].
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs a step that uses Postgres, and abandons it when Postgres does not answer within 20 seconds.
///
/// # Errors
/// The error of the step, or after the timeout one that [`Error::is_unavailable`]: then it is unknown whether the step
/// wrote.
pub async fn within<T, E: From<Error>>(step: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    limited(STEP_TIMEOUT, step).await
}

/// Runs a step that uses Postgres; after this time its error [`Error::is_unavailable`].
pub(super) async fn limited<T, E: From<Error>>(
    timeout: Duration,
    step: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::time::timeout(timeout, step).await.unwrap_or_else(|_| {
        let why = format!("no answer within {} s", timeout.as_secs());
        Err(Error::Sql(sqlx::Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, why))).into())
    })
}

/// The answer of Postgres, or an error of the driver after `longest`.
pub(super) async fn answer_within<T>(
    longest: Duration,
    answer: impl Future<Output = Result<T, sqlx::Error>>,
) -> Result<T, sqlx::Error> {
    let answer = tokio::time::timeout(longest, answer).await;
    answer.map_err(|_| sqlx::Error::Io(std::io::ErrorKind::TimedOut.into()))?
}
