//! The load: records, the HTTP client, and the ways to send.
//!
//! Must never take an answer but 2xx for an accepted record.

pub(crate) mod beside;
pub(crate) mod closed;
pub(crate) mod http;
pub(crate) mod open;
pub(crate) mod record;
