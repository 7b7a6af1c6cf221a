//! What a manifest may say, and what it is told when it may not.

use std::collections::BTreeSet;

use millrace_crds::{DecimalString, RecordPipeline, RecordPipelineSpec};

fn manifest(metadata: &str, spec: &str) -> String {
    format!("{{apiVersion: millrace.dev/v1alpha1, kind: RecordPipeline, metadata: {{{metadata}}}, spec: {{{spec}}}}}")
}

fn refusal(text: &str) -> String {
    match RecordPipeline::from_yaml(text) {
        Ok(_) => panic!("accepted: {text}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_manifest_of_the_design_is_one() {
    let text = r#"
apiVersion: millrace.dev/v1alpha1
kind: RecordPipeline
metadata: { name: payments, labels: { team: a }, resourceVersion: "7", managedFields: [] }
spec:
  threshold: "1000.00"
  thresholds: { JPY: "100000" }
  replicas: 3
  shards: 16
  image: millrace/service:1.0
  sinks:
    - { name: notifications, event: Processed, redisStream: { stream: payments.notifications, maxLength: 1000000, overflow: Wait } }
    - { name: alerts, event: Alert, from: Now, redisStream: {} }
    - { name: pager, event: Alert, webhook: { url: "https://example.org/hook", secretRef: { name: pager, key: secret } } }
  policy: { minimumTotal: "0" }
  redis:    { urlSecretRef: { name: payments-redis, key: url } }
  postgres: { urlSecretRef: { name: payments-postgres, key: url } }
  serve: { replicas: 2 }
  auth: { bootstrapKeySecretRef: { name: payments-key, key: key } }
status: { observedGeneration: 3 }
"#;
    let manifest = RecordPipeline::from_yaml(text).unwrap();
    assert_eq!(manifest.spec.sinks[1].stream("payments").as_deref(), Some("payments.alerts"));
    assert_eq!(manifest.spec.sinks[2].stream("payments"), None);
    assert_eq!(manifest.namespace(), "default");
    let canonical = manifest.spec.canonical();
    assert_eq!(RecordPipelineSpec::from_canonical(&canonical).unwrap(), manifest.spec);
    assert!(canonical.contains(r#""maxLength":1000000,"overflow":"Wait""#), "defaults are written out: {canonical}");
}

#[test]
fn the_least_manifest_has_defaults() {
    let manifest = RecordPipeline::from_yaml(&manifest("name: a", "")).unwrap();
    assert_eq!(manifest.spec.canonical(), r#"{"shards":16,"backlogLimit":100000}"#);
}

/// What of a manifest the pods see. Fields that only the operator uses would stop an older image from reading it.
#[test]
fn the_pods_see_only_what_concerns_them() {
    let text = manifest(
        "name: a",
        "threshold: '1', thresholds: {a: '2'}, replicas: 0, autoscaling: {minReplicas: 1, maxReplicas: 2, targetBacklog: 9}, \
         shards: 4, backlogLimit: 7, image: a, imagePullPolicy: Never, imagePullSecrets: [a], \
         sinks: [{name: a, event: Alert, redisStream: {}}], policy: {minimumTotal: '0'}, \
         redis: {urlSecretRef: {name: a, key: k}}, postgres: {urlSecretRef: {name: b, key: k}}, \
         auth: {bootstrapKeySecretRef: {name: c, key: k}}, serve: {replicas: 2}, work: {pod: {}}, jobs: {}, \
         networkPolicy: {enabled: false}, deletionPolicy: Now, drainSeconds: 3, paused: true",
    );
    let whole = RecordPipeline::from_yaml(&text).unwrap().spec;
    let all: serde_json::Value = serde_json::from_str(&whole.canonical()).unwrap();
    let seen: serde_json::Value = serde_json::from_str(&whole.for_pods().canonical()).unwrap();
    let (all, seen) = (all.as_object().unwrap(), seen.as_object().unwrap());
    assert_eq!(all.len(), 21, "a new field is set above, and belongs to the pods or not: {all:?}");
    let names: BTreeSet<&str> = seen.keys().map(String::as_str).collect();
    let concern = "threshold thresholds shards backlogLimit sinks policy redis postgres auth";
    assert_eq!(names, concern.split(' ').collect());
    assert!(seen.iter().all(|(name, value)| all[name] == *value), "as they were written");
    assert_eq!(whole.for_pods().for_pods(), whole.for_pods());
}

#[test]
fn a_sink_needs_its_event() {
    assert!(refusal(&manifest("name: a", "sinks: [{name: a, redisStream: {}}]")).contains("`event`"));
    let said = refusal(&manifest("name: a", "sinks: [{name: a, on: Alert, redisStream: {}}]"));
    assert!(said.contains("unknown field `on`"), "{said}");
}

/// Of each rule: a spec that keeps it, one that breaks it, and what the latter is told.
#[test]
fn each_rule_of_the_spec_names_field_and_remedy() {
    let units = |count: usize| {
        let units: Vec<String> = (0..count).map(|n| format!("u{n}: '1'")).collect();
        format!("thresholds: {{{}}}", units.join(", "))
    };
    let sinks = |count: usize| {
        let sinks: Vec<String> =
            (0..count).map(|n| format!("{{name: s{n}, event: Alert, redisStream: {{}}}}")).collect();
        format!("sinks: [{}]", sinks.join(", "))
    };
    let sink = |fields: &str| format!("sinks: [{{name: a, event: Alert, {fields}}}]");
    let stream = |fields: &str| sink(&format!("redisStream: {{{fields}}}"));
    let webhook = |url: &str, name: &str, key: &str| {
        sink(&format!("webhook: {{url: '{url}', secretRef: {{name: '{name}', key: '{key}'}}}}"))
    };
    let scaling = |min, max, target| {
        format!("shards: 4, autoscaling: {{minReplicas: {min}, maxReplicas: {max}, targetBacklog: {target}}}")
    };
    let two = |a: &str, b: &str| format!("sinks: [{{event: Alert, {a}}}, {{event: Alert, {b}}}]");
    let cases: Vec<(String, String, &str)> = vec![
        ("shards: 1".into(), "shards: 0".into(), "spec.shards: must be between 1 and 256"),
        ("shards: 256".into(), "shards: 257".into(), "spec.shards: must be between 1 and 256"),
        ("backlogLimit: 1".into(), "backlogLimit: 0".into(), "spec.backlogLimit: must be between"),
        ("backlogLimit: 1000000000".into(), "backlogLimit: 1000000001".into(), "spec.backlogLimit: must be between"),
        ("image: a/b:1".into(), "image: 'a b'".into(), "spec.image: must be"),
        ("replicas: 0".into(), "replicas: 257".into(), "spec.replicas: must be at most 256"),
        ("serve: {replicas: 256}".into(), "serve: {replicas: 257}".into(), "spec.serve.replicas: must be at most 256"),
        (
            "serve: {autoscaling: {minReplicas: 1, maxReplicas: 2}}".into(),
            "serve: {replicas: 1, autoscaling: {minReplicas: 1, maxReplicas: 2}}".into(),
            "spec.serve.replicas: must be left out beside spec.serve.autoscaling",
        ),
        (
            "serve: {autoscaling: {minReplicas: 2, maxReplicas: 2}}".into(),
            "serve: {autoscaling: {minReplicas: 3, maxReplicas: 2}}".into(),
            "spec.serve.autoscaling: needs 1 <= minReplicas <= maxReplicas <= 256",
        ),
        (
            "work: {pod: {extraVolumes: [{name: ca, emptyDir: {}}]}}".into(),
            "work: {pod: {extraVolumes: [{name: millrace-ca, emptyDir: {}}]}}".into(),
            "spec.work.pod.extraVolumes[0].name: must not begin with millrace-",
        ),
        (
            "serve: {pod: {extraVolumes: [{name: ca}], extraVolumeMounts: [{name: ca, mountPath: /etc/ca}]}}".into(),
            "serve: {pod: {extraVolumes: [{name: ca}], extraVolumeMounts: [{name: ca, mountPath: /etc/millrace/redis}]}}".into(),
            "spec.serve.pod.extraVolumeMounts[0].mountPath: must not be below /etc/millrace",
        ),
        (
            "serve: {pod: {extraVolumes: [{name: ca}], extraVolumeMounts: [{name: ca, mountPath: /a}]}}".into(),
            "serve: {pod: {extraVolumes: [{name: ca}], extraVolumeMounts: [{name: cb, mountPath: /a}]}}".into(),
            "spec.serve.pod.extraVolumeMounts[0].name: has to name one of extraVolumes",
        ),
        (
            "work: {pod: {resources: {requests: {cpu: 1, memory: 64Mi}}}}".into(),
            "work: {pod: {resources: {requests: {cpu: [1]}}}}".into(),
            "must be an amount such as 100m, 2 or 256Mi",
        ),
        (scaling(1, 4, 1), scaling(0, 4, 1), "spec.autoscaling: needs 1 <= minReplicas"),
        (scaling(4, 4, 1), scaling(3, 2, 1), "spec.autoscaling: needs"),
        (scaling(1, 4, 1), scaling(1, 5, 1), "maxReplicas <= shards"),
        (scaling(1, 1, 1), scaling(1, 1, 0), "spec.autoscaling.targetBacklog: must be at least 1"),
        (
            format!("replicas: 0, {}", scaling(1, 2, 1)),
            format!("replicas: 2, {}", scaling(1, 2, 1)),
            "spec.replicas: must be left out, or 0, beside spec.autoscaling",
        ),
        (units(64), units(65), "spec.thresholds: must be at most 64"),
        ("thresholds: {EUR: '1'}".into(), "thresholds: {'': '1'}".into(), "spec.thresholds: the unit \"\" must not be empty"),
        (
            format!("thresholds: {{{}: '1'}}", "é".repeat(200)),
            format!("thresholds: {{{}: '1'}}", "€".repeat(200)),
            "has more than 400 bytes in UTF-8",
        ),
        ("thresholds: {a b: '1'}".into(), "thresholds: {\"a\\tb\": '1'}".into(), "has a tab (U+0009) as character 2"),
        ("thresholds: {EUR: '1'}".into(), "thresholds: {'EUR ': '1'}".into(), "ends with a space (U+0020); remove it"),
        (
            "thresholds: {\"a\\u200db\": '1'}".into(),
            "thresholds: {\"EUR\\u200b\": '1'}".into(),
            "has a zero-width space (U+200B) as character 4",
        ),
        (sinks(16), sinks(17), "spec.sinks: must be at most 16"),
        (
            two("name: a, redisStream: {}", "name: b, redisStream: {}"),
            two("name: a, redisStream: {}", "name: a, redisStream: {stream: x}"),
            "spec.sinks[1].name: a is used twice",
        ),
        (
            two("name: a, redisStream: {}", "name: b, redisStream: {stream: x}"),
            two("name: a, redisStream: {}", "name: b, redisStream: {stream: p.a}"),
            "spec.sinks[1].redisStream.stream: belongs to another sink already",
        ),
        (
            "sinks: [{name: a-1, event: Alert, redisStream: {}}]".into(),
            "sinks: [{name: A, event: Alert, redisStream: {}}]".into(),
            "spec.sinks[0].name: must be",
        ),
        (stream("stream: 'a.b:c_D-1'"), stream("stream: 'a b'"), "spec.sinks[0].redisStream.stream: must be"),
        (stream("stream: a"), stream("stream: '{a}'"), "spec.sinks[0].redisStream.stream: must be"),
        (stream("maxLength: 0"), stream("maxLength: 1000000001"), "spec.sinks[0].redisStream.maxLength: must be"),
        (
            webhook("https://h/x?y", "a.b", "k"),
            sink("redisStream: {}, webhook: {url: 'https://h', secretRef: {name: a, key: k}}"),
            "spec.sinks[0]: needs exactly one of redisStream and webhook",
        ),
        (stream(""), "sinks: [{name: a, event: Alert}]".into(), "needs exactly one of"),
        (webhook("http://h", "a", "k"), webhook("ftp://h", "a", "k"), "spec.sinks[0].webhook.url: must be"),
        (webhook("https://h", "a", "k"), webhook("https://u:p@h", "a", "k"), "without spaces, user or password"),
        (webhook("https://h", "a", "k"), webhook("https:///x", "a", "k"), "spec.sinks[0].webhook.url"),
        (webhook("https://h", "a", "k"), webhook("https://h", "A", "k"), "spec.sinks[0].webhook.secretRef.name"),
        (webhook("https://h", "a", "k"), webhook("https://h", "a", "k/2"), "spec.sinks[0].webhook.secretRef.key"),
        (
            "redis: {urlSecretRef: {name: a, key: k}}".into(),
            "redis: {urlSecretRef: {name: '', key: k}}".into(),
            "spec.redis.urlSecretRef.name",
        ),
        (
            "postgres: {urlSecretRef: {name: a, key: k}}".into(),
            "postgres: {urlSecretRef: {name: a, key: ''}}".into(),
            "spec.postgres.urlSecretRef.key",
        ),
        (
            "auth: {bootstrapKeySecretRef: {name: a, key: k}}".into(),
            "auth: {bootstrapKeySecretRef: {name: a..b, key: k}}".into(),
            "spec.auth.bootstrapKeySecretRef.name",
        ),
    ];
    for (kept, broken, told) in cases {
        if let Err(error) = RecordPipeline::from_yaml(&manifest("name: p", &kept)) {
            panic!("{kept}: {error}");
        }
        let said = refusal(&manifest("name: p", &broken));
        assert!(said.contains(told), "{broken}: {said}");
    }
}

#[test]
fn each_rule_of_the_metadata_names_field_and_remedy() {
    let (forty, long) = ("a".repeat(40), "a".repeat(41));
    for (kept, broken, told) in [
        (format!("name: {forty}"), format!("name: {long}"), "metadata.name: must be 1 to 40"),
        ("name: a-1".into(), "name: 1a".into(), "start with a letter"),
        ("name: a".into(), "name: a_b".into(), "metadata.name"),
        ("name: a, namespace: x-1".into(), "name: a, namespace: X".into(), "metadata.namespace"),
        ("name: a, uid: u, generation: 1".into(), "name: a, uid: u".into(), "metadata.generation: must be at least 1"),
        ("name: a, generation: 3".into(), "name: a, uid: u, generation: 0".into(), "leave both out of a local file"),
        ("name: a, uid: u, generation: 2".into(), "name: a, uid: '', generation: 2".into(), "metadata.uid"),
    ] {
        if let Err(error) = RecordPipeline::from_yaml(&manifest(&kept, "")) {
            panic!("{kept}: {error}");
        }
        let said = refusal(&manifest(&broken, ""));
        assert!(said.contains(told), "{broken}: {said}");
    }
    let other = manifest("name: a", "");
    assert!(refusal(&other.replace("v1alpha1", "v2")).contains("apiVersion: must be millrace.dev/v1alpha1"));
    assert!(refusal(&other.replace("kind: RecordPipeline", "kind: Pod")).contains("kind: must be RecordPipeline"));
}

#[test]
fn all_broken_rules_are_told_at_once() {
    let said = refusal(&manifest("name: A", "shards: 0, sinks: [{name: B, event: Alert}]"));
    assert!(said.starts_with("the manifest breaks 4 rule(s)"), "{said}");
}

#[test]
fn unknown_fields_and_wrong_forms_are_named() {
    for (spec, told) in [
        ("treshold: '1'", "treshold"),
        ("sinks: [{name: a, event: Alert, redisStream: {maxlength: 3}}]", "maxlength"),
        ("sinks: [{name: a, event: Processd, redisStream: {}}]", "Processd"),
        ("policy: {minimum: '0'}", "minimum"),
        ("autoscaling: {minReplicas: 1, maxReplicas: 2}", "targetBacklog"),
        ("shards: many", "many"),
        ("shards: -1", "-1"),
        ("threshold: '1e3'", "unsigned decimal"),
        ("threshold: '-1'", "unsigned decimal"),
    ] {
        let said = refusal(&manifest("name: a", spec));
        assert!(said.contains(told), "{spec}: {said}");
        assert!(!said.contains('\n') && said.contains("line 1 column"), "one line that says where: {said}");
    }
    assert!(refusal("").contains("not a RecordPipeline manifest"));
    assert!(refusal(&manifest("name: a", "").replace("spec", "specs")).contains("specs"));
}

#[test]
fn decimals_hold_at_their_bounds() {
    for good in ["0", "1000.00", "999999999999999.999999999", "000000000000001.5"] {
        assert!(good.parse::<DecimalString>().is_ok(), "{good}");
    }
    assert_eq!("1000.00".parse::<DecimalString>().unwrap().to_string(), "1000.00");
    for bad in ["", ".5", "5.", "1000000000000000", "1.0000000001", "+1", "-1", "1e3", " 1", "1_0", "NaN", "٣"] {
        assert!(bad.parse::<DecimalString>().is_err(), "{bad}");
    }
}

#[test]
fn what_is_generated_is_committed() {
    let remedy = "run `cargo run -p millrace-crds --bin crdgen`";
    assert!(include_str!("../recordpipeline.schema.yaml") == RecordPipeline::schema_yaml(), "{remedy}");
    assert!(include_str!("../recordpipeline.crd.yaml") == RecordPipeline::crd_yaml(), "{remedy}");
}
