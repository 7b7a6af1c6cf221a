//! `millrace-operator`: brings what runs on a cluster to what each `RecordPipeline` says.

mod pipeline;

fn main() {}
