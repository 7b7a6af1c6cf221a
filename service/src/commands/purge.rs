//! `millrace purge`: remove all that a pipeline has in Postgres and Redis.
//!
//! Must never remove anything before it has seen that all of it is this pipeline's and that no worker has a shard. Redis
//! first and the schema last, for the schema knows what there is: cut short, it continues where it was when it is run again.

use millrace_crds::{ADOPT, Reason, RecordPipeline, status_api::TerminationMessage};

use super::job::{Failure, JobArgs};
use crate::{
    store::{Purge, Store},
    streams::{Holding, Removed, Streams},
};

/// Flags of `millrace purge`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// Do it; without this it is only said what would be removed
    #[arg(long)]
    yes: bool,
}

/// Runs the command.
///
/// # Errors
/// A failure, described for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args { job, yes } = args;
    let ended = try_run(&job, yes).await;
    match ended {
        // Nothing happened that somebody could wait for.
        Ok(TerminationMessage { message, .. }) if !yes => {
            say!("{message}");
            Ok(())
        }
        ended => {
            if let Ok(TerminationMessage { message, .. }) = &ended {
                say!("{message}");
            }
            job.leave(ended)
        }
    }
}

async fn try_run(job: &JobArgs, yes: bool) -> Result<TerminationMessage, Failure> {
    let manifest = job.place.manifest().map_err(|error| Failure::new(Reason::ManifestInvalid, format!("{error:#}")))?;
    let name = &manifest.metadata.name;
    job.retry(async |left| {
        let spec = Some(&manifest.spec);
        let redis = job.place.redis(spec).map_err(|error| Failure::of_url("Redis", &error))?;
        let streams = Streams::connect(&redis, name)?;
        let postgres = job.place.postgres(spec).map_err(|error| Failure::of_url("Postgres", &error))?;
        let store = JobArgs::reach(&postgres, name, left).await?;
        let done = match store.begin_purge(&manifest).await {
            Ok(Some(purge)) => remove(&manifest, &streams, purge, yes).await,
            Ok(None) => nothing_in_postgres(&manifest, &streams).await,
            Err(error) => Err(error.into()),
        };
        store.close().await;
        done
    })
    .await
}

async fn remove(
    manifest: &RecordPipeline,
    streams: &Streams,
    purge: Purge,
    yes: bool,
) -> Result<TerminationMessage, Failure> {
    let (schema, records) = (Store::schema(&manifest.metadata.name), purge.records);
    let (id, adopt) = (purge.pipeline.pipeline_id.clone(), manifest.annotation(ADOPT));
    let holdings = streams.holdings(purge.pipeline.shards, &purge.sinks).await;
    let holdings = holdings.map_err(|error| Failure::of_streams(streams, error))?;
    refuse_external(&holdings, &[&id, adopt])?;
    let there: Vec<&Holding> = holdings.iter().filter(|holding| holding.is_there).collect();
    if !yes {
        let mut lines = vec![format!("would remove, with --yes:\nschema {schema} with {records} records")];
        lines.extend(there.iter().map(|holding| format!("stream {} with {} entries", holding.stream, holding.entries)));
        return Ok(outcome(lines.join("\n"), &id));
    }
    let (mut entries, mut gone, mut left) = (0, 0, Vec::new());
    for holding in there {
        match streams.remove(holding, &id, adopt).await? {
            Removed::Gone(removed) => {
                entries += removed;
                gone += 1;
            }
            Removed::Left => left.push(holding.stream.as_str()),
        }
    }
    purge.drop_schema().await?;
    let mut message =
        format!("removed schema {schema} with {records} records, and {gone} streams with {entries} entries");
    if !left.is_empty() {
        let left = left.join(", ");
        message.push_str(&format!("; left, for nothing beside them tells whose they are: {left}"));
    }
    Ok(outcome(message, &id))
}

/// For a pipeline without a schema: what is left in Redis is nothing, or of another pipeline.
async fn nothing_in_postgres(manifest: &RecordPipeline, streams: &Streams) -> Result<TerminationMessage, Failure> {
    let holdings = streams.holdings(manifest.spec.shards, &[]).await?;
    refuse_external(&holdings, &[])?;
    Ok(outcome("nothing is left of this pipeline".to_owned(), ""))
}

fn refuse_external(holdings: &[Holding], ours: &[&str]) -> Result<(), Failure> {
    let external = holdings.iter().find_map(|holding| {
        let id = holding.pipeline_id.as_deref().filter(|id| !ours.contains(id))?;
        Some((&holding.stream, id))
    });
    match external {
        Some((stream, id)) => Err(Failure::new(
            Reason::OtherPipeline,
            format!(
                "the stream {stream} belongs to the pipeline with id {id}, which is not this one: nothing was removed"
            ),
        )),
        None => Ok(()),
    }
}

fn outcome(message: String, id: &str) -> TerminationMessage {
    let pipeline_id = (!id.is_empty()).then(|| id.to_owned());
    TerminationMessage { reason: Reason::Purged, message, schema: None, pipeline_id, contract: None }
}
