//! NetworkPolicies: the connections that pods may accept. Those that pods may open are restricted only by the manifest:
//! the operator does not have the addresses of the servers.

use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy as Policy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
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
    egress: Vec<NetworkPolicyEgressRule>,
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
    let mut egress = rules.egress.clone();
    // Without a rule of the manifest, egress is unrestricted, and must stay so.
    if !egress.is_empty() {
        match component {
            "serve" => egress.extend(issuer(pipeline)),
            "work" => egress.extend(webhooks(pipeline).into_iter().chain(bucket(pipeline))),
            _ => {}
        }
    }
    let types = if rules.egress.is_empty() { &["Ingress"][..] } else { &["Ingress", "Egress"] };
    let spec = NetworkPolicySpec {
        pod_selector: Some(pods),
        policy_types: Some(types.iter().map(|name| (*name).to_owned()).collect()),
        ingress: unless_empty(ingress),
        egress: unless_empty(egress),
    };
    let metadata = metadata(pipeline, name, Some(component));
    Child::new(Object::NetworkPolicy(Policy { metadata, spec: Some(spec) }))
}

/// The endpoints of webhooks: their ports, at public addresses and at those that the manifest allows. The names behind the
/// addresses change, so the processes check the addresses themselves.
fn webhooks(pipeline: &Validated) -> Vec<NetworkPolicyEgressRule> {
    let webhooks = pipeline.spec.sinks.iter().filter_map(|sink| sink.webhook.as_ref());
    let mut rules: Vec<NetworkPolicyEgressRule> = Vec::new();
    for webhook in webhooks {
        let mut to = public();
        to.extend(webhook.allowed().iter().map(|range| block(&range.trunc().to_string(), &[])));
        let rule = NetworkPolicyEgressRule { ports: Some(vec![tcp(webhook.port())]), to: Some(to) };
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    rules
}

/// The issuer of access tokens: its ports, at public addresses. One in the cluster needs a rule of the manifest: a policy
/// cannot name a host.
fn issuer(pipeline: &Validated) -> Option<NetworkPolicyEgressRule> {
    let ports = pipeline.spec.oidc.as_ref()?.ports();
    Some(NetworkPolicyEgressRule { ports: Some(ports.into_iter().map(tcp).collect()), to: Some(public()) })
}

/// The server of the archive's bucket: its port, at public addresses. One in the cluster needs a rule of the manifest.
fn bucket(pipeline: &Validated) -> Option<NetworkPolicyEgressRule> {
    let port = pipeline.spec.archive.as_ref()?.s3.as_ref()?.port();
    Some(NetworkPolicyEgressRule { ports: Some(vec![tcp(port)]), to: Some(public()) })
}

fn public() -> Vec<NetworkPolicyPeer> {
    vec![block("0.0.0.0/0", &PRIVATE_V4), block("2000::/3", &[])]
}

fn block(cidr: &str, except: &[&str]) -> NetworkPolicyPeer {
    NetworkPolicyPeer {
        ip_block: Some(IPBlock {
            cidr: cidr.to_owned(),
            except: unless_empty(except.iter().map(|&range| range.to_owned()).collect::<Vec<_>>()),
        }),
        ..NetworkPolicyPeer::default()
    }
}

/// Ranges that no webhook and no issuer needs unless the manifest allows them.
const PRIVATE_V4: [&str; 6] =
    ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16"];

fn tcp(number: i32) -> NetworkPolicyPort {
    NetworkPolicyPort {
        port: Some(IntOrString::Int(number)),
        protocol: Some("TCP".to_owned()),
        ..NetworkPolicyPort::default()
    }
}
