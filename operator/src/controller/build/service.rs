//! The Services: one that clients call, and one that lists all workers, ready or not.

use k8s_openapi::{
    api::core::v1::{Service, ServicePort, ServiceSpec},
    apimachinery::pkg::util::intstr::IntOrString,
};
use kube::api::ObjectMeta;
use millrace_crds::ServiceType;

use super::{Child, Object, Validated, metadata, pod, selector, unless_empty};

/// The Services of serve and of work.
pub(super) fn all(pipeline: &Validated) -> [Child; 2] {
    [serve(pipeline), work(pipeline)]
}

/// The name of the Service in front of serve; its port is [`pod::HTTP`].
pub(super) fn serve_name(pipeline: &Validated) -> String {
    format!("{}-serve", pipeline.name)
}

fn serve(pipeline: &Validated) -> Child {
    let given = pipeline.spec.serve.as_ref().and_then(|serve| serve.service.clone()).unwrap_or_default();
    let type_ = match given.type_ {
        None | Some(ServiceType::ClusterIP) => "ClusterIP",
        Some(ServiceType::NodePort) => "NodePort",
        Some(ServiceType::LoadBalancer) => "LoadBalancer",
    };
    let scheme = pod::scheme(pipeline);
    // The protocol of proxies and meshes towards the pods; without it they assume HTTP.
    let app_protocol = (scheme == "https").then(|| scheme.to_owned());
    let metadata = metadata(pipeline, serve_name(pipeline), Some("serve"));
    let spec = ServiceSpec {
        type_: Some(type_.to_owned()),
        selector: Some(selector(pipeline, "serve")),
        ports: Some(vec![ServicePort { app_protocol, ..port(scheme, pod::HTTP) }]),
        ..ServiceSpec::default()
    };
    let metadata = ObjectMeta { annotations: unless_empty(given.annotations), ..metadata };
    Child::new(Object::Service(Service { metadata, spec: Some(spec), status: None }))
}

/// Headless, and with the addresses of pods that are not ready: their `/status` holds the problem.
fn work(pipeline: &Validated) -> Child {
    let spec = ServiceSpec {
        type_: Some("ClusterIP".to_owned()),
        cluster_ip: Some("None".to_owned()),
        publish_not_ready_addresses: Some(true),
        selector: Some(selector(pipeline, "work")),
        ports: Some(vec![port("health", pod::HEALTH)]),
        ..ServiceSpec::default()
    };
    let metadata = metadata(pipeline, format!("{}-work", pipeline.name), Some("work"));
    Child::new(Object::Service(Service { metadata, spec: Some(spec), status: None }))
}

fn port(name: &str, number: i32) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        port: number,
        protocol: Some("TCP".to_owned()),
        target_port: Some(IntOrString::String(name.to_owned())),
        ..ServicePort::default()
    }
}
