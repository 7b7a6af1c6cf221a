//! What is built for a pipeline, as a real API server takes it: strictly, without a warning, and the second time without a
//! write. The objects are the golden files that the unit tests hold the builder to.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "../../crds/tests/api/kube.rs"]
mod kube;

use kube::Namespace;

/// Applies what a case builds, twice.
fn takes(case: &str) {
    let namespace = Namespace::new(case);
    let file = format!("{}/tests/golden/{case}/objects.yaml", env!("CARGO_MANIFEST_DIR"));
    let objects = std::fs::read_to_string(file).unwrap();
    let objects: Vec<String> = objects
        .split("---\n")
        // The Gateway API is no part of Kubernetes: this server does not know it.
        .filter(|object| !object.is_empty() && !object.contains("kind: HTTPRoute"))
        .map(|object| object.replace("  namespace: shop\n", ""))
        .collect();
    let apply = || {
        let how = ["apply", "--server-side", "--validate=strict", "--field-manager=test", "-f", "-"];
        let applied = namespace.kubectl(&how, &objects.join("---\n"));
        assert!(applied.ok && applied.err.is_empty(), "{}", applied.err);
        let kinds = "sa,cm,svc,netpol,pdb,deploy,job,hpa,ing";
        let each = r#"jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}{"\n"}{end}"#;
        namespace.kubectl(&["get", kinds, "-o", each], "").out
    };
    let first = apply();
    assert_eq!(first.lines().count(), objects.len(), "{first}");
    assert_eq!(first, apply(), "an unchanged object was written");
}

#[test]
fn a_minimal_pipeline_is_taken() {
    takes("minimal");
}

#[test]
fn a_pipeline_with_everything_is_taken() {
    takes("everything");
}

#[test]
fn a_pipeline_that_scales_itself_is_taken() {
    takes("autoscaling");
}

#[test]
fn the_longest_name_is_taken() {
    takes("longest-name");
}
