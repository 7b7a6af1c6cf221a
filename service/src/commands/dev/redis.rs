//! The private Redis of `millrace dev`: acknowledges a write once it is on disk, and never evicts.

use std::path::Path;

use nix::sys::signal::Signal;
use tokio::process::Command;

use super::{
    home::{Home, make_private, write_private},
    process::{Server, end_leftover},
    tools,
};

/// Ends one that a killed `dev` left over.
pub(super) async fn end_left_over(home: &Home) -> anyhow::Result<()> {
    let dir = home.dir.join("redis");
    end_leftover("redis-server", &dir.join("redis.pid"), &dir, Signal::SIGTERM).await
}

/// Starts it, and waits until it answers.
pub(super) async fn start(home: &Home) -> anyhow::Result<Server> {
    let program = tools::find("redis-server", "redis-server")?;
    let dir = home.dir.join("redis");
    make_private(&dir, None)?;
    // In a file and not on the command line, which every user of the machine can read.
    let file = home.dir.join("redis.conf");
    write_private(&file, configuration(&dir, home.state.redis_port, &home.state.redis_password).as_bytes())?;
    let mut command = Command::new(program);
    command.arg(&file).current_dir(&dir);
    let server = Server::start("redis-server", command, home.dir.join("redis.log"), Signal::SIGTERM)?;
    let url = url(home);
    let ready = server
        .wait_until(async || {
            let ping = async {
                let mut connection = redis::Client::open(url.as_str())?.get_multiplexed_async_connection().await?;
                redis::cmd("PING").query_async::<()>(&mut connection).await
            };
            ping.await.map_err(|error| error.to_string())
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

/// Its URL, with the password. The user's name is given because redis-cli would otherwise ask for one that is empty.
pub(super) fn url(home: &Home) -> String {
    format!("redis://default:{}@127.0.0.1:{}/0", home.state.redis_password, home.state.redis_port)
}

fn configuration(dir: &Path, port: u16, password: &str) -> String {
    let dir = dir.display().to_string().replace('\\', "\\\\").replace('"', "\\\"");
    format!(
        "# Written by `millrace dev` at every start.\n\
         bind 127.0.0.1\n\
         port {port}\n\
         requirepass {password}\n\
         dir \"{dir}\"\n\
         pidfile \"{dir}/redis.pid\"\n\
         # A write is acknowledged once it is on disk.\n\
         appendonly yes\n\
         appendfsync always\n\
         save \"\"\n\
         # A full Redis refuses new records and never drops old ones.\n\
         maxmemory-policy noeviction\n"
    )
}
