//! Answers `/status` as the pods do.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{Manifest, Shared};

impl Shared {
    /// The body of `/status` of the pod with this address; `None` where it does not answer.
    fn status(&self, address: Ipv4Addr) -> Option<Value> {
        let state = self.lock();
        let me = state.pods.get(&address)?;
        let behaviour = state.behaviours.get(&(me.namespace.clone(), me.pipeline.clone()))?;
        if behaviour.silent {
            return None;
        }
        let mut workers: Vec<_> = state
            .pods
            .values()
            .filter(|pod| pod.namespace == me.namespace && pod.pipeline == me.pipeline)
            .filter(|pod| pod.component == "work")
            .collect();
        workers.sort_by(|a, b| a.name.cmp(&b.name));
        let origin = |manifest: &Option<Manifest>| match manifest {
            Some((uid, generation)) => json!({ "uid": uid, "generation": generation, "version": generation }),
            None => Value::Null,
        };
        let shards = (0..4_usize).map(|shard| {
            let owner = workers.get(shard % workers.len().max(1));
            let mut shown = owner.map_or(json!({}), |owner| origin(&owner.manifest));
            shown["shard"] = json!(shard);
            shown["leased"] = json!(behaviour.leased && owner.is_some());
            shown
        });
        let problems =
            behaviour.problems.iter().map(|(reason, message)| json!({ "reason": reason, "message": message }));
        Some(json!({
            "role": me.component, "software": "0.1.0", "process": me.name, "pipeline": me.pipeline,
            "pipelineId": "0123456789abcdef", "manifest": origin(&me.manifest), "active": origin(&me.manifest),
            "refusal": null, "problems": problems.collect::<Vec<_>>(), "shards": shards.collect::<Vec<_>>(),
            "owned": [], "sinks": [], "ageMs": 0,
            "counts": {
                "queued": behaviour.backlog, "pending": 0, "backlog": behaviour.backlog, "unpublished": behaviour.unpublished,
                "processed": 7, "alerts": 3, "deadLetters": 1, "lost": 0,
            },
        }))
    }
}

/// Answers requests of `/status` for all pods.
pub(super) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut calls = JoinSet::new();
    loop {
        while calls.try_join_next().is_some() {}
        if let Ok((stream, _)) = listener.accept().await {
            calls.spawn(answer(stream, Arc::clone(&shared)));
        }
    }
}

/// Answers each request of a connection; the local address identifies the pod.
async fn answer(mut stream: TcpStream, shared: Arc<Shared>) -> Option<()> {
    let IpAddr::V4(address) = stream.local_addr().ok()?.ip() else { return None };
    let (mut request, mut piece) = (Vec::new(), [0; 1024]);
    loop {
        let read = stream.read(&mut piece).await.ok().filter(|read| *read > 0)?;
        request.extend_from_slice(&piece[..read]);
        if !request.ends_with(b"\r\n\r\n") {
            continue;
        }
        request.clear();
        // A pod that does not answer cuts the connection.
        let body = shared.status(address)?.to_string();
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.ok()?;
    }
}
