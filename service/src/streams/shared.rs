//! A connection that all share: made when it is first used, and again when it broke.
//!
//! Must never keep a failure for longer than a moment: whatever kept a connection from being made, be it a server that has
//! no room for another client or an answer that broke off, the next who asks tries again.

use std::time::Duration;

use redis::{
    Client, Cmd, ErrorKind, Pipeline, RedisError, RedisResult, Value,
    aio::{ConnectionLike as _, MultiplexedConnection},
};
use tokio::{sync::Mutex, time::Instant};

use super::servers::{answers_soon, away};

/// How long a failure is told to all who ask: one after the other they would wait for one another.
const KEPT: Duration = Duration::from_millis(200);

/// How long a connection is unused until it is tried before use. A server (`timeout`) or a proxy may have closed it, and a
/// command that meets the end of its connection has an unknown outcome. Redis's shortest `timeout` is one second.
const UNUSED: Duration = Duration::from_millis(500);

/// The connection, and what makes it.
pub(super) struct Shared {
    client: Client,
    held: Mutex<Held>,
}

#[derive(Default)]
struct Held {
    connection: Option<MultiplexedConnection>,
    used: Option<Instant>,
    /// How often one was made.
    made: u64,
    failed: Option<(Instant, RedisError)>,
}

impl Shared {
    /// Makes no connection yet.
    pub(super) fn new(client: Client) -> Self {
        Self { client, held: Mutex::default() }
    }

    /// Sends a command.
    pub(super) async fn send(&self, command: &Cmd) -> RedisResult<Value> {
        let (mut connection, made) = self.connection().await?;
        let answer = connection.req_packed_command(command).await;
        self.look_at(answer.as_ref().err(), made).await;
        answer
    }

    /// Sends several at once.
    pub(super) async fn send_all(&self, pipeline: &Pipeline, offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        let (mut connection, made) = self.connection().await?;
        let answers = connection.req_packed_commands(pipeline, offset, count).await;
        self.look_at(answers.as_ref().err(), made).await;
        answers
    }

    async fn connection(&self) -> RedisResult<(MultiplexedConnection, u64)> {
        let mut held = self.held.lock().await;
        let is_fresh = held.used.replace(Instant::now()).is_some_and(|used| used.elapsed() < UNUSED);
        if let Some(connection) = held.connection.clone() {
            if is_fresh || is_open(connection.clone()).await {
                return Ok((connection, held.made));
            }
            held.connection = None;
        }
        if let Some((at, error)) = &held.failed
            && at.elapsed() < KEPT
        {
            return Err(error.clone());
        }
        match self.client.get_multiplexed_async_connection_with_config(&answers_soon()).await {
            Ok(connection) => {
                held.made += 1;
                held.connection = Some(connection.clone());
                Ok((connection, held.made))
            }
            Err(error) => {
                // Nothing was sent but greetings, which the error itself would not say.
                let error = match error.kind() {
                    ErrorKind::Io | ErrorKind::Parse => away(format!("no connection: {error}")),
                    _ => error,
                };
                held.failed = Some((Instant::now(), error.clone()));
                Err(error)
            }
        }
    }

    /// Lets a connection go that an error says is broken.
    async fn look_at(&self, error: Option<&RedisError>, made: u64) {
        if error.is_some_and(RedisError::is_unrecoverable_error) {
            let mut held = self.held.lock().await;
            if held.made == made {
                held.connection = None;
            }
        }
    }
}

/// Whether the server answers on a connection, whatever it answers.
async fn is_open(mut connection: MultiplexedConnection) -> bool {
    let answer = connection.req_packed_command(&redis::cmd("PING")).await;
    !answer.is_err_and(|error| error.is_unrecoverable_error() || error.is_timeout())
}
