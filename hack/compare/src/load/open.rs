//! An open loop: a record a tick, whatever becomes of the ones before.
//!
//! Must never let a slow answer delay a planned time: latency counts from there, so that a stall shows in every record
//! that would have been sent during it.

use std::{sync::Arc, thread, time::Duration};

use anyhow::Context as _;
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::{
    sync::{Mutex, Semaphore, mpsc},
    task::{JoinError, JoinSet},
    time::Instant,
};

use super::http::{Connection, Kind};

/// Connections that are open when it begins; more are opened while these are in use.
const CONNECTIONS: usize = 64;
/// Most requests at once. A record that waits for its turn has its planned time all the same.
const MOST: usize = 1_000;
/// Longest time that is recorded, in microseconds.
const LONGEST: u64 = 60_000_000;

/// When each record is due.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    began: Instant,
    /// The number of the first record.
    first: usize,
    /// Records a second.
    rate: f64,
}

impl Schedule {
    /// From now on, from this record on.
    pub(crate) fn new(first: usize, rate: f64) -> Self {
        // A moment ahead: the pacing thread starts first.
        Self { began: Instant::now() + Duration::from_millis(20), first, rate }
    }

    /// The planned time of a record; `None` for one before the first.
    pub(crate) fn due(&self, n: usize) -> Option<Instant> {
        let place = n.checked_sub(self.first)?;
        Some(self.began + Duration::from_secs_f64(place as f64 / self.rate))
    }
}

/// Sends single records at their planned times, and waits for all answers. Returns the time from each planned time to the
/// answer, in microseconds.
pub(crate) async fn send(
    port: u16,
    kind: Kind,
    bodies: Vec<Bytes>,
    schedule: Schedule,
) -> anyhow::Result<Histogram<u64>> {
    let mut ready = Vec::new();
    for _ in 0..CONNECTIONS {
        ready.push(Connection::open(port).await?);
    }
    let (idle, permits) = (Arc::new(Mutex::new(ready)), Arc::new(Semaphore::new(MOST)));
    let mut due = pace(bodies, schedule);
    let mut requests = JoinSet::new();
    let mut latency = Histogram::new_with_bounds(1, LONGEST, 3)?;
    let mut record = |ended: Result<anyhow::Result<Duration>, JoinError>| {
        latency.saturating_record(ended.context("a request")??.as_micros() as u64);
        anyhow::Ok(())
    };
    while let Some(Due { at, body }) = due.recv().await {
        let permit = Arc::clone(&permits).acquire_owned().await?;
        let idle = Arc::clone(&idle);
        requests.spawn(async move {
            let taken = idle.lock().await.pop();
            let mut connection = match taken {
                Some(connection) => connection,
                None => Connection::open(port).await?,
            };
            connection.post(kind, body).await?;
            let took = at.elapsed();
            idle.lock().await.push(connection);
            drop(permit);
            Ok(took)
        });
        while let Some(ended) = requests.try_join_next() {
            record(ended)?;
        }
    }
    while let Some(ended) = requests.join_next().await {
        record(ended)?;
    }
    Ok(latency)
}

/// A body that is due.
#[derive(Debug)]
struct Due {
    /// The planned time.
    at: Instant,
    body: Bytes,
}

/// Gives out each body at its time. A thread of its own: the runtime's timers are a millisecond coarse.
fn pace(bodies: Vec<Bytes>, schedule: Schedule) -> mpsc::UnboundedReceiver<Due> {
    let (give, take) = mpsc::unbounded_channel();
    thread::spawn(move || {
        for (place, body) in bodies.into_iter().enumerate() {
            let Some(at) = schedule.due(schedule.first + place) else { continue };
            thread::sleep(at.saturating_duration_since(Instant::now()));
            if give.send(Due { at, body }).is_err() {
                return;
            }
        }
    });
    take
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Schedule;

    #[test]
    fn records_are_due_at_even_intervals_from_the_first_on() {
        let schedule = Schedule::new(50, 1_000.0);
        assert_eq!(schedule.due(49), None);
        let first = schedule.due(50).unwrap();
        assert_eq!(schedule.due(51).unwrap() - first, Duration::from_millis(1));
        assert_eq!(schedule.due(20_050).unwrap() - first, Duration::from_secs(20));
    }
}
