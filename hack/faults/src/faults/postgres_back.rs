//! Postgres is full, replaced by a standby, or rewound to an older state.

use std::{fs, time::Duration};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use sqlx::PgConnection;
use tokio::time::sleep;

use super::{Effect, Stage};
use crate::world::{children, eventually, postgres, proxy::Link};

/// Longest wait for a standby.
const TIMEOUT: Duration = Duration::from_secs(30);

impl Stage {
    /// The disk is full for a while.
    pub(super) async fn postgres_full(&self, lasts: Duration) -> Effect {
        let mut postgres = self.world.postgres.lock().await;
        let Some(disk) = &postgres.disk else { return Ok((false, "it has no disk of its own".to_owned())) };
        let complaints =
            || fs::read_to_string(postgres.log()).unwrap_or_default().matches("No space left on device").count();
        let before = complaints();
        disk.fill()?;
        eventually(lasts + Duration::from_secs(8), async || complaints() > before).await;
        sleep(lasts).await;
        let complained = complaints() - before;
        disk.free()?;
        // It may have ended because of the full disk.
        postgres.ensure().await?;
        Ok((complained > 0, format!("{complained} times no space was left")))
    }

    /// The primary dies, and a standby takes its place: one with all writes (`synchronous`), or one that was behind.
    pub(super) async fn postgres_standby(&self, synchronous: bool, lasts: Duration) -> Effect {
        let Some(proxies) = &self.world.proxies else { return Ok((false, "there is no toxiproxy".to_owned())) };
        let reported = self.world.reported_losses().await.unwrap_or_default();
        let mut primary = self.world.postgres.lock().await;
        let standby = primary.standby().await?;
        if synchronous {
            let mut sql = primary.connect().await?;
            sqlx::query("alter system set synchronous_standby_names = '*'").execute(&mut sql).await?;
            sqlx::query("select pg_reload_conf()").execute(&mut sql).await?;
            let in_step = eventually(TIMEOUT, async || {
                let query = "select exists (select from pg_stat_replication where sync_state in ('sync', 'quorum'))";
                sqlx::query_scalar::<_, bool>(query).fetch_one(&mut sql).await.unwrap_or(false)
            });
            anyhow::ensure!(in_step.await, "the standby is not synchronous");
        }
        sleep(lasts).await;
        let receiver = standby.pids().into_iter().find(|pid| is_receiver(*pid));
        if let (false, Some(receiver)) = (synchronous, receiver) {
            kill(Pid::from_raw(receiver.cast_signed()), Signal::SIGSTOP)?;
            sleep(Duration::from_millis(1_500)).await;
        }
        let before = log_length(&mut primary.connect().await?).await?;
        self.mark();
        primary.kill().await;
        if let (false, Some(receiver)) = (synchronous, receiver) {
            // It never receives the rest.
            kill(Pid::from_raw(receiver.cast_signed()), Signal::SIGTERM)?;
            kill(Pid::from_raw(receiver.cast_signed()), Signal::SIGCONT)?;
        }
        let port = standby.port;
        let promoted = eventually(TIMEOUT, async || {
            let Ok(mut sql) = postgres::connect(port).await else { return false };
            sqlx::query_scalar::<_, bool>("select pg_promote(true, 30)").fetch_one(&mut sql).await.unwrap_or(false)
        });
        anyhow::ensure!(promoted.await, "the standby was not promoted");
        let after = log_length(&mut postgres::connect(port).await?).await?;
        primary.replace(standby).await?;
        for role in ["serve", "work"] {
            proxies.redirect(&Link::postgres(role), port).await?;
        }
        drop(primary);
        let lost = (before - after).max(0);
        let note = if lost > 0 { self.until_reported(reported).await } else { String::new() };
        Ok((synchronous || lost > 0, format!("{lost} records behind; {note}")))
    }

    /// Postgres is restored to its state of some seconds ago.
    pub(super) async fn postgres_restore(&self, lasts: Duration) -> Effect {
        let reported = self.world.reported_losses().await.unwrap_or_default();
        let mut postgres = self.world.postgres.lock().await;
        let older = postgres.copy("restored", &[]).await?;
        sleep(lasts).await;
        let before = log_length(&mut postgres.connect().await?).await?;
        self.mark();
        postgres.replace(older).await?;
        postgres.ensure().await?;
        let lost = (before - log_length(&mut postgres.connect().await?).await?).max(0);
        drop(postgres);
        let note = if lost > 0 { self.until_reported(reported).await } else { String::new() };
        Ok((lost > 0, format!("{lost} records fewer; {note}")))
    }
}

/// How many sequence numbers were given.
pub(super) async fn log_length(sql: &mut PgConnection) -> anyhow::Result<i64> {
    Ok(sqlx::query_scalar("select sum(records)::bigint from shards").fetch_one(sql).await?)
}

/// Whether a process is the WAL receiver of a standby.
fn is_receiver(pid: u32) -> bool {
    let name = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    name.contains("walreceiver") && children(pid).is_empty()
}
