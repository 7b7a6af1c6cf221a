//! A value that comes from a file of a mounted Secret: it may come late, and change.
//!
//! Must never show the value.

use std::{fs, path::Path};

use millrace_crds::SecretKeyRef;

use millrace_crds::{Reason, status_api::Problem};

/// Why there is no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SecretError {
    /// The file is not there, or empty: it may come. Names the Secret and its key.
    #[error("{0}: not there")]
    NotFound(String),
    /// Its content cannot be used and may change. Names the Secret, its key and the expected form.
    #[error("{0}")]
    Invalid(String),
    /// A file of a TLS connection cannot be used and may change; the reason. Names the Secret.
    #[error("{1}")]
    Tls(Reason, String),
    /// None was given, or one by a flag or variable that cannot be used: waiting does not help.
    #[error("{0}")]
    NotGiven(String),
}

impl SecretError {
    /// The problem that it is while it is waited for; `None`: waiting does not help.
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        match self {
            Self::NotFound(name) => Some(Problem::new(Reason::SecretNotFound, name)),
            Self::Invalid(what) => Some(Problem::new(Reason::SecretInvalid, what)),
            Self::Tls(reason, what) => Some(Problem::new(reason.clone(), what)),
            Self::NotGiven(_) => None,
        }
    }
}

/// Name of a file's value for a person: the Secret and its key, or the file where the manifest names none.
#[must_use]
pub fn name(named: Option<&SecretKeyRef>, file: &Path) -> String {
    named.map_or_else(|| file.display().to_string(), |SecretKeyRef { name, key }| format!("{name}, key {key}"))
}

/// The value of a file, without the white space around it.
///
/// # Errors
/// [`SecretError::NotFound`] when it is not there or empty.
pub fn read(file: &Path, name: &str) -> Result<String, SecretError> {
    match fs::read_to_string(file) {
        Ok(value) if !value.trim().is_empty() => Ok(value.trim().to_owned()),
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(SecretError::Invalid(format!("{name}: cannot be read: {error}")))
        }
        _ => Err(SecretError::NotFound(name.to_owned())),
    }
}
