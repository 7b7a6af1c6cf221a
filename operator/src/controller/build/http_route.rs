//! The HTTPRoute in front of serve, where the cluster has the Gateway API: as JSON, for Kubernetes itself has no such
//! type.

use kube::api::{DynamicObject, TypeMeta};
use millrace_crds::{Gateway, HttpRoute};
use serde_json::{Value, json};

use super::{Child, Kind, Object, Validated, metadata, pod, service};

/// The HTTPRoute of serve, where the manifest has one. Defaults are written out: an apply replaces its lists as a
/// whole, and a list without the defaults would differ from the stored one at every apply.
pub(super) fn serve(pipeline: &Validated) -> Option<Child> {
    let HttpRoute { parents, hostnames } = pipeline.spec.serve.as_ref()?.http_route.as_ref()?;
    let service = service::serve_name(pipeline);
    let mut spec = json!({
        "parentRefs": parents.iter().map(parent).collect::<Vec<_>>(),
        "rules": [{
            "matches": [{ "path": { "type": "PathPrefix", "value": "/" } }],
            "backendRefs": [{ "group": "", "kind": "Service", "name": service, "port": pod::HTTP, "weight": 1 }],
        }],
    });
    if !hostnames.is_empty() {
        spec["hostnames"] = json!(hostnames);
    }
    let kind = Kind::HttpRoute.resource();
    Some(Child::new(Object::HttpRoute(DynamicObject {
        types: Some(TypeMeta { api_version: kind.api_version, kind: kind.kind }),
        metadata: metadata(pipeline, service, Some("serve")),
        data: json!({ "spec": spec }),
    })))
}

fn parent(gateway: &Gateway) -> Value {
    let Gateway { name, namespace, section_name } = gateway;
    let mut parent = json!({ "group": "gateway.networking.k8s.io", "kind": "Gateway", "name": name });
    if let Some(namespace) = namespace {
        parent["namespace"] = json!(namespace);
    }
    if let Some(section) = section_name {
        parent["sectionName"] = json!(section);
    }
    parent
}
