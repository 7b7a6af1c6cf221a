//! Partial schemas of objects that Kubernetes defines: enough to refuse a wrong form by the field's name.

use schemars::{Schema, SchemaGenerator, json_schema};

/// A list of objects that Kubernetes defines, with these of their properties. The whole schema would be larger than all
/// others together; the API server checks the other properties when the operator applies the object.
fn objects(required: &[&str], properties: &serde_json::Value) -> Schema {
    let mut items = json_schema!({
        "type": "object",
        "properties": properties,
        "x-kubernetes-preserve-unknown-fields": true
    });
    if !required.is_empty() {
        items.insert("required".to_owned(), required.into());
    }
    json_schema!({ "type": "array", "maxItems": 32, "items": items })
}

/// The rule for the names of labels and annotations: a word, with or without a domain and a slash before it.
const NAMES: &str =
    "self.all(name, name.matches('^([a-z0-9][a-z0-9.-]*/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$'))";

pub(crate) fn label_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 32,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "x-kubernetes-validations": [{
                "rule": "self.matches('^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$')",
                "message": "must be empty or up to 63 letters, digits, '-', '_' or '.', with a letter or digit at both ends",
            }],
        },
        "x-kubernetes-validations": [{ "rule": NAMES, "message": "a name must be one of a label, such as example.com/team" }],
    })
}

pub(crate) fn annotation_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": { "type": "string" },
        "x-kubernetes-validations": [{
            "rule": NAMES,
            "message": "a name must be one of an annotation, such as example.com/team",
        }],
    })
}

pub(crate) fn free_objects(_: &mut SchemaGenerator) -> Schema {
    objects(&[], &serde_json::json!({}))
}

pub(crate) fn affinity(_: &mut SchemaGenerator) -> Schema {
    let part = |description| {
        serde_json::json!({
            "type": "object",
            "description": description,
            "x-kubernetes-preserve-unknown-fields": true
        })
    };
    json_schema!({
        "type": "object",
        "properties": {
            "nodeAffinity": part("On which nodes, as in a pod."),
            "podAffinity": part("Beside which pods, as in a pod."),
            "podAntiAffinity": part("Away from which pods, as in a pod."),
        },
    })
}

pub(crate) fn tolerations(_: &mut SchemaGenerator) -> Schema {
    let items = json_schema!({
        "type": "object",
        "properties": {
            "key": { "type": "string", "description": "The taint's key; absent, with the operator Exists: every taint." },
            "operator": { "type": "string", "description": "Equal unless given." },
            "value": { "type": "string", "description": "The taint's value." },
            "effect": {
                "type": "string",
                "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"],
                "description": "The taint's effect; absent: every effect.",
            },
            "tolerationSeconds": {
                "type": "integer",
                "format": "int64",
                "description": "How long a pod stays where a taint of effect NoExecute appears; absent: for good.",
            },
        },
    });
    json_schema!({ "type": "array", "maxItems": 32, "items": items })
}

pub(crate) fn variables(_: &mut SchemaGenerator) -> Schema {
    objects(
        &["name"],
        &serde_json::json!({
            "name": { "type": "string", "minLength": 1, "maxLength": 253, "description": "The variable's name." },
            "value": { "type": "string", "description": "Its value. Or valueFrom, as in a pod." },
        }),
    )
}

/// The prefix of the names of the operator's own volumes.
pub(crate) const OWN_VOLUMES: &str = "millrace-";
/// The folder that the operator mounts them in.
pub(crate) const OWN_MOUNTS: &str = "/etc/millrace";

pub(crate) fn volumes(_: &mut SchemaGenerator) -> Schema {
    objects(
        &["name"],
        &serde_json::json!({ "name": {
            "description": "Its name. Beside it the source of the volume, as in a pod.",
            "type": "string",
            "minLength": 1,
            "maxLength": 63,
            "x-kubernetes-validations": [{
                "rule": format!("!self.startsWith('{OWN_VOLUMES}')"),
                "message": "must not begin with millrace-: the pods' own volumes are called so",
            }],
        } }),
    )
}

pub(crate) fn mounts(_: &mut SchemaGenerator) -> Schema {
    objects(
        &["name", "mountPath"],
        &serde_json::json!({
            "name": { "type": "string", "minLength": 1, "maxLength": 63, "description": "The volume's name." },
            "mountPath": {
                "description": "The path in the container.",
                "type": "string",
                "minLength": 1,
                "maxLength": 1000,
                "x-kubernetes-validations": [{
                    "rule": format!("!self.startsWith('{OWN_MOUNTS}')"),
                    "message": "must not be below /etc/millrace: the manifest and the URLs are mounted there",
                }],
            },
        }),
    )
}
