//! A record under construction: fields with their JSON text, and attributes that add up.

use crate::domain::{Invalid, code, members};

/// Fields and attributes of one row.
#[derive(Debug, Default)]
pub(super) struct Parts {
    fields: Vec<(String, String)>,
    attributes: Vec<Attribute>,
}

/// An attribute that a flag gives.
#[derive(Debug)]
struct Attribute {
    name: String,
    json: String,
    /// The flag, for the message of a clash.
    by: &'static str,
}

impl Parts {
    /// Gives a field or, as `attributes.NAME`, an attribute its JSON.
    pub(super) fn put(&mut self, field: &str, json: String, by: &'static str) {
        if let Some(name) = field.strip_prefix("attributes.") {
            self.attributes.push(Attribute { name: name.to_owned(), json, by });
            return;
        }
        match self.fields.iter_mut().find(|(known, _)| known == field) {
            Some((_, value)) => *value = json,
            None => self.fields.push((field.to_owned(), json)),
        }
    }

    /// The JSON of a field, unless it is absent or null.
    pub(super) fn get(&self, field: &str) -> Option<&str> {
        self.fields.iter().find(|(known, json)| known == field && json != "null").map(|(_, json)| json.as_str())
    }

    /// Takes a field away.
    pub(super) fn remove(&mut self, field: &str) {
        self.fields.retain(|(known, _)| known != field);
    }

    /// The record on one line.
    ///
    /// # Errors
    /// An attribute comes from two places, or the row's attributes are no object.
    pub(super) fn line(mut self) -> Result<Vec<u8>, Invalid> {
        let added = std::mem::take(&mut self.attributes);
        if let Some(own) = self.get("attributes") {
            let all = with_own(own, &added)?;
            self.put("attributes", all, "");
        } else if !added.is_empty() {
            let members: Vec<_> = added.iter().map(|one| member(&one.name, &one.json)).collect();
            self.put("attributes", format!("{{{}}}", members.join(",")), "");
        }
        let members: Vec<_> = self.fields.iter().map(|(name, json)| member(name, json)).collect();
        Ok(format!("{{{}}}", members.join(",")).into_bytes())
    }
}

/// The row's own attributes, byte for byte unless they span lines, and those that flags add.
fn with_own(own: &str, added: &[Attribute]) -> Result<String, Invalid> {
    let members = members(own.as_bytes(), "/attributes").map_err(|invalid| {
        let detail = format!("{}; attributes are one JSON object, such as {{\"channel\":\"web\"}}", invalid.detail);
        Invalid::new(invalid.code, invalid.pointer, detail)
    })?;
    for Attribute { name, by, .. } in added {
        if members.iter().any(|(key, _)| key == name) {
            let detail = format!(
                "attributes.{name} comes from two places: the row's own attributes, and {by}; take one away, or give {by} \
                 another name"
            );
            return Err(Invalid::new(code::INVALID_VALUE, "/attributes", detail));
        }
    }
    // A string of valid JSON holds no line break, so these are all between tokens.
    let mut text = own.trim().replace(['\r', '\n'], " ");
    if !added.is_empty() {
        text.truncate(text.len() - 1);
        for (index, one) in added.iter().enumerate() {
            if index > 0 || !members.is_empty() {
                text.push(',');
            }
            text.push_str(&member(&one.name, &one.json));
        }
        text.push('}');
    }
    Ok(text)
}

fn member(name: &str, json: &str) -> String {
    format!("{}:{json}", quoted(name))
}

/// A text as a JSON string.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
