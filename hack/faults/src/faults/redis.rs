//! Faults of Redis: killed, held still, slow, full; and what it holds is destroyed or spoilt behind the pipeline's back.

use std::{
    fs,
    sync::{PoisonError, atomic::Ordering},
    time::Duration,
};

use nix::sys::signal::Signal;
use tokio::time::{Instant, sleep};

use super::{Effect, Stage};
use crate::world::{SHARDS, SINKS, Said, eventually, is_stopped, records};

/// How long it is waited for a loss to be said.
const TIMEOUT: Duration = Duration::from_secs(10);

impl Stage {
    pub(super) async fn redis_kill(&self, lasts: Duration) -> Effect {
        let mut redis = self.world.redis.lock().await;
        let died = redis.kill().await;
        sleep(lasts / 3).await;
        redis.ensure().await?;
        Ok((died, String::new()))
    }

    pub(super) async fn redis_restart(&self) -> Effect {
        let mut redis = self.world.redis.lock().await;
        let ended = redis.stop().await;
        redis.ensure().await?;
        Ok((ended, String::new()))
    }

    pub(super) async fn redis_pause(&self, lasts: Duration) -> Effect {
        let redis = self.world.redis.lock().await;
        redis.signal(Signal::SIGSTOP);
        sleep(lasts).await;
        let held = redis.pid().is_some_and(is_stopped);
        redis.signal(Signal::SIGCONT);
        Ok((held, format!("{lasts:?}")))
    }

    /// Held still for most of the time.
    pub(super) async fn redis_slow(&self, lasts: Duration) -> Effect {
        let redis = self.world.redis.lock().await;
        let until = Instant::now() + lasts + Duration::from_secs(1);
        let mut slowest = Duration::ZERO;
        while Instant::now() < until {
            redis.signal(Signal::SIGSTOP);
            let began = Instant::now();
            let (asked, ()) = tokio::join!(redis.ask::<String>(&["PING"]), async {
                sleep(Duration::from_millis(60)).await;
                redis.signal(Signal::SIGCONT);
            });
            if asked.is_ok() {
                slowest = slowest.max(began.elapsed());
            }
            sleep(Duration::from_millis(10)).await;
        }
        Ok((slowest > Duration::from_millis(50), format!("a PING took {slowest:?}")))
    }

    pub(super) async fn redis_full(&self, lasts: Duration) -> Effect {
        let redis = self.world.redis.lock().await;
        let before = refused(&redis.ask::<String>(&["INFO", "errorstats"]).await?);
        redis.ask::<String>(&["CONFIG", "SET", "maxmemory", "1"]).await?;
        sleep(lasts + Duration::from_millis(500)).await;
        redis.ask::<String>(&["CONFIG", "SET", "maxmemory", "0"]).await?;
        let after = refused(&redis.ask::<String>(&["INFO", "errorstats"]).await?);
        Ok((after > before, format!("{} refused", after.saturating_sub(before))))
    }

    pub(super) async fn redis_group(&self, pick: u64) -> Effect {
        let redis = self.world.redis.lock().await;
        let stream = records(pick as usize % SHARDS);
        let destroyed: i64 = redis.ask(&["XGROUP", "DESTROY", &stream, "workers"]).await?;
        Ok((destroyed == 1, stream))
    }

    /// Entries that no serve process would write.
    pub(super) async fn redis_malformed(&self, pick: u64) -> Effect {
        let redis = self.world.redis.lock().await;
        let contents: [&[&str]; 5] = [
            &["nonsense", "1"],
            &["record", "{\"recordId\":"],
            &["record", "\u{0}\u{1}\u{2}"],
            &["record", "[]"],
            &["record", "{\"recordId\":\"x\",\"value\":\"1e9\"}", "receivedAt", "yesterday"],
        ];
        let mut put = 0;
        for (n, content) in contents.iter().enumerate() {
            let stream = records((pick as usize + n) % SHARDS);
            // Counted before: an answer that does not come leaves it unknown.
            self.world.external.fetch_add(1, Ordering::Relaxed);
            let words: Vec<&str> = ["XADD", &stream, "*"].into_iter().chain(content.iter().copied()).collect();
            put += usize::from(redis.ask::<String>(&words).await.is_ok());
        }
        Ok((put > 0, format!("{put} put in")))
    }

    /// With `appendfsync everysec`, a crash that takes the last second with it.
    pub(super) async fn redis_cut(&self) -> Effect {
        let before = self.world.losses_said().await.unwrap_or_default();
        let mut redis = self.world.redis.lock().await;
        redis.ask::<String>(&["CONFIG", "SET", "appendfsync", "everysec"]).await?;
        sleep(Duration::from_millis(1_500)).await;
        let Some((file, kept)) = redis.log() else { return Ok((false, "there is no log".to_owned())) };
        sleep(Duration::from_millis(1_000)).await;
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
        let said = self.until_said(before).await;
        Ok((cut > 0, format!("{cut} bytes; {said}")))
    }

    /// Everything is gone; the sinks, which cannot know how far they were, are resumed as an administrator does.
    pub(super) async fn redis_flush(&self) -> Effect {
        let before = self.world.losses_said().await.unwrap_or_default();
        {
            let redis = self.world.redis.lock().await;
            redis.ask::<String>(&["FLUSHALL"]).await?;
        }
        let note = self.until_said(before).await;
        let mut said = String::new();
        for (sink, _) in SINKS {
            let resumed = eventually(Duration::from_secs(30), async || {
                match self.world.command(&["sinks", "resume", sink, "--from", "beginning"]).await {
                    Ok(_) => true,
                    Err(error) => {
                        said = format!("{error:#}");
                        false
                    }
                }
            });
            if !resumed.await {
                return Ok((true, format!("{sink} was not resumed: {said}")));
            }
        }
        Ok((true, note))
    }

    /// Waits a little until a loss is said by `/stats`, by a metric and in a log, and notes how long it took. It never is
    /// where nothing was lost, or who should say it is held up by another fault.
    pub(super) async fn until_said(&self, mut before: Said) -> String {
        let began = Instant::now();
        let mut when = [None; 3];
        while began.elapsed() < TIMEOUT {
            if let Ok(said) = self.world.losses_said().await {
                let mut metric = false;
                before.metrics.resize(said.metrics.len(), None);
                for (before, now) in before.metrics.iter_mut().zip(said.metrics) {
                    let Some(now) = now else { continue };
                    metric |= now > before.unwrap_or(0.0);
                    // A worker that was started since counts from nothing.
                    *before = Some(before.unwrap_or(0.0).min(now));
                }
                for (when, is) in when.iter_mut().zip([said.stats > before.stats, metric, said.lines > before.lines]) {
                    *when = when.or(is.then(|| began.elapsed().as_millis() as u64));
                }
            }
            if let [Some(stats), Some(metric), Some(log)] = when {
                let after = stats.max(metric).max(log);
                self.world.said_ms.lock().unwrap_or_else(PoisonError::into_inner).push(after);
                return format!("said after {stats} ms by /stats, {metric} by a metric, {log} in a log");
            }
            sleep(Duration::from_millis(100)).await;
        }
        format!("nothing was said to be lost: by /stats, a metric, in a log after {when:?} ms")
    }

    /// Entries are trimmed that nobody has read: the workers are held still while they gather.
    pub(super) async fn redis_trim(&self, pick: u64) -> Effect {
        let before = self.world.losses_said().await.unwrap_or_default();
        let redis = self.world.redis.lock().await;
        let workers = self.world.all_workers().await;
        for slot in &workers {
            slot.signal(Signal::SIGSTOP);
        }
        sleep(Duration::from_millis(800)).await;
        let mut trimmed = 0;
        for n in 0..3 {
            let stream = records((pick as usize + n) % SHARDS);
            trimmed += redis.ask::<u64>(&["XTRIM", &stream, "MAXLEN", "0"]).await?;
        }
        self.world.trimmed.fetch_add(trimmed, Ordering::Relaxed);
        workers.iter().for_each(|slot| slot.go_on());
        drop((workers, redis));
        let said = self.until_said(before).await;
        Ok((trimmed > 0, format!("{trimmed} entries; {said}")))
    }
}

/// How often Redis refused a command for want of memory.
fn refused(info: &str) -> u64 {
    let line = info.lines().find_map(|line| line.strip_prefix("errorstat_OOM:count="));
    line.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}
