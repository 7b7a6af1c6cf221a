//! Each rule of the schema, with what keeps it and what breaks it.

use crate::{kube::Namespace, manifest};

/// Of each rule of the schema: a spec that keeps it, one that breaks it, and what the latter is told.
fn rules() -> Vec<(String, String, &'static str)> {
    let sink = |fields: &str| format!("sinks: [{{name: a, event: Alert, {fields}}}]");
    let stream = |fields: &str| sink(&format!("redisStream: {{{fields}}}"));
    let two = |a: &str, b: &str| format!("sinks: [{{event: Alert, {a}}}, {{event: Alert, {b}}}]");
    let many = |count: usize| {
        let sinks: Vec<String> =
            (0..count).map(|n| format!("{{name: s{n}, event: Alert, redisStream: {{}}}}")).collect();
        format!("sinks: [{}]", sinks.join(", "))
    };
    let units = |count: usize| {
        let units: Vec<String> = (0..count).map(|n| format!("u{n}: '1'")).collect();
        format!("thresholds: {{{}}}", units.join(", "))
    };
    let scaling = |min, max, target| {
        format!("shards: 4, autoscaling: {{minReplicas: {min}, maxReplicas: {max}, targetBacklog: {target}}}")
    };
    let hook = |url: &str| sink(&format!("webhook: {{url: '{url}', secretRef: {{name: a, key: k}}}}"));
    let secret = |name: &str, key: &str| format!("redis: {{urlSecretRef: {{name: '{name}', key: '{key}'}}}}");
    let serve = |fields: &str| format!("serve: {{{fields}}}");
    let pod = |fields: &str| format!("work: {{pod: {{{fields}}}}}");
    let list = |count: usize, item: &str| vec![item; count].join(", ");
    let labels = |count: usize| (0..count).map(|n| format!("l{n}: x")).collect::<Vec<_>>().join(", ");
    let route = |fields: &str| serve(&format!("httpRoute: {{{fields}}}"));
    let ingress = |fields: &str| serve(&format!("ingress: {{{fields}}}"));
    let long = |count: usize| "a".repeat(count);
    vec![
        (
            pod("labels: {example.com/team: a_b.c-D, x: ''}"),
            pod("labels: {team: 'a b'}"),
            "spec.work.pod.labels[team]: Invalid value: \"string\": must be empty or up to 63 letters, digits, '-', '_' or '.'",
        ),
        (
            pod("nodeSelector: {kubernetes.io/arch: amd64}"),
            pod("nodeSelector: {'a b': x}"),
            "spec.work.pod.nodeSelector: Invalid value: \"object\": a name must be one of a label, such as example.com/team",
        ),
        (
            pod("annotations: {example.com/what: 'a b'}"),
            pod("annotations: {'what?': a}"),
            "spec.work.pod.annotations: Invalid value: \"object\": a name must be one of an annotation",
        ),
        (
            "threshold: '0'".into(),
            "threshold: '-1'".into(),
            r#"spec.threshold: Invalid value: "string": must be 0 or more, with 1 to 15 integer and at most 9 fractional digits, such as "1000.00""#,
        ),
        (
            "threshold: null".into(),
            "threshold: '1e3'".into(),
            "must be 0 or more, with 1 to 15 integer and at most 9 fractional digits",
        ),
        ("thresholds: {JPY: '1'}".into(), "thresholds: {JPY: '-1'}".into(), "spec.thresholds[JPY]: Invalid value"),
        (
            "policy: {minimumTotal: '0'}".into(),
            "policy: {minimumTotal: '-1'}".into(),
            "spec.policy.minimumTotal: Invalid value",
        ),
        (
            format!("thresholds: {{{}: '1'}}", "é".repeat(200)),
            format!("thresholds: {{{}: '1'}}", "é".repeat(201)),
            "spec.thresholds: Invalid value: \"object\": units have 1 to 200 characters",
        ),
        (
            "thresholds: {\"a\\u200c b\\u3000c\": '1'}".into(),
            "thresholds: {'EUR ': '1'}".into(),
            "spec.thresholds: Invalid value: \"object\": a unit has white space at an end",
        ),
        (
            "thresholds: {EUR: '1'}".into(),
            "thresholds: {\"\\u00a0EUR\": '1'}".into(),
            "a unit has white space at an end",
        ),
        (
            "thresholds: {EUR: '1'}".into(),
            "thresholds: {\"E\\u202eUR\": '1'}".into(),
            "a character that cannot be seen",
        ),
        (
            "image: a/b:1".into(),
            "image: 'a b'".into(),
            "spec.image: Invalid value: \"string\": must be 1 to 500 characters without spaces",
        ),
        (units(64), units(65), "spec.thresholds: Too many: 65: must have at most 64 items"),
        (
            "shards: 256".into(),
            "shards: 257".into(),
            "spec.shards: Invalid value: 257: spec.shards in body should be less than or equal to 256",
        ),
        (
            "shards: 1".into(),
            "shards: 0".into(),
            "spec.shards: Invalid value: 0: spec.shards in body should be greater than or equal to 1",
        ),
        ("backlogLimit: 1".into(), "backlogLimit: 0".into(), "spec.backlogLimit: Invalid value"),
        ("backlogLimit: 1000000000".into(), "backlogLimit: 1000000001".into(), "spec.backlogLimit: Invalid value"),
        ("replicas: 0".into(), "replicas: 257".into(), "spec.replicas: Invalid value"),
        ("replicas: null".into(), "replicas: -1".into(), "spec.replicas: Invalid value"),
        (format!("image: {}", long(500)), format!("image: {}", long(501)), "spec.image: Too long"),
        (
            "imagePullPolicy: Never".into(),
            "imagePullPolicy: Often".into(),
            "spec.imagePullPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            format!("imagePullSecrets: [{}]", list(8, "a")),
            format!("imagePullSecrets: [{}]", list(9, "a")),
            "spec.imagePullSecrets: Too many",
        ),
        ("deletionPolicy: Purge".into(), "deletionPolicy: Keep".into(), "spec.deletionPolicy: Unsupported value"),
        ("drainSeconds: 1".into(), "drainSeconds: 0".into(), "spec.drainSeconds: Invalid value"),
        ("drainSeconds: 86400".into(), "drainSeconds: 86401".into(), "spec.drainSeconds: Invalid value"),
        (scaling(1, 4, 1), scaling(0, 4, 1), "spec.autoscaling.minReplicas: Invalid value"),
        (scaling(4, 4, 1), scaling(3, 2, 1), "minReplicas must be at most maxReplicas"),
        (
            scaling(1, 4, 1),
            scaling(1, 5, 1),
            "spec.autoscaling.maxReplicas must be at most spec.shards: more workers than shards would idle",
        ),
        (scaling(1, 1, 1), scaling(1, 1, 0), "spec.autoscaling.targetBacklog: Invalid value"),
        (
            "autoscaling: {minReplicas: 1, maxReplicas: 16, targetBacklog: 1}".into(),
            "autoscaling: {minReplicas: 1, maxReplicas: 17, targetBacklog: 1}".into(),
            "must be at most spec.shards",
        ),
        (
            format!("replicas: 0, {}", scaling(1, 2, 1)),
            format!("replicas: 2, {}", scaling(1, 2, 1)),
            "spec.replicas must be left out, or 0 to stop, beside spec.autoscaling: set autoscaling.minReplicas and maxReplicas instead",
        ),
        (
            // What the default fills in is taken.
            format!("replicas: 1, {}", scaling(1, 2, 1)),
            format!("replicas: 256, {}", scaling(1, 2, 1)),
            "spec.replicas must be left out",
        ),
        (
            "jobs: {pod: {annotations: {sidecar.istio.io/inject: 'false'}, labels: {a: b}}}".into(),
            "jobs: {pod: {annotations: {'what?': a}}}".into(),
            "spec.jobs.pod.annotations: Invalid value: \"object\": a name must be one of an annotation",
        ),
        (
            "jobs: {pod: {labels: {a: b}}}".into(),
            "jobs: {pod: {labels: {a: 'b c'}}}".into(),
            "spec.jobs.pod.labels[a]: Invalid value",
        ),
        (pod("fixedUser: false"), pod("fixedUser: 'no'"), "spec.work.pod.fixedUser: Invalid value"),
        (
            ingress("host: a, path: '/m(/|$)(.*)', pathType: ImplementationSpecific"),
            ingress("host: a, pathType: Regex"),
            "spec.serve.ingress.pathType: Unsupported value: \"Regex\"",
        ),
        (many(16), many(17), "spec.sinks: Too many: 17: must have at most 16 items"),
        (
            two("name: a, redisStream: {}", "name: b, redisStream: {}"),
            two("name: a, redisStream: {}", "name: a, redisStream: {}"),
            "spec.sinks[1]: Duplicate value: {\"name\":\"a\"}",
        ),
        (
            two("name: a, redisStream: {stream: x}", "name: b, redisStream: {stream: z}"),
            two("name: a, redisStream: {stream: x}", "name: b, redisStream: {stream: x}"),
            "two sinks name the same redisStream.stream: a stream belongs to one sink",
        ),
        (
            two("name: a, redisStream: {stream: null}", "name: b, redisStream: {stream: null}"),
            sink(""),
            "needs exactly one of redisStream and webhook",
        ),
        (
            sink("redisStream: {}, webhook: null"),
            sink("redisStream: {}, webhook: {url: 'https://h', secretRef: {name: a, key: k}}"),
            "spec.sinks[0]: Invalid value",
        ),
        (
            "sinks: [{name: a-1, event: Processed, redisStream: {}}]".into(),
            "sinks: [{name: A, event: Alert, redisStream: {}}]".into(),
            "spec.sinks[0].name: Invalid value",
        ),
        (
            format!("sinks: [{{name: {}, event: DeadLettered, redisStream: {{}}}}]", long(40)),
            format!("sinks: [{{name: {}, event: Alert, redisStream: {{}}}}]", long(41)),
            "spec.sinks[0].name: Too long",
        ),
        (
            "sinks: [{name: a, event: Conflicted, redisStream: {}}]".into(),
            "sinks: [{name: a, event: Processd, redisStream: {}}]".into(),
            "spec.sinks[0].event: Unsupported value: \"Processd\"",
        ),
        (
            sink("from: Now, redisStream: {}"),
            sink("from: Later, redisStream: {}"),
            "spec.sinks[0].from: Unsupported value",
        ),
        (stream("stream: 'a.b:c_D-1'"), stream("stream: '{a}'"), "spec.sinks[0].redisStream.stream: Invalid value"),
        (
            stream(&format!("stream: {}", long(200))),
            stream(&format!("stream: {}", long(201))),
            "spec.sinks[0].redisStream.stream: Too long",
        ),
        (stream("maxLength: 0"), stream("maxLength: 1000000001"), "spec.sinks[0].redisStream.maxLength: Invalid value"),
        (stream("overflow: Trim"), stream("overflow: Drop"), "spec.sinks[0].redisStream.overflow: Unsupported value"),
        (
            hook("https://h/x?y"),
            hook("ftp://h"),
            "spec.sinks[0].webhook.url: Invalid value: \"string\": must be an http or https URL without spaces, user or password",
        ),
        (
            hook("http://h:1/a@b"),
            hook("https://u:p@h"),
            "must be an http or https URL without spaces, user or password",
        ),
        (secret("a", "k"), secret("", "k"), "spec.redis.urlSecretRef.name: Invalid value"),
        (secret("a.b-c", "k"), secret("A", "k"), "spec.redis.urlSecretRef.name: Invalid value"),
        (secret("a", "a.b_C-1"), secret("a", "k/2"), "spec.redis.urlSecretRef.key: Invalid value"),
        (
            "postgres: {urlSecretRef: {name: a, key: k}}".into(),
            "postgres: {}".into(),
            "spec.postgres.urlSecretRef: Required value",
        ),
        (
            "auth: {}".into(),
            "auth: {bootstrapKeySecretRef: {name: a}}".into(),
            "spec.auth.bootstrapKeySecretRef.key: Required value",
        ),
        (serve("replicas: 256"), serve("replicas: 257"), "spec.serve.replicas: Invalid value"),
        (
            serve("replicas: null, autoscaling: {minReplicas: 2, maxReplicas: 2}"),
            serve("replicas: 2, autoscaling: {minReplicas: 1, maxReplicas: 2}"),
            "spec.serve.replicas must be left out beside spec.serve.autoscaling",
        ),
        (
            serve("autoscaling: {minReplicas: 1, maxReplicas: 2, targetCpuPercent: 1}"),
            serve("autoscaling: {minReplicas: 3, maxReplicas: 2}"),
            "spec.serve.autoscaling: Invalid value: \"object\": minReplicas must be at most maxReplicas",
        ),
        (
            serve("service: {type: NodePort}"),
            serve("service: {type: ExternalName}"),
            "spec.serve.service.type: Unsupported value",
        ),
        (
            serve(&format!("service: {{annotations: {{{}}}}}", labels(64))),
            serve(&format!("service: {{annotations: {{{}}}}}", labels(65))),
            "spec.serve.service.annotations: Too many",
        ),
        (ingress("host: a.b, path: /v1"), ingress("host: a.b, path: v1"), "spec.serve.ingress.path: Invalid value"),
        (ingress("host: a"), ingress("host: ''"), "spec.serve.ingress.host: Invalid value"),
        (route("parents: [{name: a}]"), route("parents: []"), "spec.serve.httpRoute.parents: Invalid value"),
        (
            route("parents: [{name: a}], hostnames: [a]"),
            route("parents: [{namespace: a}]"),
            "spec.serve.httpRoute.parents[0].name: Required value",
        ),
        (
            pod("resources: {requests: {cpu: 1, memory: 64Mi}, limits: {cpu: 1000m}}"),
            pod("resources: {requests: {cpu: lots}}"),
            "must be an amount such as 100m, 2 or 256Mi",
        ),
        (
            pod("tolerations: [{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 3}]"),
            pod("tolerations: [{effect: Never}]"),
            "spec.work.pod.tolerations[0].effect: Unsupported value",
        ),
        (
            pod(&format!("tolerations: [{}]", list(32, "{key: a}"))),
            pod(&format!("tolerations: [{}]", list(33, "{key: a}"))),
            "spec.work.pod.tolerations: Too many",
        ),
        (
            pod("extraEnv: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]"),
            pod("extraEnv: [{value: a}]"),
            "spec.work.pod.extraEnv[0].name: Required value",
        ),
        (
            pod("extraVolumes: [{name: ca, configMap: {name: ca}}]"),
            pod("extraVolumes: [{name: millrace-redis, emptyDir: {}}]"),
            "spec.work.pod.extraVolumes[0].name: Invalid value: \"string\": must not begin with millrace-: the pods' own volumes are called so",
        ),
        (
            pod("extraVolumes: [{name: ca, emptyDir: {}}], extraVolumeMounts: [{name: ca, mountPath: /etc/ca}]"),
            pod("extraVolumes: [{name: ca, emptyDir: {}}], extraVolumeMounts: [{name: cb, mountPath: /etc/ca}]"),
            "spec.work.pod: Invalid value: \"object\": each of extraVolumeMounts has to name one of extraVolumes",
        ),
        (
            pod("extraVolumes: null"),
            pod(
                "extraVolumes: [{name: ca, emptyDir: {}}], extraVolumeMounts: [{name: ca, mountPath: /etc/millrace/redis}]",
            ),
            "must not be below /etc/millrace: the manifest and the URLs are mounted there",
        ),
        (pod("affinity: {nodeAffinity: {}}"), pod("affinity: []"), "spec.work.pod.affinity: Invalid value"),
        (
            pod(&format!("labels: {{{}}}", labels(32))),
            pod(&format!("labels: {{{}}}", labels(33))),
            "spec.work.pod.labels: Too many",
        ),
        (
            pod(&format!("nodeSelector: {{{}}}", labels(32))),
            pod(&format!("nodeSelector: {{{}}}", labels(33))),
            "spec.work.pod.nodeSelector: Too many",
        ),
        (
            format!("networkPolicy: {{egress: [{}]}}", list(32, "{}")),
            format!("networkPolicy: {{egress: [{}]}}", list(33, "{}")),
            "spec.networkPolicy.egress: Too many",
        ),
    ]
}

#[test]
fn each_rule_of_the_schema_refuses_with_field_and_remedy() {
    let namespace = Namespace::new("rules");
    let rules = rules();
    let kept: String = rules.iter().enumerate().map(|(n, (kept, ..))| manifest(&format!("kept-{n}"), kept)).collect();
    let applied = namespace.kubectl(&["create", "--dry-run=server", "--validate=strict", "-f", "-"], &kept);
    assert!(applied.ok, "{}", applied.err);
    assert_eq!(applied.out.lines().count(), rules.len(), "{}", applied.out);

    let broken: String =
        rules.iter().enumerate().map(|(n, (_, broken, _))| manifest(&format!("broken-{n}"), broken)).collect();
    let refused = namespace.kubectl(&["create", "--dry-run=server", "--validate=strict", "-f", "-"], &broken);
    assert_eq!(refused.out, "", "something was accepted");
    let mut wrong = Vec::new();
    for (n, (_, broken, told)) in rules.iter().enumerate() {
        let start = format!("\"broken-{n}\" is invalid: ");
        let said = refused.err.lines().find(|line| line.contains(&start)).unwrap_or("nothing");
        if !said.contains(told) {
            wrong.push(format!("{broken}\n  is told: {said}\n  and not: {told}\n"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.concat());
}
