//! One publisher of a webhook: claims the position of its shard, and delivers from there on.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use millrace_crds::status_api::PublisherState;
use tokio_util::sync::CancellationToken;

use super::{WebhookSecrets, secrets::Signing, session::Session};
use crate::{
    config::SecretError,
    domain::Lease,
    publish::{RecentCommits, WebhookTarget, outcomes::Outcomes, sink::current, state::Reported},
    store::{self, SinkState, WebhookClaim},
};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// A publisher of a webhook and what it needs.
#[derive(Debug)]
pub(in crate::publish) struct Publisher {
    pub(in crate::publish) outcomes: Arc<Outcomes>,
    pub(in crate::publish) lease: Arc<Mutex<Lease>>,
    pub(in crate::publish) recent: Arc<RecentCommits>,
    pub(in crate::publish) target: Arc<WebhookTarget>,
    pub(in crate::publish) secrets: WebhookSecrets,
}

/// Why a session ended, or could not begin.
#[derive(Debug)]
pub(super) enum End {
    /// The publisher was asked to stop, and everything that was under way is stored.
    Stopped,
    /// Postgres may have been rewound: the position has to be read again.
    Reset,
    /// For this cause; it begins again.
    Failed(String),
    /// The endpoint answered that it is gone.
    Disabled(String),
}

impl From<store::Error> for End {
    fn from(error: store::Error) -> Self {
        Self::Failed(error.to_string())
    }
}

impl Publisher {
    /// Delivers until `stop` is cancelled, then waits for the deliveries under way, as long as `drain` is not cancelled.
    pub(in crate::publish) async fn run(self, stop: CancellationToken, drain: CancellationToken) {
        let mut numbers = self.recent.numbers();
        // Until the owner has read the numbers of the shard no position can be judged.
        tokio::select! {
            known = numbers.wait_for(Option::is_some) => if known.is_err() { return },
            () = stop.cancelled() => return,
        }
        let (mut state, mut pause) = (Reported::default(), FIRST_PAUSE);
        loop {
            let end = tokio::select! {
                end = self.session(&mut state, &mut pause, &stop) => end,
                () = drain.cancelled() => return,
            };
            match end {
                End::Stopped => return,
                End::Reset => state.store_again(),
                End::Failed(detail) => state.set(Some(SinkState { state: PublisherState::Failing, detail })),
                End::Disabled(detail) => state.set(Some(SinkState { state: PublisherState::Disabled, detail })),
            }
            let token = current(&self.lease).token;
            state.report(&self.outcomes.store, &self.outcomes.sink, self.outcomes.shard, &token).await;
            if stop.is_cancelled() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = stop.cancelled() => return,
                () = drain.cancelled() => return,
            }
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn session(&self, state: &mut Reported, pause: &mut Duration, stop: &CancellationToken) -> End {
        match self.begin().await {
            Ok(session) => {
                *pause = FIRST_PAUSE;
                session.run(state, stop).await
            }
            Err(end) => end,
        }
    }

    async fn begin(&self) -> Result<Session<'_>, End> {
        let resets = self.recent.resets();
        let signing = self.read_secrets().map_err(|error| End::Failed(error.to_string()))?;
        let client = self.target.client().map_err(End::Failed)?;
        let Outcomes { store, shard, sink, filter, .. } = &*self.outcomes;
        let claim = WebhookClaim { sink: sink.clone(), shard: *shard, lease: current(&self.lease) };
        let claimed = store::within(store.claim_webhook(&claim, &self.target.cursor_generation, filter)).await?;
        let Some((position, rows)) = claimed else {
            return Err(End::Failed("the shard has another owner by now, or the sink starts again".to_owned()));
        };
        Ok(Session::new(self, client, claim, signing, position, rows, resets))
    }

    pub(super) fn read_secrets(&self) -> Result<Arc<Signing>, SecretError> {
        self.secrets.read(&self.target.webhook)
    }
}
