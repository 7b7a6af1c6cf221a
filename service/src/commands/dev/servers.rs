//! Both private servers together: started with what an earlier run left, stopped in order.

use super::{home::Home, postgres, process::Server, redis};
use crate::lifecycle::Lifecycle;

/// A Redis and a Postgres that run.
#[derive(Debug)]
pub(super) struct Servers {
    redis: Server,
    postgres: Server,
    pub(super) redis_url: String,
    pub(super) postgres_url: String,
}

impl Servers {
    /// Starts both, after ending those that a killed `dev` left over.
    ///
    /// # Errors
    /// A missing program, or the server that did not start with the place of its log. Nothing runs then.
    pub(super) async fn start(home: &mut Home) -> anyhow::Result<Self> {
        redis::end_left_over(home).await?;
        postgres::end_left_over(home).await?;
        home.choose_ports()?;
        let (redis, postgres) = tokio::join!(redis::start(home), postgres::start(home));
        match (redis, postgres) {
            (Ok(redis), Ok(postgres)) => {
                Ok(Self { redis, postgres, redis_url: redis::url(home), postgres_url: postgres::url(home) })
            }
            (Ok(server), Err(error)) | (Err(error), Ok(server)) => {
                server.stop().await;
                Err(error)
            }
            (Err(error), Err(_)) => Err(error),
        }
    }

    /// Lets the process fail when one of them ends.
    pub(super) fn watch(&self, lifecycle: &Lifecycle) {
        for (name, ended) in [("redis-server", self.redis.watch()), ("postgres", self.postgres.watch())] {
            let soft = lifecycle.soft.clone();
            lifecycle.spawn(name, async move {
                tokio::select! {
                    outcome = ended => outcome,
                    () = soft.cancelled() => Ok(()),
                }
            });
        }
    }

    /// Ends both in order.
    pub(super) async fn stop(self) {
        tokio::join!(self.redis.stop(), self.postgres.stop());
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use sqlx::Connection as _;

    use super::*;

    async fn set(url: &str, key: &str) {
        let mut connection =
            ::redis::Client::open(url).expect("url").get_multiplexed_async_connection().await.expect("redis");
        ::redis::cmd("SET").arg(key).arg("kept").query_async::<()>(&mut connection).await.expect("set");
    }

    async fn get(url: &str, key: &str) -> Option<String> {
        let mut connection =
            ::redis::Client::open(url).expect("url").get_multiplexed_async_connection().await.expect("redis");
        ::redis::cmd("GET").arg(key).query_async(&mut connection).await.expect("get")
    }

    /// Whether the table could be made: not when it is there already.
    async fn make_table(url: &str) -> bool {
        let mut connection = sqlx::postgres::PgConnection::connect(url).await.expect("postgres");
        sqlx::query("create table kept ()").execute(&mut connection).await.is_ok()
    }

    async fn started(dir: &Path) -> (Home, Servers) {
        let mut home = Home::take(dir).expect("home");
        let servers = Servers::start(&mut home).await.expect("servers");
        (home, servers)
    }

    /// Everything in one test: each start of Postgres costs a second.
    #[tokio::test]
    async fn state_outlives_stops_and_leftovers_are_ended() {
        let dir = tempfile::tempdir().expect("dir");
        let (home, servers) = started(dir.path()).await;
        set(&servers.redis_url, "a").await;
        assert!(make_table(&servers.postgres_url).await, "a fresh Postgres is empty");
        let urls = (servers.redis_url.clone(), servers.postgres_url.clone());
        servers.stop().await;
        drop(home);

        let (home, servers) = started(dir.path()).await;
        assert_eq!((servers.redis_url.clone(), servers.postgres_url.clone()), urls, "ports and passwords are kept");
        assert_eq!(get(&servers.redis_url, "a").await.as_deref(), Some("kept"));
        assert!(!make_table(&servers.postgres_url).await, "Postgres kept its table");
        set(&servers.redis_url, "b").await;
        // As if this process had been killed: both servers continue running.
        std::mem::forget(servers);
        drop(home);

        let (home, servers) = started(dir.path()).await;
        assert_eq!(servers.redis_url, urls.0, "the leftover process released its port");
        assert_eq!(get(&servers.redis_url, "b").await.as_deref(), Some("kept"));

        let lifecycle = Lifecycle::new();
        servers.watch(&lifecycle);
        let running = lifecycle.clone().run(Duration::from_secs(5));
        let pid = std::fs::read_to_string(home.dir.join("redis/redis.pid")).expect("pid");
        let pid = nix::unistd::Pid::from_raw(pid.trim().parse().expect("pid"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
        let failure = running.await.expect_err("a server died").to_string();
        assert!(failure.contains("redis-server ended") && failure.contains("redis.log"), "{failure}");
        servers.stop().await;
        // Elsewhere, when this test runs as root.
        std::fs::remove_dir_all(&home.postgres).expect("removed");
    }
}
