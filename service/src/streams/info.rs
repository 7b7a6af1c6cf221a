//! What Redis promises and how much is queued.
