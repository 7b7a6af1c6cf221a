//! A PgBouncer before a Postgres, in any mode.

use std::{fs, path::PathBuf, process::Child, str::FromStr as _};

use nix::sys::signal::Signal;
use sqlx::{Connection as _, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;

use super::{
    eventually, free_port,
    process::send,
    servers::{as_postgres, end, server_dir, spawn},
};

/// A pooler for one test, for all databases of a server.
#[derive(Debug)]
pub(crate) struct Pooler {
    dir: TempDir,
    server: String,
    port: u16,
    child: Option<Child>,
}

impl Pooler {
    /// Starts a pooler. `settings` are lines of its configuration, such as `pool_mode = session`.
    pub(crate) async fn start(server: &str, settings: &str) -> Self {
        let mut this = Self { dir: server_dir(), server: server.to_owned(), port: free_port(), child: None };
        this.restart(settings).await;
        this
    }

    /// Starts it again, on the same port, with other settings.
    pub(crate) async fn restart(&mut self, settings: &str) {
        end(&mut self.child, Signal::SIGKILL);
        let file = self.configure(settings);
        let mut command = as_postgres(Some("KILL"));
        let program = ["/usr/sbin/pgbouncer", "/usr/bin/pgbouncer"].into_iter().find(|path| fs::exists(path).unwrap());
        command.arg(program.expect("pgbouncer is not installed; hack/install-deps does it")).arg(&file);
        self.child = Some(spawn(command, self.dir.path()));
        // Without the startup option of the driver that it refuses.
        let options = PgConnectOptions::from_str(&self.url("postgres")).unwrap().extra_float_digits(None);
        eventually("the pooler answers", async || PgConnection::connect_with(&options).await.is_ok()).await;
    }

    /// Gives it other settings while it runs.
    pub(crate) fn reload(&self, settings: &str) {
        self.configure(settings);
        send(self.child.as_ref().expect("it runs"), Signal::SIGHUP).unwrap();
    }

    fn configure(&self, settings: &str) -> PathBuf {
        let server = PgConnectOptions::from_str(&self.server).unwrap();
        let configuration = format!(
            "[databases]\n* = host={} port={} user={}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {}\n\
             unix_socket_dir =\nauth_type = any\ndefault_pool_size = 100\nmax_client_conn = 500\n{settings}\n",
            server.get_host(),
            server.get_port(),
            server.get_username(),
            self.port
        );
        let file = self.dir.path().join("pgbouncer.ini");
        fs::write(&file, configuration).unwrap();
        file
    }

    /// The URL of its server.
    pub(crate) fn server(&self) -> &str {
        &self.server
    }

    /// The URL of a database by way of it.
    pub(crate) fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        end(&mut self.child, Signal::SIGKILL);
    }
}
