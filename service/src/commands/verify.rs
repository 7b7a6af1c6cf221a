//! `millrace verify`: re-derive what is stored from the records and compare.

/// Flags of `millrace verify`.
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
