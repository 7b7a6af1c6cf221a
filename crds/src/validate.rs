//! The rules that the form alone does not say. Each violation names the field and the remedy.

use std::{collections::BTreeSet, fmt};

use crate::{API_VERSION, KIND, RecordPipeline, RecordPipelineSpec, Sink};

/// One broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Path of the field, such as `spec.sinks[1].name`.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

impl RecordPipeline {
    /// All rules that this manifest breaks; empty when it is valid.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        let mut found = Found::default();
        if self.api_version != API_VERSION {
            found.add("apiVersion", format!("must be {API_VERSION}"));
        }
        if self.kind != KIND {
            found.add("kind", format!("must be {KIND}"));
        }
        if !is_label(&self.metadata.name) || !self.metadata.name.starts_with(|c: char| c.is_ascii_lowercase()) {
            found.add(
                "metadata.name",
                "must be 1 to 40 lower-case letters, digits or '-', start with a letter and end with a letter or digit",
            );
        }
        self.spec.check(&self.metadata.name, &mut found);
        found.0
    }
}

#[derive(Default)]
struct Found(Vec<Violation>);

impl Found {
    fn add(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.push(Violation { field: field.into(), message: message.into() });
    }
}

impl RecordPipelineSpec {
    fn check(&self, pipeline: &str, found: &mut Found) {
        if !(1..=256).contains(&self.shards) {
            found.add("spec.shards", "must be between 1 and 256");
        }
        if self.backlog_limit == 0 {
            found.add("spec.backlogLimit", "must be at least 1");
        }
        if let Some(scaling) = &self.autoscaling {
            if self.replicas.is_some_and(|replicas| replicas != 0) {
                found.add(
                    "spec.replicas",
                    "must be left out, or 0, beside spec.autoscaling; set autoscaling.minReplicas",
                );
            }
            if scaling.min_replicas > scaling.max_replicas || scaling.max_replicas > u32::from(self.shards) {
                found.add("spec.autoscaling", "needs minReplicas <= maxReplicas <= shards");
            }
        }
        for unit in self.thresholds.keys() {
            if unit.is_empty() || unit.chars().count() > 200 || unit.chars().any(char::is_control) {
                found.add("spec.thresholds", "units have 1 to 200 characters and no control characters");
            }
        }
        if self.sinks.len() > 16 {
            found.add("spec.sinks", "must be at most 16");
        }
        let (mut names, mut streams) = (BTreeSet::new(), BTreeSet::new());
        for (index, sink) in self.sinks.iter().enumerate() {
            let at = |field: &str| format!("spec.sinks[{index}]{field}");
            if !is_label(&sink.name) {
                found.add(at(".name"), "must be 1 to 40 lower-case letters, digits or '-'");
            }
            if !names.insert(&sink.name) {
                found.add(at(".name"), format!("{} is used twice; sink names are unique", sink.name));
            }
            match (&sink.redis_stream, &sink.webhook) {
                (Some(target), None) => {
                    let stream = sink.stream(pipeline).unwrap_or_default();
                    if !is_key(&stream) {
                        found.add(at(".redisStream.stream"), "must be 1 to 200 letters, digits, '.', '_', ':' or '-'");
                    }
                    if !streams.insert(stream) {
                        found.add(
                            at(".redisStream.stream"),
                            "belongs to another sink already; a stream belongs to one sink",
                        );
                    }
                    let _ = target;
                }
                (None, Some(webhook)) => {
                    if !webhook.url.starts_with("https://") && !webhook.url.starts_with("http://") {
                        found.add(at(".webhook.url"), "must be an https URL");
                    }
                }
                _ => found.add(at(""), "needs exactly one of redisStream and webhook"),
            }
        }
    }
}

impl Sink {
    /// The key of its Redis stream: as named, else `<pipeline>.<sink name>`; `None` for another kind of sink.
    #[must_use]
    pub fn stream(&self, pipeline: &str) -> Option<String> {
        let target = self.redis_stream.as_ref()?;
        Some(target.stream.clone().unwrap_or_else(|| format!("{pipeline}.{}", self.name)))
    }
}

/// A DNS label of at most 40 characters.
fn is_label(text: &str) -> bool {
    (1..=40).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_key(text: &str) -> bool {
    (1..=200).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._:-".contains(&b))
}
