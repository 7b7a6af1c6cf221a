//! Faults of Postgres: killed, its sessions ended, suspended, slow, locked.

use std::time::Duration;

use nix::sys::signal::Signal;
use sqlx::Connection as _;
use tokio::time::{Instant, sleep};

use super::{Effect, Stage};
use crate::world::is_stopped;

impl Stage {
    pub(super) async fn postgres_kill(&self, lasts: Duration) -> Effect {
        let mut postgres = self.world.postgres.lock().await;
        self.mark();
        let died = postgres.kill().await;
        sleep(lasts / 3).await;
        postgres.ensure().await?;
        Ok((died, String::new()))
    }

    pub(super) async fn postgres_terminate(&self) -> Effect {
        let postgres = self.world.postgres.lock().await;
        let mut connection = postgres.connect().await?;
        self.mark();
        let ended: i64 = sqlx::query_scalar(
            "select count(*) filter (where pg_terminate_backend(pid)) from pg_stat_activity
             where pid <> pg_backend_pid() and backend_type = 'client backend'",
        )
        .fetch_one(&mut connection)
        .await?;
        Ok((ended > 0, format!("{ended} sessions")))
    }

    pub(super) async fn postgres_pause(&self, lasts: Duration) -> Effect {
        let postgres = self.world.postgres.lock().await;
        self.mark();
        postgres.signal_all(Signal::SIGSTOP);
        // Also processes that Postgres started in between.
        let stopped = postgres.signal_all(Signal::SIGSTOP);
        sleep(lasts).await;
        let suspended = postgres.pids().first().copied().is_some_and(is_stopped);
        postgres.resume();
        Ok((suspended, format!("{stopped} processes for {lasts:?}")))
    }

    /// Suspended for most of the time.
    pub(super) async fn postgres_slow(&self, lasts: Duration) -> Effect {
        let postgres = self.world.postgres.lock().await;
        let mut connection = postgres.connect().await?;
        let until = Instant::now() + lasts + Duration::from_secs(1);
        let mut slowest = Duration::ZERO;
        while Instant::now() < until {
            postgres.signal_all(Signal::SIGSTOP);
            let began = Instant::now();
            let (answer, ()) = tokio::join!(sqlx::query("select 1").execute(&mut connection), async {
                sleep(Duration::from_millis(60)).await;
                postgres.resume();
            });
            answer?;
            slowest = slowest.max(began.elapsed());
            sleep(Duration::from_millis(15)).await;
        }
        Ok((slowest > Duration::from_millis(50), format!("a query took {slowest:?}")))
    }

    /// A transaction locks rows that every commit needs, and sessions wait for a lock only for a short time.
    pub(super) async fn postgres_lock(&self, lasts: Duration) -> Effect {
        let postgres = self.world.postgres.lock().await;
        let mut connection = postgres.connect().await?;
        sqlx::query("alter database postgres set lock_timeout = '150ms'").execute(&mut connection).await?;
        let held = async {
            let mut transaction = connection.begin().await?;
            sqlx::query("select from shards order by shard for update").execute(&mut *transaction).await?;
            let (until, mut most) = (Instant::now() + lasts + Duration::from_millis(500), 0);
            while Instant::now() < until {
                sleep(Duration::from_millis(50)).await;
                let waiting: i64 =
                    sqlx::query_scalar("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
                        .fetch_one(&mut *transaction)
                        .await?;
                most = most.max(waiting);
            }
            transaction.rollback().await?;
            anyhow::Ok(most)
        };
        let most = held.await;
        let mut connection = postgres.connect().await?;
        sqlx::query("alter database postgres reset lock_timeout").execute(&mut connection).await?;
        let most = most?;
        Ok((most > 0, format!("{most} sessions waited")))
    }
}
