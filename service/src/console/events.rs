//! `GET /console/events`: the counts and lags of `/stats`, once a second, as server-sent events.
//!
//! Must never read the servers once for each console: a process reads them once for all.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use poem::{Body, Request, Response, http::header::CACHE_CONTROL};
use poem_openapi::types::ToJSON as _;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    domain::Scope,
    http::{App, auth::Reach, problem::Failure},
    query::stats,
};

/// Pause between two events.
const EVERY: Duration = Duration::from_secs(1);
/// For how long a count of the destinations serves: it reads the index once per destination.
const DESTINATIONS_EVERY: Duration = Duration::from_secs(30);
/// A reading of the servers is followed by a pause of so many times as long: large tables are not read all the time.
const REST: u32 = 9;
/// Most consoles at the same time.
const MOST: usize = 64;

/// The last reading, as an event.
struct Snapshot {
    event: Bytes,
    /// Until when it serves.
    until: Instant,
}

#[derive(Default)]
struct Readings {
    last: Option<Snapshot>,
    destinations: Option<(Instant, i64)>,
}

struct Inner {
    started: Instant,
    readings: Mutex<Readings>,
    stop: CancellationToken,
}

/// The events of this process.
pub(super) struct Events {
    inner: Arc<Inner>,
    places: Arc<Semaphore>,
}

/// One console that listens.
struct Listener {
    inner: Arc<Inner>,
    app: App,
    /// The request that opened the stream: its caller must stay allowed to see it.
    request: Request,
    is_first: bool,
    _place: OwnedSemaphorePermit,
}

impl Events {
    pub(super) fn new(stop: CancellationToken) -> Self {
        let inner = Inner { started: Instant::now(), readings: Mutex::default(), stop };
        Self { inner: Arc::new(inner), places: Arc::new(Semaphore::new(MOST)) }
    }

    pub(super) async fn answer(&self, request: Request, app: App) -> Result<Response, Failure> {
        app.keys.admit(&request, Scope::Read, Reach::All).await?;
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            Failure::new(503, "too_many_queries", format!("{MOST} consoles are open in this process; close one"))
        })?;
        let listener = Listener { inner: Arc::clone(&self.inner), app, request, is_first: true, _place: place };
        let events = futures::stream::unfold(listener, |mut listener| async move {
            let event = listener.next().await?;
            Some((std::io::Result::Ok(event), listener))
        });
        Ok(Response::builder()
            .content_type("text/event-stream")
            .header(CACHE_CONTROL, "no-store")
            // Of nginx: it would hold events back.
            .header("x-accel-buffering", "no")
            .body(Body::from_bytes_stream(events)))
    }
}

impl Listener {
    /// The next event; `None`: the process stops, or the caller may no longer see it.
    async fn next(&mut self) -> Option<Bytes> {
        if !std::mem::take(&mut self.is_first) {
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = self.inner.stop.cancelled() => return None,
            }
        }
        self.app.keys.admit(&self.request, Scope::Read, Reach::All).await.ok()?;
        Some(self.inner.current(&self.app).await)
    }
}

impl Inner {
    /// The last reading, or a new one. Others wait for it here.
    async fn current(&self, app: &App) -> Bytes {
        let mut readings = self.readings.lock().await;
        if let Some(last) = readings.last.as_ref().filter(|last| Instant::now() < last.until) {
            return last.event.clone();
        }
        let began = Instant::now();
        let event = match self.read(app, &mut readings).await {
            Ok(event) => event,
            Err(failure) => format!("event: problem\ndata: {}\n\n", failure.problem().to_json_string()),
        };
        let rest = (began.elapsed() * REST).max(EVERY - EVERY / 10);
        let event = Bytes::from(event);
        readings.last = Some(Snapshot { event: event.clone(), until: began + rest });
        event
    }

    async fn read(&self, app: &App, readings: &mut Readings) -> Result<String, Failure> {
        let known = readings.destinations.filter(|(at, _)| at.elapsed() < DESTINATIONS_EVERY);
        let destinations = match known {
            Some((_, destinations)) => destinations,
            None => app.store.count_destinations().await?,
        };
        readings.destinations = known.or(Some((Instant::now(), destinations)));
        let stats = stats::body(app, self.started, destinations).await?;
        Ok(format!("retry: 2000\nevent: stats\ndata: {stats}\n\n"))
    }
}
