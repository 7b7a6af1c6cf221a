//! The built objects, compared with golden files: a difference in a pod template rolls every pod of every pipeline.
//!
//! `tests/golden/CASE/pipeline.yaml` is a resource, `objects.yaml` its objects. After an intended change run
//! `MILLRACE_GOLDEN=write cargo test -p millrace-operator golden`, and read the difference.

use std::{collections::BTreeSet, fs, path::PathBuf};

use millrace_crds::{ClientTls, RecordPipeline, RecordPipelineResource};
use serde_json::Value;

use super::{
    super::validate::{Invalid, Validated},
    Child, Kind, Plan, base, deployments, migration, migration_key, purge, selector, template_of, verify,
};

const CASES: [&str; 4] = ["minimal", "everything", "autoscaling", "longest-name"];
const IMAGE: &str = "millrace/service:1.0";

fn golden(case: &str, file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(case).join(file)
}

fn resource(case: &str) -> RecordPipelineResource {
    serde_saphyr::from_str(&fs::read_to_string(golden(case, "pipeline.yaml")).unwrap()).unwrap()
}

fn pipeline(case: &str) -> Validated {
    Validated::new(&resource(case)).unwrap()
}

/// The plan that the operator makes from the spec alone.
fn plan(pipeline: &Validated) -> Plan<'_> {
    Plan {
        pipeline,
        image: pipeline.spec.image.as_deref().unwrap_or(IMAGE),
        workers: i32::try_from(pipeline.spec.replicas.unwrap_or(1)).unwrap(),
        serve: pipeline.serve_replicas(),
        operator_namespace: "millrace-system",
    }
}

fn all(plan: &Plan<'_>, attempt: u32) -> Vec<Child> {
    let Plan { pipeline, image, .. } = *plan;
    let mut children = base(plan);
    children.extend(deployments(plan));
    children.extend(verify(plan));
    for contract in [false, true] {
        children.push(migration(pipeline, image, &migration_key(pipeline, image, contract), attempt, contract));
    }
    children.push(purge(pipeline, image, attempt));
    children
}

fn json(child: &Child) -> Value {
    serde_json::to_value(child.object.as_ref().unwrap()).unwrap()
}

fn text(children: &[Child]) -> String {
    children.iter().map(|child| format!("---\n{}", serde_saphyr::to_string(&json(child)).unwrap())).collect()
}

fn templates(plan: &Plan<'_>) -> Vec<Value> {
    deployments(plan).into_iter().map(|child| json(&child)["spec"]["template"].clone()).collect()
}

#[test]
fn the_built_objects_are_those_of_the_golden_files() {
    for case in CASES {
        let pipeline = pipeline(case);
        let built = text(&all(&plan(&pipeline), 1));
        let file = golden(case, "objects.yaml");
        if std::env::var("MILLRACE_GOLDEN").is_ok_and(|mode| mode == "write") {
            fs::write(&file, &built).unwrap();
        }
        let before = fs::read_to_string(&file).unwrap_or_default();
        let difference = before.lines().zip(built.lines()).position(|(before, built)| before != built);
        assert!(
            before == built,
            "{} differs, first in line {}; if the change is intended: MILLRACE_GOLDEN=write cargo test -p millrace-operator",
            file.display(),
            difference.unwrap_or_else(|| before.lines().count().min(built.lines().count())) + 1,
        );
    }
}

#[test]
fn the_same_plan_gives_the_same_bytes() {
    for case in CASES {
        let (one, other) = (pipeline(case), pipeline(case));
        assert_eq!(text(&all(&plan(&one), 1)), text(&all(&plan(&other), 1)), "{case}");
    }
}

#[test]
fn the_longest_name_leaves_room_for_every_objects_name() {
    let pipeline = pipeline("longest-name");
    assert_eq!(pipeline.name.len(), 40);
    let mut seen = BTreeSet::new();
    for child in all(&plan(&pipeline), 99_999) {
        assert!(child.name.len() <= 63, "{}", child.name);
        assert!(seen.insert((child.kind, child.name.clone())), "{} twice", child.name);
        // The pods' names: a Deployment adds `-<hash>-<5>`, and the hash has up to 10 characters.
        assert!(child.kind != Kind::Deployment || child.name.len() + 17 <= 63, "{}", child.name);
        let labels = json(&child)["metadata"]["labels"].clone();
        let labels = labels.as_object().unwrap();
        assert!(labels.values().all(|value| value.as_str().unwrap().len() <= 63), "{labels:?}");
    }
}

#[test]
fn each_object_names_its_kind_and_its_owner() {
    for case in CASES {
        let pipeline = pipeline(case);
        for child in all(&plan(&pipeline), 1) {
            let (resource, object, name) = (child.kind.resource(), json(&child), &child.name);
            assert_eq!(object["apiVersion"], *resource.api_version);
            assert_eq!(object["kind"], *resource.kind);
            assert_eq!(object["metadata"]["name"], *name);
            assert_eq!(object["metadata"]["namespace"], "shop");
            let owner = &object["metadata"]["ownerReferences"][0];
            assert_eq!(owner["uid"], *pipeline.uid);
            assert_eq!((&owner["controller"], &owner["blockOwnerDeletion"]), (&Value::Bool(true), &Value::Bool(true)));
            assert_eq!(object["metadata"]["labels"]["app.kubernetes.io/instance"], *pipeline.name);
            assert!(!text(&[child]).contains(": null"), "an absent field is left out");
        }
    }
    let kinds: BTreeSet<Kind> = Kind::ALL.into_iter().collect();
    let mut built: BTreeSet<Kind> = BTreeSet::new();
    for case in CASES {
        built.extend(all(&plan(&pipeline(case)), 1).iter().map(|child| child.kind));
    }
    assert_eq!(kinds, built, "each kind is in a golden file");
}

#[test]
fn live_changes_and_the_number_of_pods_do_not_change_the_templates() {
    let before = pipeline("everything");
    let mut changed = resource("everything");
    changed.metadata.generation = Some(8);
    changed.metadata.annotations.as_mut().unwrap().clear();
    changed.spec.threshold = Some("2.5".parse().unwrap());
    changed.spec.thresholds.clear();
    changed.spec.policy = None;
    changed.spec.backlog_limit = 7;
    // Only what a webhook mounts rolls pods.
    changed.spec.sinks.retain(|sink| sink.webhook.is_some());
    assert_eq!(changed.spec.sinks.len(), 1);
    changed.spec.sinks[0].name = "other".to_owned();
    changed.spec.replicas = Some(9);
    changed.spec.drain_seconds = Some(1);
    changed.spec.network_policy = None;
    changed.spec.serve.as_mut().unwrap().cors = None;
    changed.spec.serve.as_mut().unwrap().trusted_proxies.clear();
    let after = Validated::new(&changed).unwrap();
    assert_eq!(templates(&plan(&before)), templates(&plan(&after)));
    let manifest = |pipeline: &Validated| base(&plan(pipeline)).into_iter().find(|child| child.kind == Kind::ConfigMap);
    assert_ne!(manifest(&before), manifest(&after), "the ConfigMap has the change");
    changed.spec.sinks.clear();
    let without_webhook = Validated::new(&changed).unwrap();
    assert_ne!(
        templates(&plan(&before)),
        templates(&plan(&without_webhook)),
        "the Secret of the webhook is mounted no longer"
    );

    let one = Plan { workers: 1, serve: Some(1), ..plan(&before) };
    let other = Plan { workers: 5, serve: None, operator_namespace: "elsewhere", ..plan(&before) };
    assert_eq!(templates(&one), templates(&other));
}

#[test]
fn the_templates_depend_on_the_image_and_the_secrets() {
    let before = pipeline("minimal");
    let image = Plan { image: "millrace/service:1.1", ..plan(&before) };
    assert_ne!(templates(&plan(&before)), templates(&image));
    let mut changed = resource("minimal");
    changed.spec.redis.as_mut().unwrap().url_secret_ref.key = "other".to_owned();
    assert_ne!(templates(&plan(&before)), templates(&plan(&Validated::new(&changed).unwrap())));
}

#[test]
fn without_a_fixed_user_the_pods_name_no_ids_and_are_never_root() {
    let mut changed = resource("minimal");
    let pod = || Some(millrace_crds::Pod { fixed_user: Some(false), ..millrace_crds::Pod::default() });
    changed.spec.serve.get_or_insert_default().pod = pod();
    changed.spec.work.get_or_insert_default().pod = pod();
    let pipeline = Validated::new(&changed).unwrap();
    let mut seen = 0;
    for child in all(&plan(&pipeline), 1).iter().filter(|child| [Kind::Deployment, Kind::Job].contains(&child.kind)) {
        let context = &json(child)["spec"]["template"]["spec"]["securityContext"];
        let expected = serde_json::json!({ "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } });
        assert_eq!(*context, expected, "{}", child.name);
        seen += 1;
    }
    assert_eq!(seen, 5);
}

#[test]
fn labels_and_annotations_of_jobs_reach_their_pods_only() {
    let pipeline = pipeline("everything");
    for child in all(&plan(&pipeline), 1).iter().filter(|child| [Kind::Deployment, Kind::Job].contains(&child.kind)) {
        let metadata = &json(child)["spec"]["template"]["metadata"];
        let (is_job, inject) = (child.kind == Kind::Job, "sidecar.istio.io/inject");
        assert_eq!(metadata["labels"].get(inject).is_some(), is_job, "{}", child.name);
        assert_eq!(metadata["annotations"].get(inject).is_some(), is_job, "{}", child.name);
        let scrape = if is_job { "false" } else { "true" };
        assert_eq!(metadata["annotations"]["example.com/scrape"], scrape, "{}: it replaces that of work", child.name);
        assert_eq!(metadata["labels"]["app.kubernetes.io/name"], "millrace");
        assert_eq!(metadata["labels"]["team"], "a");
    }
}

#[test]
fn the_template_hash_of_a_job_depends_on_its_pod_and_not_its_attempt() {
    let of = |resource: &RecordPipelineResource, number| {
        let pipeline = Validated::new(resource).unwrap();
        let job = migration(&pipeline, IMAGE, "k", number, false);
        assert_eq!(json(&job)["metadata"]["labels"]["millrace.dev/template"], template_of(&job));
        template_of(&job)
    };
    let mut changed = resource("minimal");
    let before = of(&changed, 1);
    assert_eq!(of(&changed, 2), before);
    changed.spec.threshold = None;
    assert_eq!(of(&changed, 1), before, "a live change");
    changed.spec.work.get_or_insert_default().pod.get_or_insert_default().priority_class_name = Some("high".to_owned());
    assert_ne!(of(&changed, 1), before);
}

/// Otherwise `1000m` and `1` would differ at every apply.
#[test]
fn amounts_stay_as_they_are_written() {
    let pipeline = pipeline("everything");
    for template in templates(&plan(&pipeline)) {
        let resources = &template["spec"]["containers"][0]["resources"];
        assert_eq!(resources["requests"]["cpu"], "1000m");
        assert_eq!(resources["limits"]["cpu"], "2", "a number becomes its text");
        assert_eq!(resources["limits"]["memory"], "1Gi");
    }
}

#[test]
fn the_operators_variables_and_labels_override_those_of_the_manifest() {
    let pipeline = pipeline("everything");
    for template in templates(&plan(&pipeline)) {
        let variables = template["spec"]["containers"][0]["env"].as_array().unwrap();
        let named = |name: &str| variables.iter().filter(|variable| variable["name"] == *name).collect::<Vec<_>>();
        assert_eq!(named("MILLRACE_LOG_FORMAT").len(), 1);
        assert_eq!(named("MILLRACE_LOG_FORMAT")[0]["value"], "json");
        assert_eq!(named("SSL_CERT_FILE").len(), 1);
        assert_eq!(template["metadata"]["labels"]["app.kubernetes.io/name"], "millrace");
        assert_eq!(template["metadata"]["labels"]["team"], "a");
    }
}

#[test]
fn selectors_select_the_pods_of_one_component() {
    let pipeline = pipeline("everything");
    let plan = plan(&pipeline);
    for (child, component, other) in
        deployments(&plan).into_iter().zip(["serve", "work"]).zip(["work", "serve"]).map(|((a, b), c)| (a, b, c))
    {
        let object = json(&child);
        let labels = &object["spec"]["template"]["metadata"]["labels"];
        let matches = |component| selector(&pipeline, component).iter().all(|(name, value)| labels[name] == **value);
        assert!(matches(component) && !matches(other), "{component}");
        assert_eq!(object["spec"]["selector"]["matchLabels"], serde_json::json!(selector(&pipeline, component)));
    }
}

#[test]
fn the_manifest_of_the_pods_has_only_the_fields_that_concern_them() {
    for case in CASES {
        let pipeline = pipeline(case);
        let children = base(&plan(&pipeline));
        let config = children.iter().find(|child| child.kind == Kind::ConfigMap).unwrap();
        let text = json(config)["data"]["pipeline.yaml"].as_str().unwrap().to_owned();
        assert_eq!(RecordPipeline::from_yaml(&text).unwrap(), pipeline.manifest, "{text}");
        let manifest: Value = serde_saphyr::from_str(&text).unwrap();
        let allowed = "threshold thresholds totalThresholds shards backlogLimit limits sinks rollups policy redis postgres auth \
                       oidc serve retention archive";
        let fields = manifest["spec"].as_object().unwrap();
        assert!(fields.keys().all(|field| allowed.split(' ').any(|name| name == field)), "{text}");
        let mut serve: Vec<&String> =
            fields.get("serve").and_then(Value::as_object).into_iter().flatten().map(|(name, _)| name).collect();
        serve.sort();
        let kept: &[&str] = &["cors", "tls", "trustedProxies"];
        assert_eq!(serve, if case == "everything" { kept } else { &[] });
        let annotations: Vec<&String> =
            manifest["metadata"]["annotations"].as_object().into_iter().flatten().map(|(name, _)| name).collect();
        let kept: &[&str] = &["millrace.dev/accept-generation", "millrace.dev/adopt"];
        assert_eq!(annotations, if case == "everything" { kept } else { &[] });
    }
}

#[test]
fn the_migration_key_changes_with_everything_it_depends_on() {
    let pipeline = pipeline("minimal");
    let key = migration_key(&pipeline, IMAGE, false);
    let mut keys =
        BTreeSet::from([key.clone(), migration_key(&pipeline, IMAGE, true), migration_key(&pipeline, "b", false)]);
    let change = |change: fn(&mut RecordPipelineResource)| {
        let mut changed = resource("minimal");
        change(&mut changed);
        migration_key(&Validated::new(&changed).unwrap(), IMAGE, false)
    };
    keys.insert(change(|it| it.metadata.uid = Some("b".to_owned())));
    keys.insert(change(|it| {
        it.metadata.annotations = Some([("millrace.dev/adopt".to_owned(), "b".to_owned())].into())
    }));
    keys.insert(change(|it| it.spec.postgres.as_mut().unwrap().url_secret_ref.name = "b".to_owned()));
    keys.insert(change(|it| it.spec.postgres.as_mut().unwrap().url_secret_ref.key = "b".to_owned()));
    keys.insert(change(|it| {
        let ca_secret_ref = Some(it.spec.postgres.as_ref().unwrap().url_secret_ref.clone());
        it.spec.postgres.as_mut().unwrap().tls = Some(ClientTls { ca_secret_ref, client_cert_secret_ref: None });
    }));
    assert_eq!(keys.len(), 8);
    assert!(keys.iter().all(|key| key.len() == 8 && key.bytes().all(|byte| byte.is_ascii_hexdigit())), "{keys:?}");
    let same = change(|it| {
        it.spec.threshold = None;
        it.spec.replicas = Some(4);
        it.metadata.generation = Some(9);
    });
    assert_eq!(same, key, "a live change migrates nothing");
}

#[test]
fn a_resource_that_lacks_a_field_for_a_cluster_is_refused_with_the_remedy() {
    let refusal = |change: fn(&mut RecordPipelineResource)| {
        let mut changed = resource("minimal");
        change(&mut changed);
        let refused: Invalid = Validated::new(&changed).unwrap_err();
        refused.to_string()
    };
    assert_eq!(
        refusal(|it| it.spec.redis = None),
        "spec.redis.urlSecretRef: is needed on a cluster: name the Secret and key that hold the URL of Redis"
    );
    assert_eq!(
        refusal(|it| it.spec.postgres = None),
        "spec.postgres.urlSecretRef: is needed on a cluster: name the Secret and key that hold the URL of Postgres"
    );
    let both = refusal(|it| {
        it.spec.shards = 0;
        it.metadata.uid = None;
    });
    assert!(both.contains("spec.shards: must be between 1 and 256; metadata: has no namespace, uid"), "{both}");
    assert!(refusal(|it| it.metadata.name = Some("A".to_owned())).starts_with("metadata.name: must be 1 to 40"));
}

#[test]
fn with_an_autoscaler_the_deployment_of_serve_has_no_replicas() {
    let pipeline = pipeline("autoscaling");
    let plan = plan(&pipeline);
    assert_eq!(json(&deployments(&plan)[0])["spec"].get("replicas"), None, "an apply would take it back");
    assert_eq!(json(&deployments(&plan)[1])["spec"]["replicas"], 1);
    assert!(base(&plan).iter().all(|child| child.kind != Kind::NetworkPolicy), "they are disabled");
}
