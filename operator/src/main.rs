//! `millrace-operator`: brings what runs on a cluster to what each `RecordPipeline` says.
//!
//! Must never read a Secret, Redis or Postgres: what it knows of a pipeline its pods tell it.

mod backoff;
mod cache;
mod commands;
mod context;
mod controller;
mod facts;
mod lease;
mod metrics;
mod pipeline;

use clap::Parser as _;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    commands::Command::parse().run().await
}
