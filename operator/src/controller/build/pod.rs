//! The pods' templates. They must not depend on fields that change live, nor on the operator's version: each difference
//! rolls every pod.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{
    api::core::v1::{
        Capabilities, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, HTTPGetAction, KeyToPath, Lifecycle,
        LifecycleHandler, LocalObjectReference, PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec,
        PodTemplateSpec, Probe, ProjectedVolumeSource, ResourceRequirements, SeccompProfile, SecretProjection,
        SecretVolumeSource, SecurityContext, SleepAction, TopologySpreadConstraint, Volume, VolumeMount,
        VolumeProjection,
    },
    apimachinery::pkg::{api::resource::Quantity, util::intstr::IntOrString},
};
use kube::api::ObjectMeta;
use millrace_crds::{
    Archive, ArchiveDirectory, ArchiveS3, Auth, ClientTls, JobPod, Pod, PullPolicy, Resources, SecretKeyRef, ServeTls,
    TlsSecretRef, Webhook,
};

use super::{Validated, config_map, labels, overrides, pods_of, service_account, unless_empty};

/// The port of the API, named as [`scheme`] gives.
pub(super) const HTTP: i32 = 8080;
/// The port of `/health`, `/ready`, `/metrics` and `/status`, named `health`.
pub(super) const HEALTH: i32 = 8081;

/// The scheme of the API, `http` or `https`, which is also the name of its port.
pub(super) fn scheme(pipeline: &Validated) -> &'static str {
    if serve_tls(pipeline).is_some() { "https" } else { "http" }
}

fn serve_tls(pipeline: &Validated) -> Option<&ServeTls> {
    pipeline.spec.serve.as_ref()?.tls.as_ref()
}

/// User and group of the processes; the image names the same.
const USER: i64 = 65532;

/// How long a pod continues to serve after Kubernetes stops it: until every node has removed it from the Service,
/// clients may send requests to it.
const STOP_AFTER_SECONDS: i64 = 5;
/// Requests that have begun end within 30 s, after [`STOP_AFTER_SECONDS`].
const GRACE_SECONDS: i64 = 45;
/// How long a Job waits for a missing Secret or an unreachable Postgres, in milliseconds.
const JOB_WAIT_MS: &str = "10000";

/// A pod with one container, before the manifest's overrides.
struct Template {
    component: &'static str,
    container: Container,
    env: Vec<EnvVar>,
    mounts: Vec<VolumeMount>,
    pod: PodSpec,
    volumes: Vec<Volume>,
    /// Labels beside those of every object.
    labels: BTreeMap<String, String>,
    /// Whether it writes to a volume, which then has to belong to its group.
    writes_volumes: bool,
}

/// The template of the Deployment of serve.
///
/// # Errors
/// Of this function and the next ones: a field of Kubernetes in the manifest that has no meaning.
pub(super) fn serve(pipeline: &Validated, image: &str) -> Result<PodTemplateSpec, String> {
    let mut template = Template::new(pipeline, "serve", image, &["serve"]);
    let auth = pipeline.spec.auth.as_ref();
    if let Some(Auth { bootstrap_key_secret_ref: Some(reference) }) = auth {
        template.secret("bootstrap-key", reference, "key", "MILLRACE_BOOTSTRAP_KEY_FILE");
    }
    let postgres = pipeline.spec.postgres.as_ref();
    if let Some(reference) = postgres.and_then(|postgres| postgres.read_url_secret_ref.as_ref()) {
        template.secret("postgres-read", reference, "url", "MILLRACE_POSTGRES_READ_URL_FILE");
    }
    let oidc = pipeline.spec.oidc.as_ref();
    if let Some(reference) = oidc.and_then(|oidc| oidc.ca_secret_ref.as_ref()) {
        template.secret("oidc-ca", reference, "ca.crt", "MILLRACE_OIDC_CA_FILE");
    }
    template.env("MILLRACE_LISTEN", &format!("[::]:{HTTP}"));
    if let Some(ServeTls { cert_secret_ref }) = serve_tls(pipeline) {
        template.certificate("certificate", cert_secret_ref, "MILLRACE_TLS_CERT_FILE", "MILLRACE_TLS_KEY_FILE");
    }
    template.runs(pipeline, &[(scheme(pipeline), HTTP), ("health", HEALTH)]);
    let sleep = SleepAction { seconds: STOP_AFTER_SECONDS };
    let pre_stop = Some(LifecycleHandler { sleep: Some(sleep), ..LifecycleHandler::default() });
    template.container.lifecycle = Some(Lifecycle { pre_stop, ..Lifecycle::default() });
    let pod = pipeline.spec.serve.as_ref().and_then(|serve| serve.pod.clone());
    template.finish(pipeline, "serve", pod.unwrap_or_default())
}

/// The template of the Deployment of work.
pub(super) fn work(pipeline: &Validated, image: &str) -> Result<PodTemplateSpec, String> {
    let mut template = Template::new(pipeline, "work", image, &["work"]);
    let webhooks = pipeline.spec.sinks.iter().filter_map(|sink| sink.webhook.as_ref());
    template.secrets("webhooks", webhooks.flat_map(Webhook::secrets), "MILLRACE_WEBHOOK_SECRETS_DIR");
    template.archive(pipeline);
    template.runs(pipeline, &[("health", HEALTH)]);
    template.finish(pipeline, "work", work_pod(pipeline))
}

/// The template of a Job: it has the overrides of work, and those of Jobs.
pub(super) fn job(
    pipeline: &Validated,
    component: &'static str,
    image: &str,
    args: &[&str],
    labels: &BTreeMap<String, String>,
) -> Result<PodTemplateSpec, String> {
    let mut template = Template::new(pipeline, component, image, args);
    template.labels = labels.clone();
    template.env("MILLRACE_WAIT_MS", JOB_WAIT_MS);
    template.env("MILLRACE_TERMINATION_LOG", "/dev/termination-log");
    template.pod.restart_policy = Some("Never".to_owned());
    let mut pod = work_pod(pipeline);
    let jobs = pipeline.spec.jobs.as_ref().and_then(|jobs| jobs.pod.clone());
    let JobPod { annotations, labels } = jobs.unwrap_or_default();
    pod.annotations.extend(annotations);
    pod.labels.extend(labels);
    template.finish(pipeline, "work", pod)
}

fn work_pod(pipeline: &Validated) -> Pod {
    pipeline.spec.work.as_ref().and_then(|work| work.pod.clone()).unwrap_or_default()
}

impl Template {
    /// A template with the parts of all pods: the manifest, and the URLs of the servers.
    fn new(pipeline: &Validated, component: &'static str, image: &str, args: &[&str]) -> Self {
        let container = Container {
            name: component.to_owned(),
            image: Some(image.to_owned()),
            args: Some(args.iter().map(|&arg| arg.to_owned()).collect()),
            security_context: Some(SecurityContext {
                allow_privilege_escalation: Some(false),
                read_only_root_filesystem: Some(true),
                capabilities: Some(Capabilities { drop: Some(vec!["ALL".to_owned()]), add: None }),
                ..SecurityContext::default()
            }),
            image_pull_policy: pipeline.spec.image_pull_policy.map(|policy| pull_policy(policy).to_owned()),
            ..Container::default()
        };
        let secrets = pipeline.spec.image_pull_secrets.iter();
        let pod = PodSpec {
            service_account_name: Some(service_account::name(pipeline, component)),
            automount_service_account_token: Some(false),
            // The environment variables of Docker links: one per Service of the namespace, and some begin with
            // MILLRACE_.
            enable_service_links: Some(false),
            image_pull_secrets: unless_empty(
                secrets.map(|name| LocalObjectReference { name: name.clone() }).collect::<Vec<_>>(),
            ),
            ..PodSpec::default()
        };
        let (env, mounts, volumes, labels) = (Vec::new(), Vec::new(), Vec::new(), BTreeMap::new());
        let mut template = Self { component, container, env, mounts, pod, volumes, labels, writes_volumes: false };
        template.env("MILLRACE_PIPELINE", &format!("/etc/millrace/manifest/{}", config_map::KEY));
        // A process that cannot read its manifest at its start runs the last accepted one of this name.
        template.env("MILLRACE_PIPELINE_NAME", &pipeline.name);
        template.env("MILLRACE_LOG_FORMAT", "json");
        let manifest = ConfigMapVolumeSource { name: config_map::name(pipeline), ..ConfigMapVolumeSource::default() };
        template.mount("manifest", Volume { config_map: Some(manifest), ..Volume::default() });
        template.secret("redis", &pipeline.redis, "url", "MILLRACE_REDIS_URL_FILE");
        template.secret("postgres", &pipeline.postgres, "url", "MILLRACE_POSTGRES_URL_FILE");
        let spec = &pipeline.spec;
        template.tls("redis", spec.redis.as_ref().and_then(|redis| redis.tls.as_ref()));
        template.tls("postgres", spec.postgres.as_ref().and_then(|postgres| postgres.tls.as_ref()));
        template
    }

    fn env(&mut self, name: &str, value: &str) {
        self.env.push(EnvVar { name: name.to_owned(), value: Some(value.to_owned()), value_from: None });
    }

    /// Mounts a volume as the folder `/etc/millrace/<folder>`, as a whole: a subPath never follows a change.
    fn mount(&mut self, folder: &str, source: Volume) {
        let name = format!("millrace-{folder}");
        self.mounts.push(VolumeMount {
            name: name.clone(),
            mount_path: format!("/etc/millrace/{folder}"),
            read_only: Some(true),
            ..VolumeMount::default()
        });
        self.volumes.push(Volume { name, ..source });
    }

    /// Mounts one key of a Secret. It is optional: without it the pod runs, reports the problem, and continues once the
    /// Secret exists.
    fn secret(&mut self, folder: &str, reference: &SecretKeyRef, file: &str, variable: &str) {
        let SecretKeyRef { name, key } = reference;
        self.keys(folder, name, &[(key, file, variable)]);
    }

    /// Mounts keys of one Secret in one folder, so that they change together. Optional as [`Self::secret`].
    fn keys(&mut self, folder: &str, secret: &str, keys: &[(&str, &str, &str)]) {
        let item = |key: &str, file: &str| KeyToPath { key: key.to_owned(), path: file.to_owned(), mode: None };
        let source = SecretVolumeSource {
            secret_name: Some(secret.to_owned()),
            optional: Some(true),
            items: Some(keys.iter().map(|(key, file, _)| item(key, file)).collect()),
            default_mode: None,
        };
        self.mount(folder, Volume { secret: Some(source), ..Volume::default() });
        for (_, file, variable) in keys {
            self.env(variable, &format!("/etc/millrace/{folder}/{file}"));
        }
    }

    /// Mounts Secrets as one folder, each key as `<Secret>/<key>`. Optional as [`Self::secret`]. The template depends on the
    /// Secrets alone: other changes of what names them roll no pod.
    fn secrets<'a>(&mut self, folder: &str, named: impl Iterator<Item = &'a SecretKeyRef>, variable: &str) {
        let keys: BTreeSet<(&str, &str)> =
            named.map(|SecretKeyRef { name, key }| (name.as_str(), key.as_str())).collect();
        if keys.is_empty() {
            return;
        }
        let sources = keys.into_iter().map(|(name, key)| VolumeProjection {
            secret: Some(SecretProjection {
                name: name.to_owned(),
                optional: Some(true),
                items: Some(vec![KeyToPath { key: key.to_owned(), path: format!("{name}/{key}"), mode: None }]),
            }),
            ..VolumeProjection::default()
        });
        let projected = ProjectedVolumeSource { sources: Some(sources.collect()), default_mode: None };
        self.mount(folder, Volume { projected: Some(projected), ..Volume::default() });
        self.env(variable, &format!("/etc/millrace/{folder}"));
    }

    /// Mounts the Secrets of the archive, or its claim at the path of the manifest.
    fn archive(&mut self, pipeline: &Validated) {
        let Some(Archive { directory, s3 }) = &pipeline.spec.archive else { return };
        self.secrets("archive", s3.iter().flat_map(ArchiveS3::secrets), "MILLRACE_ARCHIVE_SECRETS_DIR");
        let Some(ArchiveDirectory { path, claim_name: Some(claim_name) }) = directory else { return };
        let name = "millrace-archive-directory".to_owned();
        let claim = PersistentVolumeClaimVolumeSource { claim_name: claim_name.clone(), read_only: None };
        self.mounts.push(VolumeMount { name: name.clone(), mount_path: path.clone(), ..VolumeMount::default() });
        self.volumes.push(Volume { name, persistent_volume_claim: Some(claim), ..Volume::default() });
        self.writes_volumes = true;
    }

    /// Mounts the files of TLS connections to a server, `redis` or `postgres`.
    fn tls(&mut self, server: &str, tls: Option<&ClientTls>) {
        let Some(ClientTls { ca_secret_ref, client_cert_secret_ref }) = tls else { return };
        let variable = |file: &str| format!("MILLRACE_{}_TLS_{file}_FILE", server.to_uppercase());
        if let Some(reference) = ca_secret_ref {
            self.secret(&format!("{server}-ca"), reference, "ca.crt", &variable("CA"));
        }
        if let Some(reference) = client_cert_secret_ref {
            self.certificate(&format!("{server}-client"), reference, &variable("CERT"), &variable("KEY"));
        }
    }

    /// Mounts a certificate and its key.
    fn certificate(&mut self, folder: &str, TlsSecretRef { name }: &TlsSecretRef, cert_file: &str, key_file: &str) {
        let (certificate, key) = (TlsSecretRef::CERTIFICATE, TlsSecretRef::KEY);
        self.keys(folder, name, &[(certificate, certificate, cert_file), (key, key, key_file)]);
    }

    /// Adds the parts of a pod that runs until it is stopped: ports, probes, grace period, spread over nodes and zones.
    fn runs(&mut self, pipeline: &Validated, ports: &[(&str, i32)]) {
        self.env("MILLRACE_HEALTH_LISTEN", &format!("[::]:{HEALTH}"));
        let port = |(name, number): &(&str, i32)| ContainerPort {
            name: Some((*name).to_owned()),
            container_port: *number,
            protocol: Some("TCP".to_owned()),
            ..ContainerPort::default()
        };
        self.container.ports = Some(ports.iter().map(port).collect());
        let probe = |path: &str, period, timeout, failures| {
            Some(Probe {
                http_get: Some(HTTPGetAction {
                    path: Some(path.to_owned()),
                    port: IntOrString::String("health".to_owned()),
                    ..HTTPGetAction::default()
                }),
                period_seconds: Some(period),
                timeout_seconds: Some(timeout),
                failure_threshold: Some(failures),
                ..Probe::default()
            })
        };
        self.container.startup_probe = probe("/health", 1, 1, 60);
        self.container.liveness_probe = probe("/health", 10, 5, 6);
        self.container.readiness_probe = probe("/ready", 2, 2, 3);
        self.pod.termination_grace_period_seconds = Some(GRACE_SECONDS);
        let spread = |key: &str| TopologySpreadConstraint {
            max_skew: 1,
            topology_key: key.to_owned(),
            when_unsatisfiable: "ScheduleAnyway".to_owned(),
            label_selector: Some(pods_of(pipeline, self.component)),
            // Of one revision: pods of the old one do not count.
            match_label_keys: Some(vec!["pod-template-hash".to_owned()]),
            ..TopologySpreadConstraint::default()
        };
        self.pod.topology_spread_constraints =
            Some(vec![spread("kubernetes.io/hostname"), spread("topology.kubernetes.io/zone")]);
    }

    /// The pod's template, with the overrides that the manifest has for the pods of a role.
    fn finish(self, pipeline: &Validated, role: &str, overrides: Pod) -> Result<PodTemplateSpec, String> {
        let Self { component, mut container, mut env, mut mounts, mut pod, mut volumes, labels, writes_volumes } = self;
        let own_labels = labels;
        let at = |name: &str| format!("spec.{role}.pod.{name}");
        // The operator's variables, then the extra ones whose names differ from these.
        let extra: Vec<EnvVar> = overrides::parse(&at("extraEnv"), &overrides.extra_env)?;
        let is_own = |variable: &EnvVar| env.iter().any(|own| own.name == variable.name);
        let extra: Vec<_> = extra.into_iter().filter(|variable| !is_own(variable)).collect();
        env.extend(extra);
        mounts.extend(overrides::parse::<Vec<_>>(&at("extraVolumeMounts"), &overrides.extra_volume_mounts)?);
        volumes.extend(overrides::parse::<Vec<_>>(&at("extraVolumes"), &overrides.extra_volumes)?);
        container.env = Some(env);
        container.volume_mounts = Some(mounts);
        container.resources = Some(resources(overrides.resources));
        pod.containers = vec![container];
        pod.volumes = Some(volumes);
        let has_fixed_user = overrides.fixed_user != Some(false);
        let fs_group = (writes_volumes && has_fixed_user).then_some(USER);
        pod.security_context = Some(PodSecurityContext { fs_group, ..security_context(has_fixed_user) });
        pod.node_selector = unless_empty(overrides.node_selector);
        pod.tolerations = unless_empty(overrides::parse::<Vec<_>>(&at("tolerations"), &overrides.tolerations)?);
        pod.affinity = overrides::parse(&at("affinity"), &overrides.affinity)?;
        pod.priority_class_name = overrides.priority_class_name;
        let mut labels = overrides.labels;
        labels.extend(labels::of(pipeline, Some(component)));
        labels.extend(own_labels);
        let annotations = unless_empty(overrides.annotations);
        let metadata = ObjectMeta { labels: Some(labels), annotations, ..ObjectMeta::default() };
        Ok(PodTemplateSpec { metadata: Some(metadata), spec: Some(pod) })
    }
}

fn pull_policy(policy: PullPolicy) -> &'static str {
    match policy {
        PullPolicy::Always => "Always",
        PullPolicy::IfNotPresent => "IfNotPresent",
        PullPolicy::Never => "Never",
    }
}

fn resources(given: Option<Resources>) -> ResourceRequirements {
    let amounts = |all: &[(&str, &str)]| {
        Some(all.iter().map(|(name, amount)| ((*name).to_owned(), Quantity((*amount).to_owned()))).collect())
    };
    let typed = |all: BTreeMap<String, millrace_crds::Quantity>| {
        unless_empty(all.into_iter().map(|(name, amount)| (name, Quantity(amount.into()))).collect::<BTreeMap<_, _>>())
    };
    match given {
        Some(Resources { requests, limits }) => {
            ResourceRequirements { requests: typed(requests), limits: typed(limits), claims: None }
        }
        None => ResourceRequirements {
            requests: amounts(&[("cpu", "100m"), ("memory", "64Mi")]),
            limits: amounts(&[("memory", "256Mi")]),
            claims: None,
        },
    }
}

fn security_context(fixed_user: bool) -> PodSecurityContext {
    let user = fixed_user.then_some(USER);
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: user,
        run_as_group: user,
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".to_owned(), localhost_profile: None }),
        ..PodSecurityContext::default()
    }
}
