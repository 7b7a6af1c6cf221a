//! Sinks that were started.
