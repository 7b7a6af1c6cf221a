//! The steps of a session that wait for a server. Each runs beside the others, and returns what it found.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use chrono::{DateTime, Utc};

use tokio::time::Instant;

use super::{
    body::{self, Frame},
    secrets::Signing,
    window::{Changes, Delivery},
};
use crate::{
    domain::{Attempt, Seq, SeqRange},
    publish::{
        WebhookTarget,
        outcomes::{Outcome, Outcomes, Previous},
        render,
    },
    store::{self, RequestedDelivery, WebhookChanges, WebhookClaim},
    streams::Notice,
    webhook::{Answer, Client, Failure, Request},
};

/// What the steps need.
#[derive(Debug)]
pub(super) struct Task {
    pub(super) outcomes: Arc<Outcomes>,
    pub(super) target: Arc<WebhookTarget>,
    pub(super) client: Client,
    pub(super) claim: WebhookClaim,
    pub(super) filter_after: Seq,
}

/// The end of a step.
#[derive(Debug)]
pub(super) enum Event {
    Read(Read),
    Tried { seq: Seq, tried: Tried },
    Followed { seq: Seq, asked: Seq, found: Result<Option<Seq>, store::Error> },
    Stored { changes: Changes, outcome: Result<(), store::Error> },
    Requested(Result<Vec<RequestedDelivery>, store::Error>),
    Retried { seq: Seq, outcome: Result<(), store::Error> },
}

/// A page of outcomes, with the arguments that were asked for.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) previous: Previous,
    pub(super) seen: Seq,
    pub(super) highest: Seq,
    pub(super) page: Result<(Vec<Delivery>, Seq), store::Error>,
}

/// The end of an attempt.
#[derive(Debug)]
pub(super) enum Tried {
    Ended {
        result: Result<Answer, Failure>,
        latency: Duration,
    },
    /// The log no longer holds the outcome.
    Expired,
    /// Postgres did not answer.
    NotRead(store::Error),
}

impl Task {
    pub(super) async fn read(&self, mut previous: Previous, seen: Seq, highest: Seq, pause: Duration) -> Event {
        tokio::time::sleep(pause).await;
        let page = store::within(self.page(&mut previous, seen, highest)).await;
        Event::Read(Read { previous, seen, highest, page })
    }

    async fn page(
        &self,
        previous: &mut Previous,
        seen: Seq,
        highest: Seq,
    ) -> Result<(Vec<Delivery>, Seq), store::Error> {
        let next = self.outcomes.above(seen, highest).await?;
        let before = previous.of(&self.outcomes, &next.outcomes).await?;
        let deliveries = next.outcomes.into_iter().zip(before).map(|(outcome, (destination, previous))| Delivery {
            outcome,
            destination,
            previous,
        });
        Ok((deliveries.collect(), next.upto))
    }

    pub(super) async fn send(&self, delivery: &Delivery, signing: &Signing, through: Seq) -> Event {
        Event::Tried { seq: delivery.seq(), tried: self.post(delivery, signing, through).await }
    }

    pub(super) async fn retry(&self, seq: Seq, signing: &Signing, through: Seq) -> Event {
        Event::Tried { seq, tried: self.tried(seq, signing, through).await }
    }

    /// Reads an outcome again, and delivers it.
    pub(super) async fn tried(&self, seq: Seq, signing: &Signing, through: Seq) -> Tried {
        match store::within(self.delivery(seq)).await {
            Ok(Some(delivery)) => self.post(&delivery, signing, through).await,
            Ok(None) => Tried::Expired,
            Err(error) => {
                tokio::time::sleep(super::session::AGAIN).await;
                Tried::NotRead(error)
            }
        }
    }

    async fn delivery(&self, seq: Seq) -> Result<Option<Delivery>, store::Error> {
        let Some(outcome) = self.outcomes.at(seq).await? else { return Ok(None) };
        let previous = Previous::of_one(&self.outcomes, self.filter_after, &outcome).await?;
        let destination = Arc::from(outcome.destination());
        Ok(Some(Delivery { outcome, destination, previous }))
    }

    /// Posts all notices of an outcome, one after the other; the first that fails ends it, and a retry begins again.
    async fn post(&self, delivery: &Delivery, signing: &Signing, through: Seq) -> Tried {
        let Outcome { notice, more, .. } = &delivery.outcome;
        let frame = Frame {
            source: &self.target.source,
            kind: render::event_type(self.outcomes.kind),
            shard: self.outcomes.shard,
            previous: delivery.previous,
            through,
        };
        let mut tried = self.post_one(frame, notice, signing).await;
        for notice in more {
            let Tried::Ended { result: Ok(answer), .. } = &tried else { break };
            if !answer.is_success() {
                break;
            }
            tried = self.post_one(frame, notice, signing).await;
        }
        tried
    }

    async fn post_one(&self, frame: Frame<'_>, notice: &Notice, signing: &Signing) -> Tried {
        let request = Request {
            id: &format!("{}-{}", self.target.pipeline_id, notice.id),
            traceparent: notice.traceparent.as_deref(),
            body: body::of(frame, notice),
            keys: &signing.keys,
            headers: signing.headers.as_ref(),
        };
        crate::fault::point("before_delivery");
        let began = Instant::now();
        let result = self.client.post(request, wall_clock()).await;
        crate::fault::point("after_delivery");
        Tried::Ended { result, latency: began.elapsed() }
    }

    pub(super) async fn follow(&self, seq: Seq, upto: Seq, destination: &str, pause: Duration) -> Event {
        tokio::time::sleep(pause).await;
        let Outcomes { store, shard, kind, filter, .. } = &*self.outcomes;
        let range = SeqRange { after: seq, upto };
        let found = store::within(store.first_outcome(*shard, *kind, filter, destination, range)).await;
        Event::Followed { seq, asked: upto, found }
    }

    pub(super) async fn store(&self, changes: Changes, pause: Duration) -> Event {
        tokio::time::sleep(pause).await;
        let stored = WebhookChanges {
            cursor: changes.cursor,
            done: &changes.done,
            failing_since: changes.failing_since,
            rows: &changes.rows,
            removed: &changes.removed,
        };
        let outcome = store::within(self.outcomes.store.store_deliveries(&self.claim, stored)).await;
        Event::Stored { changes, outcome }
    }

    pub(super) async fn requested(&self) -> Event {
        let requested = self.outcomes.store.requested_deliveries(&self.claim.sink, self.claim.shard);
        Event::Requested(store::within(requested).await)
    }

    pub(super) async fn retried(&self, seq: Seq, log: Option<&[Attempt]>) -> Result<(), store::Error> {
        store::within(self.outcomes.store.store_retry(&self.claim, seq, log)).await
    }
}

/// An attempt as it is kept.
pub(super) fn attempt(result: &Result<Answer, Failure>, latency: Duration, at: DateTime<Utc>) -> Attempt {
    Attempt {
        at,
        latency_ms: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
        status: result.as_ref().ok().map(|answer| answer.status),
        error: result.as_ref().err().map(ToString::to_string),
    }
}

/// An attempt for a person.
pub(super) fn text(attempt: &Attempt) -> String {
    match (attempt.status, &attempt.error) {
        (Some(status), _) => format!("it answered {status}"),
        (None, error) => error.clone().unwrap_or_default(),
    }
}

/// The time that is signed.
fn wall_clock() -> SystemTime {
    SystemTime::now()
}
