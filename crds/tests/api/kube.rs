//! An API server that has the definition, and `kubectl` as a person uses it.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};

struct Server {
    /// `PATH` for commands: the fitting kubectl comes first.
    path: String,
    kubeconfig: String,
    /// It stops the server when its input ends with this process.
    _guard: Option<Child>,
}

/// The result of a command.
pub(crate) struct Output {
    /// Whether the exit code was 0.
    pub(crate) ok: bool,
    /// The standard output.
    pub(crate) out: String,
    /// The standard error.
    pub(crate) err: String,
}

/// A namespace of one test, with the strictest rules for pods. No controller could delete it: it ends with the server.
pub(crate) struct Namespace(String);

impl Namespace {
    pub(crate) fn new(test: &str) -> Self {
        let namespace = Self(format!("{test}-{}", std::process::id()));
        let made = kubectl(&["create", "namespace", &namespace.0], "");
        assert!(made.ok, "{}", made.err);
        let labels = ["enforce", "warn"].map(|mode| format!("pod-security.kubernetes.io/{mode}=restricted"));
        let labelled = kubectl(&["label", "namespace", &namespace.0, &labels[0], &labels[1]], "");
        assert!(labelled.ok, "{}", labelled.err);
        namespace
    }

    /// Runs kubectl in it.
    pub(crate) fn kubectl(&self, arguments: &[&str], input: &str) -> Output {
        kubectl(&[&["--namespace", self.0.as_str()], arguments].concat(), input)
    }
}

/// Runs kubectl; `input` is for `-f -`.
pub(crate) fn kubectl(arguments: &[&str], input: &str) -> Output {
    static SERVER: OnceLock<Server> = OnceLock::new();
    run(SERVER.get_or_init(start), arguments, input)
}

fn run(server: &Server, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new("kubectl")
        .args(arguments)
        .env("PATH", &server.path)
        .env("KUBECONFIG", &server.kubeconfig)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_owned();
    let writer = std::thread::spawn(move || {
        // kubectl may end without reading its input: then its standard error matters.
        let _ = stdin.write_all(input.as_bytes());
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Output { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
}

/// The server of the variables, else one that ends with this process; with the definition established.
fn start() -> Server {
    let server = match (std::env::var("MILLRACE_TEST_KUBE_DIR"), std::env::var("KUBECONFIG")) {
        (Ok(_), Ok(kubeconfig)) => Server { path: std::env::var("PATH").unwrap(), kubeconfig, _guard: None },
        _ => start_guarded(),
    };
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/recordpipeline.crd.yaml");
    let applied = run(&server, &["apply", "--server-side", "--force-conflicts", "-f", file], "");
    assert!(applied.ok, "{}", applied.err);
    // Discovery and the schema that `explain` reads follow a moment after the condition.
    let begun = std::time::Instant::now();
    let condition = r#"jsonpath={.status.conditions[?(@.type=="Established")].status}"#;
    let crd = ["get", "crd", "recordpipelines.millrace.dev", "-o", condition];
    while run(&server, &crd, "").out != "True" || !run(&server, &["explain", "rpl.spec"], "").ok {
        assert!(begun.elapsed().as_secs() < 60, "the API server does not take the definition");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    server
}

fn start_guarded() -> Server {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/with-kube-api");
    let mut guard = Command::new(script)
        .args(["sh", "-c", r#"printf '%s\n%s\n' "$KUBECONFIG" "$PATH"; read -r _"#])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{script}: {error}"));
    let mut lines = BufReader::new(guard.stdout.take().unwrap()).lines();
    let mut line = || lines.next().unwrap_or_else(|| panic!("{script} ended without a server")).unwrap();
    Server { kubeconfig: line(), path: line(), _guard: Some(guard) }
}
