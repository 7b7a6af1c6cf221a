//! The fields of `spec.sinks[].filter`. `kubectl explain` shows their docs.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{DecimalString, SinkEvent, check_text, validate::Found};

/// Most values of one list of a filter.
const MOST: usize = 64;

/// The outcomes that a sink publishes, of those of its event: they have to match each given field. Numbers stay those of the
/// log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filter {
    /// Only records of one of these units, at most 64.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 200)))]
    pub units: Vec<String>,
    /// Only records of one of these types.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 2))]
    pub types: Vec<RecordType>,
    /// Only records whose destinationId begins with one of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destinations: Option<Prefixes>,
    /// Only records whose sourceId begins with one of these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sources: Option<Prefixes>,
    /// Only records whose value is at least this: a decimal string such as "1000.00".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub minimum_value: Option<DecimalString>,
}

/// The sign of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum RecordType {
    /// It adds to totals.
    Positive,
    /// It takes from totals.
    Negative,
}

/// Beginnings of an id, which compare byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Prefixes {
    /// One of them has to match, at least 1 and at most 64.
    #[schemars(length(min = 1, max = 64), inner(length(min = 1, max = 200)))]
    pub prefixes: Vec<String>,
}

impl Filter {
    pub(crate) fn check(&self, event: SinkEvent, at: &str, found: &mut Found) {
        let Self { units, types, destinations, sources, minimum_value } = self;
        let has_content = !units.is_empty() || !types.is_empty() || sources.is_some() || minimum_value.is_some();
        if has_content && matches!(event, SinkEvent::DeadLettered | SinkEvent::Conflicted) {
            let message = "may only have destinations beside the event DeadLettered or Conflicted: such a payload need not be a record";
            found.add(at, message);
        }
        let lists = [
            ("units", Some(units)),
            ("destinations.prefixes", destinations.as_ref().map(|destinations| &destinations.prefixes)),
            ("sources.prefixes", sources.as_ref().map(|sources| &sources.prefixes)),
        ];
        for (name, list) in lists.into_iter().filter_map(|(name, list)| Some((name, list?))) {
            if list.len() > MOST || list.is_empty() && name != "units" {
                found.add(format!("{at}.{name}"), "must be at least 1 and at most 64");
            }
            for (index, text) in list.iter().enumerate() {
                // A prefix may end within a word: with white space.
                let text = if name == "units" { text } else { text.trim_end_matches(' ') };
                if let Err(rule) = check_text(text) {
                    found.add(format!("{at}.{name}[{index}]"), rule.to_string());
                }
            }
        }
    }
}
