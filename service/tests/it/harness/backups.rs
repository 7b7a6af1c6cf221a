//! Base backups of a Postgres: standbys of it, and servers that are restored to a point in time.

use std::fs;

use sqlx::{Connection as _, PgConnection};

use super::{
    PrivatePostgres, eventually, free_port,
    servers::{as_postgres, data_directory, program, server_dir},
};

impl PrivatePostgres {
    /// Starts a standby that streams from it.
    pub(crate) async fn standby(&self) -> Self {
        let mut this = self.base_backup(&["--write-recovery-conf"]);
        this.restart().await;
        this
    }

    /// A server with a base backup of it, not started yet. `options` are of `pg_basebackup`.
    pub(crate) fn base_backup(&self, options: &[&str]) -> Self {
        let dir = server_dir();
        let data = data_directory(dir.path());
        let mut command = as_postgres(None);
        command.arg(program("pg_basebackup")).arg("--pgdata").arg(&data).args(["--dbname", &self.url()]);
        command.args(["--checkpoint=fast", "--wal-method=stream", "--no-sync"]).args(options);
        let output = command.current_dir("/").output().unwrap();
        assert!(output.status.success(), "pg_basebackup: {}", String::from_utf8_lossy(&output.stderr));
        Self { dir, port: free_port(), child: None }
    }

    /// Starts this backup of `lost` with its log replayed up to a time, at the address of `lost`, which does not run any more.
    pub(crate) async fn recover(&mut self, lost: &Self, time: &str) {
        assert!(lost.child.is_none(), "both have one address");
        let data = self.dir.path().join("postgres");
        let log = lost.dir.path().join("postgres/pg_wal");
        let settings = format!(
            "restore_command = 'cp {}/%f \"%p\"'\nrecovery_target_time = '{time}'\nrecovery_target_action = 'promote'\n",
            log.display()
        );
        let configuration = data.join("postgresql.conf");
        fs::write(&configuration, fs::read_to_string(&configuration).unwrap() + &settings).unwrap();
        fs::write(data.join("recovery.signal"), "").unwrap();
        self.port = lost.port;
        self.restart().await;
        self.takes_writes().await;
    }

    /// Promotes this standby.
    pub(crate) async fn promote(&self) {
        self.run("select pg_promote()").await;
        self.takes_writes().await;
    }

    async fn takes_writes(&self) {
        eventually("the server is a primary", async || {
            let Ok(mut connection) = PgConnection::connect(&self.url()).await else { return false };
            let recovers = sqlx::query_scalar("select pg_is_in_recovery()").fetch_one(&mut connection).await;
            matches!(recovers, Ok(false))
        })
        .await;
    }

    /// Lets this standby receive what is committed and not replay it.
    pub(crate) async fn pause_replay(&self) {
        self.run("select pg_wal_replay_pause()").await;
        let mut connection = PgConnection::connect(&self.url()).await.unwrap();
        eventually("the replay is paused", async || {
            let state = sqlx::query_scalar::<_, String>("select pg_get_wal_replay_pause_state()");
            state.fetch_one(&mut connection).await.unwrap() == "paused"
        })
        .await;
    }

    /// Runs a statement in its database `postgres`.
    pub(crate) async fn run(&self, statement: &str) {
        let mut connection = PgConnection::connect(&self.url()).await.unwrap();
        // Safe: the statements of tests.
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&mut connection).await.unwrap();
    }
}
