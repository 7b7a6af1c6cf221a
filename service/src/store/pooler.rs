//! Detection of a pooler in transaction mode, which gives the statements of one connection to several sessions.
//!
//! It must never use a prepared statement, which such a pooler loses, and must never depend on what a pooler is called.
//! Two connections of clients each set a variable of their session to a value of their own. Where one reads another value
//! than its own, the session is not its own.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use sqlx::{Connection as _, PgConnection, Row as _, postgres::PgConnectOptions};
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
