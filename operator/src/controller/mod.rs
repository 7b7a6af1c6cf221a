//! From a `RecordPipeline` to what runs: one file per step.

pub(crate) mod build;
