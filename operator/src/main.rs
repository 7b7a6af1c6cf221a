//! `millrace-operator`: runs on a cluster the pods and objects that each `RecordPipeline` describes.
//!
//! It must never read a Secret, Redis or Postgres: the state of a pipeline comes from the `/status` of its pods.

mod backoff;
mod cache;
mod clock;
mod commands;
mod context;
mod controller;
mod facts;
mod lease;
mod metrics;

use clap::Parser as _;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    commands::Command::parse().run().await
}
