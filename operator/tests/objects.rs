//! The built objects on a real API server: it accepts them in strict mode, without a warning, and the second apply
//! writes nothing. The objects are the golden files, with which the unit tests compare the builder.

#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

#[path = "../../crds/tests/api/kube.rs"]
mod kube;

use kube::Namespace;

/// Applies the golden objects of a case twice.
fn accepts(case: &str) {
    let namespace = Namespace::new(case);
    let file = format!("{}/tests/golden/{case}/objects.yaml", env!("CARGO_MANIFEST_DIR"));
    let objects = std::fs::read_to_string(file).unwrap();
    let objects: Vec<String> = objects
        .split("---\n")
        // The Gateway API is no part of Kubernetes: this server does not serve it.
        .filter(|object| !object.is_empty() && !object.contains("kind: HTTPRoute"))
        .map(|object| object.replace("  namespace: shop\n", ""))
        .collect();
    let apply = || {
        let how = ["apply", "--server-side", "--validate=strict", "--field-manager=test", "-f", "-"];
        let applied = namespace.kubectl(&how, &objects.join("---\n"));
        assert!(applied.ok && applied.err.is_empty(), "{}", applied.err);
        let kinds = "sa,cm,svc,netpol,pdb,deploy,job,cronjob,hpa,ing";
        let each = r#"jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}{"\n"}{end}"#;
        namespace.kubectl(&["get", kinds, "-o", each], "").out
    };
    let first = apply();
    assert_eq!(first.lines().count(), objects.len(), "{first}");
    assert_eq!(first, apply(), "an unchanged object was written");
}

#[test]
fn the_api_server_accepts_a_minimal_pipeline() {
    accepts("minimal");
}

#[test]
fn the_api_server_accepts_a_pipeline_with_everything() {
    accepts("everything");
}

#[test]
fn the_api_server_accepts_a_pipeline_with_autoscaling() {
    accepts("autoscaling");
}

#[test]
fn the_api_server_accepts_the_longest_name() {
    accepts("longest-name");
}
