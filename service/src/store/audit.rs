//! Facts, derived from what is stored.
