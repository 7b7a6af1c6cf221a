//! The Ingress in front of serve.

use millrace_crds::{Ingress, PathType};
use serde_json::json;

use super::{Child, Head, Kind, service};
use crate::pipeline::Pipeline;

/// The Ingress of serve, where the manifest has one.
pub(super) fn serve(pipeline: &Pipeline) -> Option<Child> {
    let ingress = pipeline.spec.serve.as_ref()?.ingress.as_ref()?;
    let Ingress { host, path, path_type, class_name, tls_secret_name, annotations } = ingress;
    let service = service::serve_name(pipeline);
    let path_type = match path_type.unwrap_or_default() {
        PathType::Prefix => "Prefix",
        PathType::Exact => "Exact",
        PathType::ImplementationSpecific => "ImplementationSpecific",
    };
    let mut spec = json!({ "rules": [{ "host": host, "http": { "paths": [{
        "path": path.as_deref().unwrap_or("/"),
        "pathType": path_type,
        "backend": { "service": { "name": service, "port": { "name": "http" } } },
    }] } }] });
    if let Some(class) = class_name {
        spec["ingressClassName"] = json!(class);
    }
    if let Some(secret) = tls_secret_name {
        spec["tls"] = json!([{ "hosts": [host], "secretName": secret }]);
    }
    let mut head = Head::new(Kind::Ingress, service, Some("serve"));
    head.annotations = annotations;
    Some(head.child(pipeline, json!({ "spec": spec })))
}
