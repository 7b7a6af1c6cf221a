//! Takes the place of the crate of this name (see `[patch.crates-io]` in the workspace's manifest), whose list the
//! clients of Redis and Postgres would add to the certificates that they are given.
//!
//! The list must stay empty: with `sslmode=verify-ca` and an own authority, any holder of a public certificate could
//! otherwise answer as Postgres. Millrace gives the clients every authority itself (`service/src/tls`).

/// The authorities that clients trust unasked: none.
pub const TLS_SERVER_ROOTS: &[pki_types::TrustAnchor<'static>] = &[];
