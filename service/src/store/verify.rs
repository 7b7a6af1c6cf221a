//! What is stored, re-derived from the records.
