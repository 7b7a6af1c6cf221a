//! NetworkPolicies: the connections that pods may accept. Those that pods may open are restricted only by the manifest:
//! the operator does not have the addresses of the servers.

use k8s_openapi::{
    api::networking::v1::{
        NetworkPolicy as Policy, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, LabelSelectorRequirement},
        util::intstr::IntOrString,
    },
};
use millrace_crds::NetworkPolicy;

use super::{Child, Kind, Object, Validated, labels, metadata, overrides, pod, pods_of, unless_empty};

/// The policies of serve, of work, and of the Jobs; none where the manifest disables them.
pub(super) fn all(pipeline: &Validated, operator_namespace: &str) -> Vec<Child> {
    let given = pipeline.spec.network_policy.clone().unwrap_or_default();
    if given.enabled == Some(false) {
        return Vec::new();
    }
    let rules = rules(&given, operator_namespace);
    ["serve", "work", "migrate"]
        .map(|component| {
            let name = format!("{}-{component}", pipeline.name);
            match &rules {
                Ok(rules) => policy(pipeline, component, name, rules),
                Err(cause) => Child::refused(Kind::NetworkPolicy, name, cause),
            }
        })
        .into()
}

/// The allowed connections.
struct Rules {
    http: NetworkPolicyIngressRule,
    health: NetworkPolicyIngressRule,
    egress: Vec<k8s_openapi::api::networking::v1::NetworkPolicyEgressRule>,
}

fn rules(given: &NetworkPolicy, operator_namespace: &str) -> Result<Rules, String> {
    let namespace = [("kubernetes.io/metadata.name".to_owned(), operator_namespace.to_owned())];
    let operator = LabelSelector { match_labels: Some(namespace.into()), match_expressions: None };
    let mut health = vec![NetworkPolicyPeer { namespace_selector: Some(operator), ..NetworkPolicyPeer::default() }];
    health.extend(overrides::parse::<Vec<_>>("spec.networkPolicy.healthFrom", &given.health_from)?);
    let http = overrides::parse("spec.networkPolicy.httpFrom", &given.http_from)?;
    let rule = |port, from| NetworkPolicyIngressRule { ports: Some(vec![tcp(port)]), from: unless_empty(from) };
    Ok(Rules {
        http: rule(pod::HTTP, http),
        health: rule(pod::HEALTH, health),
        egress: overrides::parse("spec.networkPolicy.egress", &given.egress)?,
    })
}

fn policy(pipeline: &Validated, component: &str, name: String, rules: &Rules) -> Child {
    let (http, health) = (rules.http.clone(), rules.health.clone());
    let mut pods = pods_of(pipeline, component);
    let ingress = match component {
        "serve" => vec![http, health],
        "work" => vec![health],
        // The type without a rule allows no connection: nothing connects to the Jobs.
        _ => {
            pods.match_labels.get_or_insert_default().remove(labels::COMPONENT);
            pods.match_expressions = Some(vec![LabelSelectorRequirement {
                key: labels::COMPONENT.to_owned(),
                operator: "In".to_owned(),
                values: Some(["migrate", "verify", "purge"].map(str::to_owned).into()),
            }]);
            Vec::new()
        }
    };
    let types = if rules.egress.is_empty() { &["Ingress"][..] } else { &["Ingress", "Egress"] };
    let spec = NetworkPolicySpec {
        pod_selector: Some(pods),
        policy_types: Some(types.iter().map(|name| (*name).to_owned()).collect()),
        ingress: unless_empty(ingress),
        egress: unless_empty(rules.egress.clone()),
    };
    let metadata = metadata(pipeline, name, Some(component));
    Child::new(Object::NetworkPolicy(Policy { metadata, spec: Some(spec) }))
}

fn tcp(number: i32) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(number)),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    }
}
