//! The certificate of the API's port, followed while its files change.
//!
//! Must never show a key, and never drop the certificate in use because another one cannot be used. Open connections keep
//! what they began with.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::bail;
use millrace_crds::{ServeTls, TlsSecretRef, status_api::Problem};
use rustls::ServerConfig;
use tokio::sync::watch;

use super::connections::Tls;
use crate::{
    board::Board,
    config::{ActiveManifest, SecretError, given, identity},
    lifecycle::Lifecycle,
    tls::Identity,
};

/// Between two looks at the files.
const LOOK: Duration = Duration::from_millis(500);
/// Heartbeat that is stalled until there is a certificate.
const WAITING: &str = "waiting for the certificate";
/// Part of the board for a certificate that cannot be used.
const PART: &str = "certificate";

/// The files of a certificate and its key, as PEM.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CertificateArgs {
    /// A PEM file of the certificate for HTTPS at --listen, with those of intermediate authorities; it is followed
    #[arg(long, value_name = "FILE", env = "MILLRACE_TLS_CERT_FILE", requires = "tls_key_file")]
    tls_cert_file: Option<PathBuf>,
    /// A PEM file of that certificate's private key
    #[arg(long, value_name = "FILE", env = "MILLRACE_TLS_KEY_FILE", requires = "tls_cert_file")]
    tls_key_file: Option<PathBuf>,
}

impl CertificateArgs {
    /// Waits until the files hold a certificate, and has them followed from then on by a task of `lifecycle`. Gives `None`
    /// where no files are named. `manifest` names their Secret.
    ///
    /// # Errors
    /// When the process stops before there is one.
    pub(crate) async fn follow(
        self,
        manifest: &watch::Receiver<ActiveManifest>,
        lifecycle: &Lifecycle,
    ) -> anyhow::Result<Option<Tls>> {
        let (Some(certificate), Some(key)) = (given(&self.tls_cert_file), given(&self.tls_key_file)) else {
            return Ok(None);
        };
        let (certificate, key) = (certificate.to_owned(), key.to_owned());
        let mut follower =
            Follower { certificate, key, manifest: manifest.clone(), board: lifecycle.board.clone(), used: None };
        let _still = lifecycle.heartbeats.register(WAITING, Duration::ZERO);
        let first = loop {
            if let Some(config) = follower.look() {
                break config;
            }
            if tokio::time::timeout(LOOK, lifecycle.soft.cancelled()).await.is_ok() {
                bail!("stopped before there was a certificate");
            }
        };
        lifecycle.heartbeats.remove(WAITING);
        let (sender, receiver) = watch::channel(first);
        let heartbeat = lifecycle.heartbeats.register("serve.certificate", Duration::from_secs(30));
        let soft = lifecycle.soft.clone();
        lifecycle.spawn("serve.certificate", async move {
            while tokio::time::timeout(LOOK, soft.cancelled()).await.is_err() {
                if let Some(config) = follower.look() {
                    tracing::info!(event = "http.certificate.replaced", "new connections get the new certificate");
                    sender.send_replace(config);
                }
                heartbeat.record();
            }
            Ok(())
        });
        Ok(Some(receiver))
    }
}

struct Follower {
    certificate: PathBuf,
    key: PathBuf,
    manifest: watch::Receiver<ActiveManifest>,
    board: Board,
    used: Option<Identity>,
}

impl Follower {
    /// Settings of a server where the files hold another certificate than the one in use; what is wrong with them stands
    /// on the board. The one in use is judged each time: it may expire.
    fn look(&mut self) -> Option<Arc<ServerConfig>> {
        // A mount that changes between the two files is whole at the second attempt.
        let read = self.read().or_else(|_| self.read());
        let problem = read.as_ref().err().and_then(SecretError::problem);
        if self.board.of(PART).first() != problem.as_ref() {
            if let Some(Problem { reason, message }) = &problem {
                tracing::warn!(event = "http.certificate.refused", ?reason, message, "a certificate cannot be used");
            }
            self.board.set(PART, problem);
        }
        let (identity, config) = read.ok()??;
        self.used = Some(identity);
        Some(config)
    }

    /// Another certificate than the one in use.
    fn read(&self) -> Result<Option<(Identity, Arc<ServerConfig>)>, SecretError> {
        let manifest = Arc::clone(&self.manifest.borrow().manifest);
        let tls = manifest.spec.serve.as_ref().and_then(|serve| serve.tls.as_ref());
        let secret: Option<&TlsSecretRef> = tls.map(|ServeTls { cert_secret_ref }| cert_secret_ref);
        let identity = identity(secret, &self.certificate, &self.key)?;
        if self.used.as_ref() == Some(&identity) {
            return Ok(None);
        }
        let config = identity.server_config()?;
        Ok(Some((identity, Arc::new(config))))
    }
}
