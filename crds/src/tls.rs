//! The fields `tls`: of `spec.redis` and `spec.postgres` the files of a TLS client, of `spec.serve` those of a server, from
//! Secrets.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::SecretKeyRef;

/// The files of TLS connections. The URL turns TLS on; these fields say whom to trust and what to present.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[x_kube(validation = Rule::new("(has(self.caSecretRef) && self.caSecretRef != null) || (has(self.clientCertSecretRef) && self.clientCertSecretRef != null)")
    .message("needs caSecretRef, clientCertSecretRef or both; leave tls out where the server's certificate is publicly trusted"))]
pub struct ClientTls {
    /// The Secret key that holds the certificates of the authorities that may have signed the server's certificate, as
    /// PEM. They replace the system's. Absent: the system's. The pods follow a change without a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// The Secret that holds the client's certificate and key, under the keys `tls.crt` and `tls.key` (type
    /// kubernetes.io/tls). Absent: the client presents none. The pods follow a change without a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert_secret_ref: Option<TlsSecretRef>,
}

/// HTTPS at the port of the API.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServeTls {
    /// The Secret that holds the certificate and key, under the keys `tls.crt` and `tls.key` (type kubernetes.io/tls), as
    /// cert-manager writes it. The pods follow a change without a restart and without ending a connection.
    pub cert_secret_ref: TlsSecretRef,
}

/// A Secret of type kubernetes.io/tls.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TlsSecretRef {
    /// The Secret's name; it is in the pipeline's namespace.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
    )]
    pub name: String,
}

impl TlsSecretRef {
    /// The key of the certificate, with those of intermediate authorities behind it.
    pub const CERTIFICATE: &str = "tls.crt";
    /// The key of the private key.
    pub const KEY: &str = "tls.key";
}
