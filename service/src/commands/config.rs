//! `millrace config`: print what is in force, secrets hidden.

/// Flags of `millrace config`.
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
