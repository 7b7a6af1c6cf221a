//! The hash of a pod template, which distinguishes the pods of a template from older ones.
//!
//! Templates that are equal to the API server must have the same hash: another one rolls every pod.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::labels::ATTEMPT;

/// The hash of a template. The attempt's number is left out: the next attempt of a Job has the same pod.
pub(super) fn hash(template: &PodTemplateSpec) -> String {
    let mut template = json!(template);
    if let Some(labels) = template["metadata"]["labels"].as_object_mut() {
        labels.remove(ATTEMPT);
    }
    for container in template["spec"]["containers"].as_array_mut().into_iter().flatten() {
        for kind in ["requests", "limits"] {
            let amounts = container["resources"][kind].as_object_mut().into_iter().flatten();
            amounts.for_each(|(_, amount)| by_value(amount));
        }
    }
    hex::encode(&Sha256::digest(template.to_string())[..4])
}

/// Replaces an amount by its value: the API server has one form for `1000m`, `1.0` and `1`.
fn by_value(amount: &mut Value) {
    if let Some(value) = amount.as_str().and_then(value) {
        // The nearest float is enough: at worst another form of an amount is another hash.
        *amount = json!(value.to_string());
    }
}

fn value(amount: &str) -> Option<f64> {
    if let Ok(number) = amount.parse() {
        return Some(number);
    }
    let suffix = amount.trim_start_matches(|part: char| part.is_ascii_digit() || "+-.".contains(part));
    let number: f64 = amount.strip_suffix(suffix)?.parse().ok()?;
    let binary = |power| Some(number * 1024_f64.powi(power));
    match suffix {
        // A division is exact where the product with a thousandth is not.
        "n" => Some(number / 1e9),
        "u" => Some(number / 1e6),
        "m" => Some(number / 1e3),
        "k" => Some(number * 1e3),
        "M" => Some(number * 1e6),
        "G" => Some(number * 1e9),
        "T" => Some(number * 1e12),
        "P" => Some(number * 1e15),
        "E" => Some(number * 1e18),
        "Ki" => binary(1),
        "Mi" => binary(2),
        "Gi" => binary(3),
        "Ti" => binary(4),
        "Pi" => binary(5),
        "Ei" => binary(6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(requests: &Value) -> String {
        let container = json!({ "name": "work", "resources": { "requests": requests } });
        hash(&serde_json::from_value(json!({ "spec": { "containers": [container] } })).unwrap())
    }

    #[test]
    fn equal_amounts_have_one_hash_and_others_have_another() {
        for equal in [["1000m", "1"], ["1.0", "1"], ["700m", ".7"], ["1024Mi", "1Gi"], ["1e3", "1k"], ["1E", "1e18"]] {
            let [one, other] = equal.map(|amount| of(&json!({ "cpu": amount })));
            assert_eq!(one, other, "{equal:?}");
        }
        for [one, other] in [["1", "2"], ["1Mi", "1M"], ["100m", "0.2"]] {
            assert_ne!(of(&json!({ "cpu": one })), of(&json!({ "cpu": other })), "{one} {other}");
        }
    }
}
