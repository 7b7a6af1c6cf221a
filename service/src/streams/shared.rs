//! A shared connection: opened on first use, and again after it broke.
//!
//! It must never keep a failure for longer than a moment: after any failure to connect, such as a server without room
//! for another client or an incomplete reply, the next caller tries again.

use std::time::Duration;

use redis::{
    Client, Cmd, ErrorKind, Pipeline, RedisError, RedisResult, Value,
    aio::{ConnectionLike as _, MultiplexedConnection},
};
use tokio::{sync::Mutex, time::Instant};

use super::servers::{connection_config, unavailable_for};

/// How long a failure to connect is returned to all callers, which would otherwise wait for one another's attempts.
const FAILURE_KEPT: Duration = Duration::from_millis(200);

/// Idle time after which a connection is tested before use. A server (`timeout`) or a proxy may have closed it, and a
/// command on a closed connection has an unknown outcome. Redis's shortest `timeout` is one second.
const IDLE: Duration = Duration::from_millis(500);

/// The connection, and the client that opens it.
pub(super) struct Shared {
    client: Client,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    connection: Option<MultiplexedConnection>,
    used: Option<Instant>,
    /// Number of connections that were opened.
    opened: u64,
    failed: Option<(Instant, RedisError)>,
}

impl Shared {
    /// Opens no connection yet.
    pub(super) fn new(client: Client) -> Self {
        Self { client, state: Mutex::default() }
    }

    /// Sends a command.
    pub(super) async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        let (mut connection, opened) = self.connection().await?;
        let answer = connection.req_packed_command(command).await;
        self.check(answer.as_ref().err(), opened).await;
        answer
    }

    /// Sends several commands at once.
    pub(super) async fn send_all(&self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let (mut connection, opened) = self.connection().await?;
        let answers = connection.req_packed_commands(pipeline, offset, count).await;
        self.check(answers.as_ref().err(), opened).await;
        answers
    }

    async fn connection(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        let mut state = self.state.lock().await;
        let is_fresh = state.used.replace(Instant::now()).is_some_and(|used| used.elapsed() < IDLE);
        if let Some(connection) = state.connection.clone() {
            if is_fresh || is_open(connection.clone()).await {
                return Ok((connection, state.opened));
            }
            state.connection = None;
        }
        if let Some((at, error)) = &state.failed
            && at.elapsed() < FAILURE_KEPT
        {
            return Err(error.clone());
        }
        match self.client.get_multiplexed_async_connection_with_config(&connection_config()).await {
            Ok(connection) => {
                state.opened += 1;
                state.connection = Some(connection.clone());
                Ok((connection, state.opened))
            }
            Err(error) => {
                // Only the handshake was sent; the error itself does not show that.
                let error = match error.kind() {
                    ErrorKind::Io | ErrorKind::Parse => unavailable_for("no connection", error),
                    _ => error,
                };
                state.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Drops the connection if the error means that it is broken, unless another one was opened since.
    async fn check(&self, error: Option<&RedisError>, opened: u64) {
        if error.is_some_and(RedisError::is_unrecoverable_error) {
            let mut state = self.state.lock().await;
            if state.opened == opened {
                state.connection = None;
            }
        }
    }
}

/// Whether the server replies on a connection, with any reply.
async fn is_open(mut connection: MultiplexedConnection) -> bool {
    let answer = connection.req_packed_command(&redis::cmd("PING")).await;
    !answer.is_err_and(|error| error.is_unrecoverable_error() || error.is_timeout())
}
