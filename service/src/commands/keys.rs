//! `millrace keys`: make, list and revoke API keys.

/// Flags of `millrace keys`.
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
