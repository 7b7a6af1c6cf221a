//! Faults of Redis: killed, suspended, slow, full; and its data are destroyed or spoilt without the pipeline.

use std::{
    fs,
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::{Effect, Stage};
use crate::world::{Redis, ReportedLosses, SHARDS, SINKS, eventually, is_stopped, records};

/// Longest wait for the report of a loss.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Stage {
    pub(super) async fn redis_kill(&self, lasts: Duration) -> Effect {
        let mut redis = self.world.redis.lock().await;
        self.mark();
        let died = redis.kill().await;
        sleep(lasts / 3).await;
        redis.ensure().await?;
        Ok((died, String::new()))
    }

    pub(super) async fn redis_restart(&self) -> Effect {
        let mut redis = self.world.redis.lock().await;
        self.mark();
        let ended = redis.stop().await;
        redis.ensure().await?;
        Ok((ended, String::new()))
    }

    pub(super) async fn redis_pause(&self, lasts: Duration) -> Effect {
        let redis = self.world.redis.lock().await;
        self.mark();
        redis.signal(Signal::SIGSTOP);
        sleep(lasts).await;
        let suspended = redis.pid().is_some_and(is_stopped);
        redis.signal(Signal::SIGCONT);
        Ok((suspended, format!("{lasts:?}")))
    }

    /// Suspended for most of the time.
    pub(super) async fn redis_slow(&self, lasts: Duration) -> Effect {
        let redis = self.world.redis.lock().await;
        let until = Instant::now() + lasts + Duration::from_secs(1);
        let mut slowest = Duration::ZERO;
        while Instant::now() < until {
            redis.signal(Signal::SIGSTOP);
            let began = Instant::now();
            let (answer, ()) = tokio::join!(redis.command::<String>(&["PING"]), async {
                sleep(Duration::from_millis(60)).await;
                redis.signal(Signal::SIGCONT);
            });
            if answer.is_ok() {
                slowest = slowest.max(began.elapsed());
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok((slowest > Duration::from_millis(50), format!("a PING took {slowest:?}")))
    }

    pub(super) async fn redis_full(&self, lasts: Duration) -> Effect {
        let redis = self.world.redis.lock().await;
        let before = refused(&redis.command::<String>(&["INFO", "errorstats"]).await?);
        redis.command::<String>(&["CONFIG", "SET", "maxmemory", "1"]).await?;
        sleep(lasts + Duration::from_millis(500)).await;
        redis.command::<String>(&["CONFIG", "SET", "maxmemory", "0"]).await?;
        let after = refused(&redis.command::<String>(&["INFO", "errorstats"]).await?);
        Ok((after > before, format!("{} refused", after.saturating_sub(before))))
    }

    pub(super) async fn redis_group(&self, pick: u64) -> Effect {
        let redis = self.world.redis.lock().await;
        let stream = records(pick as usize % SHARDS);
        let destroyed: i64 = redis.command(&["XGROUP", "DESTROY", &stream, "workers"]).await?;
        Ok((destroyed == 1, stream))
    }

    /// Appends entries that no serve process appends.
    pub(super) async fn redis_malformed(&self, pick: u64) -> Effect {
        let redis = self.world.redis.lock().await;
        let contents: [&[&str]; 5] = [
            &["nonsense", "1"],
            &["record", "{\"recordId\":"],
            &["record", "\u{0}\u{1}\u{2}"],
            &["record", "[]"],
            &["record", "{\"recordId\":\"x\",\"value\":\"1e9\"}", "receivedAt", "yesterday"],
        ];
        let mut appended = 0;
        for (n, content) in contents.iter().enumerate() {
            let stream = records((pick as usize + n) % SHARDS);
            // Counted before: without an answer it is unknown whether Redis appended it.
            self.world.external.fetch_add(1, Ordering::Relaxed);
            let words: Vec<&str> = ["XADD", &stream, "*"].into_iter().chain(content.iter().copied()).collect();
            appended += usize::from(redis.command::<String>(&words).await.is_ok());
        }
        Ok((appended > 0, format!("{appended} appended")))
    }

    /// A crash with `appendfsync everysec`, which loses the last second.
    pub(super) async fn redis_cut(&self) -> Effect {
        let before = self.world.reported_losses().await.unwrap_or_default();
        let mut redis = self.world.redis.lock().await;
        redis.command::<String>(&["CONFIG", "SET", "appendfsync", "everysec"]).await?;
        sleep(Duration::from_millis(1_500)).await;
        let Some((file, kept)) = redis.log() else { return Ok((false, "there is no log".to_owned())) };
        sleep(Duration::from_millis(1_000)).await;
        self.mark();
        redis.kill().await;
        let newest = redis.log();
        let cut = match &newest {
            // Redis itself cuts the log back to the end of its last whole transaction.
            Some((newest, length)) if *newest == file && *length > kept => {
                fs::OpenOptions::new().write(true).open(&file)?.set_len(kept)?;
                length - kept
            }
            _ => 0,
        };
        redis.ensure().await?;
        drop(redis);
        let reported = self.until_reported(before).await;
        Ok((cut > 0, format!("{cut} bytes; {reported}")))
    }

    /// Somebody deletes an input stream, and not the hash beside it.
    pub(super) async fn redis_stream(&self, pick: u64) -> Effect {
        let before = self.world.reported_losses().await.unwrap_or_default();
        let stream = records(pick as usize % SHARDS);
        let redis = self.world.redis.lock().await;
        let workers = self.world.all_workers().await;
        for slot in &workers {
            slot.signal(Signal::SIGSTOP);
        }
        sleep(Duration::from_millis(800)).await;
        let deleted = remove_records(&redis, &stream, "DEL").await?;
        workers.iter().for_each(|slot| slot.resume());
        drop((workers, redis));
        self.world.trimmed.fetch_add(deleted, Ordering::Relaxed);
        let reported = self.until_reported(before).await;
        Ok((deleted > 0, format!("{deleted} records of {stream}; {reported}")))
    }

    /// Somebody deletes the hash beside an input stream, and not the stream: nothing may be lost.
    pub(super) async fn redis_hash(&self, pick: u64) -> Effect {
        let hash = records(pick as usize % SHARDS).replace(":records", ":fence");
        let deleted: i64 = self.world.redis.lock().await.command(&["DEL", &hash]).await?;
        Ok((deleted == 1, hash))
    }

    /// Entries of another program with ids of a far future: the ids after them are theirs plus one, so that Redis gives
    /// them again when it is rewound.
    pub(super) async fn redis_ids(&self) -> Effect {
        let mut appended = 0;
        {
            let redis = self.world.redis.lock().await;
            let now: Vec<u64> = redis.command(&["TIME"]).await?;
            let future = format!("{}-0", (now[0] + 86_400) * 1_000);
            for shard in 0..SHARDS {
                self.world.external.fetch_add(1, Ordering::Relaxed);
                let words = ["XADD", &records(shard), &future, "nonsense", "of the future"];
                appended += usize::from(redis.command::<String>(&words).await.is_ok());
            }
        }
        let (took, note) = self.redis_cut().await?;
        Ok((took && appended > 0, format!("{appended} appended; {note}")))
    }

    /// Redis loses all; the fault resumes the halted sinks as an administrator does.
    pub(super) async fn redis_flush(&self) -> Effect {
        let before = self.world.reported_losses().await.unwrap_or_default();
        {
            let redis = self.world.redis.lock().await;
            redis.command::<String>(&["FLUSHALL"]).await?;
        }
        let note = self.until_reported(before).await;
        let mut failure = String::new();
        for (sink, _) in SINKS {
            let resumed = eventually(Duration::from_secs(30), async || {
                match self.world.command(&["sinks", "resume", sink, "--from", "beginning"]).await {
                    Ok(_) => true,
                    Err(error) => {
                        failure = format!("{error:#}");
                        false
                    }
                }
            });
            if !resumed.await {
                return Ok((true, format!("{sink} was not resumed: {failure}")));
            }
        }
        Ok((true, note))
    }

    /// Waits a little until `/stats`, a metric and a log report a loss, and notes how long it took. None does where
    /// nothing was lost, or while another fault holds up the worker that reports it.
    pub(super) async fn until_reported(&self, mut before: ReportedLosses) -> String {
        let began = Instant::now();
        let mut when = [None; 3];
        while began.elapsed() < TIMEOUT {
            if let Ok(reported) = self.world.reported_losses().await {
                let mut metric = false;
                before.metrics.resize(reported.metrics.len(), None);
                for (before, now) in before.metrics.iter_mut().zip(reported.metrics) {
                    let Some(now) = now else { continue };
                    metric |= now > before.unwrap_or(0.0);
                    // A worker that was started since then counts from zero.
                    *before = Some(before.unwrap_or(0.0).min(now));
                }
                for (when, is) in
                    when.iter_mut().zip([reported.stats > before.stats, metric, reported.lines > before.lines])
                {
                    *when = when.or(is.then(|| began.elapsed().as_millis() as u64));
                }
            }
            if let [Some(stats), Some(metric), Some(log)] = when {
                let after = stats.max(metric).max(log);
                self.world.report_ms.lock().unwrap_or_else(PoisonError::into_inner).push(after);
                return format!("reported after {stats} ms by /stats, {metric} by a metric, {log} in a log");
            }
            sleep(Duration::from_millis(100)).await;
        }
        format!("no loss was reported everywhere: by /stats, a metric, in a log after {when:?} ms")
    }

    /// Trims entries that no worker has read: the workers are suspended while entries gather.
    pub(super) async fn redis_trim(&self, pick: u64) -> Effect {
        let before = self.world.reported_losses().await.unwrap_or_default();
        let redis = self.world.redis.lock().await;
        let workers = self.world.all_workers().await;
        for slot in &workers {
            slot.signal(Signal::SIGSTOP);
        }
        sleep(Duration::from_millis(800)).await;
        let mut trimmed = 0;
        for n in 0..3 {
            let stream = records((pick as usize + n) % SHARDS);
            trimmed += remove_records(&redis, &stream, "XTRIM").await?;
        }
        self.world.trimmed.fetch_add(trimmed, Ordering::Relaxed);
        workers.iter().for_each(|slot| slot.resume());
        drop((workers, redis));
        let reported = self.until_reported(before).await;
        Ok((trimmed > 0, format!("{trimmed} records; {reported}")))
    }
}

/// How often Redis refused a command because its memory was full.
fn refused(info: &str) -> u64 {
    let line = info.lines().find_map(|line| line.strip_prefix("errorstat_OOM:count="));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Empties a stream by `XTRIM` or `DEL`, and returns the number of records that were in it.
async fn remove_records(redis: &Redis, stream: &str, how: &str) -> anyhow::Result<u64> {
    const SCRIPT: &str = "local records = 0
        for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+')) do
          local first, last
          for i = 1, #entry[2], 2 do
            if entry[2][i] == 'offsets' then first, last = string.match(entry[2][i + 1], '(%d+)-(%d+)') end
          end
          records = records + (first and tonumber(last) - tonumber(first) + 1 or 1)
        end
        if ARGV[1] == 'DEL' then redis.call('DEL', KEYS[1]) else redis.call('XTRIM', KEYS[1], 'MAXLEN', 0) end
        return records";
    Ok(redis.command(&["EVAL", SCRIPT, "1", stream, how]).await?)
}
