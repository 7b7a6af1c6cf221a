//! NetworkPolicies: the connections that pods may accept. Those that pods may open are restricted only by the manifest:
//! the operator does not have the addresses of the servers.

use millrace_crds::NetworkPolicy;
use serde_json::{Value, json};

use super::{Child, Head, Kind, labels, pod, selector};
use crate::pipeline::Pipeline;

/// The policies of serve, of work, and of the Jobs; none where the manifest disables them.
pub(super) fn all(pipeline: &Pipeline, operator_namespace: &str) -> Vec<Child> {
    let NetworkPolicy { enabled, http_from, health_from, egress } =
        pipeline.spec.network_policy.clone().unwrap_or_default();
    if enabled == Some(false) {
        return Vec::new();
    }
    let mut http = json!({ "ports": [port(pod::HTTP)] });
    if !http_from.is_empty() {
        http["from"] = json!(http_from);
    }
    let operator =
        json!({ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": operator_namespace } } });
    let health_from: Vec<Value> = [operator].into_iter().chain(health_from.into_iter().map(Value::Object)).collect();
    let health = json!({ "ports": [port(pod::HEALTH)], "from": health_from });
    let policy = |component: &str, pods: Value, ingress: Vec<Value>| {
        // The type without a rule allows no connection: nothing connects to the Jobs.
        let mut spec = json!({ "podSelector": pods, "policyTypes": ["Ingress"] });
        if !ingress.is_empty() {
            spec["ingress"] = json!(ingress);
        }
        if !egress.is_empty() {
            spec["policyTypes"] = json!(["Ingress", "Egress"]);
            spec["egress"] = json!(egress);
        }
        let name = format!("{}-{component}", pipeline.name);
        Head::new(Kind::NetworkPolicy, name, Some(component)).child(pipeline, json!({ "spec": spec }))
    };
    let pods_of = |component| json!({ "matchLabels": selector(pipeline, component) });
    let mut jobs = pods_of("migrate");
    if let Some(labels) = jobs["matchLabels"].as_object_mut() {
        labels.remove(labels::COMPONENT);
    }
    jobs["matchExpressions"] = json!([{ "key": labels::COMPONENT, "operator": "In", "values": ["migrate", "purge"] }]);
    vec![
        policy("serve", pods_of("serve"), vec![http, health.clone()]),
        policy("work", pods_of("work"), vec![health]),
        policy("migrate", jobs, Vec::new()),
    ]
}

fn port(number: u16) -> Value {
    json!({ "port": number, "protocol": "TCP" })
}
