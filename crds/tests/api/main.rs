//! The definition on a real API server: its refusals, with their messages, and the columns and docs that it shows.
//!
//! The server is the one that `hack/with-kube-api` has started around the tests, else one that it starts for them.

#![expect(clippy::unwrap_used, reason = "a test that cannot continue fails")]

mod bounds;
mod kube;
mod rules;

use kube::{Namespace, kubectl};
use millrace_crds::{RecordPipelineResource, SinkEvent};

fn manifest(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: millrace.dev/v1alpha1, kind: RecordPipeline, metadata: {{name: {name}}}, spec: {{{spec}}}}}\n"
    )
}

/// Whether a refusal has this message. Where API server 1.34 shows the type of a wrong value, 1.37 shows the value or
/// nothing.
fn shows(refusal: &str, message: &str) -> bool {
    let types = ["object", "string", "integer"].map(|kind| format!("Invalid value: \"{kind}\": "));
    match types.iter().find_map(|of_type| message.split_once(of_type)) {
        Some((field, remedy)) => {
            let found = refusal.split_once(&format!("{field}Invalid value: "));
            found.is_some_and(|(_, rest)| rest.contains(remedy))
        }
        None => refusal.contains(message),
    }
}

#[test]
fn a_name_is_a_label_of_at_most_40_characters() {
    let namespace = Namespace::new("names");
    let (forty, long) = ("a".repeat(40), "a".repeat(41));
    for (kept, broken) in [(forty.as_str(), long.as_str()), ("a-1", "1a"), ("a", "a.b")] {
        let applied = namespace.kubectl(&["create", "--dry-run=server", "-f", "-"], &manifest(kept, ""));
        assert!(applied.ok, "{}", applied.err);
        let refused = namespace.kubectl(&["create", "--dry-run=server", "-f", "-"], &manifest(broken, ""));
        assert!(refused.err.contains("metadata.name must be 1 to 40 lower-case letters, digits or '-', start with a letter and end with a letter or digit"), "{}", refused.err);
    }
}

#[test]
fn a_misspelt_field_is_refused_by_its_name() {
    let namespace = Namespace::new("strict");
    for (spec, message) in [
        ("treshold: '1'", r#"unknown field "spec.treshold""#),
        (
            "sinks: [{name: a, event: Alert, redisStream: {maxlength: 3}}]",
            r#"unknown field "spec.sinks[0].redisStream.maxlength""#,
        ),
        ("work: {pod: {resources: {request: {cpu: 1}}}}", r#"unknown field "spec.work.pod.resources.request""#),
        ("work: {pod: {tolerations: [{efect: NoSchedule}]}}", r#"unknown field "spec.work.pod.tolerations[0].efect""#),
        ("work: {pod: {affinity: {podAfinity: {}}}}", r#"unknown field "spec.work.pod.affinity.podAfinity""#),
    ] {
        let refused = namespace.kubectl(&["apply", "-f", "-"], &manifest("a", spec));
        assert!(!refused.ok && refused.err.contains(message), "{spec}: {}", refused.err);
    }
}

#[test]
fn the_number_of_shards_is_immutable() {
    let namespace = Namespace::new("shards");
    // Absent, then the default as a number: it is the same value.
    for spec in ["", "shards: 16", "shards: null, threshold: '2'"] {
        let applied = namespace.kubectl(&["apply", "-f", "-"], &manifest("a", spec));
        assert!(applied.ok, "{spec}: {}", applied.err);
    }
    let refused = namespace.kubectl(&["apply", "-f", "-"], &manifest("a", "shards: 8"));
    let message = "spec.shards: Invalid value: \"integer\": is immutable: it decides which shard a record goes to; make a pipeline of another name instead";
    assert!(shows(&refused.err, message), "{}", refused.err);
}

#[test]
fn scale_beside_autoscaling_is_refused_with_the_remedy() {
    let namespace = Namespace::new("scale");
    let scaled = "autoscaling: {minReplicas: 1, maxReplicas: 2, targetBacklog: 9}";
    let applied =
        namespace.kubectl(&["apply", "-f", "-"], &(manifest("auto", scaled) + &manifest("fixed", "replicas: 1")));
    assert!(applied.ok, "{}", applied.err);
    let refused = namespace.kubectl(&["scale", "rpl", "auto", "--replicas=3"], "");
    let remedy = "spec.replicas must be left out, or 0 to stop, beside spec.autoscaling: set autoscaling.minReplicas and maxReplicas instead";
    assert!(!refused.ok && refused.err.contains(remedy), "{}", refused.err);
    for (name, replicas) in [("auto", "0"), ("auto", "1"), ("fixed", "3"), ("fixed", "0")] {
        let scaled = namespace.kubectl(&["scale", "rpl", name, &format!("--replicas={replicas}")], "");
        assert!(scaled.ok, "{}", scaled.err);
        let found = namespace.kubectl(&["get", "rpl", name, "-o", "jsonpath={.spec.replicas}"], "");
        assert_eq!(found.out, replicas);
    }
}

/// An autoscaler reads the scale before it may write it.
#[test]
fn a_pipeline_without_replicas_has_a_scale() {
    let namespace = Namespace::new("plain-scale");
    let scaled = "autoscaling: {minReplicas: 1, maxReplicas: 2, targetBacklog: 9}";
    let applied = namespace.kubectl(&["apply", "-f", "-"], &(manifest("plain", "") + &manifest("auto", scaled)));
    assert!(applied.ok, "{}", applied.err);
    for name in ["plain", "auto"] {
        let scale = namespace.kubectl(&["get", "rpl", name, "--subresource=scale", "-o", "json"], "");
        assert!(scale.ok, "{}", scale.err);
        let scale: serde_json::Value = serde_json::from_str(&scale.out).unwrap();
        assert_eq!(scale["spec"]["replicas"], 1, "{scale}");
    }
    let scaled = namespace.kubectl(&["scale", "rpl", "plain", "--replicas=2"], "");
    assert!(scaled.ok, "{}", scaled.err);
    // The user applies a manifest without replicas again: the autoscaler's number stays.
    let applied = namespace.kubectl(&["apply", "-f", "-"], &manifest("plain", "threshold: '2'"));
    assert!(applied.ok, "{}", applied.err);
    let found = namespace.kubectl(&["get", "rpl", "plain", "-o", "jsonpath={.spec.replicas}"], "");
    assert_eq!(found.out, "2");
}

#[test]
fn an_absent_field_gets_its_default() {
    let namespace = Namespace::new("defaults");
    let applied =
        namespace.kubectl(&["apply", "-f", "-"], &manifest("a", "sinks: [{name: a, event: Alert, redisStream: {}}]"));
    assert!(applied.ok, "{}", applied.err);
    let found = namespace.kubectl(&["get", "rpl", "a", "-o", "jsonpath={.spec}"], "");
    let found: serde_json::Value = serde_json::from_str(&found.out).unwrap();
    let defaults = serde_json::json!({
        "replicas": 1,
        "shards": 16,
        "backlogLimit": 100_000,
        "sinks": [{ "name": "a", "event": "Alert", "redisStream": { "maxLength": 1_000_000, "overflow": "Wait" } }],
    });
    assert_eq!(found, defaults);
}

#[test]
fn a_sink_needs_its_event() {
    let namespace = Namespace::new("event");
    for (spec, refusal) in [
        ("sinks: [{name: a, event: Alert, redisStream: {}}]", None),
        ("sinks: [{name: a, redisStream: {}}]", Some("spec.sinks[0].event: Required value")),
        ("sinks: [{name: a, event: Alarm, redisStream: {}}]", Some("supported values: \"Processed\", \"Alert\"")),
    ] {
        let applied = namespace.kubectl(&["apply", "-f", "-"], &manifest("a", spec));
        match refusal {
            None => {
                assert!(applied.ok, "{spec}: {}", applied.err);
                let found = namespace.kubectl(&["get", "rpl", "a", "-o", "json"], "").out;
                let found: RecordPipelineResource = serde_json::from_str(&found).unwrap();
                assert_eq!(found.spec.sinks[0].event, SinkEvent::Alert);
            }
            Some(message) => assert!(!applied.ok && applied.err.contains(message), "{spec}: {}", applied.err),
        }
    }
}

#[test]
fn a_stream_belongs_to_one_sink_also_by_its_default() {
    let namespace = Namespace::new("stream");
    let sinks = |stream: &str| {
        format!(
            "sinks: [{{name: a, event: Alert, redisStream: {{}}}}, {{name: b, event: Alert, redisStream: {{stream: {stream}}}}}]"
        )
    };
    let applied = namespace.kubectl(&["apply", "-f", "-"], &manifest("p", &sinks("p.b")));
    assert!(applied.ok, "{}", applied.err);
    let refused = namespace.kubectl(&["apply", "-f", "-"], &manifest("p", &sinks("p.a")));
    assert!(refused.err.contains("a redisStream.stream is another sink's already"), "{}", refused.err);
}

/// The name identifies a sink: two appliers each keep their own.
#[test]
fn sinks_are_merged_by_name() {
    let namespace = Namespace::new("sinks");
    for (manager, sink, stream) in [("one", "a", "x"), ("two", "b", "u"), ("one", "a", "z")] {
        let text =
            manifest("a", &format!("sinks: [{{name: {sink}, event: Alert, redisStream: {{stream: {stream}}}}}]"));
        let applied = namespace.kubectl(&["apply", "--server-side", "--field-manager", manager, "-f", "-"], &text);
        assert!(applied.ok, "{}", applied.err);
    }
    let found = namespace.kubectl(&["get", "rpl", "a", "-o", "jsonpath={.spec.sinks[*].redisStream.stream}"], "");
    assert_eq!(found.out, "z u");
}

#[test]
fn a_list_shows_readiness_workers_and_counts() {
    let namespace = Namespace::new("columns");
    let applied = namespace.kubectl(&["apply", "-f", "-"], &manifest("a", "replicas: 2"));
    assert!(applied.ok, "{}", applied.err);
    let status = r#"{"status": {"replicas": 2, "backlog": 17, "alerts": 4, "deadLetters": 5, "selector": "a=b", "conditions": [
        {"type": "Ready", "status": "False", "reason": "Stopped", "message": "m", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}"#;
    let patched = namespace.kubectl(&["patch", "rpl", "a", "--subresource=status", "--type=merge", "-p", status], "");
    assert!(patched.ok, "{}", patched.err);
    for by in ["rpl", "recordpipelines", "recordpipeline", "recordpipelines.millrace.dev", "all"] {
        let found = namespace.kubectl(&["get", by], "").out;
        let mut lines = found.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(lines.next().unwrap(), ["NAME", "READY", "WORKERS", "BACKLOG", "ALERTS", "DEAD", "AGE"], "{by}");
        let row = lines.next().unwrap();
        assert!(row[0].ends_with('a') && row[1..6] == ["False", "2", "17", "4", "5"], "{row:?}");
    }
    let scale = namespace.kubectl(
        &["get", "rpl", "a", "--subresource=scale", "-o", "jsonpath={.status.replicas} {.status.selector}"],
        "",
    );
    assert_eq!(scale.out, "2 a=b");
}

/// Every field has a description of whole sentences without line breaks.
#[test]
fn every_field_has_a_description() {
    let crd = kubectl(&["get", "crd", "recordpipelines.millrace.dev", "-o", "json"], "").out;
    let crd: serde_json::Value = serde_json::from_str(&crd).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    let mut seen = 0;
    assert_described("spec", &schema["properties"]["spec"], &mut seen);
    assert_described("status", &schema["properties"]["status"], &mut seen);
    assert!(seen > 80, "{seen} fields");
    let shown = kubectl(&["explain", "rpl.spec.sinks.event"], "").out;
    let shown = shown.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(shown.contains("Alert: processed records whose value is above the threshold"), "{shown}");
}

fn assert_described(path: &str, schema: &serde_json::Value, seen: &mut u32) {
    *seen += 1;
    let text = schema["description"].as_str().unwrap_or_default();
    let of_kubernetes = path.starts_with("status.conditions.");
    assert!(of_kubernetes || (text.ends_with('.') && text.starts_with(char::is_uppercase)), "{path}: {text:?}");
    assert!(of_kubernetes || !text.contains('\n'), "{path}: {text:?}");
    for properties in [&schema["properties"], &schema["items"]["properties"]] {
        for (name, schema) in properties.as_object().into_iter().flatten() {
            assert_described(&format!("{path}.{name}"), schema, seen);
        }
    }
}

/// By both ways of `kubectl apply`; the client's stores the whole definition in an annotation.
#[test]
fn the_api_server_accepts_the_definition_without_a_warning() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/recordpipeline.crd.yaml");
    for how in [
        &["create", "--dry-run=server", "--validate=strict"][..],
        &["apply", "--dry-run=server"],
        &["apply", "--server-side", "--force-conflicts"],
    ] {
        let text = std::fs::read_to_string(file).unwrap();
        // Another name, so that `create` does not find an existing definition.
        let text = if how[0] == "create" { text.replace("recordpipeline", "recordpipelinf") } else { text };
        let applied = kubectl(&[how, &["-f", "-"]].concat(), &text);
        assert!(applied.ok, "{}", applied.err);
        assert!(!applied.err.contains("Warning: unrecognized"), "{}", applied.err);
    }
    assert!(std::fs::metadata(file).unwrap().len() < 200_000, "an annotation has at most 262,144 bytes");
    let conditions = kubectl(
        &[
            "get",
            "crd",
            "recordpipelines.millrace.dev",
            "-o",
            "jsonpath={.status.conditions[*].type}={.status.conditions[*].status}",
        ],
        "",
    );
    assert_eq!(conditions.out, "NamesAccepted Established=True True", "no NonStructuralSchema beside them");
}
