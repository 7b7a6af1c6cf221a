//! The columns of keys that are JSON, and keys as the audit trail shows them.

use serde::{Serialize, de::DeserializeOwned};

use super::{Error, NewKey};

pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default()
}

pub(super) fn parsed<T: DeserializeOwned>(json: &str) -> Result<T, Error> {
    serde_json::from_str(json).map_err(|error| Error::Sql(sqlx::Error::Decode(Box::new(error))))
}

/// A new key for the audit trail.
pub(super) fn described(key: &NewKey, scopes: &[String]) -> String {
    let mut text = format!("key {} ({}) with scopes {}", key.id, key.name, scopes.join(", "));
    for (field, patterns) in [("sourceIds", &key.source_ids), ("destinationIds", &key.destination_ids)] {
        if !patterns.is_empty() {
            let patterns: Vec<String> = patterns.iter().map(ToString::to_string).collect();
            text += &format!("; {field} {}", patterns.join(", "));
        }
    }
    for (field, limit) in key.rate_limits.fields() {
        if let Some(limit) = limit {
            text += &format!("; {field} {limit}");
        }
    }
    if let Some(expiry) = key.expires_at {
        text += &format!("; until {}", crate::domain::render_time(expiry));
    }
    text
}
