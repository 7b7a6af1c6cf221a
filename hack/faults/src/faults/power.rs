//! What disks do to their servers: they lose power, a write is torn, a bit flips.

use std::{fs, io::Write as _, path::Path, sync::atomic::Ordering, time::Duration};

use anyhow::{Context as _, ensure};
use nix::sys::signal::Signal;
use tokio::time::sleep;

use super::{Effect, IDLE, Stage, postgres_back::log_length};
use crate::{
    check::Wrong,
    world::{Redis, disk::Disk, eventually},
};

/// Bytes of a segment of Postgres's log.
const SEGMENT: u64 = 16 << 20;
/// Most bytes that are cut from Redis's log.
const TORN: u64 = 512;
/// Half of a command, as a write that was torn leaves it.
const HALF: &str = "*3\r\n$3\r\nSET\r\n$9\r\nhalf-writ";
/// Longest wait for the dead letter of a spoilt entry.
const DEAD_LETTER: Duration = Duration::from_secs(30);

impl Stage {
    /// The power of servers that flush what they acknowledge fails: nothing may be lost.
    pub(super) async fn power(&self, of_redis: bool, of_postgres: bool) -> Effect {
        // Both in the order in which others lock them.
        let mut redis = if of_redis { Some(self.world.redis.lock().await) } else { None };
        let mut postgres = if of_postgres { Some(self.world.postgres.lock().await) } else { None };
        let disks = redis.iter().map(|redis| &redis.disk).chain(postgres.iter().map(|postgres| &postgres.disk));
        self.mark();
        // Without power nobody is answered: a flush that fails meanwhile is reported to none.
        redis.iter().for_each(|redis| _ = redis.signal(Signal::SIGSTOP));
        postgres.iter().for_each(|postgres| _ = postgres.signal_all(Signal::SIGSTOP));
        for disk in disks {
            own(disk)?.lose_power()?;
        }
        let mut is_gone = true;
        if let Some(redis) = &mut redis {
            redis.kill().await;
            is_gone &= own(&redis.disk)?.restore_power().await?;
        }
        if let Some(postgres) = &mut postgres {
            postgres.kill_all().await;
            is_gone &= own(&postgres.disk)?.restore_power().await?;
        }
        if let Some(redis) = &mut redis {
            redis.ensure().await?;
        }
        if let Some(postgres) = &mut postgres {
            postgres.ensure().await?;
        }
        Ok((is_gone, String::new()))
    }

    /// The power of a Redis that flushes each second fails: it loses its last writes, and the loss is reported.
    pub(super) async fn power_everysec(&self, lasts: Duration) -> Effect {
        let before = self.world.reported_losses().await.unwrap_or_default();
        let mut redis = self.world.redis.lock().await;
        redis.command::<String>(&["CONFIG", "SET", "appendfsync", "everysec"]).await?;
        sleep(Duration::from_millis(1_500) + lasts / 2).await;
        let written = redis.log();
        self.mark();
        redis.signal(Signal::SIGSTOP);
        own(&redis.disk)?.lose_power()?;
        redis.kill().await;
        let is_gone = own(&redis.disk)?.restore_power().await?;
        let lost = match (written, redis.log()) {
            (Some((file, written)), Some((newest, flushed))) if file == newest => written.saturating_sub(flushed),
            _ => 0,
        };
        redis.ensure().await?;
        drop(redis);
        let reported = if lost > 0 { self.until_reported(before).await } else { String::new() };
        Ok((is_gone && lost > 0, format!("{lost} bytes of the log; {reported}")))
    }

    /// The end of Redis's log is cut, within a command: it loses its last write.
    pub(super) async fn redis_torn(&self, pick: u64) -> Effect {
        let before = self.world.reported_losses().await.unwrap_or_default();
        let mut redis = self.world.redis.lock().await;
        self.mark();
        redis.kill().await;
        let (file, length) = redis.log().context("there is no log")?;
        let cut = (pick % TORN + 1).min(length);
        fs::OpenOptions::new().write(true).open(&file)?.set_len(length - cut)?;
        redis.ensure().await?;
        drop(redis);
        let reported = self.until_reported(before).await;
        Ok((cut > 0, format!("{cut} bytes; {reported}")))
    }

    /// A write that Redis acknowledged to nobody is half in its log: nothing may be lost.
    pub(super) async fn redis_half(&self) -> Effect {
        let mut redis = self.world.redis.lock().await;
        self.mark();
        redis.kill().await;
        let (file, length) = redis.log().context("there is no log")?;
        fs::OpenOptions::new().append(true).open(&file)?.write_all(HALF.as_bytes())?;
        redis.ensure().await?;
        let is_cut = eventually(IDLE, async || fs::read(&file).is_ok_and(|log| !ends_half(&log))).await;
        Ok((is_cut, format!("behind {length} bytes")))
    }

    /// A bit of an entry that waits flips on the disk of Redis: it becomes a dead letter that says so.
    pub(super) async fn redis_bit(&self, pick: u64) -> Effect {
        // The entry holds nothing else.
        let Some(held) = self.load.hold(IDLE).await else { return Ok((false, "the load was not held".to_owned())) };
        let of_corrupted = "select count(*) from dead_letters where reason = 'corrupted'";
        let before = self.world.number(of_corrupted).await?;
        let mut redis = self.world.redis.lock().await;
        let workers = self.world.all_workers().await;
        for slot in &workers {
            slot.signal(Signal::SIGSTOP);
        }
        let id = format!("disk-{pick:020}");
        self.world.external.fetch_add(1, Ordering::Relaxed);
        let status = self.load.send_unknown(&id).await;
        redis.kill().await;
        let flipped = flip_in_log(&redis, &id, pick);
        redis.ensure().await?;
        workers.iter().for_each(|slot| slot.resume());
        drop((workers, redis, held));
        if status != Some(202) || !flipped? {
            return Ok((false, format!("the record was answered {status:?}, and is not in the log")));
        }
        let is_reported =
            eventually(DEAD_LETTER, async || self.world.number(of_corrupted).await.is_ok_and(|now| now > before));
        if !is_reported.await {
            let detail = format!("{id} has a flipped bit, and is no dead letter for it after {DEAD_LETTER:?}");
            self.world.wrong(Wrong::Unreported, detail);
        }
        Ok((true, id))
    }

    /// A bit of Postgres's log flips: it takes that for the end of its log, and is rewound.
    pub(super) async fn postgres_bit(&self, lasts: Duration, pick: u64) -> Effect {
        let reported = self.world.reported_losses().await.unwrap_or_default();
        let mut postgres = self.world.postgres.lock().await;
        let mut sql = postgres.connect().await?;
        sqlx::query("checkpoint").execute(&mut sql).await?;
        let position = "select (pg_current_wal_flush_lsn() - '0/0')::bigint";
        let from: i64 = sqlx::query_scalar(position).fetch_one(&mut sql).await?;
        sleep(lasts + Duration::from_secs(1)).await;
        let before = log_length(&mut sql).await?;
        let to: i64 = sqlx::query_scalar(position).fetch_one(&mut sql).await?;
        ensure!(to > from, "it wrote nothing");
        let at = (from + (pick % (to - from).cast_unsigned()).cast_signed()).cast_unsigned();
        let name = "select pg_walfile_name('0/0'::pg_lsn + $1::bigint::numeric)";
        let name: String = sqlx::query_scalar(name).bind(at.cast_signed()).fetch_one(&mut sql).await?;
        let log = postgres.data.join("pg_wal").join(name);
        self.mark();
        ensure!(postgres.kill_all().await, "it did not end");
        flip(&log, at % SEGMENT, pick)?;
        postgres.ensure().await?;
        let lost = (before - log_length(&mut postgres.connect().await?).await?).max(0);
        drop(postgres);
        let note = if lost > 0 { self.until_reported(reported).await } else { String::new() };
        Ok((lost > 0, format!("{lost} records fewer, {} of {} bytes; {note}", to - at.cast_signed(), to - from)))
    }
}

/// The disk of a server whose power can fail.
fn own(disk: &Option<Disk>) -> anyhow::Result<&Disk> {
    disk.as_ref().context("it has no disk of its own")
}

fn ends_half(log: &[u8]) -> bool {
    log.ends_with(HALF.as_bytes())
}

/// Flips a bit of a text in Redis's log; false: it is not in it.
fn flip_in_log(redis: &Redis, text: &str, pick: u64) -> anyhow::Result<bool> {
    let (file, _) = redis.log().context("there is no log")?;
    let log = fs::read(&file)?;
    let Some(at) = log.windows(text.len()).rposition(|window| window == text.as_bytes()) else { return Ok(false) };
    flip(&file, at as u64 + pick % text.len() as u64, pick)?;
    Ok(true)
}

/// Flips a bit of the byte at a place of a file.
fn flip(file: &Path, at: u64, pick: u64) -> anyhow::Result<()> {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().read(true).write(true).open(file).with_context(|| file.display().to_string())?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1 << (pick % 8)], at)?;
    Ok(file.sync_all()?)
}
