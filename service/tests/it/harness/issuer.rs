//! A real OpenID provider (npm `oidc-provider`) on loopback, over HTTPS, with a port that tells it what to do.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{Authority, eventually, free_port};

/// The audience of this API at the issuer.
pub(crate) const AUDIENCE: &str = "https://records.example";

/// A running provider. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Issuer {
    child: Child,
    port: u16,
    control: String,
    dir: TempDir,
}

impl Issuer {
    /// Starts a provider, and waits until it answers.
    pub(crate) async fn start() -> Self {
        let (port, control) = (free_port(), free_port());
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new("authority of the issuer");
        let issued = authority.issue(&["localhost"]);
        let file = |name: &str, content: &str| {
            let path = dir.path().join(name);
            fs::write(&path, content).unwrap();
            path
        };
        let certificate = file("tls.crt", &issued.certificate);
        let (key, ca) = (file("tls.key", &issued.key), file("ca.crt", &authority.pem));
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../hack/oidc-provider");
        let log = fs::File::create(dir.path().join("log")).unwrap();
        // The kernel kills it when the thread of the test ends, for any reason.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "--"]).arg(script).args([port.to_string(), control.to_string()]);
        command.args([certificate, key, ca]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        let child = command.spawn().unwrap();
        let mut this = Self { child, port, control: format!("http://127.0.0.1:{control}"), dir };
        let reads = format!("{}/reads", this.control);
        eventually("the provider answers", async || {
            let ended = this.child.try_wait().unwrap();
            let log = || fs::read_to_string(this.dir.path().join("log")).unwrap_or_default();
            assert!(ended.is_none(), "hack/oidc-provider ended: {}", log());
            reqwest::get(&reads).await.is_ok()
        })
        .await;
        this
    }

    /// The value of `iss` in its tokens.
    pub(crate) fn url(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// The file of the authority that signed its certificate.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    /// A spec whose pipeline accepts its tokens, which may reach the sources that their claim `sources` has.
    pub(crate) fn spec(&self) -> Value {
        json!({
            "issuer": self.url(), "audience": AUDIENCE,
            "caSecretRef": {"name": "issuer-ca", "key": "ca.crt"},
            "scopes": {"records:write": ["ingest"], "records:read": ["read"], "records:admin": ["admin"]},
            "claims": {"sourceIds": "sources"},
        })
    }

    async fn tell(&self, act: &str, body: &Value) -> String {
        let request = reqwest::Client::new().post(format!("{}{act}", self.control)).body(body.to_string());
        let answer = request.send().await.unwrap();
        let (status, text) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{act}: {text}");
        text
    }

    /// A token that the provider issues for a resource, to the client shop-7.
    pub(crate) async fn token(&self, resource: &str) -> String {
        self.tell("/token", &json!({ "resource": resource })).await
    }

    /// A token that one of the provider's keys signs. `claims` replace those of a valid token.
    pub(crate) async fn sign(&self, algorithm: &str, header: Value, claims: Value) -> String {
        self.signed(algorithm, header, claims, false).await
    }

    /// The same by a key from before the last rotation.
    pub(crate) async fn sign_with_previous(&self, algorithm: &str) -> String {
        self.signed(algorithm, json!({}), json!({}), true).await
    }

    async fn signed(&self, algorithm: &str, header: Value, claims: Value, previous: bool) -> String {
        let mut all = self.claims();
        for (name, value) in claims.as_object().unwrap() {
            all[name] = value.clone();
        }
        let body = json!({"alg": algorithm, "header": header, "claims": all, "previous": previous});
        self.tell("/sign", &body).await
    }

    /// The claims of a valid token, in an order of their own.
    pub(crate) fn claims(&self) -> Value {
        json!({
            "iss": self.url(), "aud": [AUDIENCE, "others"], "sub": "shop-7", "iat": now(), "exp": now() + 7200,
            "scope": "records:write records:read", "sources": ["exact=shop-7"], "jti": rand::random::<u64>(),
        })
    }

    /// Replaces all keys: the previous ones are no longer published.
    pub(crate) async fn rotate(&self) {
        self.tell("/rotate", &Value::Null).await;
    }

    /// Closes the provider's port.
    pub(crate) async fn leave(&self) {
        self.tell("/away", &Value::Null).await;
    }

    /// Opens the provider's port again.
    pub(crate) async fn come_back(&self) {
        self.tell("/back", &Value::Null).await;
    }

    /// How often its keys were read.
    pub(crate) async fn reads(&self) -> u64 {
        self.tell("/reads", &Value::Null).await.parse().unwrap()
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The time, in seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}
