//! Answers compared with the OpenAPI document: what it says is always there is there, and nothing that it does not name.

use std::sync::LazyLock;

use serde_json::{Map, Value};

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
});

/// Fails where a 200 of a GET of this path is not as the document describes it.
pub(crate) fn assert_documented(path: &str, body: &Value) {
    let path = path.split('?').next().unwrap();
    let path = path.strip_prefix("/v1").unwrap_or(path);
    let paths = DOCUMENT["paths"].as_object().unwrap();
    // A name goes before a parameter: /rollups/declared before /rollups/{name}.
    let template =
        paths.keys().filter(|template| fits(template, path)).min_by_key(|template| template.matches('{').count());
    let Some(template) = template else { return };
    let content = &paths[template]["get"]["responses"]["200"]["content"];
    let json = |(name, media): (&String, &'static Value)| name.starts_with("application/json").then_some(media);
    let Some(media) = content.as_object().into_iter().flatten().find_map(json) else { return };
    assert_value(&format!("GET {template}"), &media["schema"], body);
}

fn fits(template: &str, path: &str) -> bool {
    let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
    template.len() == path.len()
        && template.iter().zip(&path).all(|(part, given)| part.starts_with('{') || part == given)
}

fn assert_value(at: &str, schema: &Value, value: &Value) {
    let schemas = schemas(schema);
    match value {
        Value::Array(items) => {
            for items_schema in schemas.iter().filter_map(|schema| schema.get("items")) {
                items.iter().for_each(|item| assert_value(&format!("{at}[]"), items_schema, item));
            }
        }
        Value::Object(members) => schemas.iter().for_each(|schema| assert_object(at, schema, members)),
        _ => {}
    }
}

/// A schema without references: itself, what it refers to, or each part of an `allOf`.
fn schemas(schema: &Value) -> Vec<&Value> {
    if let Some(name) = schema["$ref"].as_str() {
        return vec![DOCUMENT.pointer(name.trim_start_matches('#')).unwrap()];
    }
    match schema["allOf"].as_array() {
        Some(parts) => parts.iter().flat_map(schemas).collect(),
        None => vec![schema],
    }
}

fn assert_object(at: &str, schema: &Value, members: &Map<String, Value>) {
    for required in schema["required"].as_array().into_iter().flatten() {
        let name = required.as_str().unwrap();
        assert!(members.contains_key(name), "{at}: {name} is required by the document, and absent: {members:?}");
    }
    let Some(properties) = schema["properties"].as_object() else { return };
    for (name, value) in members {
        let Some(property) = properties.get(name) else {
            panic!("{at}: the document does not name {name}: {members:?}")
        };
        assert_value(&format!("{at}.{name}"), property, value);
    }
}
