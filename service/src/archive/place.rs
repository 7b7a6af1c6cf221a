//! Where an archive is: the directory or the bucket of the manifest, with the credentials of its Secrets.

use std::{fmt, fs, path::Path as FilePath, sync::Arc};

use millrace_crds::{ArchiveDirectory, ArchiveS3, SecretKeyRef};
use object_store::{
    ClientOptions, ObjectStore, RetryConfig,
    aws::{AmazonS3, AmazonS3Builder},
    local::LocalFileSystem,
    path::Path,
};

use super::{ArchiveError, http::Connector, shown};
use crate::{
    config::{SecretError, secret, trusted},
    domain::Period,
};

/// An archive of a pipeline that is open.
pub struct Archive {
    pub(super) objects: Arc<dyn ObjectStore>,
    place: String,
    directory: Option<String>,
    folder: String,
    pipeline: String,
    pipeline_id: String,
}

impl fmt::Debug for Archive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Archive").field("place", &self.place).finish_non_exhaustive()
    }
}

/// Whose archive it is.
#[derive(Debug, Clone, Copy)]
pub struct Owner<'a> {
    /// The name of the pipeline.
    pub pipeline: &'a str,
    /// Its id: pipelines of one name do not write over each other's objects.
    pub pipeline_id: &'a str,
}

impl Archive {
    /// Opens the archive of a manifest. Its Secrets are the files `<secrets>/<Secret>/<key>`.
    ///
    /// # Errors
    /// When a Secret is missing, the directory is, or a setting cannot be used.
    pub fn open(
        spec: &millrace_crds::Archive,
        owner: Owner<'_>,
        secrets: Option<&FilePath>,
    ) -> Result<Self, ArchiveError> {
        let folder = format!("{}/{}", owner.pipeline, owner.pipeline_id);
        let (objects, place, folder): (Arc<dyn ObjectStore>, _, _) = match (&spec.directory, &spec.s3) {
            (Some(directory), _) => {
                let path = directory.path.trim_end_matches('/');
                (Arc::new(open_directory(directory)?), format!("{path}/{folder}"), folder)
            }
            (None, Some(s3)) => {
                let folder = s3.prefix.iter().map(|prefix| format!("{prefix}/")).collect::<String>() + &folder;
                let place = format!("s3://{}/{folder}", s3.bucket);
                (Arc::new(open_bucket(s3, &place, secrets)?), place, folder)
            }
            // The rules of the manifest refuse it.
            (None, None) => return Err(failed("spec.archive", "needs directory or s3")),
        };
        let directory = spec.directory.as_ref().map(|_| place.clone());
        let (pipeline, pipeline_id) = (owner.pipeline.to_owned(), owner.pipeline_id.to_owned());
        Ok(Self { objects, place, directory, folder, pipeline, pipeline_id })
    }

    /// Its path or URL, with the pipeline's folder, for a person.
    #[must_use]
    pub fn place(&self) -> &str {
        &self.place
    }

    pub(super) fn pipeline(&self) -> &str {
        &self.pipeline
    }

    pub(super) fn pipeline_id(&self) -> &str {
        &self.pipeline_id
    }

    /// The path of an object of a period; without a name that of the period's folder.
    pub(super) fn path(&self, period: Period, name: &str) -> Path {
        Path::from(format!("{}/{period}/{name}", self.folder))
    }

    /// Removes what a killed worker left of files that it had not finished. In a bucket such a rest is no object.
    pub(super) fn clean(&self, period: Period) -> Result<(), ArchiveError> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let clean = || {
            for folder in folders(&FilePath::new(directory).join(period.to_string()))? {
                for file in fs::read_dir(folder)? {
                    let file = file?;
                    // An unfinished file has the name of its object, '#' and a number.
                    if file.file_name().to_string_lossy().contains('#') {
                        fs::remove_file(file.path())?;
                    }
                }
            }
            Ok(())
        };
        clean().map_err(|error: std::io::Error| failed(&self.place, error))
    }
}

/// A folder and the folders in it; none where it does not exist.
fn folders(of: &FilePath) -> std::io::Result<Vec<std::path::PathBuf>> {
    if !of.exists() {
        return Ok(Vec::new());
    }
    let mut found = vec![of.to_owned()];
    for entry in fs::read_dir(of)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn open_directory(directory: &ArchiveDirectory) -> Result<LocalFileSystem, ArchiveError> {
    let path = &directory.path;
    if !FilePath::new(path).is_dir() {
        return Err(failed(path, "the directory is not there: create it, or mount its volume"));
    }
    let objects = LocalFileSystem::new_with_prefix(path).map_err(|error| failed(path, error))?;
    // A period is dropped once its objects are there: they have to survive a power loss.
    Ok(objects.with_fsync(true))
}

fn open_bucket(s3: &ArchiveS3, place: &str, secrets: Option<&FilePath>) -> Result<AmazonS3, ArchiveError> {
    let Some(dir) = secrets else {
        return Err(SecretError::NotGiven(
            "give the folder of the archive's Secrets: --archive-secrets-dir or MILLRACE_ARCHIVE_SECRETS_DIR"
                .to_owned(),
        )
        .into());
    };
    let value = |named: &SecretKeyRef| {
        let file = dir.join(&named.name).join(&named.key);
        secret::read(&file, &secret::name(Some(named), &file))
    };
    let ca = s3.ca_secret_ref.as_ref();
    let ca = ca.map(|named| (named, dir.join(&named.name).join(&named.key)));
    let ca = ca.map(|(named, file)| trusted(Some(named), &file).map(|_| file)).transpose()?;
    let mut builder = AmazonS3Builder::new()
        .with_bucket_name(&s3.bucket)
        .with_region(&s3.region)
        .with_access_key_id(value(&s3.access_key_id_secret_ref)?)
        .with_secret_access_key(value(&s3.secret_access_key_secret_ref)?)
        // The worker tries again by itself, and shows why meanwhile.
        .with_retry(RetryConfig {
            max_retries: 3,
            retry_timeout: std::time::Duration::from_secs(30),
            ..RetryConfig::default()
        })
        .with_http_connector(Connector::new(ca.as_deref()).map_err(|error| failed(place, error))?);
    if let Some(endpoint) = &s3.endpoint {
        builder = builder.with_endpoint(endpoint.trim_end_matches('/'));
        builder = builder.with_client_options(ClientOptions::new().with_allow_http(endpoint.starts_with("http://")));
    }
    builder.build().map_err(|error| failed(place, shown(&error.to_string())))
}

fn failed(place: &str, cause: impl fmt::Display) -> ArchiveError {
    ArchiveError::Place { place: place.to_owned(), cause: cause.to_string() }
}
