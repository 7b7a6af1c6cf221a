//! `millrace sinks`: list sinks and resume halted ones.

/// Flags of `millrace sinks`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command.
///
/// # Errors
/// What stopped it, in words for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args {} = args;
    anyhow::bail!("not built yet")
}
