//! HTTPS on the API: its certificate is followed without a restart, and one that cannot be used changes nothing.

use std::{fs, path::Path, sync::Arc};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject as _},
};
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::harness::{Authority, Issued, KEY, Pipeline, Process, eventually};

/// A pipeline whose manifest names the Secret, and the folder that it is mounted at.
struct World {
    pipeline: Pipeline,
    authority: Authority,
    dir: TempDir,
}

impl World {
    async fn new() -> Self {
        let spec = json!({"serve": {"tls": {"certSecretRef": {"name": "payments-serve"}}}});
        let pipeline = Pipeline::new(spec).await;
        Self { pipeline, authority: Authority::new("authority"), dir: tempfile::tempdir().unwrap() }
    }

    fn serve(&self) -> Process {
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        let files = [("MILLRACE_TLS_CERT_FILE", &*file("tls.crt")), ("MILLRACE_TLS_KEY_FILE", &*file("tls.key"))];
        self.pipeline.start_waiting("serve", &files)
    }

    fn issue(&self) -> Issued {
        self.authority.issue(&["localhost"])
    }

    fn install(&self, Issued { certificate, key }: &Issued) {
        mount(self.dir.path(), "tls.crt", certificate);
        mount(self.dir.path(), "tls.key", key);
    }

    /// A new connection, which trusts the authority.
    async fn connect(&self) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.authority.pem.as_bytes()).unwrap()).unwrap();
        let ring = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(ring).with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let name = ServerName::try_from("localhost").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, self.pipeline.connect().await).await.unwrap()
    }

    /// Waits until new connections get this certificate.
    async fn presents(&self, issued: &Issued) {
        eventually("new connections get the certificate", async || {
            presented(&self.connect().await) == CertificateDer::from_pem_slice(issued.certificate.as_bytes()).unwrap()
        })
        .await;
    }
}

/// Mounts a file of a Secret in one step.
fn mount(dir: &Path, name: &str, content: &str) {
    fs::write(dir.join("new"), content).unwrap();
    fs::rename(dir.join("new"), dir.join(name)).unwrap();
}

fn presented(stream: &TlsStream<TcpStream>) -> CertificateDer<'static> {
    stream.get_ref().1.peer_certificates().unwrap()[0].clone()
}

/// Asks for the counts by an open connection, which stays open.
async fn ask(stream: &mut TlsStream<TcpStream>) -> String {
    let request = format!("GET /stats HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {KEY}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = Vec::new();
    while !String::from_utf8_lossy(&text).contains("\r\n\r\n{") || !text.ends_with(b"}") {
        assert!(stream.read_buf(&mut text).await.unwrap() > 0, "{}", String::from_utf8_lossy(&text));
    }
    String::from_utf8(text).unwrap()
}

/// Waits for a problem of this reason, and returns its message.
async fn problem(process: &Process, reason: &str) -> String {
    let status = process.has_problems(&[reason]).await;
    status["problems"][0]["message"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_new_certificate_is_used_without_a_restart_and_open_connections_stay() {
    let world = World::new().await;
    let (first, second) = (world.issue(), world.issue());
    world.install(&first);
    let mut serve = world.serve();
    serve.ready().await;
    world.presents(&first).await;
    let mut open = world.connect().await;
    assert!(ask(&mut open).await.starts_with("HTTP/1.1 200 "));
    world.install(&second);
    world.presents(&second).await;
    assert!(ask(&mut open).await.starts_with("HTTP/1.1 200 "), "an open connection stays");
    assert!(ask(&mut world.connect().await).await.starts_with("HTTP/1.1 200 "));
    serve.has_problems(&[]).await;
    assert!(!serve.has_ended());
}

#[tokio::test]
async fn a_certificate_that_cannot_be_used_leaves_the_last_one_and_names_the_secret() {
    let world = World::new().await;
    let first = world.issue();
    world.install(&first);
    let serve = world.serve();
    serve.ready().await;
    let (other, expired) = (world.issue(), world.authority.issue_expired(&["localhost"]));
    let broken = |certificate: &str, key: &str| Issued { certificate: certificate.to_owned(), key: key.to_owned() };
    for (issued, reason, words) in [
        (broken("no certificate", &first.key), "TlsFilesInvalid", "holds no certificate in PEM"),
        (broken(&first.certificate, &other.key), "TlsFilesInvalid", "do not fit"),
        (broken(&first.certificate, "s3cret"), "TlsFilesInvalid", "no private key in PEM"),
        (expired, "TlsExpired", "expired"),
        (broken("", &first.key), "SecretNotFound", "key tls.crt"),
    ] {
        world.install(&issued);
        let message = problem(&serve, reason).await;
        eventually(words, async || {
            let message = problem(&serve, reason).await;
            assert!(message.contains("payments-serve") && !message.contains("s3cret"), "{message}");
            message.contains(words)
        })
        .await;
        assert!(message.contains("payments-serve"), "{message}");
        world.presents(&first).await;
        assert!(serve.is_ready().await);
    }
    world.install(&other);
    world.presents(&other).await;
    serve.has_problems(&[]).await;
    let log = fs::read_to_string(serve.log()).unwrap();
    assert!(!log.contains("s3cret") && !log.contains("PRIVATE KEY"));
}

#[tokio::test]
async fn serve_waits_for_its_certificate_and_does_not_answer_without() {
    let world = World::new().await;
    let serve = world.serve();
    let message = problem(&serve, "SecretNotFound").await;
    assert_eq!(message, "payments-serve, key tls.crt");
    assert!(!serve.is_ready().await);
    let url = world.pipeline.url();
    assert!(TcpStream::connect(url.strip_prefix("http://").unwrap()).await.is_err(), "nothing listens");
    world.install(&world.issue());
    serve.ready().await;
    serve.has_problems(&[]).await;
    assert!(ask(&mut world.connect().await).await.starts_with("HTTP/1.1 200 "));
}

#[tokio::test]
async fn send_trusts_the_authorities_of_a_file_and_no_others() {
    let world = World::new().await;
    world.install(&world.issue());
    let serve = world.serve();
    serve.ready().await;
    let ca = world.dir.path().join("ca.crt");
    fs::write(&ca, &world.authority.pem).unwrap();
    let url = world.pipeline.url();
    let port = url.rsplit(':').next().unwrap();
    let send = async |url: String, flags: &[&str]| {
        let fixed = ["--url", &url, "--key", KEY, "--generate", "20", "--give-up-after", "1", "--json"];
        world.pipeline.command("send", &[&fixed, flags].concat()).await
    };
    let trusting = ["--ca-file", ca.to_str().unwrap()];
    let sent = send(format!("https://localhost:{port}"), &trusting).await;
    assert!(sent.status.success(), "{sent:?}");
    let summary: serde_json::Value = serde_json::from_slice(&sent.stdout).unwrap();
    assert_eq!(summary["accepted"], 20, "{summary}");
    for (url, flags) in
        [(format!("https://localhost:{port}"), &[][..]), (format!("https://127.0.0.1:{port}"), &trusting)]
    {
        let refused = send(url, flags).await;
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains("certificate"), "{said}");
    }
    let clear = send(format!("http://localhost:{port}"), &trusting).await;
    assert!(String::from_utf8_lossy(&clear.stderr).contains("--ca-file is for https:// only"));
}
