//! The rules of the schema that bound a number or a length.

/// A rule about the most of something.
pub(crate) struct Bound {
    /// The most that the rule allows.
    pub(crate) most: usize,
    /// A spec with so many.
    pub(crate) spec: fn(usize) -> String,
    /// A part of the refusal.
    pub(crate) message: &'static str,
}

pub(crate) const BOUNDS: &[Bound] = &[
    Bound {
        most: 200,
        spec: |count| format!("thresholds: {{{}: '1'}}", "é".repeat(count)),
        message: "spec.thresholds: Invalid value: \"object\": units have 1 to 200 characters",
    },
    Bound {
        most: 64,
        spec: |count| format!("thresholds: {{{}}}", numbered(count, |n| format!("u{n}: '1'"))),
        message: "spec.thresholds: Too many: 65: must have at most 64 items",
    },
    Bound {
        most: 100,
        spec: |count| format!("verify: {{schedule: '{} * * * *'}}", "1".repeat(count - 8)),
        message: "spec.verify.schedule: Too long",
    },
    Bound { most: 500, spec: |count| format!("image: {}", "a".repeat(count)), message: "spec.image: Too long" },
    Bound {
        most: 8,
        spec: |count| format!("imagePullSecrets: [{}]", list(count, "a")),
        message: "spec.imagePullSecrets: Too many",
    },
    Bound {
        most: 8,
        spec: |count| format!("rollups: [{}]", numbered(count, |n| format!("{{name: r{n}, window: 1h}}"))),
        message: "spec.rollups: Too many: 9: must have at most 8 items",
    },
    Bound {
        most: 40,
        spec: |count| format!("rollups: [{{name: {}, window: 1h}}]", "a".repeat(count)),
        message: "spec.rollups[0].name: Too long",
    },
    Bound {
        most: 16,
        spec: |count| {
            format!("sinks: [{}]", numbered(count, |n| format!("{{name: s{n}, event: Alert, redisStream: {{}}}}")))
        },
        message: "spec.sinks: Too many: 17: must have at most 16 items",
    },
    Bound {
        most: 40,
        spec: |count| format!("sinks: [{{name: {}, event: DeadLettered, redisStream: {{}}}}]", "a".repeat(count)),
        message: "spec.sinks[0].name: Too long",
    },
    Bound {
        most: 200,
        spec: |count| format!("sinks: [{{name: a, event: Alert, redisStream: {{stream: {}}}}}]", "a".repeat(count)),
        message: "spec.sinks[0].redisStream.stream: Too long",
    },
    Bound {
        most: 64,
        spec: |count| format!("serve: {{service: {{annotations: {{{}}}}}}}", labels(count)),
        message: "spec.serve.service.annotations: Too many",
    },
    Bound {
        most: 32,
        spec: |count| format!("work: {{pod: {{tolerations: [{}]}}}}", list(count, "{key: a}")),
        message: "spec.work.pod.tolerations: Too many",
    },
    Bound {
        most: 32,
        spec: |count| format!("work: {{pod: {{labels: {{{}}}}}}}", labels(count)),
        message: "spec.work.pod.labels: Too many",
    },
    Bound {
        most: 32,
        spec: |count| format!("work: {{pod: {{nodeSelector: {{{}}}}}}}", labels(count)),
        message: "spec.work.pod.nodeSelector: Too many",
    },
    Bound {
        most: 32,
        spec: |count| format!("networkPolicy: {{egress: [{}]}}", list(count, "{}")),
        message: "spec.networkPolicy.egress: Too many",
    },
];

fn numbered(count: usize, item: fn(usize) -> String) -> String {
    (0..count).map(item).collect::<Vec<_>>().join(", ")
}

fn list(count: usize, item: &str) -> String {
    vec![item; count].join(", ")
}

fn labels(count: usize) -> String {
    numbered(count, |n| format!("l{n}: x"))
}
