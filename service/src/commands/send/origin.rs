//! A row as the user's file has it, so that a refusal names its line, its cell and its content.

use std::{io::Cursor, sync::Arc};

use super::{
    args::Pair,
    export,
    shape::Shape,
    table::{self, Frame},
    window::Window,
};
use crate::domain::{Invalid, members};

/// A row as the file has it.
#[derive(Debug)]
pub(super) struct Origin {
    /// Its number in the input, from 1: a line of NDJSON, an element of JSON, a data row of CSV.
    pub(super) number: u64,
    /// The line on which it begins, from 1.
    pub(super) line: u64,
    pub(super) text: Vec<u8>,
    /// Whether only its head is held.
    pub(super) is_cut: bool,
    pub(super) locator: Arc<Locator>,
}

/// A row that is refused before it is sent.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) origin: Origin,
    pub(super) invalid: Invalid,
}

/// A cell of the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) column: String,
    pub(super) value: String,
}

/// Finds the cell that a field came from.
#[derive(Debug)]
pub(super) struct Locator {
    sources: Vec<Source>,
    /// Of a CSV: its columns and what separates them.
    table: Option<(Vec<String>, u8)>,
}

/// A field and a column that a flag takes it from.
#[derive(Debug)]
struct Source {
    field: String,
    column: String,
}

impl Origin {
    /// The cell that a pointer to a field of the record leads to.
    pub(super) fn cell(&self, pointer: &str) -> Option<Found> {
        self.locator.cell(&self.text, pointer)
    }
}

impl Locator {
    /// For rows of this shape.
    pub(super) fn of(shape: &Shape) -> Self {
        let source = |field: &str, column: &str| Source { field: field.to_owned(), column: column.to_owned() };
        let mut sources: Vec<_> = shape.map.iter().map(|Pair(column, field)| source(field, column)).collect();
        for field in ["type", "value"] {
            sources.extend(shape.amounts.columns_of(field).into_iter().map(|column| source(field, column)));
        }
        Self { sources, table: None }
    }

    /// For rows of a CSV.
    pub(super) fn with_table(self, names: Vec<String>, delimiter: u8) -> Self {
        Self { table: Some((names, delimiter)), ..self }
    }

    /// The pointer to the field that a column gives; empty where it gives none.
    pub(super) fn pointer(&self, column: &str) -> String {
        let field = self.sources.iter().find(|source| source.column == column).map(|source| source.field.as_str());
        let field = field.or_else(|| super::shape::FIELDS.contains(&column).then_some(column));
        field.map_or_else(String::new, |field| format!("/{}", field.replacen('.', "/", 1)))
    }

    fn cell(&self, text: &[u8], pointer: &str) -> Option<Found> {
        let mut steps = pointer.strip_prefix('/')?.split('/').map(|step| step.replace("~1", "/").replace("~0", "~"));
        let field = steps.next()?;
        let attribute = steps.next().map(|name| format!("attributes.{name}"));
        let cells = self.cells(text)?;
        let columns_of = |field: &str| {
            let columns = self.sources.iter().filter(|source| source.field == field);
            columns.map(|source| source.column.clone()).collect::<Vec<_>>()
        };
        let mut columns = attribute.filter(|_| field == "attributes").map(|name| columns_of(&name)).unwrap_or_default();
        columns.extend(columns_of(&field));
        if columns.is_empty() {
            columns.push(field);
        }
        let present = |column: &String| cells.iter().find(|found| found.column == *column);
        let found: Vec<_> = columns.iter().filter_map(present).collect();
        let found = found.iter().find(|found| !found.value.is_empty()).or(found.first())?;
        Some(Found { column: found.column.clone(), value: found.value.clone() })
    }

    fn cells(&self, text: &[u8]) -> Option<Vec<Found>> {
        let found = |column: &str, value: &str| Found { column: column.to_owned(), value: value.to_owned() };
        if let Some((names, delimiter)) = &self.table {
            let mut window = Window::new(Box::new(Cursor::new(text.to_vec())));
            let Frame { cells, .. } = table::frame(&mut window, *delimiter).ok()??;
            let cells = cells.ok()?;
            return Some(
                names.iter().zip(cells).map(|(name, cell)| found(name, &String::from_utf8_lossy(&cell))).collect(),
            );
        }
        let mut all = members(text, "").ok()?;
        if let Some(raw) = export::record(&all) {
            all = members(raw.get().as_bytes(), "").ok()?;
        }
        let value = |raw: &crate::domain::Raw| {
            serde_json::from_str::<String>(raw.get()).unwrap_or_else(|_| raw.get().to_owned())
        };
        Some(all.iter().map(|(key, raw)| found(key, &value(raw))).collect())
    }
}
