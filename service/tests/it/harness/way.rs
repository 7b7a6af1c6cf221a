//! A way to a server that can be spoilt: its host disappears, or what it says is torn.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

/// What becomes of connections when the way changes, and of new ones from then on.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// They end; new ones are as they should be.
    Open,
    /// Nothing comes by them, and none of them ends; new ones are as they should be.
    Silent,
    /// They end; new ones end during the first answer.
    Torn,
}

/// A port of its own that leads to a server.
#[derive(Debug)]
pub(crate) struct Way {
    port: u16,
    state: Arc<watch::Sender<State>>,
    _task: AbortOnDropHandle<()>,
}

impl Way {
    /// To the server of a URL.
    pub(crate) async fn to(url: &str) -> Self {
        let server: u16 = url.rsplit_once(':').unwrap().1.split('/').next().unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(watch::Sender::new(State::Open));
        let told = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server, told.subscribe()));
            }
        });
        Self { port, state, _task: AbortOnDropHandle::new(task) }
    }

    /// A URL of the server, by this way.
    pub(crate) fn through(&self, url: &str) -> String {
        let (head, tail) = url.rsplit_once(':').unwrap();
        let path = tail.split_once('/').map_or("", |(_, path)| path);
        format!("{head}:{}/{path}", self.port)
    }

    /// The host disappears, and another takes its place.
    pub(crate) fn falls_silent(&self) {
        self.state.send_replace(State::Silent);
    }

    /// Whatever the server says is torn.
    pub(crate) fn is_torn(&self) {
        self.state.send_replace(State::Torn);
    }

    /// All is as it should be.
    pub(crate) fn is_mended(&self) {
        self.state.send_replace(State::Open);
    }
}

async fn carry(mut client: TcpStream, server: u16, mut state: watch::Receiver<State>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let torn = *state.borrow_and_update() == State::Torn;
    if torn {
        let mut few = [0; 3];
        let (mut from, mut to) = (client.split(), server.split());
        tokio::select! {
            _ = tokio::io::copy(&mut from.0, &mut to.1) => {}
            read = to.0.read_exact(&mut few) => if read.is_ok() {
                let _ = from.1.write_all(&few).await;
            }
        }
        return;
    }
    tokio::select! {
        _ = copy_bidirectional(&mut client, &mut server) => {}
        _ = state.changed() => {
            if *state.borrow() == State::Silent {
                std::future::pending().await
            }
        }
    }
}
