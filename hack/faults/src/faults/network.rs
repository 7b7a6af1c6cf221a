//! Faults of the network between a pair: cut, delayed, half-open, cut in mid-answer.
//!
//! A fault counts where a probe over the same link got no answer, or a late one.

use std::time::Duration;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::{Instant, sleep},
};

use super::{Effect, Stage};
use crate::{
    plan::{Fault, Kind},
    world::proxy::{Link, Proxies},
};

/// The result of a probe over a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Probe {
    /// Answered after this long.
    After(Duration),
    /// No answer, and the connection stayed open.
    Silent,
    /// Refused, or closed without an answer.
    Cut,
}

impl Stage {
    pub(super) async fn network(&self, fault: Fault) -> Effect {
        let Some(proxies) = &self.world.proxies else { return Ok((false, "there is no toxiproxy".to_owned())) };
        let links = Link::all();
        let link = &links[fault.pick as usize % links.len()];
        let lasts = Duration::from_millis(fault.for_ms + 500);
        let spoilt = spoil(proxies, link, fault, lasts).await;
        // After an error, too.
        proxies.remove_toxics(link).await?;
        proxies.enable(link, true).await?;
        let (took, note) = spoilt?;
        Ok((took, format!("{} {note}", link.name())))
    }
}

async fn spoil(proxies: &Proxies, link: &Link, fault: Fault, lasts: Duration) -> Effect {
    let port = proxies.port(link)?;
    match fault.kind {
        Kind::NetCut => {
            proxies.enable(link, false).await?;
            let probed = probe(link, port, lasts).await;
            sleep(lasts).await;
            Ok((probed == Probe::Cut, format!("{probed:?}")))
        }
        Kind::NetDelay => {
            let latency = fault.pick % 700 + 100;
            let delay = json!({"latency": latency, "jitter": 0});
            proxies.add_toxic(link, "latency", "downstream", delay.clone()).await?;
            proxies.add_toxic(link, "latency", "upstream", delay).await?;
            let probed = probe(link, port, lasts + Duration::from_secs(5)).await;
            sleep(lasts).await;
            let late = matches!(probed, Probe::After(took) if took >= Duration::from_millis(2 * latency));
            Ok((late, format!("{latency} ms each way: {probed:?}")))
        }
        Kind::NetHalfOpen => {
            for towards in ["upstream", "downstream"] {
                proxies.add_toxic(link, "timeout", towards, json!({"timeout": 0})).await?;
            }
            let probed = probe(link, port, lasts).await;
            Ok((probed == Probe::Silent, format!("{probed:?}")))
        }
        _ => {
            // The proxy counts the bytes of a connection when it ends: a rise means that a connection with bytes ended.
            let before = proxies.bytes(link).await?[1];
            proxies.add_toxic(link, "limit_data", "downstream", json!({"bytes": fault.pick % 3_000 + 1})).await?;
            sleep(lasts).await;
            let carried = proxies.bytes(link).await?[1] - before;
            Ok((carried > 0, format!("connections ended that had carried {carried} bytes")))
        }
    }
}

/// Sends something harmless over a link, in the protocol of the server at its end.
async fn probe(link: &Link, port: u16, timeout: Duration) -> Probe {
    let began = Instant::now();
    let request: &[u8] = match link.name() {
        name if name.ends_with("redis") => b"PING\r\n",
        // SSLRequest: asks whether the server encrypts.
        name if name.ends_with("postgres") => &[0, 0, 0, 8, 4, 210, 22, 47],
        _ => b"GET /health HTTP/1.1\r\nHost: millrace\r\nConnection: close\r\n\r\n",
    };
    let probed = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(request).await?;
        stream.read(&mut [0; 64]).await
    };
    match tokio::time::timeout(timeout, probed).await {
        Ok(Ok(bytes)) if bytes > 0 => Probe::After(began.elapsed()),
        Ok(_) => Probe::Cut,
        Err(_) => Probe::Silent,
    }
}
