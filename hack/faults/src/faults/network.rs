//! Faults of the network between a pair: cut, delayed, half-open, cut in mid-answer.
//!
//! A fault counts where a question asked over the same link was not answered, or late.

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

/// What came of a question over a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    /// Answered after this long.
    After(Duration),
    /// Nothing came, and the connection stayed.
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
        // Whatever went wrong, the link is made good again.
        proxies.cure(link).await?;
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
            let asked = ask(link, port, lasts).await;
            sleep(lasts).await;
            Ok((asked == Asked::Cut, format!("{asked:?}")))
        }
        Kind::NetDelay => {
            let latency = fault.pick % 700 + 100;
            let delay = json!({"latency": latency, "jitter": 0});
            proxies.poison(link, "latency", "downstream", delay.clone()).await?;
            proxies.poison(link, "latency", "upstream", delay).await?;
            let asked = ask(link, port, lasts + Duration::from_secs(5)).await;
            sleep(lasts).await;
            let late = matches!(asked, Asked::After(took) if took >= Duration::from_millis(2 * latency));
            Ok((late, format!("{latency} ms each way: {asked:?}")))
        }
        Kind::NetHalfOpen => {
            for towards in ["upstream", "downstream"] {
                proxies.poison(link, "timeout", towards, json!({"timeout": 0})).await?;
            }
            let asked = ask(link, port, lasts).await;
            Ok((asked == Asked::Silent, format!("{asked:?}")))
        }
        _ => {
            // The proxy counts what a connection carried when that ends: so connections ended that had carried something.
            let before = proxies.bytes(link).await?[1];
            proxies.poison(link, "limit_data", "downstream", json!({"bytes": fault.pick % 3_000 + 1})).await?;
            sleep(lasts).await;
            let carried = proxies.bytes(link).await?[1] - before;
            Ok((carried > 0, format!("connections ended that had carried {carried} bytes")))
        }
    }
}

/// Asks something harmless over a link, in the language of whoever is at its end.
async fn ask(link: &Link, port: u16, timeout: Duration) -> Asked {
    let began = Instant::now();
    let question: &[u8] = match link.name() {
        name if name.ends_with("redis") => b"PING\r\n",
        // Whether it would encrypt.
        name if name.ends_with("postgres") => &[0, 0, 0, 8, 4, 210, 22, 47],
        _ => b"GET /health HTTP/1.1\r\nHost: millrace\r\nConnection: close\r\n\r\n",
    };
    let asked = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        stream.write_all(question).await?;
        stream.read(&mut [0; 64]).await
    };
    match tokio::time::timeout(timeout, asked).await {
        Ok(Ok(bytes)) if bytes > 0 => Asked::After(began.elapsed()),
        Ok(_) => Asked::Cut,
        Err(_) => Asked::Silent,
    }
}
