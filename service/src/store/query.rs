//! Records, aggregations, rollups and conflicts, read.
