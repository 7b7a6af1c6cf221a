//! The private Postgres of `millrace dev`, with its durable defaults. It refuses to run as root: see `home`.

use std::{fs, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path, process::Stdio};

use anyhow::{Context as _, bail};
use nix::{sys::signal::Signal, unistd::chown};
use sqlx::{Connection as _, postgres::PgConnection};
use tokio::process::Command;

use super::{
    home::{Account, Home},
    process::{Server, end_leftover},
    tools,
};

const USER: &str = "millrace";

/// Ends one that a killed `dev` left over.
pub(super) async fn end_left_over(home: &Home) -> anyhow::Result<()> {
    let data = home.postgres.join("data");
    end_leftover("postgres", &data.join("postmaster.pid"), &data, Signal::SIGINT).await
}

/// Makes its files when there are none, starts it, and waits until it answers.
pub(super) async fn start(home: &Home) -> anyhow::Result<Server> {
    let data = home.postgres.join("data");
    if !data.exists() {
        initialise(home, &data).await?;
    }
    let mut command = command(home, "postgres")?;
    command.arg("-D").arg(&data).args([
        "-c",
        "listen_addresses=127.0.0.1",
        "-c",
        &format!("port={}", home.state.postgres_port),
        "-c",
        "unix_socket_directories=",
    ]);
    // Fast shutdown: sessions are ended, everything is written.
    let server = Server::start("postgres", command, home.dir.join("postgres.log"), Signal::SIGINT)?;
    let url = url(home);
    let ready = server
        .wait_until(async || {
            let ping = async { PgConnection::connect(&url).await?.close().await };
            ping.await.map_err(|error: sqlx::Error| error.to_string())
        })
        .await;
    match ready {
        Ok(()) => Ok(server),
        Err(error) => {
            server.stop().await;
            Err(error)
        }
    }
}

/// Its URL, with the password.
pub(super) fn url(home: &Home) -> String {
    format!("postgres://{USER}:{}@127.0.0.1:{}/postgres", home.state.postgres_password, home.state.postgres_port)
}

fn command(home: &Home, program: &str) -> anyhow::Result<Command> {
    let mut command = Command::new(tools::find(program, "postgresql")?);
    // Where its user may be; the directory that this process was started in may be out of its reach.
    command.current_dir(&home.postgres);
    if let Some(Account { uid, gid }) = home.account {
        command.uid(uid.as_raw()).gid(gid.as_raw());
    }
    Ok(command)
}

/// Makes the files beside their place and moves them there once they are whole: one that is stopped half-way starts over.
async fn initialise(home: &Home, data: &Path) -> anyhow::Result<()> {
    tracing::info!(event = "dev.postgres.initialised", data = %data.display(), "initialised a Postgres");
    let (fresh, password) = (home.postgres.join("data.new"), home.postgres.join("password"));
    if fresh.exists() {
        fs::remove_dir_all(&fresh).with_context(|| format!("cannot remove {}", fresh.display()))?;
    }
    write_password(home, &password).with_context(|| format!("cannot write {}", password.display()))?;
    let mut command = command(home, "initdb")?;
    command
        .arg("-D")
        .arg(&fresh)
        .args(["--username", USER, "--auth", "scram-sha-256", "--encoding", "UTF8", "--no-locale", "--pwfile"])
        .arg(&password)
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true);
    let output = command.output().await.context("cannot start initdb")?;
    let _ = fs::remove_file(&password);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        bail!("initdb failed ({}): {said}", output.status);
    }
    fs::rename(&fresh, data).with_context(|| format!("cannot make {}", data.display()))
}

fn write_password(home: &Home, file: &Path) -> std::io::Result<()> {
    let mut target = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(file)?;
    target.write_all(home.state.postgres_password.as_bytes())?;
    if let Some(Account { uid, gid }) = home.account {
        chown(file, Some(uid), Some(gid))?;
    }
    Ok(())
}
