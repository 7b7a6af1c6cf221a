//! The header line of a CSV: checked before anything is sent, so that one message says what every row would.

use anyhow::{Context as _, bail};

use super::{
    args::Pair,
    shape::{FIELDS, OUTPUT, Shape},
};

/// Names of the columns.
pub(super) fn names(cells: Vec<Vec<u8>>, line: u64) -> anyhow::Result<Vec<String>> {
    if cells.iter().any(|cell| cell.contains(&0)) {
        bail!("the header on line {line} holds zero bytes: the file seems to be UTF-16; give --encoding utf-16le");
    }
    cells
        .into_iter()
        .map(String::from_utf8)
        .collect::<Result<_, _>>()
        .with_context(|| format!("the header on line {line} is not UTF-8; give --encoding windows-1252 or the like"))
}

/// Checks that the columns give the fields of a record, and names those that are left out.
pub(super) fn check(shape: &Shape, names: &[String], delimiter: u8, line: u64) -> anyhow::Result<()> {
    let is_known = |name: &String| shape.uses(name);
    if !names.iter().any(is_known) {
        return Err(no_header(names, delimiter, line));
    }
    let all = names.join(", ");
    for column in shape.wanted() {
        if !names.iter().any(|name| name == column) {
            let blank = names.iter().find(|name| name.trim() == column);
            let remedy =
                blank.map_or_else(String::new, |name| format!("; \"{name}\" differs by blanks: --trim removes them"));
            bail!("the input has no column {column}; its columns on line {line} are {all}{remedy}");
        }
    }
    for (index, column) in names.iter().enumerate() {
        if shape.uses(column) && names[..index].contains(column) {
            bail!("the input has two columns {column}; which one counts?");
        }
        shape.check_source(column).map_err(anyhow::Error::msg)?;
    }
    let missing = missing(shape, names);
    if !missing.is_empty() {
        bail!(
            "no column gives {}: take each from a column by --map COLUMN=FIELD, or give it one value by --set \
             FIELD=VALUE{}; the columns on line {line} are {all}",
            missing.join(", "),
            if missing.contains(&"recordId") {
                " (recordId: --map, or --idempotency-key KEY, from which ids are derived: the same key and file again \
                 give the same ids)"
            } else {
                ""
            }
        );
    }
    let unused: Vec<&str> = names.iter().filter(|name| !is_known(name)).map(String::as_str).collect();
    let (output, others): (Vec<&str>, Vec<&str>) = unused.into_iter().partition(|name| OUTPUT.contains(name));
    if !output.is_empty() {
        eprintln!("columns that are left out, because the API adds them to its answers: {}", output.join(", "));
    }
    if !others.is_empty() {
        eprintln!("columns that are left out: {}", others.join(", "));
    }
    Ok(())
}

/// Fields that no row of this table can have.
fn missing(shape: &Shape, names: &[String]) -> Vec<&'static str> {
    let is_given = |field: &str| {
        let is_taken = |name: &str| shape.map.iter().any(|Pair(column, _)| column == name);
        names.iter().any(|name| name == field && !is_taken(name))
            || shape.map.iter().any(|Pair(_, target)| target == field)
            || shape.set.iter().any(|Pair(target, _)| target == field)
            || shape.amounts.gives().contains(&field)
            || ["reverses", "attributes"].contains(&field)
            || field == "recordId" && shape.key.is_some()
    };
    FIELDS.into_iter().filter(|field| !is_given(field)).collect()
}

fn no_header(names: &[String], delimiter: u8, line: u64) -> anyhow::Error {
    for (other, flag) in [(';', "';'"), ('\t', "tab"), ('|', "'|'"), (',', ",")] {
        // A line of data holds decimal commas, but fewer than cells.
        let found = names.iter().map(|name| name.matches(other).count()).sum::<usize>();
        if u32::from(other) != u32::from(delimiter) && found >= names.len() {
            let named = if other == '\t' { "tabs".to_owned() } else { format!("{other:?}") };
            return anyhow::anyhow!(
                "line {line} holds {named} within its cells: they seem to separate the columns; give --delimiter {flag}"
            );
        }
    }
    anyhow::anyhow!(
        "line {line} is no header: none of its cells ({}) is a field of a record ({}), and no flag names one; \
         --skip-lines N leaves out lines before the header (here too few or too many), --map COLUMN=FIELD takes fields from columns of other names, \
         and a file without a header needs one",
        names.join(", "),
        FIELDS.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_data_in_the_place_of_the_header_is_no_case_for_another_delimiter() {
        let said = |cells: &[&str], delimiter| {
            let cells: Vec<_> = cells.iter().map(|cell| (*cell).to_owned()).collect();
            no_header(&cells, delimiter, 6).to_string()
        };
        let data = said(&["02.01.2026", "Stadtwerke", "-3.108,14", "EUR"], b';');
        assert!(data.contains("--skip-lines") && !data.contains("--delimiter"), "{data}");
        assert!(said(&["a;b;c"], b',').contains("--delimiter ';'"));
        assert!(said(&["a;b;c", "d"], b',').contains("--delimiter ';'"));
    }
}
