//! The pods' templates. They must not depend on fields that change live, nor on the operator's version: each difference
//! rolls every pod.

use std::collections::BTreeMap;

use millrace_crds::{Auth, JobPod, Object, Pod, PullPolicy, SecretKeyRef};
use serde_json::{Value, json};

use super::{config_map, labels, selector, service_account};
use crate::pipeline::Pipeline;

/// The port of the HTTP API, named `http`.
pub(super) const HTTP: u16 = 8080;
/// The port of `/health`, `/ready`, `/metrics` and `/status`, named `health`.
pub(super) const HEALTH: u16 = 8081;

/// User and group of the processes; the image names the same.
const USER: u32 = 65532;

/// How long a pod continues to serve after Kubernetes stops it: until every node has removed it from the Service,
/// clients may send requests to it.
const STOP_AFTER_SECONDS: u32 = 5;
/// Requests that have begun end within 30 s, after [`STOP_AFTER_SECONDS`].
const GRACE_SECONDS: u32 = 45;
/// How long a Job waits for a missing Secret or an unreachable Postgres, in milliseconds.
const JOB_WAIT_MS: &str = "10000";

/// A container and its pod, before the manifest's overrides.
struct Template<'a> {
    component: &'static str,
    image: &'a str,
    args: &'a [&'a str],
    env: Vec<(&'static str, String)>,
    volumes: Vec<Value>,
    mounts: Vec<Value>,
    /// Labels beside those of every object.
    labels: BTreeMap<String, String>,
    /// More fields of the container.
    container: Value,
    /// More fields of the pod.
    pod: Value,
}

/// The template of the Deployment of serve.
pub(super) fn serve(pipeline: &Pipeline, image: &str) -> Value {
    let mut template = Template::new(pipeline, "serve", image, &["serve"]);
    let auth = pipeline.spec.auth.as_ref();
    if let Some(Auth { bootstrap_key_secret_ref: Some(reference) }) = auth {
        template.secret("bootstrap-key", reference, "key", "MILLRACE_BOOTSTRAP_KEY_FILE");
    }
    template.env.push(("MILLRACE_LISTEN", format!("[::]:{HTTP}")));
    template.runs(pipeline, &[("http", HTTP), ("health", HEALTH)]);
    template.container["lifecycle"] = json!({ "preStop": { "sleep": { "seconds": STOP_AFTER_SECONDS } } });
    template.finish(pipeline, pipeline.spec.serve.as_ref().and_then(|serve| serve.pod.clone()).unwrap_or_default())
}

/// The template of the Deployment of work.
pub(super) fn work(pipeline: &Pipeline, image: &str) -> Value {
    let mut template = Template::new(pipeline, "work", image, &["work"]);
    template.runs(pipeline, &[("health", HEALTH)]);
    template.finish(pipeline, work_pod(pipeline))
}

/// The template of a Job: it has the overrides of work, and those of Jobs.
pub(super) fn job(
    pipeline: &Pipeline,
    component: &'static str,
    image: &str,
    args: &[&str],
    labels: &BTreeMap<String, String>,
) -> Value {
    let mut template = Template::new(pipeline, component, image, args);
    template.labels = labels.clone();
    template.env.push(("MILLRACE_WAIT_MS", JOB_WAIT_MS.to_owned()));
    template.env.push(("MILLRACE_TERMINATION_LOG", "/dev/termination-log".to_owned()));
    template.pod["restartPolicy"] = json!("Never");
    let mut pod = work_pod(pipeline);
    let jobs = pipeline.spec.jobs.as_ref().and_then(|jobs| jobs.pod.clone());
    let JobPod { annotations, labels } = jobs.unwrap_or_default();
    pod.annotations.extend(annotations);
    pod.labels.extend(labels);
    template.finish(pipeline, pod)
}

fn work_pod(pipeline: &Pipeline) -> Pod {
    pipeline.spec.work.as_ref().and_then(|work| work.pod.clone()).unwrap_or_default()
}

impl<'a> Template<'a> {
    /// A template with the parts of all pods: the manifest, and the URLs of the servers.
    fn new(pipeline: &Pipeline, component: &'static str, image: &'a str, args: &'a [&'a str]) -> Self {
        let mut template = Self {
            component,
            image,
            args,
            env: vec![
                ("MILLRACE_PIPELINE", format!("/etc/millrace/manifest/{}", config_map::KEY)),
                // A process that cannot read its manifest at its start runs the last accepted one of this name.
                ("MILLRACE_PIPELINE_NAME", pipeline.name.clone()),
                ("MILLRACE_LOG_FORMAT", "json".to_owned()),
            ],
            volumes: Vec::new(),
            mounts: Vec::new(),
            labels: BTreeMap::new(),
            container: json!({}),
            pod: json!({}),
        };
        template.mount("manifest", json!({ "configMap": { "name": config_map::name(pipeline) } }));
        template.secret("redis", &pipeline.redis, "url", "MILLRACE_REDIS_URL_FILE");
        template.secret("postgres", &pipeline.postgres, "url", "MILLRACE_POSTGRES_URL_FILE");
        template
    }

    /// Mounts a volume as the folder `/etc/millrace/<folder>`, as a whole: a subPath never follows a change.
    fn mount(&mut self, folder: &str, mut source: Value) {
        let name = format!("millrace-{folder}");
        source["name"] = json!(name);
        self.volumes.push(source);
        self.mounts.push(json!({ "name": name, "mountPath": format!("/etc/millrace/{folder}"), "readOnly": true }));
    }

    /// Mounts one key of a Secret. It is optional: without it the pod runs, reports the problem, and continues once the
    /// Secret exists.
    fn secret(&mut self, folder: &str, reference: &SecretKeyRef, file: &str, variable: &'static str) {
        let SecretKeyRef { name, key } = reference;
        let items = json!([{ "key": key, "path": file }]);
        self.mount(folder, json!({ "secret": { "secretName": name, "optional": true, "items": items } }));
        self.env.push((variable, format!("/etc/millrace/{folder}/{file}")));
    }

    /// Adds the parts of a pod that runs until it is stopped: ports, probes, grace period, spread over nodes and zones.
    fn runs(&mut self, pipeline: &Pipeline, ports: &[(&str, u16)]) {
        self.env.push(("MILLRACE_HEALTH_LISTEN", format!("[::]:{HEALTH}")));
        let port = |(name, number): &(&str, u16)| json!({ "name": name, "containerPort": number, "protocol": "TCP" });
        self.container["ports"] = ports.iter().map(port).collect();
        let probe = |path, period, timeout, failures: u32| {
            json!({
                "httpGet": { "path": path, "port": "health" },
                "periodSeconds": period,
                "timeoutSeconds": timeout,
                "failureThreshold": failures,
            })
        };
        self.container["startupProbe"] = probe("/health", 1, 1, 60);
        self.container["livenessProbe"] = probe("/health", 10, 5, 6);
        self.container["readinessProbe"] = probe("/ready", 2, 2, 3);
        self.pod["terminationGracePeriodSeconds"] = json!(GRACE_SECONDS);
        let selector = json!({ "matchLabels": selector(pipeline, self.component) });
        let spread = |key| {
            json!({
                "maxSkew": 1,
                "topologyKey": key,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": selector,
                // Of one revision: pods of the old one do not count.
                "matchLabelKeys": ["pod-template-hash"],
            })
        };
        self.pod["topologySpreadConstraints"] =
            json!([spread("kubernetes.io/hostname"), spread("topology.kubernetes.io/zone")]);
    }

    /// The pod's template, with the overrides of the manifest.
    fn finish(self, pipeline: &Pipeline, overrides: Pod) -> Value {
        let Self { component, image, args, env, mut volumes, mut mounts, labels: own_labels, mut container, mut pod } =
            self;
        let Pod {
            resources,
            node_selector,
            tolerations,
            affinity,
            annotations,
            mut labels,
            fixed_user,
            priority_class_name,
            extra_env,
            extra_volumes,
            extra_volume_mounts,
        } = overrides;
        volumes.extend(extra_volumes.into_iter().map(Value::Object));
        mounts.extend(extra_volume_mounts.into_iter().map(Value::Object));

        container["name"] = json!(component);
        container["image"] = json!(image);
        container["args"] = json!(args);
        container["env"] = json!(merged_env(&env, extra_env));
        container["volumeMounts"] = json!(mounts);
        container["resources"] = resources.map_or_else(
            || json!({ "requests": { "cpu": "100m", "memory": "64Mi" }, "limits": { "memory": "256Mi" } }),
            |resources| json!(resources),
        );
        container["securityContext"] = json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": { "drop": ["ALL"] },
        });
        if let Some(policy) = pipeline.spec.image_pull_policy {
            container["imagePullPolicy"] = json!(pull_policy(policy));
        }

        pod["serviceAccountName"] = json!(service_account::name(pipeline, component));
        pod["automountServiceAccountToken"] = json!(false);
        // The environment variables of Docker links: one per Service of the namespace, and some begin with MILLRACE_.
        pod["enableServiceLinks"] = json!(false);
        pod["securityContext"] = security_context(fixed_user != Some(false));
        pod["containers"] = json!([container]);
        pod["volumes"] = json!(volumes);
        let pull_secrets: Vec<Value> =
            pipeline.spec.image_pull_secrets.iter().map(|name| json!({ "name": name })).collect();
        set_unless_empty(&mut pod, "imagePullSecrets", json!(pull_secrets));
        set_unless_empty(&mut pod, "nodeSelector", json!(node_selector));
        set_unless_empty(&mut pod, "tolerations", json!(tolerations));
        if let Some(affinity) = affinity {
            pod["affinity"] = json!(affinity);
        }
        if let Some(class) = priority_class_name {
            pod["priorityClassName"] = json!(class);
        }

        labels.extend(labels::of(pipeline, Some(component)));
        labels.extend(own_labels);
        let mut metadata = json!({ "labels": labels });
        set_unless_empty(&mut metadata, "annotations", json!(annotations));
        json!({ "metadata": metadata, "spec": pod })
    }
}

/// The operator's variables, then the extra ones whose names differ from these.
fn merged_env(own: &[(&str, String)], extra: Vec<Object>) -> Vec<Value> {
    let is_own = |variable: &Object| {
        variable.get("name").and_then(Value::as_str).is_some_and(|name| own.iter().any(|(known, _)| *known == name))
    };
    let extra = extra.into_iter().filter(|variable| !is_own(variable)).map(Value::Object);
    own.iter().map(|(name, value)| json!({ "name": name, "value": value })).chain(extra).collect()
}

fn pull_policy(policy: PullPolicy) -> &'static str {
    match policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    }
}

fn security_context(fixed_user: bool) -> Value {
    let mut context = json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } });
    if fixed_user {
        context["runAsUser"] = json!(USER);
        context["runAsGroup"] = json!(USER);
    }
    context
}

/// Sets a field to a list or a map; an empty one is left out.
fn set_unless_empty(object: &mut Value, field: &str, value: Value) {
    let is_empty = value.as_array().is_some_and(Vec::is_empty) || value.as_object().is_some_and(|map| map.is_empty());
    if !is_empty {
        object[field] = value;
    }
}
