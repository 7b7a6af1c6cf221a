//! The rules beyond the form of a manifest. Each violation names the field and the remedy.

use std::{collections::BTreeSet, fmt};

use ipnet::IpNet;

use crate::{
    API_VERSION, ClientTls, KIND, Object, Pod, RecordPipeline, RecordPipelineSpec, RedisStream, SecretKeyRef, Serve,
    ServeTls, Sink, check_text,
    schemas::{OWN_MOUNTS, OWN_VOLUMES},
};

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, such as `spec.sinks[1].name`.
    pub field: String,
    /// The rule and the remedy.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl RecordPipeline {
    /// All violations of the rules; empty when the manifest is valid.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Found::default();
        if self.api_version != API_VERSION {
            found.add("apiVersion", format!("must be {API_VERSION}"));
        }
        if self.kind != KIND {
            found.add("kind", format!("must be {KIND}"));
        }
        if !Self::is_name(&self.metadata.name) {
            found.add(
                "metadata.name",
                "must be 1 to 40 lower-case letters, digits or '-', start with a letter and end with a letter or digit",
            );
        }
        let metadata = &self.metadata;
        if metadata.namespace.as_ref().is_some_and(|namespace| !is_label(namespace, 63)) {
            found.add("metadata.namespace", "must be 1 to 63 lower-case letters, digits or '-'");
        }
        match (metadata.uid.as_deref(), metadata.generation) {
            (None, _) => {}
            (Some(uid), _) if uid.is_empty() || uid.len() > 128 => {
                found.add("metadata.uid", "must be 1 to 128 bytes; leave it out of a local file");
            }
            (Some(_), Some(1..)) => {}
            (Some(_), _) => found.add(
                "metadata.generation",
                "must be at least 1 beside metadata.uid, as Kubernetes writes both; leave both out of a local file",
            ),
        }
        self.spec.check(&self.metadata.name, &mut found);
        found.0
    }

    /// Whether a text can be a pipeline's name, which becomes the name of a schema and a prefix of keys.
    #[must_use]
    pub fn is_name(text: &str) -> bool {
        is_label(text, 40) && text.starts_with(|c: char| c.is_ascii_lowercase())
    }
}

#[derive(Default)]
pub(crate) struct Found(Vec<Violation>);

impl Found {
    pub(crate) fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Violation { field: field.into(), message: message.into() });
    }

    /// Adds each text that is no network in the form of CIDR.
    pub(crate) fn check_networks(&mut self, at: &str, networks: &[String], message: &str) {
        for (index, _) in networks.iter().enumerate().filter(|(_, network)| network.parse::<IpNet>().is_err()) {
            self.add(format!("{at}[{index}]"), message);
        }
    }
}

impl RecordPipelineSpec {
    fn check(&self, pipeline: &str, found: &mut Found) {
        if !(1..=256).contains(&self.shards) {
            found.add("spec.shards", "must be between 1 and 256");
        }
        if !(1..=1_000_000_000).contains(&self.backlog_limit) {
            found.add("spec.backlogLimit", "must be between 1 and 1,000,000,000");
        }
        if let Some(limits) = &self.limits {
            limits.check(found);
        }
        if self.image.as_ref().is_some_and(|image| !is_word(image, 500)) {
            found.add("spec.image", "must be 1 to 500 characters without spaces");
        }
        self.check_scale(found);
        if self.thresholds.len() > 64 {
            found.add("spec.thresholds", "must be at most 64");
        }
        for unit in self.thresholds.keys() {
            if let Err(rule) = check_text(unit) {
                found.add("spec.thresholds", format!("the unit {unit:?} {rule}"));
            }
        }
        let (redis, postgres) = (self.redis.as_ref(), self.postgres.as_ref());
        let bootstrap_key = self.auth.as_ref().and_then(|auth| auth.bootstrap_key_secret_ref.as_ref());
        for (at, reference) in [
            ("spec.redis.urlSecretRef", redis.map(|redis| &redis.url_secret_ref)),
            ("spec.postgres.urlSecretRef", postgres.map(|postgres| &postgres.url_secret_ref)),
            ("spec.postgres.readUrlSecretRef", postgres.and_then(|postgres| postgres.read_url_secret_ref.as_ref())),
            ("spec.auth.bootstrapKeySecretRef", bootstrap_key),
        ] {
            if let Some(reference) = reference {
                reference.check(at, found);
            }
        }
        for (at, tls) in [
            ("spec.redis.tls", redis.and_then(|redis| redis.tls.as_ref())),
            ("spec.postgres.tls", postgres.and_then(|postgres| postgres.tls.as_ref())),
        ] {
            if let Some(tls) = tls {
                tls.check(at, found);
            }
        }
        if let Some(serve) = &self.serve {
            serve.check(found);
        }
        if let Some(oidc) = &self.oidc {
            oidc.check("spec.oidc", found);
        }
        self.check_sinks(pipeline, found);
        self.check_rollups(found);
        self.check_total_thresholds(found);
        if let Some(retention) = &self.retention {
            retention.check(found);
        }
        if let Some(archive) = &self.archive {
            archive.check(&self.retention.unwrap_or_default(), found);
        }
        if self.verify.as_ref().is_some_and(|verify| !is_schedule(&verify.schedule)) {
            found.add(
                "spec.verify.schedule",
                "must be five fields of cron such as \"0 3 * * *\", or @hourly, @daily, @weekly, @monthly or @yearly",
            );
        }
        for (at, pod) in [
            ("spec.serve.pod", self.serve.as_ref().and_then(|serve| serve.pod.as_ref())),
            ("spec.work.pod", self.work.as_ref().and_then(|work| work.pod.as_ref())),
        ] {
            if let Some(pod) = pod {
                pod.check(at, found);
            }
        }
    }

    fn check_scale(&self, found: &mut Found) {
        if self.replicas.is_some_and(|replicas| replicas > 256) {
            found.add("spec.replicas", "must be at most 256");
        }
        if self.serve.as_ref().and_then(|serve| serve.replicas).is_some_and(|replicas| replicas > 256) {
            found.add("spec.serve.replicas", "must be at most 256");
        }
        if let Some(scaling) = self.serve.as_ref().and_then(|serve| serve.autoscaling.as_ref()) {
            if self.serve.as_ref().is_some_and(|serve| serve.replicas.is_some()) {
                found.add("spec.serve.replicas", "must be left out beside spec.serve.autoscaling");
            }
            if !(1 <= scaling.min_replicas
                && scaling.min_replicas <= scaling.max_replicas
                && scaling.max_replicas <= 256)
            {
                found.add("spec.serve.autoscaling", "needs 1 <= minReplicas <= maxReplicas <= 256");
            }
        }
        let Some(scaling) = &self.autoscaling else { return };
        // An API server fills in 1 where it is absent.
        if self.replicas.is_some_and(|replicas| replicas > 1) {
            found.add("spec.replicas", "must be left out, or 0, beside spec.autoscaling; set autoscaling.minReplicas");
        }
        let in_order = 1 <= scaling.min_replicas
            && scaling.min_replicas <= scaling.max_replicas
            && scaling.max_replicas <= u32::from(self.shards);
        if !in_order {
            found.add("spec.autoscaling", "needs 1 <= minReplicas <= maxReplicas <= shards");
        }
        if scaling.target_backlog == 0 {
            found.add("spec.autoscaling.targetBacklog", "must be at least 1");
        }
    }

    fn check_sinks(&self, pipeline: &str, found: &mut Found) {
        if self.sinks.len() > 16 {
            found.add("spec.sinks", "must be at most 16");
        }
        let (mut names, mut streams) = (BTreeSet::new(), BTreeSet::new());
        for (index, sink) in self.sinks.iter().enumerate() {
            let at = |field: &str| format!("spec.sinks[{index}]{field}");
            if !is_label(&sink.name, 40) {
                found.add(at(".name"), "must be 1 to 40 lower-case letters, digits or '-'");
            }
            if !names.insert(&sink.name) {
                found.add(at(".name"), format!("{} is used twice; sink names are unique", sink.name));
            }
            match (&sink.redis_stream, &sink.webhook) {
                (Some(target), None) => {
                    let stream = target.key(pipeline, &sink.name);
                    if !is_key(&stream) {
                        found.add(at(".redisStream.stream"), "must be 1 to 200 letters, digits, '.', '_', ':' or '-'");
                    }
                    if !streams.insert(stream) {
                        found.add(
                            at(".redisStream.stream"),
                            "belongs to another sink already; a stream belongs to one sink",
                        );
                    }
                    if target.max_length > 1_000_000_000 {
                        found.add(at(".redisStream.maxLength"), "must be at most 1,000,000,000, or 0 for no bound");
                    }
                }
                (None, Some(webhook)) => {
                    webhook.check(&at(".webhook"), found);
                }
                _ => found.add(at(""), "needs exactly one of redisStream and webhook"),
            }
            sink.check_ends(&at(""), found);
            if let Some(filter) = &sink.filter {
                filter.check(sink.event, &at(".filter"), found);
            }
        }
    }
}

impl Sink {
    fn check_ends(&self, at: &str, found: &mut Found) {
        const TIME: &str = "must be an RFC 3339 time with an offset, such as \"2026-01-31T12:00:00Z\"";
        if let Some(from) = &self.from {
            if from.position.is_some() == from.time.is_some() {
                found.add(format!("{at}.from"), "needs exactly one of position and time");
            }
            if from.time.is_some() && from.micros().is_none() {
                found.add(format!("{at}.from.time"), TIME);
            }
        }
        let Some(until) = &self.until else { return };
        match (self.from.as_ref().and_then(crate::From::micros), until.micros()) {
            (_, None) => found.add(format!("{at}.until.time"), TIME),
            (Some(from), Some(until)) if from >= until => {
                found.add(format!("{at}.until.time"), "must be after from.time");
            }
            _ => {}
        }
    }
}

impl Pod {
    /// Checks the rules of volumes. An API server checks them by the current schema, but not by an older one.
    fn check(&self, at: &str, found: &mut Found) {
        let starts = |object: &Object, field: &str, with: &str| {
            object.get(field).and_then(serde_json::Value::as_str).is_some_and(|text| text.starts_with(with))
        };
        for (index, volume) in self.extra_volumes.iter().enumerate() {
            if starts(volume, "name", OWN_VOLUMES) {
                let message = "must not begin with millrace-: the pods' own volumes are called so";
                found.add(format!("{at}.extraVolumes[{index}].name"), message);
            }
        }
        for (index, mount) in self.extra_volume_mounts.iter().enumerate() {
            if !self.extra_volumes.iter().any(|volume| volume.get("name") == mount.get("name")) {
                let message = "has to name one of extraVolumes";
                found.add(format!("{at}.extraVolumeMounts[{index}].name"), message);
            }
            if starts(mount, "mountPath", OWN_MOUNTS) {
                let message = "must not be below /etc/millrace: the manifest and the URLs are mounted there";
                found.add(format!("{at}.extraVolumeMounts[{index}].mountPath"), message);
            }
        }
    }
}

impl ClientTls {
    fn check(&self, at: &str, found: &mut Found) {
        let Self { ca_secret_ref, client_cert_secret_ref } = self;
        if ca_secret_ref.is_none() && client_cert_secret_ref.is_none() {
            found.add(at, "needs caSecretRef, clientCertSecretRef or both; else leave it out");
        }
        if let Some(reference) = ca_secret_ref {
            reference.check(&format!("{at}.caSecretRef"), found);
        }
        if let Some(reference) = client_cert_secret_ref {
            check_secret_name(&reference.name, &format!("{at}.clientCertSecretRef"), found);
        }
    }
}

impl Serve {
    fn check(&self, found: &mut Found) {
        if let Some(ServeTls { cert_secret_ref }) = &self.tls {
            check_secret_name(&cert_secret_ref.name, "spec.serve.tls.certSecretRef", found);
        }
        if let Some(cors) = &self.cors {
            cors.check("spec.serve.cors", found);
        }
        if self.trusted_proxies.len() > 32 {
            found.add("spec.serve.trustedProxies", "must be at most 32 networks");
        }
        let rule = "must be a network such as 10.0.0.0/8 or fd00::/8; one address is 203.0.113.9/32";
        found.check_networks("spec.serve.trustedProxies", &self.trusted_proxies, rule);
    }
}

fn check_secret_name(name: &str, at: &str, found: &mut Found) {
    let is_name = (1..=253).contains(&name.len()) && name.split('.').all(|part| is_label(part, 253));
    if !is_name {
        found.add(format!("{at}.name"), "must be a Secret's name: at most 253 lower-case letters, digits, '-' or '.'");
    }
}

impl SecretKeyRef {
    pub(crate) fn check(&self, at: &str, found: &mut Found) {
        check_secret_name(&self.name, at, found);
        let is_key = (1..=253).contains(&self.key.len())
            && self.key.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !is_key {
            found.add(format!("{at}.key"), "must be 1 to 253 letters, digits, '.', '_' or '-'");
        }
    }
}

impl RedisStream {
    /// The stream's key: as named, else `<pipeline>.<sink name>`.
    #[must_use]
    pub fn key(&self, pipeline: &str, sink: &str) -> String {
        self.stream.clone().unwrap_or_else(|| format!("{pipeline}.{sink}"))
    }
}

impl Sink {
    /// The key of its Redis stream: as named, else `<pipeline>.<sink name>`; `None` for another kind of sink.
    #[must_use]
    pub fn stream(&self, pipeline: &str) -> Option<String> {
        self.redis_stream.as_ref().map(|target| target.key(pipeline, &self.name))
    }
}

/// Whether a text has the form of a schedule. The API server checks the values of its fields.
fn is_schedule(text: &str) -> bool {
    const NAMED: [&str; 7] = ["@yearly", "@annually", "@monthly", "@weekly", "@daily", "@midnight", "@hourly"];
    let is_field = |field: &str| field.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"*/,?-".contains(&byte));
    let fields: Vec<&str> = text.split(' ').filter(|field| !field.is_empty()).collect();
    NAMED.contains(&text)
        || text.len() <= 100
            && !text.starts_with(' ')
            && !text.ends_with(' ')
            && fields.len() == 5
            && fields.into_iter().all(is_field)
}

/// A DNS label of at most `longest` characters.
pub(crate) fn is_label(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_key(text: &str) -> bool {
    (1..=200).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
}

/// The port that an http or https URL connects to.
pub(crate) fn port_of(url: &str) -> i32 {
    let default = if url.starts_with("https:") { 443 } else { 80 };
    let host = url.split("://").nth(1).and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    // Behind the address of IPv6, which has colons of its own.
    let port = host.rsplit(']').next().and_then(|rest| rest.rsplit_once(':'));
    port.and_then(|(_, port)| port.parse().ok()).unwrap_or(default)
}

pub(crate) fn is_word(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len()) && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}
