//! `millrace send`: send records from a file, standard input, or generated.

/// Flags of `millrace send`.
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
