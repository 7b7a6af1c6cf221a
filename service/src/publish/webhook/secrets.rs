//! The Secrets of webhooks: files that are followed. The last good content stays in use.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use millrace_crds::{SecretKeyRef, Webhook};

use crate::{
    config::{SecretError, secret},
    webhook::{ExtraHeaders, SigningKeys},
};

/// The folder with the Secrets of webhooks: `<Secret>/<key>`.
#[derive(Debug, Clone, Default)]
pub struct WebhookSecrets(Option<PathBuf>);

impl WebhookSecrets {
    /// The folder; `None`: there is none.
    #[must_use]
    pub fn new(dir: Option<PathBuf>) -> Self {
        Self(dir.filter(|dir| !dir.as_os_str().is_empty()))
    }

    /// Reads the keys and the headers of a webhook.
    ///
    /// # Errors
    /// Names the Secret and key that are missing or cannot be used.
    pub(super) fn read(&self, webhook: &Webhook) -> Result<Arc<Signing>, SecretError> {
        let Some(dir) = &self.0 else {
            return Err(SecretError::NotGiven(
                "give the folder of the Secrets: --webhook-secrets-dir or MILLRACE_WEBHOOK_SECRETS_DIR".to_owned(),
            ));
        };
        let keys = parsed(dir, &webhook.secret_ref, SigningKeys::parse)?;
        let headers = webhook.headers_secret_ref.as_ref().map(|named| parsed(dir, named, ExtraHeaders::parse));
        Ok(Arc::new(Signing { keys, headers: headers.transpose()? }))
    }
}

/// What a delivery is signed with, and its further headers.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Signing {
    pub(super) keys: SigningKeys,
    pub(super) headers: Option<ExtraHeaders>,
}

fn parsed<T>(dir: &Path, named: &SecretKeyRef, parse: fn(&str) -> Result<T, String>) -> Result<T, SecretError> {
    let file = dir.join(&named.name).join(&named.key);
    let name = secret::name(Some(named), &file);
    parse(&secret::read(&file, &name)?).map_err(|why| SecretError::Invalid(format!("{name}: {why}")))
}
