//! Calls of scripts. `redis::Script` would copy every argument twice.

use redis::{Cmd, ErrorKind, RedisError, RedisResult, Script, ServerErrorKind, Value};

use super::servers::Link;

/// A call of a script.
pub(super) struct Call {
    script: &'static Script,
    /// Takes the arguments.
    pub(super) command: Cmd,
}

impl Call {
    /// A call without arguments.
    pub(super) fn new(script: &'static Script, keys: &[&str]) -> Self {
        let mut command = redis::cmd("EVALSHA");
        command.arg(script.get_hash()).arg(keys.len()).arg(keys);
        Self { script, command }
    }

    /// Runs the script. It is loaded first where the server does not have it.
    pub(super) async fn send(&self, redis: &mut Link) -> RedisResult<Vec<Value>> {
        let answer = self.command.query_async(redis).await;
        if !answer.as_ref().is_err_and(is_not_loaded) {
            return answer;
        }
        self.load(redis).await?;
        self.command.query_async(redis).await
    }

    /// Loads the script.
    pub(super) async fn load(&self, redis: &mut Link) -> RedisResult<()> {
        self.script.load_async(redis).await.map(drop)
    }
}

/// Whether a server does not have the script, so that it did nothing.
pub(super) fn is_not_loaded(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}
