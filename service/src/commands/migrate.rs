//! `millrace migrate`: bring a pipeline's schema up to date.

use millrace_crds::RecordPipeline;

use millrace_crds::{
    Reason,
    status_api::{SchemaNumbers, TerminationMessage},
};

use super::job::{Failure, JobArgs};
use crate::{
    config::Place,
    store::{Error, Migrated, Pipeline, Store},
};

/// Flags of `millrace migrate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    job: JobArgs,
    /// Take away, too, what only older versions use: when no process of one is left
    #[arg(long)]
    contract: bool,
}

/// Runs the command.
///
/// # Errors
/// A failure, described for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args { job, contract } = args;
    let ended = try_run(&job, contract).await;
    if let Ok((migrated, pipeline)) = &ended {
        print(migrated, pipeline);
    }
    job.leave(ended.map(|(migrated, pipeline)| outcome(&migrated, &pipeline)))
}

/// Makes the schema of a pipeline or brings it up to date, claims it, and prints what was done. Waits up to a minute for
/// Postgres.
///
/// # Errors
/// Postgres is unavailable, or the schema is another pipeline's; described for a person.
pub async fn migrate(place: &Place) -> anyhow::Result<()> {
    let (migrated, pipeline) = try_run(&JobArgs::local(place), false).await?;
    print(&migrated, &pipeline);
    Ok(())
}

async fn try_run(job: &JobArgs, contract: bool) -> Result<(Migrated, Pipeline), Failure> {
    let manifest = job.place.manifest().map_err(|error| Failure::new(Reason::ManifestInvalid, format!("{error:#}")))?;
    let name = &manifest.metadata.name;
    job.retry(async |left| {
        let postgres = job.place.postgres(Some(&manifest.spec)).map_err(|error| Failure::of_url("Postgres", &error))?;
        let store = JobArgs::reach(&postgres, name, left).await?;
        let done = attempt(&store, &manifest, contract).await;
        store.close().await;
        done
    })
    .await
}

async fn attempt(store: &Store, manifest: &RecordPipeline, contract: bool) -> Result<(Migrated, Pipeline), Failure> {
    let name = &manifest.metadata.name;
    let migrated = if contract { store.migrate_and_contract(name).await } else { store.migrate(name).await }?;
    let fresh_id = hex::encode(rand::random::<[u8; 16]>());
    let pipeline = store.claim(manifest, &fresh_id).await.map_err(|error| match error {
        // Such as another number of shards.
        Error::Refused(why) => Failure::new(Reason::ManifestInvalid, why),
        error => error.into(),
    })?;
    store.create_partitions(manifest.spec.retention.unwrap_or_default().partition).await?;
    // Those that the role of the workers may not drop. Workers note them, for only they see the sinks.
    for period in store.drop_noted().await? {
        say!("dropped the partition of {period}, whose records are no longer kept");
    }
    Ok((migrated, pipeline))
}

fn print(migrated: &Migrated, pipeline: &Pipeline) {
    let Migrated { from, to, contracting } = *migrated;
    let schema = Store::schema(&pipeline.name);
    match from {
        0 => say!("schema {schema}: made, number {to}"),
        from if from < to => say!("schema {schema}: brought from number {from} to {to}"),
        _ => say!("schema {schema}: number {to} already"),
    }
    if contracting > 0 {
        say!("{contracting} contracting steps wait for `millrace migrate --contract`, when no older process is left");
    }
    say!(
        "pipeline {}/{}: id {}, {} shards, uid {}",
        pipeline.namespace,
        pipeline.name,
        pipeline.pipeline_id,
        pipeline.shards,
        pipeline.uid
    );
}

fn outcome(migrated: &Migrated, pipeline: &Pipeline) -> TerminationMessage {
    let Migrated { from, to, contracting } = *migrated;
    TerminationMessage {
        reason: Reason::Migrated,
        message: format!("schema {} has number {to}", Store::schema(&pipeline.name)),
        schema: Some(SchemaNumbers { from, to }),
        pipeline_id: Some(pipeline.pipeline_id.clone()),
        contract: Some(contracting),
    }
}
