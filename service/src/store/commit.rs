//! One micro-batch in one transaction.
