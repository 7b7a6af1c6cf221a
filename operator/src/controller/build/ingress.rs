//! The Ingress in front of serve.

use k8s_openapi::api::networking::v1 as api;
use kube::api::ObjectMeta;
use millrace_crds::{Ingress, PathType};

use super::{Child, Object, Validated, metadata, pod, service, unless_empty};

/// The Ingress of serve, where the manifest has one.
pub(super) fn serve(pipeline: &Validated) -> Option<Child> {
    let ingress = pipeline.spec.serve.as_ref()?.ingress.as_ref()?;
    let Ingress { host, path, path_type, class_name, tls_secret_name, annotations } = ingress;
    let service = service::serve_name(pipeline);
    let path_type = match path_type.unwrap_or_default() {
        PathType::Prefix => "Prefix",
        PathType::Exact => "Exact",
        PathType::ImplementationSpecific => "ImplementationSpecific",
    };
    let port = api::ServiceBackendPort { name: Some(pod::scheme(pipeline).to_owned()), number: None };
    let backend = api::IngressServiceBackend { name: service.clone(), port: Some(port) };
    let path = api::HTTPIngressPath {
        path: Some(path.clone().unwrap_or_else(|| "/".to_owned())),
        path_type: path_type.to_owned(),
        backend: api::IngressBackend { service: Some(backend), resource: None },
    };
    let http = api::HTTPIngressRuleValue { paths: vec![path] };
    let certificate =
        |secret: &String| vec![api::IngressTLS { hosts: Some(vec![host.clone()]), secret_name: Some(secret.clone()) }];
    let spec = api::IngressSpec {
        rules: Some(vec![api::IngressRule { host: Some(host.clone()), http: Some(http) }]),
        ingress_class_name: class_name.clone(),
        tls: tls_secret_name.as_ref().map(certificate),
        default_backend: None,
    };
    let metadata =
        ObjectMeta { annotations: unless_empty(annotations.clone()), ..metadata(pipeline, service, Some("serve")) };
    Some(Child::new(Object::Ingress(api::Ingress { metadata, spec: Some(spec), status: None })))
}
