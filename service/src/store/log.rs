//! Committed rows, read back for lanes.
