//! `millrace losses`: acknowledge losses whose number no server holds.

use super::keys::actor;
use crate::config::Place;

/// Flags of `millrace losses`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Set lossUncertain to false, once the clients have sent the records of that time again
    Acknowledge {
        /// A note for the audit trail
        #[arg(long, default_value = "")]
        reason: String,
    },
}

/// Runs the command.
///
/// # Errors
/// A failure, described for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args { place, action: Action::Acknowledge { reason } } = args;
    let pipeline = place.name()?;
    let store = super::postgres(&place, &pipeline, 1).await?;
    let acknowledged = store.acknowledge_losses(&actor(), &reason).await;
    store.close().await;
    let shards: Vec<String> = acknowledged?.iter().map(ToString::to_string).collect();
    match shards.as_slice() {
        [] => say!("no shard has an uncertain loss"),
        shards => say!("acknowledged the uncertain losses of shards {}", shards.join(", ")),
    }
    Ok(())
}
