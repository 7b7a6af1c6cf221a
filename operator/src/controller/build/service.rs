//! The Services: one that clients call, and one that lists all workers, ready or not.

use millrace_crds::{Service, ServiceType};
use serde_json::json;

use super::{Child, Head, Kind, pod, selector};
use crate::pipeline::Pipeline;

/// The Services of serve and of work.
pub(super) fn all(pipeline: &Pipeline) -> Vec<Child> {
    vec![serve(pipeline), work(pipeline)]
}

/// The name of the Service in front of serve; its port is [`pod::HTTP`].
pub(super) fn serve_name(pipeline: &Pipeline) -> String {
    format!("{}-serve", pipeline.name)
}

fn serve(pipeline: &Pipeline) -> Child {
    let given = pipeline.spec.serve.as_ref().and_then(|serve| serve.service.clone()).unwrap_or_default();
    let Service { type_, annotations } = given;
    let type_ = match type_ {
        None | Some(ServiceType::ClusterIP) => "ClusterIP",
        Some(ServiceType::NodePort) => "NodePort",
        Some(ServiceType::LoadBalancer) => "LoadBalancer",
    };
    let mut head = Head::new(Kind::Service, serve_name(pipeline), Some("serve"));
    head.annotations = &annotations;
    head.child(
        pipeline,
        json!({ "spec": {
            "type": type_,
            "selector": selector(pipeline, "serve"),
            "ports": [{ "name": "http", "port": pod::HTTP, "protocol": "TCP", "targetPort": "http" }],
        } }),
    )
}

/// Headless, and with the addresses of pods that are not ready: their `/status` holds the problem.
fn work(pipeline: &Pipeline) -> Child {
    Head::new(Kind::Service, format!("{}-work", pipeline.name), Some("work")).child(
        pipeline,
        json!({ "spec": {
            "type": "ClusterIP",
            "clusterIP": "None",
            "publishNotReadyAddresses": true,
            "selector": selector(pipeline, "work"),
            "ports": [{ "name": "health", "port": pod::HEALTH, "protocol": "TCP", "targetPort": "health" }],
        } }),
    )
}
