//! Faults of the network between a pair: cut, delayed, half-open, cut in mid-answer.

use std::time::Duration;

use serde_json::json;
use tokio::{net::TcpStream, time::sleep};

use super::{Effect, Stage};
use crate::{
    plan::{Fault, Kind},
    world::proxy::{Link, Proxies},
};

impl Stage {
    pub(super) async fn network(&self, fault: Fault) -> Effect {
        let Some(proxies) = &self.world.proxies else { return Ok((false, "there is no toxiproxy".to_owned())) };
        let links = Link::all();
        let link = &links[fault.pick as usize % links.len()];
        let lasts = Duration::from_millis(fault.for_ms + 500);
        let took = self.spoil(proxies, link, fault, lasts).await;
        // Whatever went wrong, the link is made good again.
        proxies.cure(link).await?;
        proxies.enable(link, true).await?;
        Ok((took?, link.name().to_owned()))
    }

    async fn spoil(&self, proxies: &Proxies, link: &Link, fault: Fault, lasts: Duration) -> anyhow::Result<bool> {
        let before = proxies.bytes(link).await?;
        match fault.kind {
            Kind::NetCut => {
                proxies.enable(link, false).await?;
                let refused = TcpStream::connect(("127.0.0.1", proxies.port(link)?)).await.is_err();
                sleep(lasts).await;
                Ok(refused && before.iter().sum::<u64>() > 0)
            }
            Kind::NetDelay => {
                let delay = json!({"latency": fault.pick % 700 + 100, "jitter": fault.pick % 100});
                proxies.poison(link, "latency", "downstream", delay.clone()).await?;
                proxies.poison(link, "latency", "upstream", delay).await?;
                sleep(lasts).await;
                Ok(proxies.bytes(link).await? > before)
            }
            Kind::NetHalfOpen => {
                for towards in ["upstream", "downstream"] {
                    proxies.poison(link, "timeout", towards, json!({"timeout": 0})).await?;
                }
                // What was on its way may still arrive.
                sleep(Duration::from_millis(100)).await;
                let stopped = proxies.bytes(link).await?;
                sleep(lasts).await;
                Ok(stopped.iter().sum::<u64>() > 0 && proxies.bytes(link).await? == stopped)
            }
            _ => {
                let bytes = fault.pick % 3_000 + 1;
                proxies.poison(link, "limit_data", "downstream", json!({"bytes": bytes})).await?;
                sleep(lasts).await;
                Ok(proxies.bytes(link).await?[1] > before[1])
            }
        }
    }
}
