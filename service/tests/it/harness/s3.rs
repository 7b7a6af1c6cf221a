//! A real server with the API of S3 (SeaweedFS) on loopback, over HTTPS.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Authority, eventually, free_port};

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct S3 {
    child: Child,
    port: u16,
    filer: u16,
    dir: TempDir,
}

impl S3 {
    /// Starts a server, and waits until it answers.
    pub(crate) async fn start() -> Self {
        let (port, filer) = (free_port(), free_port());
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new("authority of the bucket");
        let issued = authority.issue(&["localhost"]);
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            path
        };
        let (certificate, key) = (file("tls.crt", &issued.certificate), file("tls.key", &issued.key));
        file("secrets/bucket/ca.crt", &authority.pem);
        file("secrets/bucket/id", "archive-key");
        file("secrets/bucket/secret", "archive-secret");
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/s3-server");
        let log = fs::File::create(dir.path().join("log")).unwrap();
        // The kernel kills it when the thread of the test ends, for any reason.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "--"]).arg(script).args([port.to_string(), filer.to_string()]);
        command.args([dir.path(), &certificate, &key]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let mut this = Self { child: command.spawn().unwrap(), port, filer, dir };
        eventually("the server of S3 answers", async || {
            let ended = this.child.try_wait().unwrap();
            let log = || fs::read_to_string(this.dir.path().join("log")).unwrap_or_default();
            assert!(ended.is_none(), "hack/s3-server ended: {}", log());
            let is_open = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
            is_open && reqwest::get(format!("http://127.0.0.1:{filer}/buckets/")).await.is_ok()
        })
        .await;
        this
    }

    /// The folder of the Secrets that [`Self::spec`] names.
    pub(crate) fn secrets(&self) -> PathBuf {
        self.dir.path().join("secrets")
    }

    /// Replaces the secret access key in the Secret.
    pub(crate) fn set_secret(&self, secret: &str) {
        fs::write(self.secrets().join("bucket/secret"), secret).unwrap();
    }

    /// `spec.archive` for a bucket of it.
    pub(crate) fn spec(&self, bucket: &str) -> Value {
        let key = |key: &str| json!({"name": "bucket", "key": key});
        json!({"s3": {
            "bucket": bucket, "prefix": "some/place", "endpoint": format!("https://localhost:{}", self.port),
            "accessKeyIdSecretRef": key("id"), "secretAccessKeySecretRef": key("secret"), "caSecretRef": key("ca.crt"),
        }})
    }

    /// The objects below a folder of a bucket, by their names in it.
    pub(crate) async fn objects(&self, folder: &str) -> BTreeMap<String, Vec<u8>> {
        let base = format!("http://127.0.0.1:{}/buckets/{folder}", self.filer);
        let http = reqwest::Client::new();
        let mut objects = BTreeMap::new();
        let mut folders = vec![String::new()];
        while let Some(folder) = folders.pop() {
            let request = http.get(format!("{base}/{folder}?limit=10000")).header("accept", "application/json");
            let list: Value = request.send().await.unwrap().json().await.unwrap();
            for entry in list["Entries"].as_array().into_iter().flatten() {
                let path = entry["FullPath"].as_str().unwrap();
                let name = format!("{folder}{}", path.rsplit('/').next().unwrap());
                // The highest bit of the mode is that of a folder.
                if entry["Mode"].as_u64().unwrap() & (1 << 31) != 0 {
                    folders.push(format!("{name}/"));
                } else {
                    let bytes = http.get(format!("{base}/{name}")).send().await.unwrap().bytes().await.unwrap();
                    objects.insert(name, bytes.to_vec());
                }
            }
        }
        objects
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
