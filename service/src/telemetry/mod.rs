//! Logs, metrics and traces of this process.
//!
//! Must never show a body, a key or a password.
