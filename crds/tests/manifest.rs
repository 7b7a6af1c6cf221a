//! The rules of a manifest, and the messages for manifests that break them.

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
fn a_manifest_with_most_fields_is_valid() {
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
    - { name: alerts, event: Alert, from: { position: Now }, redisStream: {} }
    - { name: pager, event: Alert, webhook: { url: "https://example.org/hook", secretRef: { name: pager, key: secret } } }
  rollups:
    - { name: hourly, window: 1h, groupBy: [destinationId] }
    - { name: sources, window: 1d, distinct: sourceId }
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
fn the_shortest_manifest_has_defaults() {
    let manifest = RecordPipeline::from_yaml(&manifest("name: a", "")).unwrap();
    assert_eq!(manifest.spec.canonical(), r#"{"shards":16,"backlogLimit":100000}"#);
}

/// An older image could not read a manifest with new fields that only the operator uses.
#[test]
fn the_spec_for_pods_has_only_the_fields_that_concern_them() {
    let text = manifest(
        "name: a",
        "threshold: '1', thresholds: {a: '2'}, totalThresholds: [{name: a, unit: b, above: '1', per: Key}], replicas: 0, autoscaling: {minReplicas: 1, maxReplicas: 2, targetBacklog: 9}, \
         shards: 4, backlogLimit: 7, limits: {perKey: {bytesInFlight: 1}}, image: a, imagePullPolicy: Never, imagePullSecrets: [a], \
         sinks: [{name: a, event: Alert, redisStream: {}}], rollups: [{name: a, window: 1m}], policy: {minimumTotal: '0'}, \
         retention: {records: 400d, ids: Forever}, archive: {directory: {path: /a}}, redis: {urlSecretRef: {name: a, key: k}}, postgres: {urlSecretRef: {name: b, key: k}}, \
         auth: {bootstrapKeySecretRef: {name: c, key: k}}, serve: {replicas: 2}, work: {pod: {}}, verify: {schedule: '@daily'}, jobs: {}, \
         networkPolicy: {enabled: false}, deletionPolicy: Now, drainSeconds: 3, paused: true",
    );
    let whole = RecordPipeline::from_yaml(&text).unwrap().spec;
    let all: serde_json::Value = serde_json::from_str(&whole.canonical()).unwrap();
    let for_pods: serde_json::Value = serde_json::from_str(&whole.for_pods().canonical()).unwrap();
    let (all, for_pods) = (all.as_object().unwrap(), for_pods.as_object().unwrap());
    assert_eq!(all.len(), 27, "set a new field above, and decide whether it concerns the pods: {all:?}");
    let names: BTreeSet<&str> = for_pods.keys().map(String::as_str).collect();
    let concern = "threshold thresholds totalThresholds shards backlogLimit limits sinks rollups policy redis postgres auth \
                   retention archive";
    assert_eq!(names, concern.split(' ').collect());
    assert!(for_pods.iter().all(|(name, value)| all[name] == *value), "as they were written");
    assert_eq!(whole.for_pods().for_pods(), whole.for_pods());
}

#[test]
fn a_sink_needs_its_event() {
    assert!(refusal(&manifest("name: a", "sinks: [{name: a, redisStream: {}}]")).contains("`event`"));
    let message = refusal(&manifest("name: a", "sinks: [{name: a, on: Alert, redisStream: {}}]"));
    assert!(message.contains("unknown field `on`"), "{message}");
}

/// One rule of the spec.
struct Rule {
    /// A spec that keeps it.
    kept: &'static str,
    /// A spec that breaks it.
    broken: &'static str,
    /// A part of the refusal.
    message: &'static str,
}

macro_rules! sink {
    ($($fields:tt)*) => { concat!("sinks: [{name: a, event: Alert, ", $($fields)*, "}]") };
}
macro_rules! stream {
    ($fields:literal) => {
        sink!("redisStream: {", $fields, "}")
    };
}
macro_rules! two {
    ($one:literal, $other:literal) => {
        concat!("sinks: [{event: Alert, ", $one, "}, {event: Alert, ", $other, "}]")
    };
}
macro_rules! webhook {
    ($url:literal, $name:literal, $key:literal) => {
        sink!("webhook: {url: '", $url, "', secretRef: {name: '", $name, "', key: '", $key, "'}}")
    };
}
macro_rules! target {
    ($fields:literal) => {
        sink!("webhook: {url: 'https://h', secretRef: {name: a, key: k}, ", $fields, "}")
    };
}
macro_rules! filter {
    ($event:literal, $fields:literal) => {
        concat!("sinks: [{name: a, event: ", $event, ", redisStream: {}, filter: {", $fields, "}}]")
    };
}
macro_rules! oidc {
    ($issuer:literal, $fields:literal) => {
        concat!("oidc: {audience: b, scopes: {write: [ingest]}, ", $issuer, ", ", $fields, "}")
    };
}
macro_rules! bucket {
    ($fields:literal) => {
        concat!(
            "retention: {records: 9d}, archive: {s3: {bucket: abc, accessKeyIdSecretRef: {name: a, key: k}, ",
            "secretAccessKeySecretRef: {name: a, key: k}, ",
            $fields,
            "}}"
        )
    };
}
macro_rules! scaling {
    ($least:literal, $most:literal, $target:literal) => {
        concat!(
            "shards: 4, autoscaling: {minReplicas: ",
            $least,
            ", maxReplicas: ",
            $most,
            ", targetBacklog: ",
            $target,
            "}"
        )
    };
}

const RULES: &[Rule] = &[
    Rule {
        kept: "verify: {schedule: '*/5 0-6,22 1 JAN MON-FRI'}",
        broken: "verify: {schedule: '0 3 * *'}",
        message: "spec.verify.schedule: must be five fields of cron",
    },
    Rule {
        kept: "verify: {schedule: '@hourly'}",
        broken: "verify: {schedule: '@often'}",
        message: "or @hourly, @daily",
    },
    Rule { kept: "shards: 1", broken: "shards: 0", message: "spec.shards: must be between 1 and 256" },
    Rule { kept: "shards: 256", broken: "shards: 257", message: "spec.shards: must be between 1 and 256" },
    Rule { kept: "backlogLimit: 1", broken: "backlogLimit: 0", message: "spec.backlogLimit: must be between" },
    Rule {
        kept: "backlogLimit: 1000000000",
        broken: "backlogLimit: 1000000001",
        message: "spec.backlogLimit: must be between",
    },
    Rule {
        kept: "limits: {perKey: {requestsPerSecond: 1}, pipeline: {bytesInFlight: 1000000000000}}",
        broken: "limits: {perKey: {requestsPerSecond: 0}}",
        message: "spec.limits.perKey.requestsPerSecond: must be between",
    },
    Rule {
        kept: "limits: {}",
        broken: "limits: {pipeline: {bytesInFlight: 1000000000001}}",
        message: "spec.limits.pipeline.bytesInFlight: must be between",
    },
    Rule {
        kept: "retention: {records: 400d, ids: 400d, closedDeadLetters: 1d, duplicates: 99999d, rollups: Forever}",
        broken: "retention: {records: 400d, ids: 399d}",
        message: "spec.retention.ids: must be at least as long as spec.retention.records, 400d",
    },
    Rule {
        kept: "retention: {records: 400d}",
        broken: "retention: {ids: 400d}",
        message: "spec.retention.ids: must be at least as long as spec.retention.records, Forever",
    },
    Rule {
        kept: "retention: {records: 1d}",
        broken: "retention: {records: 0d}",
        message: "must be Forever, or 1 to 99999 days",
    },
    Rule { kept: "image: a/b:1", broken: "image: 'a b'", message: "spec.image: must be" },
    Rule { kept: "replicas: 0", broken: "replicas: 257", message: "spec.replicas: must be at most 256" },
    Rule {
        kept: "serve: {replicas: 256}",
        broken: "serve: {replicas: 257}",
        message: "spec.serve.replicas: must be at most 256",
    },
    Rule {
        kept: "serve: {autoscaling: {minReplicas: 1, maxReplicas: 2}}",
        broken: "serve: {replicas: 1, autoscaling: {minReplicas: 1, maxReplicas: 2}}",
        message: "spec.serve.replicas: must be left out beside spec.serve.autoscaling",
    },
    Rule {
        kept: "serve: {autoscaling: {minReplicas: 2, maxReplicas: 2}}",
        broken: "serve: {autoscaling: {minReplicas: 3, maxReplicas: 2}}",
        message: "spec.serve.autoscaling: needs 1 <= minReplicas <= maxReplicas <= 256",
    },
    Rule {
        kept: "work: {pod: {extraVolumes: [{name: ca, emptyDir: {}}]}}",
        broken: "work: {pod: {extraVolumes: [{name: millrace-ca, emptyDir: {}}]}}",
        message: "spec.work.pod.extraVolumes[0].name: must not begin with millrace-",
    },
    Rule {
        kept: "serve: {pod: {extraVolumes: [{name: ca}], extraVolumeMounts: [{name: ca, mountPath: /etc/ca}]}}",
        broken: "serve: {pod: {extraVolumes: [{name: ca}], extraVolumeMounts: [{name: ca, mountPath: /etc/millrace/redis}]}}",
        message: "spec.serve.pod.extraVolumeMounts[0].mountPath: must not be below /etc/millrace",
    },
    Rule {
        kept: "serve: {pod: {extraVolumes: [{name: ca}], extraVolumeMounts: [{name: ca, mountPath: /a}]}}",
        broken: "serve: {pod: {extraVolumes: [{name: ca}], extraVolumeMounts: [{name: cb, mountPath: /a}]}}",
        message: "spec.serve.pod.extraVolumeMounts[0].name: has to name one of extraVolumes",
    },
    Rule {
        kept: "work: {pod: {resources: {requests: {cpu: 1, memory: 64Mi}}}}",
        broken: "work: {pod: {resources: {requests: {cpu: [1]}}}}",
        message: "must be an amount such as 100m, 2 or 256Mi",
    },
    Rule {
        kept: "retention: {records: 9d}, archive: {directory: {path: /a, claimName: b.c-1}}",
        broken: "retention: {ids: 9d}, archive: {directory: {path: /a}}",
        message: "spec.archive: needs spec.retention.records",
    },
    Rule {
        kept: "retention: {records: 9d}, archive: {directory: {path: /a}, s3: null}",
        broken: "retention: {records: 9d}, archive: {}",
        message: "spec.archive: needs exactly one of directory and s3",
    },
    Rule {
        kept: "retention: {records: 9d}, archive: {directory: {path: /a/b}}",
        broken: "retention: {records: 9d}, archive: {directory: {path: a/../b}}",
        message: "spec.archive.directory.path: must be an absolute path of at most 1,000 bytes, without '..'",
    },
    Rule {
        kept: bucket!(
            "prefix: a/B_c=1.x, region: a-1, endpoint: 'https://s3:9000/', caSecretRef: {name: a, key: ca.crt}"
        ),
        broken: bucket!("prefix: a/.b"),
        message: "spec.archive.s3.prefix: must be parts of letters, digits",
    },
    Rule {
        kept: bucket!("endpoint: 'http://s3:9000'"),
        broken: bucket!("endpoint: 'http://user@s3'"),
        message: "spec.archive.s3.endpoint: must be http(s)://host:port",
    },
    Rule { kept: scaling!(1, 4, 1), broken: scaling!(0, 4, 1), message: "spec.autoscaling: needs 1 <= minReplicas" },
    Rule { kept: scaling!(4, 4, 1), broken: scaling!(3, 2, 1), message: "spec.autoscaling: needs" },
    Rule { kept: scaling!(1, 4, 1), broken: scaling!(1, 5, 1), message: "maxReplicas <= shards" },
    Rule {
        kept: scaling!(1, 1, 1),
        broken: scaling!(1, 1, 0),
        message: "spec.autoscaling.targetBacklog: must be at least 1",
    },
    Rule {
        kept: concat!("replicas: 0, ", scaling!(1, 2, 1)),
        broken: concat!("replicas: 2, ", scaling!(1, 2, 1)),
        message: "spec.replicas: must be left out, or 0, beside spec.autoscaling",
    },
    Rule {
        kept: "thresholds: {EUR: '1'}",
        broken: "thresholds: {'': '1'}",
        message: "spec.thresholds: the unit \"\" must not be empty",
    },
    Rule {
        kept: "thresholds: {a b: '1'}",
        broken: "thresholds: {\"a\\tb\": '1'}",
        message: "has a tab (U+0009) as character 2",
    },
    Rule {
        kept: "thresholds: {EUR: '1'}",
        broken: "thresholds: {'EUR ': '1'}",
        message: "ends with a space (U+0020); remove it",
    },
    Rule {
        kept: "thresholds: {\"a\\u200db\": '1'}",
        broken: "thresholds: {\"EUR\\u200b\": '1'}",
        message: "has a zero-width space (U+200B) as character 4",
    },
    Rule {
        kept: two!("name: a, redisStream: {}", "name: b, redisStream: {}"),
        broken: two!("name: a, redisStream: {}", "name: a, redisStream: {stream: x}"),
        message: "spec.sinks[1].name: a is used twice",
    },
    Rule {
        kept: two!("name: a, redisStream: {}", "name: b, redisStream: {stream: x}"),
        broken: two!("name: a, redisStream: {}", "name: b, redisStream: {stream: p.a}"),
        message: "spec.sinks[1].redisStream.stream: belongs to another sink already",
    },
    Rule {
        kept: "sinks: [{name: a-1, event: Alert, redisStream: {}}]",
        broken: "sinks: [{name: A, event: Alert, redisStream: {}}]",
        message: "spec.sinks[0].name: must be",
    },
    Rule {
        kept: stream!("stream: 'a.b:c_D-1'"),
        broken: stream!("stream: 'a b'"),
        message: "spec.sinks[0].redisStream.stream: must be",
    },
    Rule {
        kept: stream!("stream: a"),
        broken: stream!("stream: '{a}'"),
        message: "spec.sinks[0].redisStream.stream: must be",
    },
    Rule {
        kept: stream!("maxLength: 0"),
        broken: stream!("maxLength: 1000000001"),
        message: "spec.sinks[0].redisStream.maxLength: must be",
    },
    Rule {
        kept: webhook!("https://h/x?y", "a.b", "k"),
        broken: sink!("redisStream: {}, webhook: {url: 'https://h', secretRef: {name: a, key: k}}"),
        message: "spec.sinks[0]: needs exactly one of redisStream and webhook",
    },
    Rule { kept: stream!(""), broken: "sinks: [{name: a, event: Alert}]", message: "needs exactly one of" },
    Rule {
        kept: webhook!("http://h", "a", "k"),
        broken: webhook!("ftp://h", "a", "k"),
        message: "spec.sinks[0].webhook.url: must be",
    },
    Rule {
        kept: webhook!("https://h", "a", "k"),
        broken: webhook!("https://u:p@h", "a", "k"),
        message: "without spaces, user or password",
    },
    Rule {
        kept: webhook!("https://h", "a", "k"),
        broken: webhook!("https:///x", "a", "k"),
        message: "spec.sinks[0].webhook.url",
    },
    Rule {
        kept: webhook!("https://h", "a", "k"),
        broken: webhook!("https://h", "A", "k"),
        message: "spec.sinks[0].webhook.secretRef.name",
    },
    Rule {
        kept: webhook!("https://h", "a", "k"),
        broken: webhook!("https://h", "a", "k/2"),
        message: "spec.sinks[0].webhook.secretRef.key",
    },
    Rule {
        kept: target!(
            "timeoutSeconds: 60, maxInFlight: 256, ordering: None, allowedCidrs: ['10.1.0.0/16', 'fd00::/8']"
        ),
        broken: target!("timeoutSeconds: 61"),
        message: "spec.sinks[0].webhook.timeoutSeconds: must be between 1 and 60",
    },
    Rule {
        kept: target!("maxInFlight: 1"),
        broken: target!("maxInFlight: 0"),
        message: "spec.sinks[0].webhook.maxInFlight: must be between 1 and 256",
    },
    Rule {
        kept: target!("allowedCidrs: ['127.0.0.1/32']"),
        broken: target!("allowedCidrs: ['127.0.0.1/32', '10.0.0.0']"),
        message: "spec.sinks[0].webhook.allowedCidrs[1]: must be a range",
    },
    Rule {
        kept: target!("headersSecretRef: {name: a, key: k}"),
        broken: target!("headersSecretRef: {name: A, key: k}"),
        message: "spec.sinks[0].webhook.headersSecretRef.name",
    },
    Rule {
        kept: filter!("Alert", "units: [EUR], types: [negative], sources: {prefixes: [a]}, minimumValue: '1.5'"),
        broken: filter!("Conflicted", "units: [EUR]"),
        message: "spec.sinks[0].filter: may only have destinations",
    },
    Rule {
        kept: filter!("DeadLettered", "destinations: {prefixes: ['a b']}"),
        broken: filter!("DeadLettered", "destinations: {prefixes: []}"),
        message: "spec.sinks[0].filter.destinations.prefixes: must be at least 1",
    },
    Rule {
        kept: filter!("Processed", "sources: {prefixes: ['a ']}"),
        broken: filter!("Processed", "sources: {prefixes: ['']}"),
        message: "spec.sinks[0].filter.sources.prefixes[0]: must not be empty",
    },
    Rule {
        kept: "totalThresholds: [{name: a, unit: EUR, above: '1', per: Key}, {name: b, unit: EUR, below: '1', per: Key}]",
        broken: "totalThresholds: [{name: a, unit: EUR, above: '1', per: Key}, {name: a, unit: USD, above: '1', per: Key}]",
        message: "spec.totalThresholds[1].name: a is used twice",
    },
    Rule {
        kept: "totalThresholds: [{name: a, unit: EUR, below: '0', every: '0.001', per: Destination}]",
        broken: "totalThresholds: [{name: a, unit: EUR, above: '1', below: '0', per: Destination}]",
        message: "spec.totalThresholds[0]: needs exactly one of above and below",
    },
    Rule {
        kept: "totalThresholds: [{name: a, unit: EUR, above: '1', every: '1', per: Key}]",
        broken: "totalThresholds: [{name: a, unit: EUR, above: '1', every: '0.00099', per: Key}]",
        message: "spec.totalThresholds[0].every: must be at least 0.001",
    },
    Rule {
        kept: "totalThresholds: [{name: a, unit: EUR, above: '1', per: Key}]",
        broken: "totalThresholds: [{name: a, unit: ' EUR', above: '1', per: Key}]",
        message: "spec.totalThresholds[0].unit: ",
    },
    Rule {
        kept: "rollups: [{name: r, window: 1d, groupBy: [reference, destinationId]}], \
               totalThresholds: [{name: a, unit: EUR, above: '1', per: Key, rollup: r}]",
        broken: "rollups: [{name: r, window: 1d, groupBy: [destinationId]}], \
                 totalThresholds: [{name: a, unit: EUR, above: '1', per: Key, rollup: r}]",
        message: "spec.totalThresholds[0].rollup: r does not group by reference; add it to its groupBy",
    },
    Rule {
        kept: "rollups: [{name: r, window: 1d, groupBy: [destinationId]}], \
               totalThresholds: [{name: a, unit: EUR, above: '1', per: Destination, rollup: r}]",
        broken: "totalThresholds: [{name: a, unit: EUR, above: '1', per: Destination, rollup: r}]",
        message: "spec.totalThresholds[0].rollup: \"r\" is none of spec.rollups",
    },
    Rule {
        kept: "sinks: [{name: a, event: TotalAlert, redisStream: {maxLength: 16}}]",
        broken: "sinks: [{name: a, event: TotalAlert, redisStream: {maxLength: 15}}]",
        message: "spec.sinks[0].redisStream.maxLength: must be 0, or at least 16",
    },
    Rule {
        kept: "rollups: [{name: a, window: 1h}, {name: b, window: 1h}]",
        broken: "rollups: [{name: a, window: 1h}, {name: a, window: 1d}]",
        message: "spec.rollups[1].name: a is used twice; rollup names are unique",
    },
    Rule {
        kept: "rollups: [{name: a-1, window: 1m, distinct: sourceId}]",
        broken: "rollups: [{name: A, window: 1m}]",
        message: "spec.rollups[0].name: must be 1 to 40 lower-case letters",
    },
    Rule {
        kept: "rollups: [{name: a, window: 1d, groupBy: [sourceId, reference, destinationId]}]",
        broken: "rollups: [{name: a, window: 1d, groupBy: [sourceId, sourceId]}]",
        message: "spec.rollups[0].groupBy: has sourceId twice; remove one",
    },
    Rule {
        kept: "rollups: [{name: a, window: 1d, timeZone: Europe/Berlin}]",
        broken: "rollups: [{name: a, window: 1d, timeZone: Europe/Nowhere}]",
        message: "spec.rollups[0].timeZone: \"Europe/Nowhere\" is no time zone of the IANA database",
    },
    Rule {
        kept: "rollups: [{name: a, window: 1d, timeZone: UTC}]",
        broken: "rollups: [{name: a, window: 1h, timeZone: Europe/Berlin}]",
        message: "spec.rollups[0].timeZone: goes with window 1d only",
    },
    Rule {
        kept: "rollups: [{name: a, window: 1d}]",
        broken: "rollups: [{name: a, window: 1w}]",
        message: "unknown variant `1w`, expected one of 1m, 1h, 1d",
    },
    Rule {
        kept: "redis: {urlSecretRef: {name: a, key: k}}",
        broken: "redis: {urlSecretRef: {name: '', key: k}}",
        message: "spec.redis.urlSecretRef.name",
    },
    Rule {
        kept: "postgres: {urlSecretRef: {name: a, key: k}}",
        broken: "postgres: {urlSecretRef: {name: a, key: ''}}",
        message: "spec.postgres.urlSecretRef.key",
    },
    Rule {
        kept: "redis: {urlSecretRef: {name: a, key: k}, tls: {clientCertSecretRef: {name: a}}}",
        broken: "redis: {urlSecretRef: {name: a, key: k}, tls: {}}",
        message: "spec.redis.tls: needs caSecretRef, clientCertSecretRef or both",
    },
    Rule {
        kept: "postgres: {urlSecretRef: {name: a, key: k}, tls: {caSecretRef: {name: a, key: ca.crt}}}",
        broken: "postgres: {urlSecretRef: {name: a, key: k}, tls: {caSecretRef: {name: a, key: ''}}}",
        message: "spec.postgres.tls.caSecretRef.key",
    },
    Rule {
        kept: "postgres: {urlSecretRef: {name: a, key: k}, tls: {clientCertSecretRef: {name: a}}}",
        broken: "postgres: {urlSecretRef: {name: a, key: k}, tls: {clientCertSecretRef: {name: A}}}",
        message: "spec.postgres.tls.clientCertSecretRef.name",
    },
    Rule {
        kept: oidc!("issuer: https://login.example.com/a", ""),
        broken: oidc!("issuer: http://login.example.com/a", ""),
        message: "spec.oidc.issuer: must be an https URL",
    },
    Rule {
        kept: oidc!("issuer: 'http://127.0.0.1:3000'", ""),
        broken: oidc!("issuer: 'https://login.example.com?a=b'", ""),
        message: "spec.oidc.issuer: must be an https URL",
    },
    Rule {
        kept: oidc!("issuer: https://a", "jwksUrl: 'https://a/keys?b=c'"),
        broken: oidc!("issuer: https://a", "jwksUrl: 'http://a/keys'"),
        message: "spec.oidc.jwksUrl: must be an https URL",
    },
    Rule {
        kept: oidc!("issuer: https://a", "caSecretRef: {name: a, key: ca.crt}"),
        broken: oidc!("issuer: https://a", "caSecretRef: {name: a, key: ''}"),
        message: "spec.oidc.caSecretRef.key",
    },
    Rule {
        kept: oidc!("issuer: https://a", "claims: {scopes: /realm_access/roles, sourceIds: a, destinationIds: b}"),
        broken: oidc!("issuer: https://a", "claims: {sourceIds: ''}"),
        message: "spec.oidc.claims.sourceIds: must be the name of a claim",
    },
    Rule {
        kept: oidc!("issuer: https://a", "clockSkewSeconds: 0"),
        broken: oidc!("issuer: https://a", "clockSkewSeconds: 301"),
        message: "spec.oidc.clockSkewSeconds: must be at most 300",
    },
    Rule {
        kept: "oidc: {issuer: https://a, audience: b, scopes: {write: [ingest, read], chief: [admin]}}",
        broken: "oidc: {issuer: https://a, audience: b, scopes: {}}",
        message: "spec.oidc.scopes: must be 1 to 64 values",
    },
    Rule {
        kept: "oidc: {issuer: https://a, audience: b, scopes: {write: [ingest]}}",
        broken: "oidc: {issuer: https://a, audience: b, scopes: {write: []}}",
        message: "spec.oidc.scopes: each value must have",
    },
    Rule {
        kept: "oidc: {issuer: https://a, audience: 'api://b', scopes: {write: [ingest]}}",
        broken: "oidc: {issuer: https://a, audience: 'b c', scopes: {write: [ingest]}}",
        message: "spec.oidc.audience: must be 1 to 500 characters without white space",
    },
    Rule {
        kept: "oidc: {issuer: https://a, audience: b, scopes: {write: [ingest]}}",
        broken: "oidc: {issuer: https://a, audience: b, scopes: {write: [write]}}",
        message: "unknown variant `write`, expected one of ingest, read, admin",
    },
    Rule {
        kept: "oidc: {issuer: https://a, audience: b, scopes: {write: [ingest]}}",
        broken: "oidc: {issuer: https://a, audience: b, scopes: {write: [ingest]}, algorithms: [none]}",
        message: "unknown field `algorithms`",
    },
    Rule {
        kept: "serve: {tls: {certSecretRef: {name: a.b}}}",
        broken: "serve: {tls: {certSecretRef: {name: A}}}",
        message: "spec.serve.tls.certSecretRef.name",
    },
    Rule {
        kept: "serve: {cors: {allowedOrigins: ['https://a.example.com', 'http://localhost:3000']}}",
        broken: "serve: {cors: {allowedOrigins: ['https://a.example.com', 'https://b.example.com/']}}",
        message: "spec.serve.cors.allowedOrigins[1]: must be an origin such as",
    },
    Rule {
        kept: "serve: {cors: {allowedOrigins: ['*']}}",
        broken: "serve: {cors: {allowedOrigins: ['https://a', '*']}}",
        message: "spec.serve.cors.allowedOrigins[1]: * must be the only one",
    },
    Rule {
        kept: "serve: {cors: {allowedOrigins: ['https://a']}}",
        broken: "serve: {cors: {allowedOrigins: []}}",
        message: "spec.serve.cors.allowedOrigins: must be 1 to 32 origins",
    },
    Rule {
        kept: "serve: {trustedProxies: ['10.0.0.0/8', 'fd00::/8', '203.0.113.9/32']}",
        broken: "serve: {trustedProxies: ['10.0.0.0/8', '203.0.113.9']}",
        message: "spec.serve.trustedProxies[1]: must be a network such as 10.0.0.0/8",
    },
    Rule {
        kept: "auth: {bootstrapKeySecretRef: {name: a, key: k}}",
        broken: "auth: {bootstrapKeySecretRef: {name: a..b, key: k}}",
        message: "spec.auth.bootstrapKeySecretRef.name",
    },
];

fn assert_rule(kept: &str, broken: &str, message: &str) {
    if let Err(error) = RecordPipeline::from_yaml(kept) {
        panic!("{kept}: {error}");
    }
    let found = refusal(broken);
    assert!(found.contains(message), "{broken}: {found}");
}

#[test]
fn each_rule_of_the_spec_names_field_and_remedy() {
    for Rule { kept, broken, message } in RULES {
        assert_rule(&manifest("name: p", kept), &manifest("name: p", broken), message);
    }
}

#[test]
fn each_bound_of_the_spec_is_exact() {
    let units = |count: usize| {
        let units: Vec<String> = (0..count).map(|n| format!("u{n}: '1'")).collect();
        manifest("name: p", &format!("thresholds: {{{}}}", units.join(", ")))
    };
    assert_rule(&units(64), &units(65), "spec.thresholds: must be at most 64");
    let sinks = |count: usize| {
        let sinks: Vec<String> =
            (0..count).map(|n| format!("{{name: s{n}, event: Alert, redisStream: {{}}}}")).collect();
        manifest("name: p", &format!("sinks: [{}]", sinks.join(", ")))
    };
    assert_rule(&sinks(16), &sinks(17), "spec.sinks: must be at most 16");
    let rollups = |count: usize| {
        let rollups: Vec<String> = (0..count).map(|n| format!("{{name: r{n}, window: 1h}}")).collect();
        manifest("name: p", &format!("rollups: [{}]", rollups.join(", ")))
    };
    assert_rule(&rollups(8), &rollups(9), "spec.rollups: must be at most 8");
    let unit = |character: &str| manifest("name: p", &format!("thresholds: {{{}: '1'}}", character.repeat(200)));
    assert_rule(&unit("é"), &unit("€"), "has more than 400 bytes in UTF-8");
}

#[test]
fn each_rule_of_the_metadata_names_field_and_remedy() {
    let (forty, long) = ("a".repeat(40), "a".repeat(41));
    for (kept, broken, message) in [
        (format!("name: {forty}"), format!("name: {long}"), "metadata.name: must be 1 to 40"),
        ("name: a-1".into(), "name: 1a".into(), "start with a letter"),
        ("name: a".into(), "name: a_b".into(), "metadata.name"),
        ("name: a, namespace: x-1".into(), "name: a, namespace: X".into(), "metadata.namespace"),
        ("name: a, uid: u, generation: 1".into(), "name: a, uid: u".into(), "metadata.generation: must be at least 1"),
        ("name: a, generation: 3".into(), "name: a, uid: u, generation: 0".into(), "leave both out of a local file"),
        ("name: a, uid: u, generation: 2".into(), "name: a, uid: '', generation: 2".into(), "metadata.uid"),
    ] {
        assert_rule(&manifest(&kept, ""), &manifest(&broken, ""), message);
    }
    let other = manifest("name: a", "");
    assert!(refusal(&other.replace("v1alpha1", "v2")).contains("apiVersion: must be millrace.dev/v1alpha1"));
    assert!(refusal(&other.replace("kind: RecordPipeline", "kind: Pod")).contains("kind: must be RecordPipeline"));
}

#[test]
fn a_refusal_names_all_broken_rules() {
    let message = refusal(&manifest("name: A", "shards: 0, sinks: [{name: B, event: Alert}]"));
    assert!(message.starts_with("the manifest breaks 4 rule(s)"), "{message}");
}

#[test]
fn unknown_fields_and_wrong_forms_are_named() {
    for (spec, part) in [
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
        let message = refusal(&manifest("name: a", spec));
        assert!(message.contains(part), "{spec}: {message}");
        assert!(!message.contains('\n') && message.contains("line 1 column"), "one line with the place: {message}");
    }
    assert!(refusal("").contains("not a RecordPipeline manifest"));
    assert!(refusal(&manifest("name: a", "").replace("spec", "specs")).contains("specs"));
}

#[test]
fn the_bounds_of_decimals_are_exact() {
    for good in ["0", "1000.00", "999999999999999.999999999", "000000000000001.5"] {
        assert!(good.parse::<DecimalString>().is_ok(), "{good}");
    }
    assert_eq!("1000.00".parse::<DecimalString>().unwrap().to_string(), "1000.00");
    for bad in ["", ".5", "5.", "1000000000000000", "1.0000000001", "+1", "-1", "1e3", " 1", "1_0", "NaN", "٣"] {
        assert!(bad.parse::<DecimalString>().is_err(), "{bad}");
    }
}

#[test]
fn the_generated_files_are_committed() {
    let remedy = "run `cargo run -p millrace-crds --bin crdgen`";
    assert!(include_str!("../recordpipeline.schema.yaml") == RecordPipeline::schema_yaml(), "{remedy}");
    assert!(include_str!("../recordpipeline.crd.yaml") == RecordPipeline::crd_yaml(), "{remedy}");
}
