//! Publishers of webhooks: they deliver the outcomes of one shard to an HTTP endpoint, at least once.
//!
//! One decides which delivery comes next (`window.rs`, `waiting.rs`, `health.rs`: pure), the other makes it (`publisher.rs`,
//! `session.rs`). They must never let a destination overtake itself, and must never hold more than a bounded number of
//! outcomes, whatever the endpoint does.

mod body;
mod health;
mod measures;
mod publisher;
mod retry;
mod secrets;
mod session;
mod task;
#[cfg(test)]
mod tests;
mod waiting;
mod window;

pub(super) use publisher::Publisher;
pub use secrets::WebhookSecrets;
