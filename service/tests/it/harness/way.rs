//! A way to a server whose host can vanish: its connections fall silent, and nobody is told.

use std::sync::Arc;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

/// A port of its own that leads to a server.
#[derive(Debug)]
pub(crate) struct Way {
    port: u16,
    /// How often it fell silent.
    silences: Arc<watch::Sender<u32>>,
    _task: AbortOnDropHandle<()>,
}

impl Way {
    /// To a server's port.
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let silences = Arc::new(watch::Sender::new(0));
        let told = Arc::clone(&silences);
        let task = tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                let mut silent = told.subscribe();
                tokio::spawn(async move {
                    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = silent.changed() => std::future::pending().await,
                    }
                });
            }
        });
        Self { port, silences, _task: AbortOnDropHandle::new(task) }
    }

    /// A URL of the server, by this way.
    pub(crate) fn through(&self, url: &str) -> String {
        let (head, tail) = url.rsplit_once(':').unwrap();
        format!("{head}:{}/{}", self.port, tail.split_once('/').unwrap().1)
    }

    /// Nothing comes by the connections that there are, and none of them ends. New ones are as they should be.
    pub(crate) fn falls_silent(&self) {
        self.silences.send_modify(|silences| *silences += 1);
    }
}
