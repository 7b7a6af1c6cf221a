//! `millrace sinks`: list sinks, resume one that is halted, and rewind one to an earlier point.
//!
//! Must never touch a stream: it writes in Postgres where a sink starts again, and the workers make its cursor.

mod rewind;

use anyhow::bail;
use millrace_crds::status_api::{PublisherState, PublisherStatus};

use super::{job::Failure, keys::actor};
use crate::{
    config::Place,
    store::{SinkRow, Store},
    streams::{SinkSnapshot, Streams},
};

/// Flags of `millrace sinks`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    action: Option<Action>,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the sinks that were started, and what stops them; also without a word
    List,
    /// Start a halted sink again, whose old position is lost; or enable a webhook that is disabled
    Resume {
        /// Its name
        name: String,
        /// Where it starts: with what happens from now on, or with all that is stored; without it, a disabled webhook
        /// continues at its position
        #[arg(long)]
        from: Option<Start>,
        /// Start from the beginning although the stream still has entries: readers see their ids again
        #[arg(long)]
        repeat: bool,
    },
    /// Let a sink publish again from an earlier point
    Rewind(rewind::Rewind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Start {
    /// With what happens from now on
    Now,
    /// With all that is stored
    Beginning,
}

/// Runs the command.
///
/// # Errors
/// A failure, described for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args { place, action } = args;
    let pipeline = place.name()?;
    let store = super::postgres(&place, &pipeline, 1).await?;
    let streams = super::redis(&place, &pipeline)?;
    let outcome = match action.unwrap_or(Action::List) {
        Action::List => list(&store).await,
        Action::Resume { name, from, repeat } => resume(&store, &streams, &name, from, repeat).await,
        Action::Rewind(args) => rewind::run(&store, &streams, args).await,
    };
    store.close().await;
    outcome
}

async fn list(store: &Store) -> anyhow::Result<()> {
    let states = store.sink_states().await?;
    for row in store.sinks().await? {
        let SinkRow { name, kind, stream, started, old_stream, removed, completed, .. } = row;
        let stream = stream.unwrap_or_else(|| "webhook".to_owned());
        let phase = match (removed, started, old_stream) {
            (true, _, _) => "being removed".to_owned(),
            (false, true, None) if completed => "complete".to_owned(),
            (false, false, Some(old)) => format!("moving here from {old}"),
            (false, false, None) => "not started yet".to_owned(),
            (false, true, _) => "started".to_owned(),
        };
        say!("{name}\t{}\t{stream}\t{phase}", kind.as_str());
        for PublisherStatus { shard, state, detail, .. } in states.iter().filter(|status| status.sink == name) {
            say!("\tshard {shard}: {}: {detail}", state.as_str());
        }
    }
    Ok(())
}

async fn find(store: &Store, name: &str) -> anyhow::Result<SinkRow> {
    let mut known = store.sinks().await?;
    let Some(index) = known.iter().position(|known| known.name == name) else {
        let known: Vec<String> = known.into_iter().map(|row| row.name).collect();
        bail!("there is no sink {name}; there are: {}", known.join(", "));
    };
    Ok(known.swap_remove(index))
}

async fn is_halted(store: &Store, name: &str) -> anyhow::Result<bool> {
    let states = store.sink_states().await?;
    Ok(states.iter().any(|status| status.sink == name && status.state == PublisherState::Halted))
}

async fn snapshot(streams: &Streams, stream: &str) -> Result<SinkSnapshot, Failure> {
    streams.sink_snapshot(stream).await.map_err(|error| Failure::of_streams(streams, error))
}

/// Whether the cursor of a sink's newest start is beside its stream; one that was never made is not gone.
async fn has_cursor(streams: &Streams, row: &SinkRow) -> anyhow::Result<bool> {
    let Some(stream) = row.stream.as_ref().filter(|_| row.started) else { return Ok(true) };
    Ok(snapshot(streams, stream).await?.cursor_generation.as_ref() == Some(&row.cursor_generation))
}

async fn resume(store: &Store, streams: &Streams, name: &str, from: Option<Start>, repeat: bool) -> anyhow::Result<()> {
    let row = find(store, name).await?;
    let Some(from) = from else { return enable(store, &row).await };
    // A sink that runs would repeat all of its outcomes, or leave a gap. One whose shards are idle has not noticed yet that
    // its cursor is gone.
    if !is_halted(store, name).await? && !row.disabled && has_cursor(streams, &row).await? {
        bail!("{name} is not halted: it continues without a command; `millrace sinks list` shows what it waits for");
    }
    if let Some(stream) = row.stream.as_ref().filter(|_| from == Start::Beginning && !repeat)
        && snapshot(streams, stream).await?.newest.is_some()
    {
        bail!(
            "{stream} still has entries, and from the beginning all ids come again behind them: empty it first \
             (XTRIM {stream} MAXLEN 0), or say --repeat if its readers leave out ids that they have seen, or --from now"
        );
    }
    let fresh = store.cursor_generation().await?;
    if !store.resume_sink(name, &fresh, from == Start::Beginning, &actor()).await? {
        bail!("{name} is being removed");
    }
    let from = match from {
        Start::Now => "what happens from now on",
        Start::Beginning => "all that is stored",
    };
    say!("{name}: starts again with {from}, as soon as a worker has read the change");
    Ok(())
}

/// Lets a disabled webhook continue at its position.
async fn enable(store: &Store, row: &SinkRow) -> anyhow::Result<()> {
    let name = &row.name;
    if row.stream.is_some() {
        bail!("{name}: --from is needed, now or beginning: the position of a halted sink is lost");
    }
    if !store.enable_webhook(name, &actor()).await? {
        bail!("{name} is not disabled: it continues without a command; `millrace sinks list` shows what it waits for");
    }
    say!("{name}: continues at its position, as soon as a worker has read the change");
    Ok(())
}
