//! A digest of a record's content, by which the id ledger separates a duplicate from a conflict.
//!
//! Its canonical form is documented in `docs/digest.md`. It must never change: digests are stored and outlive their
//! records. Another form is another version.

use std::{fmt, io::Write as _};

use sha2::{Digest as _, Sha256};

use super::Record;

/// The version of the canonical form.
const VERSION: u8 = 1;
/// Room for the canonical form of most records without attributes.
const USUAL_BYTES: usize = 256;

/// A digest of a record's content and id: one byte of version, then 120 bits of SHA-256.
///
/// Two records are equal if and only if their digests are, apart from collisions of the hash. Digests of different
/// versions are not comparable.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ContentDigest([u8; 16]);

impl ContentDigest {
    /// The digest of a record.
    #[must_use]
    pub fn of(record: &Record) -> Self {
        let hash = Sha256::digest(canonical_form(record));
        let mut bytes = [VERSION; 16];
        bytes[1..].copy_from_slice(&hash[..15]);
        Self(bytes)
    }

    /// A stored digest.
    #[must_use]
    pub fn stored(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContentDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Equal for equal records, and for no others.
fn canonical_form(record: &Record) -> Vec<u8> {
    // Every field is named here, so that none can be left out.
    let Record { record_id, time, source_id, destination_id, kind, value, unit, reference, attributes, reverses } =
        record;
    let mut form = Form(Vec::with_capacity(USUAL_BYTES));
    form.field(record_id.as_str().as_bytes());
    form.field(&time.timestamp_micros().to_be_bytes());
    form.field(source_id.as_str().as_bytes());
    form.field(destination_id.as_str().as_bytes());
    form.field(kind.as_str().as_bytes());
    // Without trailing zeros behind the point, and zero without a sign. The decision gives a reversal of what remains its value.
    form.written(|out| if record.is_whole_reversal() { Ok(()) } else { write!(out, "{}", value.get().normalize()) });
    form.field(unit.as_str().as_bytes());
    form.field(reference.as_str().as_bytes());
    if let Some(attributes) = attributes {
        form.field(attributes.canonical().as_bytes());
    }
    if let Some(reverses) = reverses {
        // No attributes are empty: this cannot be read as theirs.
        form.field(&[]);
        form.field(reverses.as_str().as_bytes());
    }
    form.0
}

/// Fields behind their lengths, so that no byte can pass from one field to its neighbour.
struct Form(Vec<u8>);

impl Form {
    fn field(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(&length(bytes.len()));
        self.0.extend_from_slice(bytes);
    }

    /// A field whose length is known once it is written.
    fn written(&mut self, write: impl FnOnce(&mut Vec<u8>) -> std::io::Result<()>) {
        let begin = self.0.len() + size_of::<u32>();
        self.0.extend_from_slice(&length(0));
        // A vector takes every byte.
        let _ = write(&mut self.0);
        let length = length(self.0.len() - begin);
        self.0[begin - length.len()..begin].copy_from_slice(&length);
    }
}

fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).expect("a field has a few KiB at most").to_be_bytes()
}

#[cfg(test)]
mod tests;
