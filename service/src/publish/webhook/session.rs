//! The deliveries of one claim: makes what the window decides, and stores what it has noted.
//!
//! It must never count a delivery as ended before its outcome is stored.

use std::{sync::Arc, time::Duration};

use chrono::{DateTime, Utc};
use millrace_crds::status_api::PublisherState;
use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    measures::Measures,
    publisher::{End, Publisher},
    secrets::Signing,
    task::{Event, Read, Task, Tried, attempt, text},
    waiting::push,
    window::{Changes, MOST_WAITING, Next, Then, Window},
};
use crate::{
    domain::{DeliveryState, Seq, Watermarks},
    publish::{outcomes::Previous, state::Reported},
    store::{self, DeliveryRow, RequestedDelivery, SinkState, WebhookClaim, WebhookPosition},
    webhook::Client,
};

/// Between two writes of the cursor while deliveries end one by one.
const STORE: Duration = Duration::from_millis(50);
/// Between two writes of a cursor that moved over outcomes that are not of the sink.
const IDLE: Duration = Duration::from_secs(1);
/// Between two looks at the Secrets and at the retries that an administrator asked for.
const LOOK: Duration = Duration::from_secs(2);
/// Pause after an error of Postgres.
pub(super) const AGAIN: Duration = Duration::from_millis(500);

/// The time of Postgres's clock, carried on by this machine's.
#[derive(Debug, Clone, Copy)]
struct Clock {
    at: DateTime<Utc>,
    read: Instant,
}

impl Clock {
    fn now(self) -> DateTime<Utc> {
        self.at + self.read.elapsed()
    }
}

/// The deliveries of one claim.
pub(super) struct Session<'a> {
    publisher: &'a Publisher,
    task: Arc<Task>,
    signing: Arc<Signing>,
    window: Window,
    clock: Clock,
    numbers: watch::Receiver<Option<Watermarks>>,
    resets: u64,
    tasks: JoinSet<Event>,
    /// `None` while a page is being read.
    previous: Option<Previous>,
    storing: bool,
    stored_at: Instant,
    looked_at: Instant,
    /// Retries of failed deliveries that are under way.
    retries: Vec<Seq>,
    /// The last error of Postgres; `None` since it answered.
    trouble: Option<String>,
    /// The last failure of an attempt.
    last_failure: String,
    measures: Measures,
}

impl<'a> Session<'a> {
    pub(super) fn new(
        publisher: &'a Publisher,
        client: Client,
        claim: WebhookClaim,
        signing: Arc<Signing>,
        position: WebhookPosition,
        rows: Vec<DeliveryRow>,
        resets: u64,
    ) -> Self {
        let webhook = &publisher.target.webhook;
        let clock = Clock { at: position.now, read: Instant::now() };
        let in_flight = usize::try_from(webhook.max_in_flight).unwrap_or(1);
        let window = Window::new(webhook.ordering, in_flight, &position, rows, clock.now());
        let task = Task {
            outcomes: Arc::clone(&publisher.outcomes),
            target: Arc::clone(&publisher.target),
            client,
            claim,
            filter_after: position.filter_after,
        };
        Self {
            publisher,
            task: Arc::new(task),
            signing,
            window,
            clock,
            numbers: publisher.recent.numbers(),
            resets,
            tasks: JoinSet::new(),
            previous: Some(Previous::above(position.filter_after)),
            storing: false,
            stored_at: Instant::now(),
            looked_at: Instant::now() - LOOK,
            retries: Vec::new(),
            trouble: None,
            last_failure: String::new(),
            measures: Measures::new(&publisher.outcomes.sink, publisher.outcomes.shard),
        }
    }

    /// Delivers until something ends the claim.
    pub(super) async fn run(mut self, state: &mut Reported, stop: &CancellationToken) -> End {
        let mut stopping = false;
        loop {
            if self.publisher.recent.resets() != self.resets {
                return End::Reset;
            }
            let numbers = self.numbers.borrow_and_update().unwrap_or_default();
            let highest = self.task.outcomes.highest(numbers);
            if !stopping {
                self.look();
                self.read(highest);
                while let Some(next) = self.window.next(self.clock.now()) {
                    self.start(next);
                }
            }
            self.store(stopping);
            state.set(self.state());
            let (outcomes, token) = (&self.task.outcomes, &self.task.claim.lease.token);
            state.report(&outcomes.store, &outcomes.sink, outcomes.shard, token).await;
            self.measure(highest);
            if stopping && self.tasks.is_empty() {
                return End::Stopped;
            }
            let wakes_at = self.wakes_at(stopping);
            tokio::select! {
                Some(ended) = self.tasks.join_next() => {
                    // All that have ended by now are taken together.
                    let mut next = Some(ended);
                    while let Some(ended) = next {
                        if let Err(end) = self.take(event_of(ended)).await { return end }
                        next = self.tasks.try_join_next();
                    }
                },
                Ok(()) = self.numbers.changed(), if !stopping => {}
                () = tokio::time::sleep_until(wakes_at) => {}
                () = stop.cancelled(), if !stopping => stopping = true,
            }
        }
    }

    fn wakes_at(&self, stopping: bool) -> Instant {
        let now = Instant::now();
        let mut at = self.looked_at.max(now - LOOK) + LOOK;
        if stopping {
            at = now + STORE;
        }
        if self.window.has_ended() && !self.storing {
            at = at.min(self.stored_at + STORE);
        }
        if let Some(due) = self.window.wakes_at().filter(|_| !stopping) {
            let pause = (due - self.clock.now()).to_std().unwrap_or_default();
            at = at.min(now + pause);
        }
        // Never at once again.
        at.max(now + Duration::from_millis(1))
    }

    fn read(&mut self, highest: Seq) {
        if self.window.seen() >= highest || !self.window.takes_more() {
            return;
        }
        if let Some(previous) = self.previous.take() {
            self.spawn_read(previous, self.window.seen(), highest, Duration::ZERO);
        }
    }

    fn spawn_read(&mut self, previous: Previous, seen: Seq, highest: Seq, pause: Duration) {
        let task = Arc::clone(&self.task);
        self.tasks.spawn(async move { task.read(previous, seen, highest, pause).await });
    }

    fn start(&mut self, next: Next) {
        let (task, signing) = (Arc::clone(&self.task), Arc::clone(&self.signing));
        let through = self.window.delivered_through();
        match next {
            Next::Send(delivery) => self.tasks.spawn(async move { task.send(&delivery, &signing, through).await }),
            Next::Retry(seq) => self.tasks.spawn(async move { task.retry(seq, &signing, through).await }),
        };
    }

    fn then(&mut self, then: Then, pause: Duration) {
        if let Then::Follow { seq, upto } = then {
            let (task, destination) = (Arc::clone(&self.task), self.window.destination(seq));
            self.tasks.spawn(async move { task.follow(seq, upto, &destination, pause).await });
        }
    }

    /// Stores what has changed, if nothing is being stored.
    fn store(&mut self, stopping: bool) {
        let since = self.stored_at.elapsed();
        let is_due = self.window.is_pressed() || since >= STORE || stopping;
        if self.storing || !is_due || !self.window.has_ended() && since < IDLE && !stopping {
            return;
        }
        self.stored_at = Instant::now();
        if let Some(changes) = self.window.changes() {
            self.storing = true;
            self.spawn_store(changes, Duration::ZERO);
        }
    }

    fn spawn_store(&mut self, changes: Changes, pause: Duration) {
        let task = Arc::clone(&self.task);
        self.tasks.spawn(async move { task.store(changes, pause).await });
    }

    /// Looks at the Secrets and for retries that were asked for, from time to time.
    fn look(&mut self) {
        if self.looked_at.elapsed() < LOOK {
            return;
        }
        self.looked_at = Instant::now();
        match self.publisher.read_secrets() {
            Ok(signing) => self.signing = signing,
            Err(error) => tracing::warn!(
                event = "publish.secret.refused",
                sink = self.task.outcomes.sink,
                shard = self.task.outcomes.shard.get(),
                %error,
                "a Secret of a webhook cannot be used; its last content stays in use"
            ),
        }
        let task = Arc::clone(&self.task);
        self.tasks.spawn(async move { task.requested().await });
    }

    async fn take(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Read(read) => self.take_page(read),
            Event::Tried { seq, tried } => self.take_tried(seq, tried).await?,
            Event::Followed { seq, asked, found } => match found {
                Ok(found) => {
                    let then = self.window.followed(seq, asked, found, self.clock.now());
                    self.then(then, Duration::ZERO);
                }
                Err(error) => {
                    self.trouble = Some(error.to_string());
                    self.then(Then::Follow { seq, upto: asked }, AGAIN);
                }
            },
            Event::Stored { changes, outcome } => match outcome {
                Ok(()) => {
                    self.storing = false;
                    self.trouble = None;
                    self.window.stored(&changes);
                }
                Err(store::Error::Fenced) => return Err(store::Error::Fenced.into()),
                Err(error) => {
                    self.trouble = Some(error.to_string());
                    self.spawn_store(changes, AGAIN);
                }
            },
            Event::Requested(Ok(requested)) => requested.into_iter().for_each(|one| self.request(one)),
            Event::Requested(Err(error)) => self.trouble = Some(error.to_string()),
            Event::Retried { seq, outcome } => {
                self.retries.retain(|retry| *retry != seq);
                if let Err(error) = outcome {
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    fn take_page(&mut self, read: Read) {
        let Read { previous, seen, highest, page } = read;
        match page {
            Ok((deliveries, upto)) => {
                self.trouble = None;
                self.window.add(deliveries, upto);
                self.previous = Some(previous);
            }
            Err(error) => {
                self.trouble = Some(error.to_string());
                self.spawn_read(previous, seen, highest, AGAIN);
            }
        }
    }

    async fn take_tried(&mut self, seq: Seq, tried: Tried) -> Result<(), End> {
        let now = self.clock.now();
        let then = match tried {
            Tried::Expired => self.window.expired(seq),
            Tried::NotRead(error) => {
                self.trouble = Some(error.to_string());
                self.window.untried(seq);
                Then::Nothing
            }
            Tried::Ended { result, latency } => {
                let attempt = attempt(&result, latency, now);
                match result {
                    Ok(answer) if answer.is_success() => {
                        self.measures.delivered.increment(1);
                        self.measures.published.increment(1);
                        self.window.delivered(seq, now)
                    }
                    Ok(answer) if answer.is_gone() => {
                        let Task { outcomes, claim, target, .. } = &*self.task;
                        store::within(outcomes.store.disable_webhook(claim, &target.cursor_generation)).await?;
                        let sink = &outcomes.sink;
                        return Err(End::Disabled(format!(
                            "the endpoint answered 410: it is gone; once it is there again: millrace sinks resume {sink}"
                        )));
                    }
                    result => {
                        self.measures.failed.increment(1);
                        self.last_failure = text(&attempt);
                        self.window.failed(seq, attempt, result.ok().and_then(|answer| answer.retry_after))
                    }
                }
            }
        };
        self.then(then, Duration::ZERO);
        Ok(())
    }

    /// Makes a retry that an administrator asked for: at once, beside the order of its destination.
    fn request(&mut self, requested: RequestedDelivery) {
        let RequestedDelivery { seq, state, log } = requested;
        if state == DeliveryState::Waiting {
            self.window.request(seq, self.clock.now());
        } else if !self.retries.contains(&seq) {
            self.retries.push(seq);
            let (task, signing) = (Arc::clone(&self.task), Arc::clone(&self.signing));
            let (through, clock) = (self.window.delivered_through(), self.clock);
            self.tasks.spawn(async move {
                let outcome = match task.tried(seq, &signing, through).await {
                    Tried::NotRead(error) => Err(error),
                    Tried::Expired => task.retried(seq, None).await,
                    Tried::Ended { result: Ok(answer), .. } if answer.is_success() => task.retried(seq, None).await,
                    Tried::Ended { result, latency } => {
                        let mut log = log;
                        push(&mut log, attempt(&result, latency, clock.now()));
                        task.retried(seq, Some(&log)).await
                    }
                };
                Event::Retried { seq, outcome }
            });
        }
    }

    fn state(&self) -> Option<SinkState> {
        if let Some(detail) = self.trouble.clone() {
            return Some(SinkState { state: PublisherState::Failing, detail });
        }
        if self.window.health().failing_since().is_some() {
            let detail = format!("the endpoint fails for all destinations: {}", self.last_failure);
            return Some(SinkState { state: PublisherState::Failing, detail });
        }
        self.window.is_full().then(|| SinkState {
            state: PublisherState::Waiting,
            detail: format!("{MOST_WAITING} deliveries wait for a retry, the most: GET /deliveries lists them"),
        })
    }

    fn measure(&self, highest: Seq) {
        self.measures.lag.set(highest.above(self.window.seen()) as f64);
        self.measures.waiting.set(self.window.waiting() as f64);
    }
}

/// The event of a task that ended. No task is aborted while its session runs.
fn event_of(ended: Result<Event, JoinError>) -> Event {
    ended.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
