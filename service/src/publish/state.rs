//! The state of a publisher, in the log, as metrics and in Postgres.

use metrics::Gauge;

use crate::{
    domain::ShardId,
    store::{self, SinkState, Store},
    telemetry::metrics as names,
};

/// The state that a publisher reports when it changes.
#[derive(Debug, Default)]
pub(super) struct Reported {
    /// `None`: it runs.
    pub(super) failure: Option<SinkState>,
    /// Whether log and metric have it.
    is_logged: bool,
    /// Whether Postgres has it.
    is_stored: bool,
}

impl Reported {
    /// Takes the state after a pass.
    pub(super) fn set(&mut self, failure: Option<SinkState>) {
        if self.failure != failure {
            (self.is_logged, self.is_stored) = (false, false);
        }
        self.failure = failure;
    }

    /// Whether Postgres holds it.
    pub(super) fn is_stored(&self) -> bool {
        self.is_stored
    }

    /// Postgres may have lost it.
    pub(super) fn store_again(&mut self) {
        self.is_stored = false;
    }

    /// Reports a new failure, or its end. `token` is the lease's.
    pub(super) async fn report(&mut self, store: &Store, sink: &str, shard: ShardId, token: &str) {
        if !self.is_logged {
            log(sink, shard, self.failure.as_ref());
            self.is_logged = true;
        }
        if !self.is_stored {
            match store::within(store.set_sink_state(sink, shard, Some(token), self.failure.as_ref())).await {
                Ok(()) => self.is_stored = true,
                Err(error) => tracing::debug!(
                    event = "publish.state.not_stored",
                    sink,
                    shard = shard.get(),
                    error = %error,
                    "the state of a publisher cannot be stored"
                ),
            }
        }
    }
}

/// The measure of the outcomes that a publisher has not read yet.
pub(super) fn lag(sink: &str, shard: ShardId) -> Gauge {
    metrics::gauge!(names::SINK_LAG, "sink" => sink.to_owned(), "shard" => shard.to_string())
}

fn log(sink: &str, shard: ShardId, failure: Option<&SinkState>) {
    let number = shard.get();
    match failure {
        Some(SinkState { state, detail }) if state.is_final() => tracing::error!(
            event = "publisher.halted",
            sink,
            shard = number,
            detail,
            "a publisher is halted until the sink is resumed by hand"
        ),
        Some(SinkState { state, detail }) => tracing::warn!(
            event = "publisher.stopped",
            sink,
            shard = number,
            state = state.as_str(),
            detail,
            "a publisher cannot publish and is retried"
        ),
        None => tracing::debug!(event = "publisher.running", sink, shard = number, "a publisher publishes again"),
    }
    let halted = failure.is_some_and(|failure| failure.state.is_final());
    metrics::gauge!(names::SINK_HALTED, "sink" => sink.to_owned(), "shard" => shard.to_string())
        .set(f64::from(u8::from(halted)));
}
