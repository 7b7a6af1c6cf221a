//! A TCP proxy before a server. It can make connections silent, as if the host disappeared, or cut answers short.

use std::sync::Arc;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::task::AbortOnDropHandle;

/// The effect on open connections of a change to this state, and on connections that are opened in it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum State {
    /// Open connections end; new ones work.
    Open,
    /// Open connections carry no bytes and do not end; new ones work.
    Silent,
    /// Open connections end; new ones end within the first answer.
    Cut,
}

/// A port that forwards connections to a server.
#[derive(Debug)]
pub(crate) struct Proxy {
    port: u16,
    state: Arc<watch::Sender<State>>,
    _task: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Starts a proxy to the server of a URL.
    pub(crate) async fn to(url: &str) -> Self {
        let server: u16 = url.rsplit_once(':').unwrap().1.split('/').next().unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(watch::Sender::new(State::Open));
        let watched = Arc::clone(&state);
        let task = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, server, watched.subscribe()));
            }
        });
        Self { port, state, _task: AbortOnDropHandle::new(task) }
    }

    /// The URL of the server with the port of this proxy.
    pub(crate) fn through(&self, url: &str) -> String {
        let (head, tail) = url.rsplit_once(':').unwrap();
        let path = tail.split_once('/').map_or("", |(_, path)| path);
        format!("{head}:{}/{path}", self.port)
    }

    /// Makes open connections silent, as if the host disappeared and another took its address.
    pub(crate) fn fall_silent(&self) {
        self.state.send_replace(State::Silent);
    }

    /// Ends connections, and cuts the first answer on each new one.
    pub(crate) fn cut_answers(&self) {
        self.state.send_replace(State::Cut);
    }

    /// Ends connections; new ones work.
    pub(crate) fn restore(&self) {
        self.state.send_replace(State::Open);
    }
}

async fn carry(mut client: TcpStream, server: u16, mut state: watch::Receiver<State>) {
    let Ok(mut server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let cut = *state.borrow_and_update() == State::Cut;
    if cut {
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
