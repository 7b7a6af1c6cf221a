//! `millrace-operator`: brings what runs on a cluster to what each `RecordPipeline` says.

mod controller;
mod pipeline;

fn main() {}
