//! x
#![allow(dead_code)]
mod guide;
mod home;
mod postgres;
mod process;
mod redis;
mod servers;
mod tools;

/// Flags.
#[derive(Debug, clap::Args)]
pub struct Args {}
/// Runs.
/// # Errors
/// x
pub async fn run(_: Args) -> anyhow::Result<()> {
    Ok(())
}
