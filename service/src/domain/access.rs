//! What a caller may do: scopes, and the sources and destinations that it may reach.
//!
//! The ids that patterns match are kept as sorted ranges: Postgres and this process search them in the same way, and a
//! prefix is a range of an index.

use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{DestinationId, SourceId, Text};

/// Most patterns for sources, and most for destinations.
const MOST_PATTERNS: usize = 100;
/// A text after every id: ids have at most 200 characters.
const AFTER_ALL: usize = 201;

/// A permission of a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, poem_openapi::Enum, clap::ValueEnum, Serialize)]
#[oai(rename_all = "lowercase")]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Sending records
    Ingest,
    /// Queries
    Read,
    /// Keys, dead letters and other changes; implies the others
    Admin,
}

impl Scope {
    /// Its name in the API, in commands and in SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Read => "read",
            Self::Admin => "admin",
        }
    }

    /// The scope of a name.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        [Self::Ingest, Self::Read, Self::Admin].into_iter().find(|scope| scope.as_str() == name)
    }
}

/// Ids that a caller may reach: `{"exact": id}` or `{"prefix": text}` in JSON, `exact=id` or `prefix=text` in a command.
/// They compare byte by byte.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "Given")]
pub enum IdPattern {
    /// This id.
    Exact(Text),
    /// Every id that begins with this.
    Prefix(Text),
}

/// A pattern as it is given, before its text is checked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Given {
    Exact(String),
    Prefix(String),
}

impl TryFrom<Given> for IdPattern {
    type Error = String;

    fn try_from(given: Given) -> Result<Self, String> {
        let checked = |text| Text::parse(text).map_err(|rule| rule.to_string());
        Ok(match given {
            Given::Exact(text) => Self::Exact(checked(text)?),
            Given::Prefix(text) => Self::Prefix(checked(text)?),
        })
    }
}

impl FromStr for IdPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let given = match text.split_once('=') {
            Some(("exact", id)) => Given::Exact(id.to_owned()),
            Some(("prefix", start)) => Given::Prefix(start.to_owned()),
            _ => return Err("must be exact=ID, or prefix=TEXT for all ids that begin with it".to_owned()),
        };
        given.try_into()
    }
}

impl fmt::Display for IdPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(id) => write!(f, "exact={id}"),
            Self::Prefix(start) => write!(f, "prefix={start}"),
        }
    }
}

impl IdPattern {
    /// The range of the ids that match: from the first, up to but not including the second.
    fn range(&self) -> (String, String) {
        match self {
            // No id has U+0000: nothing is between an id and the same with U+0001 behind it.
            Self::Exact(id) => (id.to_string(), format!("{id}\u{1}")),
            Self::Prefix(start) => (start.to_string(), after_prefix(start.as_str())),
        }
    }
}

/// The first text behind all that begin with `prefix`. The order of UTF-8's bytes is that of the characters.
fn after_prefix(prefix: &str) -> String {
    let mut rest = prefix.to_owned();
    while let Some(last) = rest.pop() {
        // A step over the surrogates, which are no characters.
        let mut following = (last..=char::MAX).skip(1);
        if let Some(next) = following.next() {
            rest.push(next);
            return rest;
        }
    }
    char::MAX.to_string().repeat(AFTER_ALL)
}

/// The ids that match any of some patterns, as ranges that are sorted and do not overlap.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdRanges {
    starts: Vec<String>,
    ends: Vec<String>,
}

impl IdRanges {
    /// `None`: there are no patterns, any id matches.
    fn of(patterns: &[IdPattern]) -> Option<Self> {
        let mut ranges: Vec<(String, String)> = patterns.iter().map(IdPattern::range).collect();
        ranges.sort_unstable();
        let (mut starts, mut ends): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
        for (start, end) in ranges {
            match ends.last_mut() {
                Some(last) if start <= *last => *last = end.max(std::mem::take(last)),
                _ => {
                    starts.push(start);
                    ends.push(end);
                }
            }
        }
        (!starts.is_empty()).then_some(Self { starts, ends })
    }

    /// The first text of each range.
    #[must_use]
    pub fn starts(&self) -> &[String] {
        &self.starts
    }

    /// The first text behind each range.
    #[must_use]
    pub fn ends(&self) -> &[String] {
        &self.ends
    }

    fn contains(&self, id: &str) -> bool {
        let range = self.starts.partition_point(|start| start.as_str() <= id);
        range > 0 && id < self.ends[range - 1].as_str()
    }
}

/// The records that a caller may reach: those of some sources, and to some destinations. The default is all. Copies are
/// cheap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct AccessLimit(Option<Arc<Ranges>>);

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Ranges {
    sources: Option<IdRanges>,
    destinations: Option<IdRanges>,
}

impl AccessLimit {
    /// The limit of patterns: an empty list means any id.
    ///
    /// # Errors
    /// The rule that the number of patterns breaks.
    pub fn new(source_ids: &[IdPattern], destination_ids: &[IdPattern]) -> Result<Self, String> {
        if source_ids.len().max(destination_ids.len()) > MOST_PATTERNS {
            return Err(format!("has more than {MOST_PATTERNS} patterns; use prefixes, or several keys"));
        }
        let (sources, destinations) = (IdRanges::of(source_ids), IdRanges::of(destination_ids));
        let is_limited = sources.is_some() || destinations.is_some();
        Ok(Self(is_limited.then(|| Arc::new(Ranges { sources, destinations }))))
    }

    /// Whether there is a record that the caller may not reach.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.0.is_some()
    }

    /// The sources; `None`: any.
    #[must_use]
    pub fn sources(&self) -> Option<&IdRanges> {
        self.0.as_ref()?.sources.as_ref()
    }

    /// The destinations; `None`: any.
    #[must_use]
    pub fn destinations(&self) -> Option<&IdRanges> {
        self.0.as_ref()?.destinations.as_ref()
    }

    /// The first field of a record that is outside, as a JSON pointer; `None`: the caller may reach the record.
    #[must_use]
    pub fn outside(&self, source_id: &SourceId, destination_id: &DestinationId) -> Option<&'static str> {
        let limits = self.0.as_ref()?;
        let is_outside = |ranges: &Option<IdRanges>, id| ranges.as_ref().is_some_and(|ranges| !ranges.contains(id));
        if is_outside(&limits.sources, source_id.as_str()) {
            return Some("/sourceId");
        }
        is_outside(&limits.destinations, destination_id.as_str()).then_some("/destinationId")
    }

    /// Whether the caller may reach records of this destination, of some source at least.
    #[must_use]
    pub fn allows_destination(&self, destination_id: &DestinationId) -> bool {
        self.destinations().is_none_or(|ranges| ranges.contains(destination_id.as_str()))
    }

    /// Whether the caller may reach a record of this source and destination.
    #[must_use]
    pub fn allows(&self, source_id: &SourceId, destination_id: &DestinationId) -> bool {
        self.outside(source_id, destination_id).is_none()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> IdPattern {
        text.parse().unwrap()
    }

    fn matches(pattern: &IdPattern, id: &str) -> bool {
        match pattern {
            IdPattern::Exact(exact) => exact.as_str() == id,
            IdPattern::Prefix(start) => id.starts_with(start.as_str()),
        }
    }

    #[test]
    fn a_pattern_has_one_spelling_in_json_and_one_in_a_command() {
        for (text, json) in [
            ("exact=shop-7", r#"{"exact":"shop-7"}"#),
            ("prefix=eu-*", r#"{"prefix":"eu-*"}"#),
            ("exact=a=b", r#"{"exact":"a=b"}"#),
        ] {
            assert_eq!(pattern(text).to_string(), text);
            assert_eq!(serde_json::to_string(&pattern(text)).unwrap(), json);
            assert_eq!(serde_json::from_str::<IdPattern>(json).unwrap(), pattern(text));
        }
        for wrong in ["shop", "shop-*", "exact=", "prefix=", "Exact=a", "exact= a"] {
            assert!(wrong.parse::<IdPattern>().is_err(), "{wrong}");
        }
        for wrong in [r#""a""#, "{}", r#"{"exact":""}"#, r#"{"exact":"a","prefix":"b"}"#, r#"{"regex":"a"}"#] {
            assert!(serde_json::from_str::<IdPattern>(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_empty_list_means_any_id_and_both_lists_have_to_match() {
        let (shop, account) = (SourceId::stored("shop-7"), DestinationId::stored("account-1"));
        let limit = |sources: &[&str], destinations: &[&str]| {
            let patterns = |texts: &[&str]| texts.iter().map(|text| pattern(text)).collect::<Vec<_>>();
            AccessLimit::new(&patterns(sources), &patterns(destinations)).unwrap()
        };
        assert_eq!(limit(&[], &[]), AccessLimit::default());
        assert!(!AccessLimit::default().is_limited() && AccessLimit::default().allows(&shop, &account));
        assert!(limit(&["exact=shop-7"], &[]).allows(&shop, &account));
        assert!(limit(&["exact=shop-7"], &["prefix=account-"]).allows(&shop, &account));
        assert_eq!(limit(&["exact=shop-8"], &["prefix=account-"]).outside(&shop, &account), Some("/sourceId"));
        assert_eq!(limit(&["prefix=shop"], &["exact=account"]).outside(&shop, &account), Some("/destinationId"));
        let many = vec![pattern("exact=a"); MOST_PATTERNS + 1];
        assert!(AccessLimit::new(&many, &[]).is_err() && AccessLimit::new(&[], &many).is_err());
        assert!(AccessLimit::new(&many[1..], &[]).is_ok());
    }

    proptest! {
        #[test]
        fn ranges_contain_what_the_patterns_match(
            patterns in prop::collection::vec(("exact|prefix", "[ab\u{7f}\u{d7ff}\u{e000}\u{10ffff}]{1,3}"), 0..6),
            ids in prop::collection::vec("[ab\u{7f}\u{80}\u{d7ff}\u{e000}\u{10ffff}]{1,5}", 1..20),
        ) {
            let patterns: Vec<IdPattern> = patterns
                .into_iter()
                .filter_map(|(kind, text)| format!("{kind}={text}").parse().ok())
                .collect();
            let ranges = IdRanges::of(&patterns);
            for id in &ids {
                let expected = patterns.is_empty() || patterns.iter().any(|pattern| matches(pattern, id));
                let contained = ranges.as_ref().is_none_or(|ranges| ranges.contains(id));
                prop_assert_eq!(contained, expected, "{:?} of {:?}", id, patterns);
            }
            if let Some(IdRanges { starts, ends }) = ranges {
                prop_assert!(starts.iter().zip(&ends).all(|(start, end)| start < end));
                prop_assert!(ends.iter().zip(&starts[1..]).all(|(end, next)| end < next));
            }
        }
    }
}
