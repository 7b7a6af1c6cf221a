//! The filter of a sink: which outcomes it publishes.

use millrace_crds::{Filter, RecordType};
use rust_decimal::Decimal;

use super::{DestinationId, Kind, Record, SourceId, Unit};

/// A sink's filter. The default admits every outcome.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OutcomeFilter {
    /// Units; `None`: any.
    pub units: Option<Vec<String>>,
    /// Signs; `None`: any.
    pub kinds: Option<Vec<Kind>>,
    /// Beginnings of destinations; `None`: any.
    pub destinations: Option<Vec<String>>,
    /// Beginnings of sources; `None`: any.
    pub sources: Option<Vec<String>>,
    /// The least value; `None`: any.
    pub minimum: Option<Decimal>,
    /// The manifest's text: another text is another filter.
    pub text: String,
}

impl OutcomeFilter {
    /// The filter of a manifest; `None` admits every outcome.
    #[must_use]
    pub fn of(filter: Option<&Filter>) -> Self {
        let Some(filter) = filter else { return Self::default() };
        let Filter { units, types, destinations, sources, minimum_value } = filter;
        let kind = |of_type: &RecordType| match of_type {
            RecordType::Positive => Kind::Positive,
            RecordType::Negative => Kind::Negative,
        };
        Self {
            units: (!units.is_empty()).then(|| units.clone()),
            kinds: (!types.is_empty()).then(|| types.iter().map(kind).collect()),
            destinations: destinations.as_ref().map(|destinations| destinations.prefixes.clone()),
            sources: sources.as_ref().map(|sources| sources.prefixes.clone()),
            minimum: minimum_value.as_ref().map(|value| value.get()),
            text: serde_json::to_string(filter).unwrap_or_default(),
        }
    }

    /// Whether it can leave an outcome out.
    #[must_use]
    pub fn is_some(&self) -> bool {
        !self.text.is_empty()
    }

    /// Whether the sink publishes a record.
    #[must_use]
    pub fn admits(&self, record: &Record) -> bool {
        self.admits_fields(&record.unit, record.kind, record.value.get(), &record.source_id, &record.destination_id)
    }

    /// The same for the fields of a record.
    #[must_use]
    pub fn admits_fields(
        &self,
        unit: &Unit,
        kind: Kind,
        value: Decimal,
        source: &SourceId,
        destination: &DestinationId,
    ) -> bool {
        self.units.as_ref().is_none_or(|units| units.iter().any(|one| one == unit.as_str()))
            && self.kinds.as_ref().is_none_or(|kinds| kinds.contains(&kind))
            && self.sources.as_ref().is_none_or(|prefixes| begins(prefixes, source.as_str()))
            && self.minimum.is_none_or(|minimum| value >= minimum)
            && self.admits_destination(destination.as_str())
    }

    /// Whether the sink publishes an outcome of a destination whose payload need not be a record; empty: of none.
    #[must_use]
    pub fn admits_destination(&self, destination: &str) -> bool {
        self.destinations.as_ref().is_none_or(|prefixes| begins(prefixes, destination))
    }
}

fn begins(prefixes: &[String], text: &str) -> bool {
    prefixes.iter().any(|prefix| text.starts_with(prefix))
}
