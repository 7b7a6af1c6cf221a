//! The fields of `spec.archive`. `kubectl explain` shows their docs.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Retention, SecretKeyRef,
    schemas::OWN_MOUNTS,
    validate::{Found, is_label, is_word, port_of},
};

/// Where each partition of records is written before it is dropped: a directory or a bucket of S3, exactly one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("(has(self.directory) && self.directory != null) != (has(self.s3) && self.s3 != null)")
    .message("needs exactly one of directory and s3"))]
pub struct Archive {
    /// A directory that every worker can write to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<ArchiveDirectory>,
    /// A bucket of S3, or of a server with its API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<ArchiveS3>,
}

/// A directory of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArchiveDirectory {
    /// Its absolute path. It has to exist: a volume that is not mounted is an error, and no new directory.
    #[schemars(length(max = 1000))]
    #[x_kube(
        validation = Rule::new("self.matches('^/[^/]') && !self.contains('..')")
            .message("must be an absolute path without '..'"),
        validation = Rule::new("!self.startsWith('/etc/millrace')")
            .message("must not be below /etc/millrace: the manifest and the URLs are mounted there"),
    )]
    pub path: String,
    /// On a cluster: the PersistentVolumeClaim, in the pipeline's namespace, that is mounted at `path` in the pods of work.
    /// With several workers on several nodes its access mode is ReadWriteMany. Absent: `work.pod.extraVolumes` mount it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$')")
        .message("must be a PersistentVolumeClaim's name: lower-case letters, digits, '-' or '.'"))]
    pub claim_name: Option<String>,
}

/// A bucket of an archive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ArchiveS3 {
    /// Its name. It has to exist.
    #[schemars(length(min = 3, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9][-.a-z0-9]*[a-z0-9]$')")
        .message("must be 3 to 63 lower-case letters, digits, '-' or '.'"))]
    pub bucket: String,
    /// The beginning of the names of its objects, such as archive/2026. Absent: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9][A-Za-z0-9._=-]*(/[A-Za-z0-9][A-Za-z0-9._=-]*)*$')")
        .message("must be parts of letters, digits, '.', '_', '=' or '-', each beginning with a letter or digit, with '/' between"))]
    pub prefix: Option<String>,
    /// The region, us-east-1 unless given.
    #[serde(default = "default_region")]
    #[schemars(length(min = 1, max = 100))]
    #[x_kube(validation = Rule::new("self.matches('^[-a-z0-9]+$')").message("must be lower-case letters, digits or '-'"))]
    pub region: String,
    /// The URL of a server with the API of S3, without the bucket, such as https://s3.example.com. Absent: that of AWS in the
    /// region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    #[x_kube(validation = Rule::new(r"self.matches(r'^https?://[^/?#@\s]+/?$')").message(
        "must be http(s)://host:port, without a user, a password or a path"
    ))]
    pub endpoint: Option<String>,
    /// The Secret key that holds the id of the access key. The pods follow a change without a restart.
    pub access_key_id_secret_ref: SecretKeyRef,
    /// The Secret key that holds the secret access key.
    pub secret_access_key_secret_ref: SecretKeyRef,
    /// The Secret key that holds the certificates of the authorities that may have signed the server's certificate, as PEM.
    /// They replace the system's. Absent: the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

impl ArchiveS3 {
    /// The Secret keys that it names.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretKeyRef> {
        [&self.access_key_id_secret_ref, &self.secret_access_key_secret_ref].into_iter().chain(&self.ca_secret_ref)
    }

    /// The port that it connects to.
    #[must_use]
    pub fn port(&self) -> i32 {
        self.endpoint.as_deref().map_or(443, port_of)
    }
}

impl Archive {
    pub(crate) fn check(&self, retention: &Retention, found: &mut Found) {
        if retention.records.is_forever() {
            let message =
                "needs spec.retention.records: a partition is archived before it is dropped, and none is dropped";
            found.add("spec.archive", message);
        }
        match (&self.directory, &self.s3) {
            (Some(directory), None) => directory.check("spec.archive.directory", found),
            (None, Some(s3)) => s3.check("spec.archive.s3", found),
            _ => found.add("spec.archive", "needs exactly one of directory and s3"),
        }
    }
}

impl ArchiveDirectory {
    fn check(&self, at: &str, found: &mut Found) {
        let is_absolute = self.path.starts_with('/') && self.path.len() > 1 && !self.path.starts_with("//");
        if !is_absolute || self.path.len() > 1000 || self.path.contains("..") {
            found.add(format!("{at}.path"), "must be an absolute path of at most 1,000 bytes, without '..'");
        }
        if self.path.starts_with(OWN_MOUNTS) {
            let message = "must not be below /etc/millrace: the manifest and the URLs are mounted there";
            found.add(format!("{at}.path"), message);
        }
        let is_name = |name: &String| name.split('.').all(|part| is_label(part, 253)) && name.len() <= 253;
        if !self.claim_name.as_ref().is_none_or(is_name) {
            let message = "must be a PersistentVolumeClaim's name: lower-case letters, digits, '-' or '.'";
            found.add(format!("{at}.claimName"), message);
        }
    }
}

impl ArchiveS3 {
    fn check(&self, at: &str, found: &mut Found) {
        let is_of = |text: &str, more: &str| {
            text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || more.as_bytes().contains(&b))
        };
        let ends = |text: &str| text.starts_with(['-', '.']) || text.ends_with(['-', '.']);
        if !(3..=63).contains(&self.bucket.len()) || !is_of(&self.bucket, "-.") || ends(&self.bucket) {
            found.add(format!("{at}.bucket"), "must be 3 to 63 lower-case letters, digits, '-' or '.'");
        }
        if self.prefix.as_ref().is_some_and(|prefix| prefix.len() > 500 || !prefix.split('/').all(is_part)) {
            let message = "must be parts of letters, digits, '.', '_', '=' or '-', each beginning with a letter or digit, with \
                           '/' between";
            found.add(format!("{at}.prefix"), message);
        }
        if !(1..=100).contains(&self.region.len()) || !is_of(&self.region, "-") {
            found.add(format!("{at}.region"), "must be 1 to 100 lower-case letters, digits or '-'");
        }
        if self.endpoint.as_ref().is_some_and(|endpoint| !is_endpoint(endpoint)) {
            let message = "must be http(s)://host:port, without a user, a password or a path";
            found.add(format!("{at}.endpoint"), message);
        }
        self.access_key_id_secret_ref.check(&format!("{at}.accessKeyIdSecretRef"), found);
        self.secret_access_key_secret_ref.check(&format!("{at}.secretAccessKeySecretRef"), found);
        if let Some(reference) = &self.ca_secret_ref {
            reference.check(&format!("{at}.caSecretRef"), found);
        }
    }
}

/// A part of the name of an object.
fn is_part(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._=-".contains(&b))
}

fn is_endpoint(text: &str) -> bool {
    let place = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let place = place.map(|place| place.strip_suffix('/').unwrap_or(place));
    is_word(text, 500) && place.is_some_and(|place| !place.is_empty() && !place.contains(['/', '?', '#', '@']))
}
