//! An API server that has the definition: the one that `hack/with-kube-api` has started around the tests, else one that
//! this process starts.

use std::{
    io::{BufRead as _, BufReader},
    process::{Child, Command, Stdio},
    time::Duration,
};

use kube::{
    Api, Client, Config,
    api::{DynamicObject, Patch, PatchParams},
    config::{KubeConfigOptions, Kubeconfig},
    core::{ApiResource, GroupVersionKind},
};
use millrace_crds::RecordPipelineResource;
use serde_json::Value;
use tokio::sync::OnceCell;

/// An API server.
pub(crate) struct Server {
    /// The kubeconfig file of an administrator.
    pub(crate) kubeconfig: String,
    /// Its folder, which `hack/with-kube-api` describes.
    pub(crate) folder: String,
    /// `PATH` for commands: the fitting kubectl comes first.
    pub(crate) path: String,
    /// It stops the server when its input ends with this process.
    _guard: Option<Child>,
}

impl Server {
    /// The server that all tests share.
    pub(crate) async fn shared() -> &'static Self {
        static SERVER: OnceCell<Server> = OnceCell::const_new();
        SERVER
            .get_or_init(async || {
                let variables = ["KUBECONFIG", "MILLRACE_TEST_KUBE_DIR", "PATH"].map(std::env::var);
                let server = match variables {
                    [Ok(kubeconfig), Ok(folder), Ok(path)] => Self { kubeconfig, folder, path, _guard: None },
                    _ => Self::start(&[]),
                };
                server.define().await;
                server
            })
            .await
    }

    /// A server of its own, for a test that disturbs others or that others would disturb.
    pub(crate) async fn own(variables: &[(&str, &str)]) -> Self {
        let server = Self::start(variables);
        server.define().await;
        server
    }

    fn start(variables: &[(&str, &str)]) -> Self {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../hack/with-kube-api");
        let mut guard = Command::new(script)
            .args(["sh", "-c", r#"printf '%s\n' "$KUBECONFIG" "$MILLRACE_TEST_KUBE_DIR" "$PATH"; read -r _"#])
            .envs(variables.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{script}: {error}"));
        let mut lines = BufReader::new(guard.stdout.take().unwrap()).lines();
        let mut line = || lines.next().unwrap_or_else(|| panic!("{script} ended without a server")).unwrap();
        Self { kubeconfig: line(), folder: line(), path: line(), _guard: Some(guard) }
    }

    /// A client with the rights of an administrator.
    pub(crate) async fn client(&self) -> Client {
        let file = Kubeconfig::read_from(&self.kubeconfig).unwrap();
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
        config.read_timeout = Some(Duration::from_secs(300));
        Client::try_from(config).unwrap()
    }

    /// Runs kubectl as a person does, and returns its standard output; panics with its standard error when it fails.
    pub(crate) async fn kubectl(&self, arguments: &[&str]) -> String {
        let mut command = tokio::process::Command::new("kubectl");
        command.args(arguments).env("PATH", &self.path).env("KUBECONFIG", &self.kubeconfig);
        let output = command.stdin(Stdio::null()).output().await.unwrap();
        assert!(output.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Applies the definition, and waits until it is active.
    async fn define(&self) {
        let client = self.client().await;
        let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../crds/recordpipeline.crd.yaml"));
        let crd: Value = serde_saphyr::from_str(&text.unwrap()).unwrap();
        let kind = GroupVersionKind::gvk("apiextensions.k8s.io", "v1", "CustomResourceDefinition");
        let definitions: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::from_gvk(&kind));
        let parameters = PatchParams::apply("test").force();
        definitions.patch("recordpipelines.millrace.dev", &parameters, &Patch::Apply(&crd)).await.unwrap();
        let pipelines: Api<RecordPipelineResource> = Api::all(client);
        crate::world::eventually("the definition is active", async || {
            pipelines.list(&Default::default()).await.map(|_| ()).map_err(|error| error.to_string())
        })
        .await;
    }
}
