//! The operator under exactly the rules of its chart: it uses each rule, and lacks none.
//!
//! The API server's audit log holds the operator's requests; the API server serves this test alone.

use std::{collections::BTreeSet, path::Path, process::Stdio};

use k8s_openapi::api::{
    autoscaling::v2::HorizontalPodAutoscaler,
    batch::v1::CronJob,
    core::v1::{ConfigMap, ResourceQuota, Service, ServiceAccount},
    policy::v1::PodDisruptionBudget,
};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::{
    cluster::Behaviour,
    server::Server,
    world::{Operator, World, eventually, so, uid},
};

/// Namespace and release of the chart; `hack/chart-rbac` has the same.
const HOME: &str = "millrace-system";
const RELEASE: &str = "millrace";

/// A permission that no request here needs. An admission plugin that is off by default, and on in OpenShift, needs it
/// when an ownerReference blocks its owner's deletion.
const UNSEEN: &str = "\tmillrace.dev/recordpipelines/finalizers\tupdate\t*";

/// The part of the Gateway API, which Kubernetes itself lacks, that makes the API server serve its routes.
fn gateway_api() -> Value {
    let any = json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true });
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "httproutes.gateway.networking.k8s.io",
            "annotations": { "api-approved.kubernetes.io": "https://github.com/kubernetes-sigs/gateway-api/pull/2" },
        },
        "spec": {
            "group": "gateway.networking.k8s.io", "scope": "Namespaced",
            "names": { "kind": "HTTPRoute", "plural": "httproutes", "singular": "httproute" },
            "versions": [{ "name": "v1", "served": true, "storage": true, "schema": { "openAPIV3Schema": any } }],
        },
    })
}

async fn run(server: &Server, program: &Path, arguments: &[&str], input: &str) -> String {
    use tokio::io::AsyncWriteExt as _;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).env("PATH", &server.path).env("KUBECONFIG", &server.kubeconfig);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).await.unwrap();
    drop(stdin);
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{program:?} {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn root() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// The permissions that the chart grants an account, as lines.
async fn granted(server: &Server, account: &str, values: &[&str]) -> BTreeSet<String> {
    let script = root().join("hack/chart-rbac");
    run(server, &script, &[&["--account", account], values].concat(), "").await.lines().map(str::to_owned).collect()
}

/// The permissions that an account used, in the same form; panics where one was denied.
fn used(server: &Server, account: &str, granted: &BTreeSet<String>) -> BTreeSet<String> {
    let log = std::fs::read_to_string(format!("{}/audit.log", server.folder)).unwrap();
    let user = format!("system:serviceaccount:{HOME}:{account}");
    let mut used = BTreeSet::new();
    for line in log.lines() {
        // The last line may be half written.
        let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
        let object = &event["objectRef"];
        if event["impersonatedUser"]["username"] != user.as_str() || object.is_null() {
            continue;
        }
        let text = |of: &Value| of.as_str().unwrap_or_default().to_owned();
        let (verb, group) = (text(&event["verb"]), text(&object["apiGroup"]));
        let group = if group.is_empty() { "core".to_owned() } else { group };
        let subresource = object["subresource"].as_str().map_or(String::new(), |of| format!("/{of}"));
        let resource = format!("{group}/{}{subresource}", text(&object["resource"]));
        assert_ne!(event["responseStatus"]["code"], 403, "{verb} {resource} was denied");
        let place = text(&object["namespace"]);
        let name = if object["name"].is_null() { "*".to_owned() } else { text(&object["name"]) };
        // An apply that creates an object needs the permission to create, too.
        let created = (verb == "patch" && event["responseStatus"]["code"] == 201).then(|| "create".to_owned());
        for verb in [verb].into_iter().chain(created) {
            // A grant for the whole cluster covers each namespace and name.
            let lines = [("cluster", "*"), (place.as_str(), name.as_str()), (place.as_str(), "*")]
                .map(|(place, name)| format!("{place}\t{resource}\t{verb}\t{name}"));
            used.insert(lines.iter().find(|line| granted.contains(*line)).unwrap_or(&lines[0]).clone());
        }
    }
    used
}

/// Writes a kubeconfig file of an account of the chart, and returns its path.
fn as_account(server: &Server, account: &str) -> String {
    let mut config: Value = serde_saphyr::from_str(&std::fs::read_to_string(&server.kubeconfig).unwrap()).unwrap();
    config["users"][0]["user"]["as"] = json!(format!("system:serviceaccount:{HOME}:{account}"));
    let file = format!("{}/{account}.kubeconfig", server.folder);
    // JSON is YAML.
    std::fs::write(&file, config.to_string()).unwrap();
    file
}

/// Creates an object as an older operator may have left it: labelled, owned and not wanted; waits until it is deleted.
async fn leave<K>(world: &World, owner: &str, spec: Value)
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    K: Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let mut object = spec;
    object["apiVersion"] = json!(K::api_version(&()));
    object["kind"] = json!(K::kind(&()));
    object["metadata"] = json!({
        "name": "payments-of-old",
        "labels": { "app.kubernetes.io/instance": "payments", "app.kubernetes.io/managed-by": "millrace-operator" },
        "ownerReferences": [{
            "apiVersion": "millrace.dev/v1alpha1", "kind": "RecordPipeline", "name": "payments", "uid": owner,
        }],
    });
    let api = world.api::<K>();
    api.create(&PostParams::default(), &serde_json::from_value(object).unwrap()).await.unwrap();
    eventually(&format!("the old {} is deleted", K::kind(&())), async || {
        so(api.get_opt("payments-of-old").await.unwrap().is_none(), || "it exists".to_owned())
    })
    .await;
}

#[tokio::test]
async fn the_operator_works_under_exactly_the_rules_of_its_chart() {
    works_under_exactly_its_rules(false).await;
}

#[tokio::test]
async fn with_one_namespace_the_operator_works_under_exactly_its_rules_there() {
    works_under_exactly_its_rules(true).await;
}

/// `one_namespace`: the operator watches one namespace, by Roles there; else all, by a ClusterRole.
async fn works_under_exactly_its_rules(one_namespace: bool) {
    let server = Server::own(&[("MILLRACE_KUBE_AUDIT", "1")]).await;
    let home = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": HOME } });
    run(&server, Path::new("kubectl"), &["apply", "--server-side", "-f", "-"], &home.to_string()).await;
    let world = World::on(&server, "rbac").await;
    let watched = if one_namespace { world.namespace.as_str() } else { "" };
    let values = ["--set".to_owned(), format!("watchNamespaces={{{watched}}}")];
    let values = if one_namespace { values.each_ref().map(String::as_str).to_vec() } else { Vec::new() };
    install_rules(&server, &values).await;
    let kubeconfig = as_account(&server, RELEASE);
    let variables = [
        ("KUBECONFIG", kubeconfig.as_str()),
        ("MILLRACE_OPERATOR_RELEASE", RELEASE),
        ("MILLRACE_OPERATOR_NAMESPACE", HOME),
        ("MILLRACE_OPERATOR_LEASE", RELEASE),
        ("MILLRACE_WATCH_NAMESPACES", watched),
    ];

    let mut operator = start_with_gateway_api(&server, &world, &variables).await;
    remove_children(&world).await;
    replace_refused_job(&world).await;
    touch_pods(&world).await;
    uninstall(&server, &world, &variables).await;
    operator.signal("TERM");
    assert!(operator.ended().await.success());

    for account in [RELEASE, "millrace-uninstall"] {
        let granted = granted(&server, account, &values).await;
        let used = used(&server, account, &granted);
        let missing: Vec<_> = used.difference(&granted).collect();
        assert!(missing.is_empty(), "{account} lacks {missing:#?}");
        let unused: Vec<_> = granted.difference(&used).filter(|line| !line.ends_with(UNSEEN)).collect();
        assert!(unused.is_empty(), "{account} may, and never does, {unused:#?}");
    }
}

/// Applies the chart's rules and accounts.
async fn install_rules(server: &Server, values: &[&str]) {
    let helm = run(server, &root().join("hack/kube-tools"), &["helm"], "").await;
    let helm = Path::new(helm.trim()).join("helm");
    let chart = root().join("charts/millrace");
    let rbac = ["templates/rbac.yaml", "templates/uninstall-check.yaml"];
    let arguments = ["template", RELEASE, chart.to_str().unwrap(), "--namespace", HOME, "--set", "crds.install=false"];
    let shown = rbac.map(|file| ["--show-only", file]);
    let rendered = run(server, &helm, &[&arguments[..], shown.as_flattened(), values].concat(), "").await;
    run(server, Path::new("kubectl"), &["apply", "-f", "-"], &rendered).await;
}

/// Creates a pipeline with a route before the Gateway API is installed: a kind that the API server does not serve
/// cannot be watched, so the operator ends once it is installed. Returns the operator that starts after that.
async fn start_with_gateway_api(server: &Server, world: &World, variables: &[(&str, &str)]) -> Operator {
    let mut operator = world.operator("a", variables);
    let outside = json!({
        "replicas": 2,
        "ingress": { "host": "shop.example" },
        "httpRoute": { "parents": [{ "name": "gateway" }], "hostnames": ["shop.example"] },
    });
    world.create("payments", json!({ "serve": outside, "verify": { "schedule": "@daily" } })).await;
    world.waits("payments", "Degraded", "True", "GatewayApiMissing").await;
    let gateway_api = gateway_api().to_string();
    run(server, Path::new("kubectl"), &["apply", "--server-side", "-f", "-"], &gateway_api).await;
    assert!(operator.ended().await.success(), "{}", operator.log());
    let operator = world.operator("a", variables);
    // Ready can be of the operator before; Degraded shows that this one has applied the route.
    world.waits("payments", "Degraded", "False", "AsExpected").await;
    world.ready("payments", 1).await;
    operator
}

/// Changes the pipeline so that each kind of child is deleted.
async fn remove_children(world: &World) {
    let scaled = json!({
        "replicas": null, "ingress": null, "httpRoute": null, "autoscaling": { "minReplicas": 1, "maxReplicas": 3 },
    });
    let generation = world.change("payments", json!({ "spec": { "serve": scaled } })).await;
    world.ready("payments", generation).await;
    let fixed = json!({
        "spec": { "serve": { "autoscaling": null }, "networkPolicy": { "enabled": false }, "verify": null },
    });
    let generation = world.change("payments", fixed).await;
    let ready = world.ready("payments", generation).await;
    eventually("autoscaler and CronJob are deleted", async || {
        let left = world.api::<HorizontalPodAutoscaler>().list(&ListParams::default()).await.unwrap().items;
        let cron_jobs = world.api::<CronJob>().list(&ListParams::default()).await.unwrap().items;
        so(left.is_empty() && cron_jobs.is_empty(), || format!("{left:?} {cron_jobs:?}"))
    })
    .await;
    let owner = uid(&ready);
    leave::<ConfigMap>(world, &owner, json!({})).await;
    leave::<ServiceAccount>(world, &owner, json!({})).await;
    leave::<Service>(world, &owner, json!({ "spec": { "ports": [{ "port": 80 }] } })).await;
    leave::<PodDisruptionBudget>(world, &owner, json!({ "spec": { "maxUnavailable": 1 } })).await;
}

/// A quota refuses a Job its pod; another image replaces the Job.
async fn replace_refused_job(world: &World) {
    let quota = json!({ "spec": { "hard": { "pods": "0" } }, "metadata": { "name": "none" } });
    let quotas = world.api::<ResourceQuota>();
    quotas.create(&PostParams::default(), &serde_json::from_value(quota).unwrap()).await.unwrap();
    let counted = json!({ "status": { "hard": { "pods": "0" }, "used": { "pods": "0" } } });
    quotas.patch_status("none", &PatchParams::default(), &Patch::Merge(counted)).await.unwrap();
    world.change("payments", json!({ "spec": { "image": "millrace/service:1.5" } })).await;
    world.waits("payments", "Migrated", "False", "QuotaExceeded").await;
    quotas.delete("none", &DeleteParams::default()).await.unwrap();
}

/// Changes the image, with pods that have to be touched, and lets a problem appear twice.
async fn touch_pods(world: &World) {
    let set = |change: fn(&mut Behaviour)| world.cluster.set_behaviour(&world.namespace, "payments", change);
    set(|behaviour| behaviour.touches = 1);
    let generation = world.change("payments", json!({ "spec": { "image": "millrace/service:2" } })).await;
    world.ready("payments", generation).await;
    for _ in 0..2 {
        set(|behaviour| behaviour.problems = vec![("SecretNotFound", "servers")]);
        world.waits("payments", "Degraded", "True", "SecretNotFound").await;
        set(|behaviour| behaviour.problems.clear());
        world.waits("payments", "Degraded", "False", "AsExpected").await;
    }
}

/// Checks that `check-uninstall` fails while a pipeline exists, and succeeds after a purge.
async fn uninstall(server: &Server, world: &World, variables: &[(&str, &str)]) {
    let check = async || {
        let account = as_account(server, "millrace-uninstall");
        let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_millrace-operator"));
        command.arg("check-uninstall").env("KUBECONFIG", account).envs(variables.iter().skip(1).copied());
        command.output().await.unwrap()
    };
    let refused = check().await;
    assert!(!refused.status.success());
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains(&format!("{}/payments", world.namespace)), "{message}");
    world.change("payments", json!({ "spec": { "deletionPolicy": "Purge" } })).await;
    world.pipelines().delete("payments", &DeleteParams::background()).await.unwrap();
    world.gone("payments").await;
    let allowed = check().await;
    assert!(allowed.status.success(), "{}", String::from_utf8_lossy(&allowed.stderr));
}
