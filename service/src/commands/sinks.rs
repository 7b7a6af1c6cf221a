//! `millrace sinks`: list sinks, resume one that is halted, and rewind one to an earlier point.
//!
//! Must never touch a stream: it writes in Postgres where a sink starts again, and the workers make its cursor.

mod rewind;

use anyhow::anyhow;
use millrace_crds::status_api::PublisherStatus;

use super::{job::Failure, keys::actor};
use crate::{
    config::Place,
    publish::{ResumeError, ResumeFrom, resume_sink},
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
        from: Option<ResumeFrom>,
        /// Start from the beginning although the stream still has entries: readers see their ids again
        #[arg(long)]
        repeat: bool,
    },
    /// Let a sink publish again from an earlier point
    Rewind(rewind::Rewind),
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

async fn snapshot(streams: &Streams, stream: &str) -> Result<SinkSnapshot, Failure> {
    streams.sink_snapshot(stream).await.map_err(|error| Failure::of_streams(streams, error))
}

async fn resume(
    store: &Store,
    streams: &Streams,
    name: &str,
    from: Option<ResumeFrom>,
    repeat: bool,
) -> anyhow::Result<()> {
    resume_sink(store, streams, name, from, repeat, &actor()).await.map_err(|error| failure(streams, error))?;
    let from = match from {
        Some(ResumeFrom::Now) => "starts again with what happens from now on",
        Some(ResumeFrom::Beginning) => "starts again with all that is stored",
        None => "continues at its position",
    };
    say!("{name}: {from}, as soon as a worker has read the change");
    Ok(())
}

/// A failure in the words of the command.
fn failure(streams: &Streams, error: ResumeError) -> anyhow::Error {
    match error {
        ResumeError::Streams(error) => Failure::of_streams(streams, error).into(),
        ResumeError::Store(error) => error.into(),
        ResumeError::Runs(name) => anyhow!(
            "{name} is neither halted nor disabled: it continues without a command; `millrace sinks list` shows what it waits for"
        ),
        ResumeError::FromMissing(name) => {
            anyhow!("{name}: --from is needed, now or beginning: the position of a halted sink is lost")
        }
        ResumeError::HasEntries { stream } => anyhow!(
            "{stream} still has entries, and from the beginning all ids come again behind them: empty it first \
             (XTRIM {stream} MAXLEN 0), or say --repeat if its readers leave out ids that they have seen, or --from now"
        ),
        error @ (ResumeError::Unknown { .. } | ResumeError::Removed(_)) => error.into(),
    }
}
