//! Where a process runs: its manifest's file, its Redis and its Postgres.

use std::{fmt, fs, path::PathBuf};

use anyhow::{Context as _, anyhow};
use millrace_crds::{Metadata, RecordPipeline, RecordPipelineSpec, SecretKeyRef};
use serde::Deserialize;

use super::{
    postgres_url, redis_url,
    secret::{self, SecretError},
    tls::{TlsArgs, fits_postgres, fits_redis},
};
use crate::tls::Endpoint;

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl From<&str> for Secret {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// Where a process runs. Each is a flag or a variable.
#[derive(Debug, Clone, clap::Args)]
pub struct Place {
    /// The pipeline's manifest, a RecordPipeline as YAML
    #[arg(long, value_name = "FILE", env = "MILLRACE_PIPELINE")]
    pub pipeline: PathBuf,
    /// The pipeline's name, for when its manifest cannot be read: work then continues by what was last active
    #[arg(long, value_name = "NAME", env = "MILLRACE_PIPELINE_NAME", value_parser = name_or_nothing)]
    pub pipeline_name: Option<String>,
    /// Redis, such as redis://:password@host:6379
    #[arg(long, value_name = "URL", env = "MILLRACE_REDIS_URL", hide_env_values = true)]
    pub redis_url: Option<Secret>,
    /// A file that holds the URL of Redis; it is followed
    #[arg(long, value_name = "FILE", env = "MILLRACE_REDIS_URL_FILE", conflicts_with = "redis_url")]
    pub redis_url_file: Option<PathBuf>,
    /// Postgres, such as postgres://user:password@host:5432/database
    #[arg(long, value_name = "URL", env = "MILLRACE_POSTGRES_URL", hide_env_values = true)]
    pub postgres_url: Option<Secret>,
    /// A file that holds the URL of Postgres; it is followed
    #[arg(long, value_name = "FILE", env = "MILLRACE_POSTGRES_URL_FILE", conflicts_with = "postgres_url")]
    pub postgres_url_file: Option<PathBuf>,
    /// The files of TLS connections.
    #[command(flatten)]
    pub tls: TlsArgs,
}

impl Place {
    /// A place given by its URLs.
    #[must_use]
    pub fn new(pipeline: impl Into<PathBuf>, redis_url: impl Into<Secret>, postgres_url: impl Into<Secret>) -> Self {
        Self {
            pipeline: pipeline.into(),
            pipeline_name: None,
            redis_url: Some(redis_url.into()),
            redis_url_file: None,
            postgres_url: Some(postgres_url.into()),
            postgres_url_file: None,
            tls: TlsArgs::default(),
        }
    }

    /// Reads and checks the manifest.
    ///
    /// # Errors
    /// Names the file, and each field that is wrong.
    pub fn manifest(&self) -> anyhow::Result<RecordPipeline> {
        let text =
            fs::read_to_string(&self.pipeline).with_context(|| format!("cannot read {}", self.pipeline.display()))?;
        let manifest = RecordPipeline::from_yaml(&text).with_context(|| self.pipeline.display().to_string())?;
        Ok(manifest)
    }

    /// The pipeline's name: the manifest's or, where that cannot be read, the one that was given.
    ///
    /// # Errors
    /// As [`Self::manifest`], without a name that was given.
    pub fn name(&self) -> anyhow::Result<String> {
        match (self.manifest(), self.given_name()) {
            (Ok(manifest), _) => Ok(manifest.metadata.name),
            (Err(_), Some(name)) => Ok(name.to_owned()),
            (Err(error), None) => Err(error),
        }
    }

    /// The name that was given beside the manifest.
    pub(super) fn given_name(&self) -> Option<&str> {
        // A variable that is set to nothing is as good as none.
        self.pipeline_name.as_deref().filter(|name| !name.is_empty())
    }

    /// The metadata of a manifest whose rest breaks rules, such as one for a newer version; `None` where not even that can
    /// be read.
    pub(super) fn metadata(&self) -> Option<Metadata> {
        metadata(&fs::read_to_string(&self.pipeline).ok()?)
    }

    /// The URL of Redis.
    ///
    /// # Errors
    /// When none is given, or its file cannot be read.
    pub fn redis_url(&self) -> anyhow::Result<Endpoint> {
        self.redis(None).map_err(|error| anyhow!("the URL of Redis: {error}"))
    }

    /// The URL of Postgres.
    ///
    /// # Errors
    /// When none is given, or its file cannot be read.
    pub fn postgres_url(&self) -> anyhow::Result<Endpoint> {
        self.postgres(None).map_err(|error| anyhow!("the URL of Postgres: {error}"))
    }

    /// The URL of Redis and the files of its connections; `spec` names the Secrets that they come from.
    ///
    /// # Errors
    /// When no URL is given, or a file is not there or cannot be used.
    pub fn redis(&self, spec: Option<&RecordPipelineSpec>) -> Result<Endpoint, SecretError> {
        let named = spec.and_then(|spec| spec.redis.as_ref()).map(|redis| &redis.url_secret_ref);
        let files = self.tls.redis(spec)?;
        let checked = |text: &str| redis_url::checked(text).and_then(|url| fits_redis(&url, &files).map(|()| url));
        let (url, url_name) = url("redis", self.redis_url.as_ref(), self.redis_url_file.as_ref(), named, checked)?;
        Ok(Endpoint { url_name, files, ..Endpoint::new(url) })
    }

    /// The URL of Postgres and the files of its connections; `spec` names the Secrets that they come from.
    ///
    /// # Errors
    /// As of [`Self::redis`].
    pub fn postgres(&self, spec: Option<&RecordPipelineSpec>) -> Result<Endpoint, SecretError> {
        let named = spec.and_then(|spec| spec.postgres.as_ref()).map(|postgres| &postgres.url_secret_ref);
        let files = self.tls.postgres(spec)?;
        let checked = |text: &str| {
            let url = postgres_url::checked(text)?;
            fits_postgres(&postgres_url::mode(&url), &files).map(|()| url)
        };
        let (url, url_name) =
            url("postgres", self.postgres_url.as_ref(), self.postgres_url_file.as_ref(), named, checked)?;
        Ok(Endpoint { url_name, files, ..Endpoint::new(url) })
    }
}

/// As [`Place::metadata`], of a manifest's text.
pub(super) fn metadata(manifest: &str) -> Option<Metadata> {
    #[derive(Deserialize)]
    struct Head {
        metadata: Metadata,
    }
    serde_saphyr::from_str::<Head>(manifest).ok().map(|head| head.metadata)
}

/// A pipeline's name, for it comes to stand in SQL and in keys; or nothing, as a variable may be set to.
fn name_or_nothing(text: &str) -> Result<String, &'static str> {
    if text.is_empty() || RecordPipeline::is_name(text) {
        return Ok(text.to_owned());
    }
    Err("must be 1 to 40 lower-case letters, digits or '-', start with a letter and end with a letter or digit")
}

/// The URL that a flag or a file gives, and the name of the file.
pub(super) fn url(
    server: &str,
    given: Option<&Secret>,
    file: Option<&PathBuf>,
    named: Option<&SecretKeyRef>,
    checked: impl Fn(&str) -> Result<String, String>,
) -> Result<(String, Option<String>), SecretError> {
    match (given, file) {
        // A variable that is set to nothing is as good as none.
        (Some(Secret(url)), _) if !url.trim().is_empty() => {
            let url = checked(url.trim()).map_err(SecretError::NotGiven)?;
            Ok((url, None))
        }
        (_, Some(file)) => {
            let name = secret::name(named, file);
            let url = checked(&secret::read(file, &name)?);
            Ok((url.map_err(|why| SecretError::Invalid(format!("{name}: {why}")))?, Some(name)))
        }
        (_, None) => {
            let variable = format!("MILLRACE_{}_URL", server.to_uppercase());
            Err(SecretError::NotGiven(format!("give --{server}-url, {variable} or {variable}_FILE")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_hides_passwords() {
        assert!(!format!("{:?}", Place::new("p", "redis://:s3cret@h", "postgres://:s3cret@h")).contains("s3cret"));
    }

    #[test]
    fn urls_come_from_files_too() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("url");
        fs::write(&file, "redis://host\n").unwrap();
        let mut place = Place::new("p", "", "");
        (place.redis_url, place.redis_url_file) = (None, Some(file));
        assert_eq!(place.redis_url().unwrap().url(), "redis://host");
        place.redis_url_file = None;
        assert!(place.redis_url().unwrap_err().to_string().contains("MILLRACE_REDIS_URL"));
    }
}
