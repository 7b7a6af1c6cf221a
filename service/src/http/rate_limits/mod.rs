//! Limits of what API keys, and all clients together, may send: requests and records a second, and bytes in flight.
//!
//! Each process has its part: a limit divided by the number of processes that serve. Must never wait for another process,
//! and must never take a lock for a record.

mod bucket;
mod headers;

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use millrace_crds::{Limits, RateLimits};
use poem::{
    Request,
    http::header::{CONTENT_ENCODING, CONTENT_LENGTH},
};

use self::bucket::{Bucket, UsedUp};
use super::problem::Failure;
use crate::telemetry::metrics::LIMITED;

pub(super) use headers::mark;

/// Code of each refusal by a limit.
pub(crate) const CODE: &str = "rate_limited";
/// Longest wait of a stream of records for its turn.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// What is in use of limits: by an API key, or by all clients of this process.
#[derive(Debug, Default)]
pub struct Usage {
    requests: Bucket,
    records: Bucket,
    bytes: AtomicU64,
}

/// The limits of this process. Copies are cheap and share all.
#[derive(Debug, Clone)]
pub struct RateLimiter(Arc<Limiter>);

#[derive(Debug)]
struct Limiter {
    origin: Instant,
    /// How many processes serve; at least 1.
    processes: AtomicU32,
    /// Of all clients.
    all: Arc<Usage>,
}

impl Default for RateLimiter {
    fn default() -> Self {
        Self(Arc::new(Limiter { origin: Instant::now(), processes: AtomicU32::new(1), all: Arc::default() }))
    }
}

/// The place where a request's admission is left for the headers of its answer.
#[derive(Debug, Clone, Default)]
pub(super) struct Slot(Arc<OnceLock<Arc<Admitted>>>);

/// An admitted request. Its bytes are in flight until all copies are dropped.
#[derive(Debug, Clone, Default)]
pub(crate) struct Admission(Option<Arc<Admitted>>);

#[derive(Debug)]
struct Admitted {
    limiter: RateLimiter,
    parts: Vec<Part>,
    /// Bytes that are counted for this request.
    bytes: AtomicU64,
}

/// The part of this process in one set of limits.
#[derive(Debug)]
struct Part {
    of: Of,
    usage: Arc<Usage>,
    requests: Option<f64>,
    records: Option<f64>,
    bytes: Option<u64>,
}

/// Whose limits they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Of {
    Key,
    Pipeline,
}

impl Of {
    fn name(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Pipeline => "pipeline",
        }
    }
}

/// A kind of limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Requests,
    Records,
    Bytes,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Records => "records",
            Self::Bytes => "bytes",
        }
    }
}

/// A limit that is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limited {
    of: Of,
    kind: Kind,
    wait_ns: u64,
}

impl Limited {
    /// The limit, and the remedy.
    pub(crate) fn detail(self) -> String {
        let who = match self.of {
            Of::Key => "this API key",
            Of::Pipeline => "all clients together",
        };
        let limit = match self.kind {
            Kind::Requests => "requests than requestsPerSecond",
            Kind::Records => "records than recordsPerSecond",
            Kind::Bytes => "bytes at once than bytesInFlight",
        };
        format!("{who} sent more {limit}; send again after Retry-After seconds")
    }

    /// Whole seconds until there is something left, at least 1.
    pub(crate) fn retry_after(self) -> u64 {
        self.wait_ns.div_ceil(1_000_000_000).max(1)
    }

    /// Counts the refusal.
    pub(crate) fn count(self) {
        metrics::counter!(LIMITED, "limit" => format!("{}-{}", self.of.name(), self.kind.name())).increment(1);
    }
}

impl From<Limited> for Failure {
    fn from(limited: Limited) -> Self {
        Self::new(429, CODE, limited.detail()).retry_after(limited.retry_after())
    }
}

impl RateLimiter {
    /// Notes how many processes serve.
    pub(crate) fn set_processes(&self, processes: u32) {
        self.0.processes.store(processes.max(1), Ordering::Relaxed);
    }

    /// How many processes serve, at least 1: those that reported in the last five seconds.
    pub(crate) fn processes(&self) -> u32 {
        self.0.processes.load(Ordering::Relaxed)
    }

    /// Admits a request before its body is read. `own` are the limits of the caller, and `usage` is what it uses of them.
    /// `most` is the number of bytes that the request can hold at once; `is_stream`: it passes on what it reads.
    ///
    /// # Errors
    /// 429 with the limit that is reached. Nothing is used then.
    pub(crate) fn admit(
        &self,
        limits: Option<Limits>,
        (own, usage): (RateLimits, &Arc<Usage>),
        request: &Request,
        (most, is_stream): (usize, bool),
    ) -> Result<Admission, Failure> {
        let limits = limits.unwrap_or_default();
        let of_key = limits.per_key.unwrap_or_default().lower(own);
        let of_pipeline = limits.pipeline.unwrap_or_default();
        if of_key.is_empty() && of_pipeline.is_empty() {
            return Ok(Admission::default());
        }
        let processes = self.processes();
        let parts = [(Of::Key, usage, of_key), (Of::Pipeline, &self.0.all, of_pipeline)];
        let parts = parts.into_iter().filter(|(_, _, limits)| !limits.is_empty());
        let parts = parts.map(|(of, usage, limits)| Part::new(of, usage, limits, processes)).collect();
        let admitted = Arc::new(Admitted { limiter: self.clone(), parts, bytes: AtomicU64::new(0) });
        if let Some(Slot(slot)) = request.data() {
            // A request is admitted once.
            let _ = slot.set(Arc::clone(&admitted));
        }
        admitted.begin(expected(request, most, is_stream)).inspect_err(|limited| limited.count())?;
        Ok(Admission(Some(admitted)))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.0.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Number of bytes that a request is going to hold, as far as its head shows: 0 where the length is not known, but for a
/// stream, which holds no more than `most`.
fn expected(request: &Request, most: usize, is_stream: bool) -> u64 {
    let headers = request.headers();
    let length = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    let length = if is_stream && headers.contains_key(CONTENT_ENCODING) { None } else { length };
    length.unwrap_or(if is_stream { u64::MAX } else { 0 }).min(most as u64)
}

impl Admission {
    /// Takes records that are about to be appended, all or none.
    ///
    /// # Errors
    /// The limit that is reached. Nothing is used then.
    pub(crate) fn records(&self, records: u64) -> Result<(), Limited> {
        let Some(admitted) = &self.0 else { return Ok(()) };
        admitted.take(Kind::Records, records)
    }

    /// Waits for the turn of records of a stream, then takes them.
    ///
    /// # Errors
    /// The limit that stayed reached for half a minute.
    pub(crate) async fn records_in_turn(&self, records: u64) -> Result<(), Limited> {
        let began = Instant::now();
        loop {
            let Err(limited) = self.records(records) else { return Ok(()) };
            let wait = Duration::from_nanos(limited.wait_ns);
            if began.elapsed() + wait > LONGEST_WAIT {
                return Err(limited);
            }
            tokio::time::sleep(wait).await;
        }
    }

    /// Number of records of a stream that are taken at once: about as many as are allowed in a second.
    pub(crate) fn step(&self, most: u64) -> u64 {
        let parts = self.0.iter().flat_map(|admitted| &admitted.parts);
        let rates = parts.filter_map(|part| part.records);
        rates.fold(most, |least, rate| least.min(rate as u64)).max(1)
    }

    /// Counts what was read of the body: `bytes` in all.
    ///
    /// # Errors
    /// The limit that others hold by now.
    pub(crate) fn read(&self, bytes: usize) -> Result<(), Failure> {
        let Some(admitted) = &self.0 else { return Ok(()) };
        Ok(admitted.hold(bytes as u64).inspect_err(|limited| limited.count())?)
    }
}

impl Part {
    fn new(of: Of, usage: &Arc<Usage>, limits: RateLimits, processes: u32) -> Self {
        let RateLimits { requests_per_second, records_per_second, bytes_in_flight } = limits;
        let rate = |limit: u64| limit as f64 / f64::from(processes);
        Self {
            of,
            usage: Arc::clone(usage),
            requests: requests_per_second.map(rate),
            records: records_per_second.map(rate),
            bytes: bytes_in_flight.map(|limit| (limit / u64::from(processes)).max(1)),
        }
    }

    fn rate(&self, kind: Kind) -> Option<(&Bucket, f64)> {
        match kind {
            Kind::Requests => Some((&self.usage.requests, self.requests?)),
            Kind::Records => Some((&self.usage.records, self.records?)),
            Kind::Bytes => None,
        }
    }
}

impl Admitted {
    /// Takes a request and its bytes, if records are left, too.
    fn begin(&self, bytes: u64) -> Result<(), Limited> {
        self.take(Kind::Records, 0)?;
        self.take(Kind::Requests, 1)?;
        self.hold(bytes).inspect_err(|_| self.refund(Kind::Requests, 1, self.parts.len()))
    }

    fn take(&self, kind: Kind, cells: u64) -> Result<(), Limited> {
        let now = self.limiter.now();
        for (at, part) in self.parts.iter().enumerate() {
            let Some((bucket, rate)) = part.rate(kind) else { continue };
            let taken = if cells == 0 { bucket.check(now, rate) } else { bucket.take(now, cells, rate) };
            if let Err(UsedUp { wait_ns }) = taken {
                self.refund(kind, cells, at);
                return Err(Limited { of: part.of, kind, wait_ns });
            }
        }
        Ok(())
    }

    /// Returns what the first `parts` have given.
    fn refund(&self, kind: Kind, cells: u64, parts: usize) {
        for (bucket, rate) in self.parts[..parts].iter().filter_map(|part| part.rate(kind)) {
            bucket.refund(cells, rate);
        }
    }

    /// Counts `bytes` in all for this request, and refuses them where others hold the limit: a request that is alone is
    /// never refused.
    fn hold(&self, bytes: u64) -> Result<(), Limited> {
        let own = self.bytes.load(Ordering::Relaxed);
        let more = bytes.saturating_sub(own);
        for (at, part) in self.parts.iter().enumerate() {
            let others = part.usage.bytes.fetch_add(more, Ordering::Relaxed).saturating_sub(own);
            if part.bytes.is_some_and(|limit| others >= limit) {
                for added in &self.parts[..=at] {
                    added.usage.bytes.fetch_sub(more, Ordering::Relaxed);
                }
                return Err(Limited { of: part.of, kind: Kind::Bytes, wait_ns: 0 });
            }
        }
        self.bytes.fetch_add(more, Ordering::Relaxed);
        Ok(())
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let bytes = *self.bytes.get_mut();
        for part in &self.parts {
            part.usage.bytes.fetch_sub(bytes, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
