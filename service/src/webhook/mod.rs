//! Deliveries over HTTP: the only place that posts to the endpoints of webhooks, by Standard Webhooks 1.0.
//!
//! It must never connect to an address that the manifest does not allow, must never follow a redirect, and must never show a
//! key, a header from a Secret, or the body of an answer.

mod address;
mod answer;
mod client;
#[cfg(test)]
mod client_tests;
mod connector;
mod headers;
mod keys;

pub use address::Allowed;
pub use answer::{Answer, Failure};
pub use client::{Client, Request};
pub use headers::ExtraHeaders;
pub use keys::SigningKeys;
