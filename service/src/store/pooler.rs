//! Detection of a pooler in transaction mode, which gives the statements of one connection to several sessions.
//!
//! It must never depend on what a pooler is called, and a check of new connections must never use a prepared statement,
//! which such a pooler loses. Two connections of clients each set a variable of their session to a value of their own.
//! Where one reads another value than its own, the session is not its own. A connection that stays open is tied to its
//! session: another session would run other statements under the names that the driver uses, perhaps in another schema.

use std::{
    sync::{
        PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection as _, PgConnection, Row as _, postgres::PgConnectOptions};
use tokio::{sync::Mutex, time::Instant};

use super::{Error, session::run};

/// What helps against a pooler that shares sessions.
pub(super) const REMEDY: &str = "a pooler between here and Postgres gives it another session. Set pool_mode = session there, or give the URL of \
     Postgres itself";

/// Rounds of a check. An idle pooler shows its mode in the first; a busy one may give both connections the same sessions
/// again by chance.
const ROUNDS: usize = 3;

/// How long a check holds for further connections of the same pools.
const HOLDS: Duration = Duration::from_secs(1);

/// The setting of a session that its connection knows.
const TIE: &str = "millrace.connection";

/// How long a check of one tie holds for the other connections of its pool. It saves a busy pool most of the checks.
const TIE_HOLDS: Duration = Duration::from_millis(50);

/// Longest time of a check beside a pool. A pooler without a free session for a second connection makes it wait.
const LONGEST: Duration = Duration::from_secs(2);

/// Checks that two connections have a session each.
///
/// # Errors
/// [`Error::Pooler`] with the remedy.
pub(super) async fn check(one: &mut PgConnection, other: &mut PgConnection) -> Result<(), Error> {
    for _ in 0..ROUNDS {
        let values: [String; 2] = std::array::from_fn(|_| format!("{:032x}", rand::random::<u128>()));
        for (connection, value) in [&mut *one, &mut *other].into_iter().zip(&values) {
            run(connection, &format!("select set_config('millrace.session', '{value}', false)")).await?;
        }
        for (connection, value) in [&mut *one, &mut *other].into_iter().zip(&values) {
            let row = run(connection, "select current_setting('millrace.session', true)").await?;
            if row.try_get::<Option<String>, _>(0)?.as_ref() != Some(value) {
                return Err(Error::Pooler(format!("a connection does not keep its session: {REMEDY}")));
            }
        }
    }
    Ok(())
}

/// Checks new connections of pools, one of them each second.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// When a connection was checked last, and the number of changes of the URL by then.
    checked: Mutex<Option<(Instant, u64)>>,
    changes: AtomicU64,
}

impl Watch {
    /// Notes that new connections lead elsewhere.
    pub(super) fn redirected(&self) {
        self.changes.fetch_add(1, Ordering::Relaxed);
    }

    /// Checks a new connection beside a second one, unless another connection was checked a moment ago.
    ///
    /// # Errors
    /// [`Error::Pooler`] with the remedy, or why the connection fails.
    pub(super) async fn check(&self, connection: &mut PgConnection, options: &PgConnectOptions) -> Result<(), Error> {
        // Held during the check: connections that are opened at the same time wait for its outcome.
        let mut checked = self.checked.lock().await;
        let changes = self.changes.load(Ordering::Relaxed);
        if checked.is_some_and(|(at, of)| of == changes && at.elapsed() < HOLDS) {
            return Ok(());
        }
        // Where there is no room for a second connection, the pools work without the check.
        let second = tokio::time::timeout(LONGEST, PgConnection::connect_with(options)).await;
        if let Ok(Ok(mut second)) = second {
            let outcome = tokio::time::timeout(LONGEST, check(connection, &mut second)).await;
            // Not by `close_hard`, which never ends on a connection with TLS.
            let _ = tokio::time::timeout(LONGEST, second.close()).await;
            // A connection that does not answer fails at its next statement.
            outcome.unwrap_or(Ok(()))?;
        }
        *checked = Some((Instant::now(), changes));
        Ok(())
    }
}

/// Ties a new connection to its session: both get the same random value, the connection as the text of a prepared statement
/// that the driver keeps for it.
///
/// # Errors
/// When Postgres does not answer.
pub(super) async fn tie(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let value = format!("{:032x}", rand::random::<u128>());
    run(connection, &format!("select set_config('{TIE}', '{value}', false)")).await?;
    prepare(connection, &value).await
}

async fn prepare(connection: &mut PgConnection, value: &str) -> Result<(), sqlx::Error> {
    // Safe: the value has hexadecimal digits alone.
    sqlx::query(AssertSqlSafe(format!("select '{value}'"))).fetch_one(connection).await.map(|_| ())
}

/// Whether a connection still has the session to which it was tied.
async fn is_tied(connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let row = run(connection, &format!("select current_setting('{TIE}', true)")).await?;
    let value = row.try_get::<Option<String>, _>(0)?.unwrap_or_default();
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(false);
    }
    // A statement that the driver does not have for this connection is one of another connection.
    let known = connection.cached_statements_size();
    match prepare(connection, &value).await {
        Ok(()) => Ok(connection.cached_statements_size() == known),
        Err(sqlx::Error::Database(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Checks the connections of one pool before they are used again: a pooler can change its mode while they are open.
#[derive(Debug, Default)]
pub(super) struct Ties(std::sync::Mutex<Option<Instant>>);

impl Ties {
    /// Whether an idle connection answers, in its session.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub(super) async fn hold(&self, connection: &mut PgConnection) -> Result<bool, sqlx::Error> {
        if self.are_due() { is_tied(connection).await } else { connection.ping().await.map(|()| true) }
    }

    fn are_due(&self) -> bool {
        let mut checked = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = checked.is_none_or(|at| at.elapsed() >= TIE_HOLDS);
        if is_due {
            *checked = Some(Instant::now());
        }
        is_due
    }
}
