//! The fields of `spec` that define how a pipeline runs on a cluster. The pods' manifest does not contain them.

use std::collections::BTreeMap;

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    cors::Cors,
    quantity::Quantity,
    schemas::{affinity, annotation_map, free_objects, label_map, mounts, tolerations, variables, volumes},
    tls::ServeTls,
};

/// An object that Kubernetes defines, passed on as it was written. It has no type in the resource: the operator reads it
/// as the type of Kubernetes and refuses an unknown field by its path.
pub type Object = serde_json::Map<String, serde_json::Value>;

/// When the image is pulled. Absent: always where its tag is `latest` or missing, else when the node does not have it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PullPolicy {
    /// At every start of a pod.
    Always,
    /// When the node does not have it.
    IfNotPresent,
    /// Never: the node must have it.
    Never,
}

/// What happens when the resource is deleted, Drain unless given. Drain: accept no more records, apply the queued ones,
/// publish their outcomes, then end; all data stays in Postgres and Redis. Now: end at once; queued records stay in
/// Redis and are applied when the pipeline is applied again. Purge: as Drain, then remove the pipeline's data from
/// Postgres and Redis, for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// Accept no more records, apply the queued ones, publish their outcomes, then end. All data stays in Postgres and
    /// Redis.
    #[default]
    Drain,
    /// End at once; queued records stay in Redis, and are applied when the pipeline is applied again.
    Now,
    /// As `Drain`, then remove the pipeline's schema and its Redis keys. This cannot be undone.
    Purge,
}

/// The pods that accept records and answer queries.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.autoscaling) || self.autoscaling == null || !has(self.replicas) || dyn(self.replicas) == null")
    .message("spec.serve.replicas must be left out beside spec.serve.autoscaling"))]
pub struct Serve {
    /// Number of pods, 1 unless given, at most 256. Leave it out beside `autoscaling`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 256))]
    pub replicas: Option<u32>,
    /// Instead of `replicas`: a HorizontalPodAutoscaler for these pods, on their CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<ServeAutoscaling>,
    /// HTTPS in place of HTTP at the port of the API. The health port stays HTTP. A change rolls the pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<ServeTls>,
    /// The web pages that may call the API from a browser; absent: none. A change is active within seconds and restarts no
    /// pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cors: Option<Cors>,
    /// Networks of proxies in front of the pods, at most 32, such as `10.0.0.0/8`: the audit trail takes the address of a
    /// client from their `X-Forwarded-For`, and from no other. A change is active within seconds and restarts no pod.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 50)))]
    #[x_kube(validation = Rule::new("self.all(network, isCIDR(network))")
        .message("each must be a network such as 10.0.0.0/8 or fd00::/8"))]
    pub trusted_proxies: Vec<String>,
    /// The Service in front of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<Service>,
    /// An Ingress in front of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ingress: Option<Ingress>,
    /// An HTTPRoute in front of the Service; the cluster needs the Gateway API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http_route: Option<HttpRoute>,
    /// How the pods differ from the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
}

impl Serve {
    /// The fields that concern the pods; `None` where there is none.
    #[must_use]
    pub fn for_pods(&self) -> Option<Self> {
        // Without `..`: the compiler then asks for a decision about each new field.
        let Self {
            tls,
            cors,
            trusted_proxies,
            replicas: _,
            autoscaling: _,
            service: _,
            ingress: _,
            http_route: _,
            pod: _,
        } = self;
        let is_any = tls.is_some() || cors.is_some() || !trusted_proxies.is_empty();
        is_any.then(|| Self {
            tls: tls.clone(),
            cors: cors.clone(),
            trusted_proxies: trusted_proxies.clone(),
            ..Self::default()
        })
    }
}

/// The pods that apply records and publish outcomes. Their number is `spec.replicas` or `spec.autoscaling`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Work {
    /// How the pods, and those of the migration, differ from the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Pod>,
}

/// Runs `millrace verify` on a schedule, as a CronJob: it derives everything again from the records, and compares it with
/// what is stored and published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Verify {
    /// When it runs, in UTC, as five fields of cron such as "0 3 * * *", or as `@daily` and its like. A run that is due
    /// while another one continues is left out.
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(validation = Rule::new(r"self.matches(r'^(@(yearly|annually|monthly|weekly|daily|midnight|hourly)|[0-9A-Za-z*/,?-]+( +[0-9A-Za-z*/,?-]+){4})$')")
        .message("must be five fields of cron such as \"0 3 * * *\", or @hourly, @daily, @weekly, @monthly or @yearly"))]
    pub schedule: String,
}

/// The Jobs that migrate the schema, verify and purge the data. Their pods are made as `spec.work.pod` describes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Jobs {
    /// How their pods differ from those of `work`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<JobPod>,
}

/// How the pods of a Job differ from those of `work`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct JobPod {
    /// Annotations beside those of `work.pod`, at most 64; they replace annotations of the same name. For example
    /// `sidecar.istio.io/inject: "false"`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotation_map")]
    pub annotations: BTreeMap<String, String>,
    /// Labels beside those of `work.pod`, at most 32; they replace labels of the same name, except those that the
    /// operator sets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "label_map")]
    pub labels: BTreeMap<String, String>,
}

/// Bounds for the number of HTTP pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("self.minReplicas <= self.maxReplicas").message("minReplicas must be at most maxReplicas"))]
pub struct ServeAutoscaling {
    /// Fewest pods, at least 1.
    #[schemars(range(min = 1, max = 256))]
    pub min_replicas: u32,
    /// Most pods, at most 256.
    #[schemars(range(min = 1, max = 256))]
    pub max_replicas: u32,
    /// Mean use of the requested CPU to aim at, in percent; 80 unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub target_cpu_percent: Option<u32>,
}

/// The Service in front of the HTTP pods.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Service {
    /// Its type, `ClusterIP` unless given.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "type")]
    pub type_: Option<ServiceType>,
    /// Its annotations, at most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotation_map")]
    pub annotations: BTreeMap<String, String>,
}

/// The Service's type, ClusterIP unless given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ServiceType {
    /// Reached from within the cluster.
    ClusterIP,
    /// Reached at a port of every node.
    NodePort,
    /// Reached through a load balancer.
    LoadBalancer,
}

/// An Ingress in front of the Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ingress {
    /// The host that it answers to.
    #[schemars(length(min = 1, max = 253))]
    pub host: String,
    /// The path below which it answers, `/` unless given. The API has no base path: a path that is not one of the API's
    /// own, such as `/v1`, needs a controller that rewrites it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 500), regex(pattern = r"^/"))]
    pub path: Option<String>,
    /// How the controller matches `path`, Prefix unless given. A path that is a pattern, as rewriting needs, is
    /// ImplementationSpecific.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_type: Option<PathType>,
    /// Its class; absent: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class_name: Option<String>,
    /// The Secret that holds its certificate; absent: no TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub tls_secret_name: Option<String>,
    /// Its annotations, at most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotation_map")]
    pub annotations: BTreeMap<String, String>,
}

/// How the Ingress matches its path, Prefix unless given. A path that is a pattern, as rewriting needs, is
/// ImplementationSpecific.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum PathType {
    /// Whole elements of the path, from its beginning.
    #[default]
    Prefix,
    /// The whole path.
    Exact,
    /// As the Ingress's controller defines it.
    ImplementationSpecific,
}

/// An HTTPRoute in front of the Service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct HttpRoute {
    /// The Gateways that it is attached to, 1 to 8.
    #[schemars(length(min = 1, max = 8))]
    pub parents: Vec<Gateway>,
    /// The hosts that it answers to, at most 16; none: those of the Gateways.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 253)))]
    pub hostnames: Vec<String>,
}

/// A Gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Gateway {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its namespace; absent: the pipeline's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub namespace: Option<String>,
    /// The listener; absent: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub section_name: Option<String>,
}

/// How pods differ from the default. Fields that Kubernetes defines are passed on as they are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("!has(self.extraVolumeMounts) || self.extraVolumeMounts.all(mount, has(self.extraVolumes) && self.extraVolumes.exists(volume, volume.name == mount.name))")
    .message("each of extraVolumeMounts has to name one of extraVolumes"))]
pub struct Pod {
    /// Requests and limits of the container. Absent: a request of 100m CPU and 64Mi memory, and a limit of 256Mi
    /// memory. Given, it replaces all of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,
    /// Labels of nodes that the pods may run on, at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "label_map")]
    pub node_selector: BTreeMap<String, String>,
    /// Taints that the pods tolerate, as in a pod, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "tolerations")]
    pub tolerations: Vec<Object>,
    /// Where the pods may and prefer to run, as in a pod. They spread over nodes and zones besides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "affinity")]
    pub affinity: Option<Object>,
    /// Annotations of the pods, at most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "annotation_map")]
    pub annotations: BTreeMap<String, String>,
    /// Labels of the pods beside those that the operator sets, at most 32.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "label_map")]
    pub labels: BTreeMap<String, String>,
    /// False: the pods name no user and no group, so that the cluster assigns them, such as OpenShift from the
    /// namespace's range. True unless given: they run as user and group 65532. They never run as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed_user: Option<bool>,
    /// The pods' priority class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
    /// More environment variables of the container, as in a pod, at most 32. Those that the operator sets win.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "variables")]
    pub extra_env: Vec<Object>,
    /// More volumes, such as bundles of CA certificates, as in a pod, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "volumes")]
    pub extra_volumes: Vec<Object>,
    /// Where the container mounts them, as in a pod, at most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "mounts")]
    pub extra_volume_mounts: Vec<Object>,
}

/// Who may connect to the pods, and where the pods may connect to.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NetworkPolicy {
    /// False: no NetworkPolicies are made. True unless given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Who may reach the HTTP port, as `from` in a NetworkPolicy, at most 32; none: anyone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "free_objects")]
    pub http_from: Vec<Object>,
    /// Who may reach the health port beside the operator, such as a monitoring system, as `from` in a NetworkPolicy, at
    /// most 32.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "free_objects")]
    pub health_from: Vec<Object>,
    /// Where the pods may connect to, as `egress` in a NetworkPolicy, at most 32; none: anywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "free_objects")]
    pub egress: Vec<Object>,
}

/// The requests and limits of a container.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Resources {
    /// The resources that the node must have free, such as `cpu: 100m` and `memory: 64Mi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub requests: BTreeMap<String, Quantity>,
    /// The most that the container may use, such as `memory: 256Mi`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub limits: BTreeMap<String, Quantity>,
}
