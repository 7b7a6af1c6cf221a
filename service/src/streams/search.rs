//! Looking for a record that is still queued.
