//! `--trim`: white space and invisible characters at both ends of a text.

use std::borrow::Cow;

use super::shape::{Cell, NamedCell};

/// White space, and characters that nobody sees and that make two equal texts differ.
fn is_removed(character: char) -> bool {
    character.is_whitespace()
        || matches!(character,
            '\u{200b}' | '\u{feff}' | '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}')
}

/// A text without them.
pub(super) fn text(text: &str) -> &str {
    text.trim_matches(is_removed)
}

/// All texts of a row without them.
pub(super) fn cells(cells: &mut [NamedCell<'_>]) {
    for NamedCell { cell, .. } in cells {
        if let Cell::Text(whole) = cell {
            let trimmed = text(whole);
            if trimmed.len() < whole.len() {
                *whole = Cow::Owned(trimmed.to_owned());
            }
        }
    }
}
