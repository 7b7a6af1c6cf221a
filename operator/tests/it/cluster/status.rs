//! Answers `/status` as the pods do.

use std::{
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use millrace_crds::status_api::{ManifestOrigin, PipelineCounts, Problem, ProcessStatus, ShardStatus};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use super::{Manifest, Shared};

impl Shared {
    /// The body of `/status` of the pod with this address; `None` where it does not answer.
    fn status(&self, address: Ipv4Addr) -> Option<ProcessStatus> {
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
        let origin = |manifest: &Manifest| ManifestOrigin { uid: Some(manifest.0.clone()), generation: manifest.1 };
        let shards = (0..4_u16).map(|shard| {
            let owner = workers.get(usize::from(shard) % workers.len().max(1));
            let manifest = owner.and_then(|owner| owner.manifest.clone());
            let (uid, generation) = manifest.unzip();
            let version = generation.unwrap_or(0);
            let leased = behaviour.leased && owner.is_some();
            ShardStatus { shard, leased, owner: None, version, uid, generation }
        });
        let problems = behaviour.problems.iter();
        Some(ProcessStatus {
            role: me.component.clone(),
            software: "0.1.0".to_owned(),
            process: me.name.clone(),
            pipeline: Some(me.pipeline.clone()),
            pipeline_id: Some("0123456789abcdef".to_owned()),
            manifest: me.manifest.as_ref().map(origin),
            problems: problems.map(|(reason, message)| Problem::new((*reason).to_owned().into(), *message)).collect(),
            shards: Some(shards.collect()),
            sinks: Some(Vec::new()),
            redis_durability: behaviour.durability,
            age_ms: Some(0),
            counts: Some(PipelineCounts {
                backlog: behaviour.backlog,
                unpublished: behaviour.unpublished,
                processed: 7,
                alerts: 3,
                dead_letters: 1,
                ..PipelineCounts::default()
            }),
            ..ProcessStatus::default()
        })
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
        let body = serde_json::to_string(&shared.status(address)?).ok()?;
        let head =
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).await.ok()?;
    }
}
