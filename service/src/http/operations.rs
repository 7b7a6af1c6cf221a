//! Which paths, methods and query parameters there are, read from the OpenAPI description itself, so that what is
//! documented is what is taken.

use std::time::Duration;

use poem::http::{Method, StatusCode};
use poem_openapi::registry::{MetaApi, MetaParamIn, MetaSchema, MetaSchemaRef, Registry};

use super::{durations::Durations, problem::Failure};

/// A query parameter.
#[derive(Debug)]
struct Parameter {
    name: String,
    /// Whether it may be given more than once.
    many: bool,
    takes: Takes,
}

/// Allowed values of a parameter.
#[derive(Debug)]
enum Takes {
    OneOf(Vec<String>),
    Boolean,
    /// Between these, both included.
    Integer(i64, i64),
    /// Checked by the handler that takes it.
    Text,
}

impl Takes {
    fn of(schema: &MetaSchemaRef, registry: &Registry) -> Self {
        let schema: &MetaSchema = match schema {
            MetaSchemaRef::Inline(schema) => schema,
            MetaSchemaRef::Reference(name) => match registry.schemas.get(name) {
                Some(schema) => schema,
                None => return Self::Text,
            },
        };
        // Of one that may be given several times, each.
        if let Some(items) = &schema.items {
            return Self::of(items, registry);
        }
        let choices: Vec<String> =
            schema.enum_items.iter().filter_map(|item| item.as_str().map(str::to_owned)).collect();
        match schema.ty {
            _ if !choices.is_empty() => Self::OneOf(choices),
            "boolean" => Self::Boolean,
            "integer" => Self::Integer(
                schema.minimum.map_or(i64::MIN, |least| least as i64),
                schema.maximum.map_or(i64::MAX, |most| most as i64),
            ),
            _ => Self::Text,
        }
    }

    /// The rule that a value breaks.
    fn broken_by(&self, value: &str) -> Option<String> {
        let (holds, rule) = match self {
            Self::Text => return None,
            Self::OneOf(choices) => {
                (choices.iter().any(|choice| choice == value), format!("one of {}", choices.join(", ")))
            }
            Self::Boolean => (matches!(value, "true" | "false"), "true or false".to_owned()),
            Self::Integer(least, most) => (
                value.parse().is_ok_and(|value: i64| (least..=most).contains(&&value)),
                format!("a whole number from {least} to {most}"),
            ),
        };
        (!holds).then(|| format!("must be {rule}"))
    }
}

/// Parameters of one method of a path.
#[derive(Debug)]
struct Operation {
    method: Method,
    query: Vec<Parameter>,
}

/// A path with its methods.
#[derive(Debug)]
pub(crate) struct Path {
    /// As documented, such as `/records/{recordId}`: what metrics and logs call it.
    pub(crate) template: String,
    operations: Vec<Operation>,
    durations: Durations,
}

/// All paths.
#[derive(Debug)]
pub(crate) struct Operations(Vec<Path>);

impl Operations {
    /// The paths of the APIs, and beside them `plain` ones that take these methods and no parameters.
    pub(crate) fn new(
        apis: Vec<MetaApi>,
        registry: &Registry,
        plain: impl Iterator<Item = (&'static str, &'static [Method])>,
    ) -> Self {
        let mut paths: Vec<Path> = Vec::new();
        for path in apis.into_iter().flat_map(|api| api.paths) {
            let operations = path.operations.into_iter().map(|operation| {
                let query = operation.params.into_iter().filter(|parameter| parameter.in_type == MetaParamIn::Query);
                let query = query.map(|parameter| Parameter {
                    many: parameter.schema.is_array(),
                    takes: Takes::of(&parameter.schema, registry),
                    name: parameter.name,
                });
                Operation { method: operation.method, query: query.collect() }
            });
            match paths.iter_mut().find(|known| known.template == path.path) {
                Some(known) => known.operations.extend(operations),
                None => paths.push(Path::new(path.path, operations.collect())),
            }
        }
        paths.extend(plain.map(|(template, methods)| {
            let operations = methods.iter().map(|method| Operation { method: method.clone(), query: Vec::new() });
            Path::new(template.to_owned(), operations.collect())
        }));
        // Of two that fit, the one with fewer variables is meant.
        paths.sort_by_key(|path| path.template.split('/').filter(|segment| is_variable(segment)).count());
        Self(paths)
    }

    /// The documented path that `path` is of.
    pub(crate) fn find(&self, path: &str) -> Option<&Path> {
        self.0.iter().find(|known| {
            let (mut template, mut actual) = (known.template.split('/'), path.split('/'));
            loop {
                match (template.next(), actual.next()) {
                    (None, None) => return true,
                    (Some(expected), Some(found)) if is_variable(expected) && !found.is_empty() => {}
                    (Some(expected), Some(found)) if expected == found => {}
                    _ => return false,
                }
            }
        })
    }
}

fn is_variable(segment: &str) -> bool {
    segment.starts_with(['{', ':'])
}

impl Path {
    fn new(template: String, operations: Vec<Operation>) -> Self {
        Self { durations: Durations::new(&template), template, operations }
    }

    /// Records how long an answer took.
    pub(crate) fn record(&self, method: &Method, status: StatusCode, took: Duration) {
        self.durations.record(method, status, took);
    }

    /// The value of `Allow`.
    pub(crate) fn allow(&self) -> String {
        let mut methods: Vec<&str> = self.operations.iter().map(|operation| operation.method.as_str()).collect();
        if methods.contains(&"GET") {
            methods.push("HEAD");
        }
        methods.push("OPTIONS");
        methods.join(", ")
    }

    /// Whether the query of a request has only what this path's method takes; true for methods that it does not take.
    ///
    /// # Errors
    /// 400 naming the parameter that is unknown, repeated, not readable, or none of what it may be.
    pub(crate) fn check_query(&self, method: &Method, query: &str) -> Result<(), Failure> {
        let method = if method == Method::HEAD { &Method::GET } else { method };
        let Some(operation) = self.operations.iter().find(|operation| operation.method == method) else {
            return Ok(());
        };
        let mut seen: Vec<&str> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decoded(name).ok_or_else(|| unreadable("a parameter's name"))?;
            let Some(parameter) = operation.query.iter().find(|parameter| parameter.name == name) else {
                let known: Vec<&str> = operation.query.iter().map(|parameter| parameter.name.as_str()).collect();
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                let detail = format!("{name:.100} is not a parameter of this path; it takes: {known}");
                return Err(Failure::new(400, "unknown_parameter", detail));
            };
            let value = decoded(value).ok_or_else(|| unreadable(&parameter.name))?;
            if let Some(rule) = parameter.takes.broken_by(&value) {
                return Err(Failure::new(400, "invalid_parameter", format!("{}: {rule}", parameter.name)));
            }
            if seen.contains(&parameter.name.as_str()) && !parameter.many {
                let detail = format!("{} is given more than once; give it once", parameter.name);
                return Err(Failure::new(400, "repeated_parameter", detail));
            }
            seen.push(&parameter.name);
        }
        Ok(())
    }
}

fn unreadable(name: &str) -> Failure {
    Failure::new(400, "invalid_parameter", format!("{name} is not percent-encoded UTF-8 without U+0000"))
}

/// Decodes a part of a query; `None` where it is not UTF-8, which others would quietly replace.
fn decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match (byte, tail) {
            (b'+', _) => bytes.push(b' '),
            (b'%', [high, low, tail @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                bytes.push(digit(*high)? * 16 + digit(*low)?);
                rest = tail;
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(query: &[(&str, bool)]) -> Path {
        let takes = |name| match name {
            "limit" => Takes::Integer(1, 1_000),
            "dryRun" => Takes::Boolean,
            "type" => Takes::OneOf(vec!["positive".to_owned(), "negative".to_owned()]),
            _ => Takes::Text,
        };
        let query =
            query.iter().map(|(name, many)| Parameter { name: (*name).to_owned(), many: *many, takes: takes(*name) });
        let query = query.collect();
        Path::new("/x".to_owned(), vec![Operation { method: Method::GET, query }])
    }

    #[test]
    fn unknown_and_repeated_parameters_are_named() {
        let path = path(&[("limit", false), ("recordId", true)]);
        let code =
            |query: &str| path.check_query(&Method::GET, query).err().map(|failure| failure.problem().code.clone());
        for good in ["", "limit=1", "recordId=a&recordId=b&limit=2", "rec%6FrdId=a%20b", "&&limit=1000"] {
            assert_eq!(code(good), None, "{good}");
        }
        for (bad, expected) in [
            ("limits=1", "unknown_parameter"),
            ("Limit=1", "unknown_parameter"),
            ("limit=1&limit=1", "repeated_parameter"),
            ("recordId=%ff", "invalid_parameter"),
            ("recordId=%00", "invalid_parameter"),
            ("%ff=1", "invalid_parameter"),
        ] {
            assert_eq!(code(bad).as_deref(), Some(expected), "{bad}");
            assert!(path.check_query(&Method::HEAD, bad).is_err(), "HEAD {bad}");
        }
    }

    #[test]
    fn a_value_that_is_none_of_those_taken_is_told_those() {
        let path = path(&[("limit", false), ("dryRun", false), ("type", false)]);
        for (query, expected) in [
            ("type=Positive", "type: must be one of positive, negative"),
            ("type=", "type: must be one of positive, negative"),
            ("dryRun=yes", "dryRun: must be true or false"),
            ("limit=0", "limit: must be a whole number from 1 to 1000"),
            ("limit=1001", "limit: must be a whole number from 1 to 1000"),
            ("limit=x", "limit: must be a whole number from 1 to 1000"),
        ] {
            let refused = path.check_query(&Method::GET, query).expect_err(query);
            assert_eq!(
                (refused.problem().code.as_str(), refused.problem().detail.as_str()),
                ("invalid_parameter", expected)
            );
        }
        assert!(path.check_query(&Method::GET, "type=%70ositive&dryRun=true&limit=7").is_ok());
    }

    #[test]
    fn the_path_with_fewer_variables_is_meant() {
        let template = |template: &str| Path::new(template.to_owned(), Vec::new());
        let mut paths = vec![template("/records/{id}"), template("/records/batch"), template("/records")];
        paths.sort_by_key(|path| path.template.contains('{'));
        let operations = Operations(paths);
        let found = |path: &str| operations.find(path).map(|path| path.template.as_str());
        assert_eq!(found("/records/batch"), Some("/records/batch"));
        assert_eq!(found("/records/a%2Fb"), Some("/records/{id}"));
        assert_eq!(found("/records"), Some("/records"));
        for none in ["/", "/records/", "/records/a/b", "/other"] {
            assert_eq!(found(none), None, "{none}");
        }
    }
}
