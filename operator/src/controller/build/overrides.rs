//! The fields of the manifest that Kubernetes defines: `tolerations`, `extraEnv` and such.
//!
//! The manifest holds them as they were written. A field that the types of this version do not have must never be
//! dropped in silence.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Gives a field of the manifest its type.
///
/// # Errors
/// When a value has another type, or an unknown field: with the path of the field, and the cause.
pub(super) fn parse<T: Serialize + DeserializeOwned>(field: &str, given: &impl Serialize) -> Result<T, String> {
    let given = serde_json::to_value(given).map_err(|error| format!("{field}: {error}"))?;
    let parsed: T = serde_json::from_value(given.clone()).map_err(|error| format!("{field}: {error}"))?;
    let kept = serde_json::to_value(&parsed).map_err(|error| format!("{field}: {error}"))?;
    match unknown(field, &given, &kept) {
        Some(path) => Err(format!("{path} is not a field that this version of Millrace knows")),
        None => Ok(parsed),
    }
}

/// The path of a field that `kept` lacks.
fn unknown(path: &str, given: &Value, kept: &Value) -> Option<String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => {
            given.iter().filter(|(_, value)| !value.is_null()).find_map(|(name, value)| {
                let path = format!("{path}.{name}");
                match kept.get(name) {
                    Some(kept) => unknown(&path, value, kept),
                    None => Some(path),
                }
            })
        }
        (Value::Array(given), Value::Array(kept)) => given
            .iter()
            .zip(kept)
            .enumerate()
            .find_map(|(index, (given, kept))| unknown(&format!("{path}[{index}]"), given, kept)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Affinity, Toleration};
    use serde_json::json;

    use super::*;

    #[test]
    fn a_misspelt_field_is_refused_by_its_path() {
        let given = json!([{ "key": "a" }, { "key": "b", "efect": "NoSchedule" }]);
        let refused = parse::<Vec<Toleration>>("tolerations", &given).unwrap_err();
        assert!(refused.starts_with("tolerations[1].efect is not a field"), "{refused}");
        let given = json!({ "nodeAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": "here" } });
        let refused = parse::<Affinity>("affinity", &given).unwrap_err();
        assert!(refused.starts_with("affinity: invalid type: string \"here\""), "{refused}");
    }

    #[test]
    fn null_is_an_absent_field_and_an_empty_object_stays() {
        let given = json!({ "nodeAffinity": null, "podAffinity": {} });
        let parsed: Affinity = parse("affinity", &given).unwrap();
        assert_eq!(serde_json::to_value(parsed).unwrap(), json!({ "podAffinity": {} }));
    }
}
