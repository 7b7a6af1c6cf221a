//! Each rule of the schema, with a spec that keeps it and a spec that breaks it.

use crate::{bounds::BOUNDS, kube::Namespace, manifest, shows};

/// One rule of the schema.
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
macro_rules! hook {
    ($url:literal) => {
        sink!("webhook: {url: '", $url, "', secretRef: {name: a, key: k}}")
    };
}
macro_rules! target {
    ($fields:literal) => {
        sink!("webhook: {url: 'https://h', secretRef: {name: a, key: k}, ", $fields, "}")
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
macro_rules! secret {
    ($name:literal, $key:literal) => {
        concat!("redis: {urlSecretRef: {name: '", $name, "', key: '", $key, "'}}")
    };
}
macro_rules! tls {
    ($fields:literal) => {
        concat!("redis: {urlSecretRef: {name: a, key: k}, tls: {", $fields, "}}")
    };
}
macro_rules! oidc {
    ($issuer:literal, $fields:literal) => {
        concat!("oidc: {audience: b, scopes: {write: [ingest]}, ", $issuer, ", ", $fields, "}")
    };
}
macro_rules! archive {
    ($($fields:tt)*) => { concat!("retention: {records: 9d}, archive: {", $($fields)*, "}") };
}
macro_rules! bucket {
    ($bucket:literal, $fields:literal) => {
        archive!(
            "s3: {bucket: '",
            $bucket,
            "', accessKeyIdSecretRef: {name: a, key: k}, secretAccessKeySecretRef: {name: a, key: k}",
            $fields,
            "}"
        )
    };
}
macro_rules! serve {
    ($($fields:tt)*) => { concat!("serve: {", $($fields)*, "}") };
}
macro_rules! route {
    ($fields:literal) => {
        serve!("httpRoute: {", $fields, "}")
    };
}
macro_rules! ingress {
    ($fields:literal) => {
        serve!("ingress: {", $fields, "}")
    };
}
macro_rules! pod {
    ($fields:literal) => {
        concat!("work: {pod: {", $fields, "}}")
    };
}

const RULES: &[Rule] = &[
    Rule {
        kept: pod!("labels: {example.com/team: a_b.c-D, x: ''}"),
        broken: pod!("labels: {team: 'a b'}"),
        message: "spec.work.pod.labels[team]: Invalid value: \"string\": must be empty or up to 63 letters, digits, '-', '_' or '.'",
    },
    Rule {
        kept: pod!("nodeSelector: {kubernetes.io/arch: amd64}"),
        broken: pod!("nodeSelector: {'a b': x}"),
        message: "spec.work.pod.nodeSelector: Invalid value: \"object\": a name must be one of a label, such as example.com/team",
    },
    Rule {
        kept: pod!("annotations: {example.com/what: 'a b'}"),
        broken: pod!("annotations: {'what?': a}"),
        message: "spec.work.pod.annotations: Invalid value: \"object\": a name must be one of an annotation",
    },
    Rule {
        kept: "threshold: '0'",
        broken: "threshold: '-1'",
        message: r#"spec.threshold: Invalid value: "string": must be 0 or more, with 1 to 15 integer and at most 9 fractional digits, such as "1000.00""#,
    },
    Rule {
        kept: "threshold: null",
        broken: "threshold: '1e3'",
        message: "must be 0 or more, with 1 to 15 integer and at most 9 fractional digits",
    },
    Rule {
        kept: "thresholds: {JPY: '1'}",
        broken: "thresholds: {JPY: '-1'}",
        message: "spec.thresholds[JPY]: Invalid value",
    },
    Rule {
        kept: "policy: {minimumTotal: '0'}",
        broken: "policy: {minimumTotal: '-1'}",
        message: "spec.policy.minimumTotal: Invalid value",
    },
    Rule {
        kept: "thresholds: {\"a\\u200c b\\u3000c\": '1'}",
        broken: "thresholds: {'EUR ': '1'}",
        message: "spec.thresholds: Invalid value: \"object\": a unit has white space at an end",
    },
    Rule {
        kept: "thresholds: {EUR: '1'}",
        broken: "thresholds: {\"\\u00a0EUR\": '1'}",
        message: "a unit has white space at an end",
    },
    Rule {
        kept: "thresholds: {EUR: '1'}",
        broken: "thresholds: {\"E\\u202eUR\": '1'}",
        message: "a character that cannot be seen",
    },
    Rule {
        kept: "image: a/b:1",
        broken: "image: 'a b'",
        message: "spec.image: Invalid value: \"string\": must be 1 to 500 characters without spaces",
    },
    Rule {
        kept: "shards: 256",
        broken: "shards: 257",
        message: "spec.shards: Invalid value: 257: spec.shards in body should be less than or equal to 256",
    },
    Rule {
        kept: "shards: 1",
        broken: "shards: 0",
        message: "spec.shards: Invalid value: 0: spec.shards in body should be greater than or equal to 1",
    },
    Rule { kept: "backlogLimit: 1", broken: "backlogLimit: 0", message: "spec.backlogLimit: Invalid value" },
    Rule {
        kept: "backlogLimit: 1000000000",
        broken: "backlogLimit: 1000000001",
        message: "spec.backlogLimit: Invalid value",
    },
    Rule {
        kept: "limits: {perKey: {requestsPerSecond: 1}, pipeline: {bytesInFlight: 1000000000000}}",
        broken: "limits: {perKey: {requestsPerSecond: 0}}",
        message: "spec.limits.perKey.requestsPerSecond: Invalid value",
    },
    Rule {
        kept: "limits: {}",
        broken: "limits: {pipeline: {bytesInFlight: 1000000000001}}",
        message: "spec.limits.pipeline.bytesInFlight: Invalid value",
    },
    Rule { kept: "replicas: 0", broken: "replicas: 257", message: "spec.replicas: Invalid value" },
    Rule { kept: "replicas: null", broken: "replicas: -1", message: "spec.replicas: Invalid value" },
    Rule {
        kept: "imagePullPolicy: Never",
        broken: "imagePullPolicy: Often",
        message: "spec.imagePullPolicy: Unsupported value: \"Often\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
    },
    Rule {
        kept: "deletionPolicy: Purge",
        broken: "deletionPolicy: Keep",
        message: "spec.deletionPolicy: Unsupported value",
    },
    Rule {
        kept: "verify: {schedule: '*/5 0-6,22 1 JAN MON-FRI'}",
        broken: "verify: {schedule: '0 3 * *'}",
        message: "spec.verify.schedule: Invalid value: \"string\": must be five fields of cron",
    },
    Rule {
        kept: "verify: {schedule: '@hourly'}",
        broken: "verify: {schedule: '@often'}",
        message: "or @hourly, @daily",
    },
    Rule { kept: "drainSeconds: 1", broken: "drainSeconds: 0", message: "spec.drainSeconds: Invalid value" },
    Rule { kept: "drainSeconds: 86400", broken: "drainSeconds: 86401", message: "spec.drainSeconds: Invalid value" },
    Rule { kept: scaling!(1, 4, 1), broken: scaling!(0, 4, 1), message: "spec.autoscaling.minReplicas: Invalid value" },
    Rule { kept: scaling!(4, 4, 1), broken: scaling!(3, 2, 1), message: "minReplicas must be at most maxReplicas" },
    Rule {
        kept: scaling!(1, 4, 1),
        broken: scaling!(1, 5, 1),
        message: "spec.autoscaling.maxReplicas must be at most spec.shards: more workers than shards would idle",
    },
    Rule {
        kept: scaling!(1, 1, 1),
        broken: scaling!(1, 1, 0),
        message: "spec.autoscaling.targetBacklog: Invalid value",
    },
    Rule {
        kept: "autoscaling: {minReplicas: 1, maxReplicas: 16, targetBacklog: 1}",
        broken: "autoscaling: {minReplicas: 1, maxReplicas: 17, targetBacklog: 1}",
        message: "must be at most spec.shards",
    },
    Rule {
        kept: concat!("replicas: 0, ", scaling!(1, 2, 1)),
        broken: concat!("replicas: 2, ", scaling!(1, 2, 1)),
        message: "spec.replicas must be left out, or 0 to stop, beside spec.autoscaling: set autoscaling.minReplicas and maxReplicas instead",
    },
    // The default is accepted.
    Rule {
        kept: concat!("replicas: 1, ", scaling!(1, 2, 1)),
        broken: concat!("replicas: 256, ", scaling!(1, 2, 1)),
        message: "spec.replicas must be left out",
    },
    Rule {
        kept: "jobs: {pod: {annotations: {sidecar.istio.io/inject: 'false'}, labels: {a: b}}}",
        broken: "jobs: {pod: {annotations: {'what?': a}}}",
        message: "spec.jobs.pod.annotations: Invalid value: \"object\": a name must be one of an annotation",
    },
    Rule {
        kept: "jobs: {pod: {labels: {a: b}}}",
        broken: "jobs: {pod: {labels: {a: 'b c'}}}",
        message: "spec.jobs.pod.labels[a]: Invalid value",
    },
    Rule {
        kept: pod!("fixedUser: false"),
        broken: pod!("fixedUser: 'no'"),
        message: "spec.work.pod.fixedUser: Invalid value",
    },
    Rule {
        kept: ingress!("host: a, path: '/m(/|$)(.*)', pathType: ImplementationSpecific"),
        broken: ingress!("host: a, pathType: Regex"),
        message: "spec.serve.ingress.pathType: Unsupported value: \"Regex\"",
    },
    Rule {
        kept: two!("name: a, redisStream: {}", "name: b, redisStream: {}"),
        broken: two!("name: a, redisStream: {}", "name: a, redisStream: {}"),
        message: "spec.sinks[1]: Duplicate value: {\"name\":\"a\"}",
    },
    Rule {
        kept: "retention: {partition: Day, records: 400d, ids: 400d, duplicates: 1d, rollups: Forever}",
        broken: "retention: {records: 400d, ids: 99d}",
        message: "ids must be kept at least as long as records",
    },
    Rule {
        kept: "retention: {records: 400d}",
        broken: "retention: {ids: 400d}",
        message: "ids must be kept at least as long as records",
    },
    Rule {
        kept: "retention: {records: 99999d}",
        broken: "retention: {records: 0d}",
        message: "spec.retention.records in body should match",
    },
    Rule {
        kept: "totalThresholds: [{name: a, unit: EUR, above: '1', per: Key}, {name: b, unit: EUR, below: '1', per: Key}]",
        broken: "totalThresholds: [{name: a, unit: EUR, above: '1', per: Key}, {name: a, unit: USD, above: '1', per: Key}]",
        message: "spec.totalThresholds[1]: Duplicate value: {\"name\":\"a\"}",
    },
    Rule {
        kept: "totalThresholds: [{name: a, unit: EUR, below: '0', every: '0.001', per: Destination}]",
        broken: "totalThresholds: [{name: a, unit: EUR, above: '1', below: '0', per: Destination}]",
        message: "needs exactly one of above and below",
    },
    Rule {
        kept: "totalThresholds: [{name: a, unit: EUR, above: '1', every: '1', per: Key}]",
        broken: "totalThresholds: [{name: a, unit: EUR, above: '1', every: '0.00099', per: Key}]",
        message: "must be at least 0.001",
    },
    Rule {
        kept: "rollups: [{name: r, window: 1d, groupBy: [reference, destinationId]}], totalThresholds: [{name: a, unit: EUR, above: '1', per: Key, rollup: r}]",
        broken: "rollups: [{name: r, window: 1d, groupBy: [destinationId]}], totalThresholds: [{name: a, unit: EUR, above: '1', per: Key, rollup: r}]",
        message: "rollup must name one of spec.rollups that groups by destinationId",
    },
    Rule {
        kept: "sinks: [{name: a, event: TotalAlert, redisStream: {maxLength: 16}}]",
        broken: "sinks: [{name: a, event: TotalAlert, redisStream: {maxLength: 15}}]",
        message: "redisStream.maxLength must be 0, or at least 16",
    },
    Rule {
        kept: "rollups: [{name: a, window: 1h}, {name: b, window: 1h}]",
        broken: "rollups: [{name: a, window: 1h}, {name: a, window: 1d}]",
        message: "spec.rollups[1]: Duplicate value: {\"name\":\"a\"}",
    },
    Rule {
        kept: "rollups: [{name: a-1, window: 1m, distinct: sourceId}]",
        broken: "rollups: [{name: A, window: 1m}]",
        message: "must be 1 to 40 lower-case letters, digits or '-'",
    },
    Rule {
        kept: "rollups: [{name: a, window: 1d, groupBy: [sourceId, reference, destinationId]}]",
        broken: "rollups: [{name: a, window: 1d, groupBy: [sourceId, sourceId]}]",
        message: "spec.rollups[0].groupBy[1]: Duplicate value: \"sourceId\"",
    },
    Rule {
        kept: "rollups: [{name: a, window: 1d, timeZone: Europe/Berlin}]",
        broken: "rollups: [{name: a, window: 1h, timeZone: Europe/Berlin}]",
        message: "timeZone goes with window 1d only",
    },
    Rule {
        kept: "rollups: [{name: a, window: 1d, groupBy: []}]",
        broken: "rollups: [{name: a, window: 1w}]",
        message: "spec.rollups[0].window: Unsupported value: \"1w\"",
    },
    Rule {
        kept: archive!("directory: {path: /a}"),
        broken: "archive: {directory: {path: /a}}",
        message: "spec.archive needs spec.retention.records",
    },
    Rule {
        kept: archive!("directory: {path: /a}, s3: null"),
        broken: archive!(""),
        message: "spec.archive: Invalid value: \"object\": needs exactly one of directory and s3",
    },
    Rule {
        kept: archive!("directory: {path: /var/lib/archive, claimName: a.b-c}"),
        broken: archive!("directory: {path: archive}"),
        message: "must be an absolute path without '..'",
    },
    Rule {
        kept: archive!("directory: {path: /a/.b/c}"),
        broken: archive!("directory: {path: /a/../b}"),
        message: "must be an absolute path without '..'",
    },
    Rule {
        kept: archive!("directory: {path: /etc/archive}"),
        broken: archive!("directory: {path: /etc/millrace/archive}"),
        message: "must not be below /etc/millrace",
    },
    Rule {
        kept: archive!("directory: {path: /a, claimName: null}"),
        broken: archive!("directory: {path: /a, claimName: A}"),
        message: "must be a PersistentVolumeClaim's name",
    },
    Rule {
        kept: bucket!("a.b-c", ", prefix: a/B_c=1.x, region: eu-central-1, endpoint: 'https://s3.example.com:9000/'"),
        broken: bucket!("A-bucket", ""),
        message: "must be 3 to 63 lower-case letters, digits, '-' or '.'",
    },
    Rule {
        kept: bucket!("abc", ", caSecretRef: {name: a, key: ca.crt}"),
        broken: bucket!("ab", ""),
        message: "spec.archive.s3.bucket: Invalid value",
    },
    Rule {
        kept: bucket!("abc", ", prefix: null"),
        broken: bucket!("abc", ", prefix: 'a//b'"),
        message: "each beginning with a letter or digit",
    },
    Rule {
        kept: bucket!("abc", ", endpoint: 'http://s3:9000'"),
        broken: bucket!("abc", ", endpoint: 'https://s3/bucket'"),
        message: "must be http(s)://host:port, without a user, a password or a path",
    },
    Rule {
        kept: bucket!("abc", ", region: a"),
        broken: bucket!("abc", ", region: 'a b'"),
        message: "must be lower-case letters, digits or '-'",
    },
    Rule {
        kept: two!("name: a, redisStream: {stream: x}", "name: b, redisStream: {stream: z}"),
        broken: two!("name: a, redisStream: {stream: x}", "name: b, redisStream: {stream: x}"),
        message: "two sinks name the same redisStream.stream: a stream belongs to one sink",
    },
    Rule {
        kept: two!("name: a, redisStream: {stream: null}", "name: b, redisStream: {stream: null}"),
        broken: sink!(""),
        message: "needs exactly one of redisStream and webhook",
    },
    Rule {
        kept: sink!("redisStream: {}, webhook: null"),
        broken: sink!("redisStream: {}, webhook: {url: 'https://h', secretRef: {name: a, key: k}}"),
        message: "spec.sinks[0]: Invalid value",
    },
    Rule {
        kept: "sinks: [{name: a-1, event: Processed, redisStream: {}}]",
        broken: "sinks: [{name: A, event: Alert, redisStream: {}}]",
        message: "spec.sinks[0].name: Invalid value",
    },
    Rule {
        kept: "sinks: [{name: a, event: Conflicted, redisStream: {}}]",
        broken: "sinks: [{name: a, event: Processd, redisStream: {}}]",
        message: "spec.sinks[0].event: Unsupported value: \"Processd\"",
    },
    Rule {
        kept: sink!("from: {position: Now}, redisStream: {}"),
        broken: sink!("from: {position: Later}, redisStream: {}"),
        message: "spec.sinks[0].from.position: Unsupported value",
    },
    Rule {
        kept: sink!("from: {position: Beginning, time: null}, redisStream: {}"),
        broken: sink!("from: {position: Now, time: '2026-01-31T12:00:00Z'}, redisStream: {}"),
        message: "needs exactly one of position and time",
    },
    Rule {
        kept: sink!("from: {time: '2026-01-31T12:00:00.123456+01:00'}, redisStream: {}"),
        broken: sink!("from: {time: '2026-01-31'}, redisStream: {}"),
        message: "spec.sinks[0].from.time: Invalid value",
    },
    Rule {
        kept: sink!("from: {position: Beginning}, until: {time: '2026-01-31T12:00:00Z'}, redisStream: {}"),
        broken: sink!("until: {time: soon}, redisStream: {}"),
        message: "spec.sinks[0].until.time: Invalid value",
    },
    Rule {
        kept: sink!("from: {time: '2026-01-31T12:00:00Z'}, until: {time: '2026-01-31T12:30:00Z'}, redisStream: {}"),
        broken: sink!(
            "from: {time: '2026-01-31T12:00:00Z'}, until: {time: '2026-01-31T12:30:00+01:00'}, redisStream: {}"
        ),
        message: "needs from.time before until.time",
    },
    Rule {
        kept: stream!("stream: 'a.b:c_D-1'"),
        broken: stream!("stream: '{a}'"),
        message: "spec.sinks[0].redisStream.stream: Invalid value",
    },
    Rule {
        kept: stream!("maxLength: 0"),
        broken: stream!("maxLength: 1000000001"),
        message: "spec.sinks[0].redisStream.maxLength: Invalid value",
    },
    Rule {
        kept: stream!("overflow: Trim"),
        broken: stream!("overflow: Drop"),
        message: "spec.sinks[0].redisStream.overflow: Unsupported value",
    },
    Rule {
        kept: sink!("webhook: {url: 'https://h', secretRef: {name: a, key: k}, proxy: 'http://proxy.internal:3128'}"),
        broken: sink!("webhook: {url: 'https://h', secretRef: {name: a, key: k}, proxy: 'http://u:p@proxy:3128'}"),
        message: "must be http://host:port, without a user, a password or a path",
    },
    Rule {
        kept: hook!("https://h/x?y"),
        broken: hook!("ftp://h"),
        message: "spec.sinks[0].webhook.url: Invalid value: \"string\": must be an http or https URL without spaces, user or password",
    },
    Rule {
        kept: hook!("http://h:1/a@b"),
        broken: hook!("https://u:p@h"),
        message: "must be an http or https URL without spaces, user or password",
    },
    Rule {
        kept: target!("timeoutSeconds: 1, maxInFlight: 256, allowedCidrs: ['10.1.0.0/16', 'fd00::/8'], ordering: None"),
        broken: target!("allowedCidrs: ['10.1.0.0']"),
        message: "must be ranges such as 10.1.0.0/16 or fd00::/8",
    },
    Rule {
        kept: target!("timeoutSeconds: 60"),
        broken: target!("timeoutSeconds: 61"),
        message: "spec.sinks[0].webhook.timeoutSeconds: Invalid value",
    },
    Rule {
        kept: sink!(
            "redisStream: {}, filter: {types: [positive], destinations: {prefixes: [a]}, minimumValue: '1.50'}"
        ),
        broken: sink!("redisStream: {}, filter: {destinations: {prefixes: []}}"),
        message: "spec.sinks[0].filter.destinations.prefixes: Invalid value",
    },
    Rule { kept: secret!("a", "k"), broken: secret!("", "k"), message: "spec.redis.urlSecretRef.name: Invalid value" },
    Rule {
        kept: secret!("a.b-c", "k"),
        broken: secret!("A", "k"),
        message: "spec.redis.urlSecretRef.name: Invalid value",
    },
    Rule {
        kept: secret!("a", "a.b_C-1"),
        broken: secret!("a", "k/2"),
        message: "spec.redis.urlSecretRef.key: Invalid value",
    },
    Rule {
        kept: tls!("caSecretRef: {name: a, key: ca.crt}, clientCertSecretRef: {name: b}"),
        broken: tls!(""),
        message: "spec.redis.tls: Invalid value: \"object\": needs caSecretRef, clientCertSecretRef or both",
    },
    Rule {
        kept: tls!("caSecretRef: {name: a, key: ca.crt}, clientCertSecretRef: null"),
        broken: tls!("caSecretRef: null"),
        message: "spec.redis.tls: Invalid value: \"object\": needs caSecretRef, clientCertSecretRef or both",
    },
    Rule {
        kept: tls!("clientCertSecretRef: {name: a}"),
        broken: tls!("clientCertSecretRef: {name: A}"),
        message: "spec.redis.tls.clientCertSecretRef.name: Invalid value",
    },
    Rule {
        kept: tls!("caSecretRef: {name: a, key: k}"),
        broken: tls!("caSecretRef: {name: a}"),
        message: "spec.redis.tls.caSecretRef.key: Required value",
    },
    Rule {
        kept: oidc!("issuer: https://login.example.com/a", "jwksUrl: null, caSecretRef: null"),
        broken: oidc!("issuer: http://login.example.com/a", ""),
        message: "spec.oidc.issuer: Invalid value: \"string\": must be an https URL without user",
    },
    Rule {
        kept: oidc!("issuer: 'http://127.0.0.1:3000'", ""),
        broken: oidc!("issuer: 'http://127.0.0.1.example.com'", ""),
        message: "spec.oidc.issuer: Invalid value",
    },
    Rule {
        kept: oidc!("issuer: 'http://[::1]:3000/a'", "jwksUrl: 'https://a/keys?b=c'"),
        broken: oidc!("issuer: https://a", "jwksUrl: 'https://u:p@a/keys'"),
        message: "spec.oidc.jwksUrl: Invalid value",
    },
    Rule {
        kept: oidc!("issuer: https://a", "clockSkewSeconds: 300, claims: {sourceIds: a}"),
        broken: oidc!("issuer: https://a", "clockSkewSeconds: 301"),
        message: "spec.oidc.clockSkewSeconds: Invalid value",
    },
    Rule {
        kept: oidc!("issuer: https://a", "claims: {scopes: /realm_access/roles, destinationIds: null}"),
        broken: oidc!("issuer: https://a", "claims: {scopes: ''}"),
        message: "spec.oidc.claims.scopes: Invalid value",
    },
    Rule {
        kept: "oidc: {issuer: https://a, audience: b, scopes: {write: [ingest, read], chief: [admin]}}",
        broken: "oidc: {issuer: https://a, audience: b, scopes: {write: []}}",
        message: "spec.oidc.scopes: Invalid value: \"object\": each value must have 1 to 200 characters",
    },
    Rule {
        kept: "oidc: {issuer: https://a, audience: b, scopes: {write: [ingest]}}",
        broken: "oidc: {issuer: https://a, audience: b, scopes: {}}",
        message: "spec.oidc.scopes: Invalid value",
    },
    Rule {
        kept: "oidc: {issuer: https://a, audience: b, scopes: {write: [read]}}",
        broken: "oidc: {issuer: https://a, audience: b, scopes: {write: [write]}}",
        message: "spec.oidc.scopes.write[0]: Unsupported value",
    },
    Rule {
        kept: "postgres: {urlSecretRef: {name: a, key: k}, tls: {clientCertSecretRef: {name: a}}}",
        broken: "postgres: {tls: {caSecretRef: {name: a, key: k}}}",
        message: "spec.postgres.urlSecretRef: Required value",
    },
    Rule {
        kept: "postgres: {urlSecretRef: {name: a, key: k}}",
        broken: "postgres: {}",
        message: "spec.postgres.urlSecretRef: Required value",
    },
    Rule {
        kept: "auth: {}",
        broken: "auth: {bootstrapKeySecretRef: {name: a}}",
        message: "spec.auth.bootstrapKeySecretRef.key: Required value",
    },
    Rule {
        kept: serve!("replicas: 256"),
        broken: serve!("replicas: 257"),
        message: "spec.serve.replicas: Invalid value",
    },
    Rule {
        kept: serve!("tls: {certSecretRef: {name: a.b}}"),
        broken: serve!("tls: {certSecretRef: {name: A}}"),
        message: "spec.serve.tls.certSecretRef.name: Invalid value",
    },
    Rule {
        kept: serve!(
            "cors: {allowedOrigins: ['https://a.example.com', 'http://localhost:3000', 'https://[::1]:8443']}"
        ),
        broken: serve!("cors: {allowedOrigins: ['https://a.example.com/']}"),
        message: "each must be an origin such as https://app.example.com",
    },
    Rule {
        kept: serve!("cors: {allowedOrigins: ['*']}"),
        broken: serve!("cors: {allowedOrigins: ['*', 'https://a.example.com']}"),
        message: "* must be the only one",
    },
    Rule {
        kept: serve!("cors: {allowedOrigins: ['https://a']}"),
        broken: serve!("cors: {allowedOrigins: []}"),
        message: "spec.serve.cors.allowedOrigins: Invalid value",
    },
    Rule {
        kept: serve!("trustedProxies: ['10.0.0.0/8', 'fd00::/8', '203.0.113.9/32']"),
        broken: serve!("trustedProxies: ['10.0.0.0/8', '203.0.113.9']"),
        message: "each must be a network such as 10.0.0.0/8 or fd00::/8",
    },
    Rule {
        kept: serve!("replicas: null, autoscaling: {minReplicas: 2, maxReplicas: 2}"),
        broken: serve!("replicas: 2, autoscaling: {minReplicas: 1, maxReplicas: 2}"),
        message: "spec.serve.replicas must be left out beside spec.serve.autoscaling",
    },
    Rule {
        kept: serve!("autoscaling: {minReplicas: 1, maxReplicas: 2, targetCpuPercent: 1}"),
        broken: serve!("autoscaling: {minReplicas: 3, maxReplicas: 2}"),
        message: "spec.serve.autoscaling: Invalid value: \"object\": minReplicas must be at most maxReplicas",
    },
    Rule {
        kept: serve!("service: {type: NodePort}"),
        broken: serve!("service: {type: ExternalName}"),
        message: "spec.serve.service.type: Unsupported value",
    },
    Rule {
        kept: ingress!("host: a.b, path: /v1"),
        broken: ingress!("host: a.b, path: v1"),
        message: "spec.serve.ingress.path: Invalid value",
    },
    Rule { kept: ingress!("host: a"), broken: ingress!("host: ''"), message: "spec.serve.ingress.host: Invalid value" },
    Rule {
        kept: route!("parents: [{name: a}]"),
        broken: route!("parents: []"),
        message: "spec.serve.httpRoute.parents: Invalid value",
    },
    Rule {
        kept: route!("parents: [{name: a}], hostnames: [a]"),
        broken: route!("parents: [{namespace: a}]"),
        message: "spec.serve.httpRoute.parents[0].name: Required value",
    },
    Rule {
        kept: pod!("resources: {requests: {cpu: 1, memory: 64Mi}, limits: {cpu: 1000m}}"),
        broken: pod!("resources: {requests: {cpu: lots}}"),
        message: "must be an amount such as 100m, 2 or 256Mi",
    },
    Rule {
        kept: pod!("tolerations: [{key: a, operator: Exists, effect: NoExecute, tolerationSeconds: 3}]"),
        broken: pod!("tolerations: [{effect: Never}]"),
        message: "spec.work.pod.tolerations[0].effect: Unsupported value",
    },
    Rule {
        kept: pod!("extraEnv: [{name: A, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}]"),
        broken: pod!("extraEnv: [{value: a}]"),
        message: "spec.work.pod.extraEnv[0].name: Required value",
    },
    Rule {
        kept: pod!("extraVolumes: [{name: ca, configMap: {name: ca}}]"),
        broken: pod!("extraVolumes: [{name: millrace-redis, emptyDir: {}}]"),
        message: "spec.work.pod.extraVolumes[0].name: Invalid value: \"string\": must not begin with millrace-: the pods' own volumes are called so",
    },
    Rule {
        kept: pod!("extraVolumes: [{name: ca, emptyDir: {}}], extraVolumeMounts: [{name: ca, mountPath: /etc/ca}]"),
        broken: pod!("extraVolumes: [{name: ca, emptyDir: {}}], extraVolumeMounts: [{name: cb, mountPath: /etc/ca}]"),
        message: "spec.work.pod: Invalid value: \"object\": each of extraVolumeMounts has to name one of extraVolumes",
    },
    Rule {
        kept: pod!("extraVolumes: null"),
        broken: pod!(
            "extraVolumes: [{name: ca, emptyDir: {}}], extraVolumeMounts: [{name: ca, mountPath: /etc/millrace/redis}]"
        ),
        message: "must not be below /etc/millrace: the manifest and the URLs are mounted there",
    },
    Rule {
        kept: pod!("affinity: {nodeAffinity: {}}"),
        broken: pod!("affinity: []"),
        message: "spec.work.pod.affinity: Invalid value",
    },
];

#[test]
fn each_rule_of_the_schema_refuses_with_field_and_remedy() {
    let namespace = Namespace::new("rules");
    let rules = RULES.iter().map(|rule| (rule.kept.to_owned(), rule.broken.to_owned(), rule.message));
    let bounds = BOUNDS.iter().map(|bound| ((bound.spec)(bound.most), (bound.spec)(bound.most + 1), bound.message));
    let rules: Vec<_> = rules.chain(bounds).collect();
    let kept: String = rules.iter().enumerate().map(|(n, (kept, ..))| manifest(&format!("kept-{n}"), kept)).collect();
    let applied = namespace.kubectl(&["create", "--dry-run=server", "--validate=strict", "-f", "-"], &kept);
    assert!(applied.ok, "{}", applied.err);
    assert_eq!(applied.out.lines().count(), rules.len(), "{}", applied.out);

    let broken: String =
        rules.iter().enumerate().map(|(n, (_, broken, _))| manifest(&format!("broken-{n}"), broken)).collect();
    let refused = namespace.kubectl(&["create", "--dry-run=server", "--validate=strict", "-f", "-"], &broken);
    assert_eq!(refused.out, "", "something was accepted");
    let mut wrong = Vec::new();
    for (n, (_, broken, message)) in rules.iter().enumerate() {
        let start = format!("\"broken-{n}\" is invalid: ");
        let found = refused.err.lines().find(|line| line.contains(&start)).unwrap_or("nothing");
        if !shows(found, message) {
            wrong.push(format!("{broken}\n  is refused with: {found}\n  and not with: {message}\n"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.concat());
}
