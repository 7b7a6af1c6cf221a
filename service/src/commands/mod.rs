//! The subcommands of `millrace`, one file each.

mod api;
mod backoff;
pub mod config;
pub mod dev;
pub mod export;
mod job;
pub mod keys;
pub mod losses;
pub mod migrate;
pub mod openapi;
pub mod purge;
pub mod send;
pub mod serve;
pub mod sinks;
pub mod verify;
pub mod work;

use millrace_crds::{Reason, RecordPipelineSpec, status_api::Problem};

use self::job::Failure;
use crate::{
    board::{not_migrated, of_postgres},
    config::Place,
    store::{self, Store},
    streams::Streams,
};

/// Streams of business records into exact totals, notifications and alerts.
#[derive(Debug, clap::Parser)]
#[command(name = "millrace", version, max_term_width = 110)]
pub enum Command {
    /// The HTTP role: takes records, answers queries.
    Serve(serve::Args),
    /// The worker role: applies records, publishes outcomes.
    Work(work::Args),
    /// Bring the pipeline's schema in Postgres up to date.
    Migrate(migrate::Args),
    /// Remove all that a pipeline has in Postgres and Redis.
    Purge(purge::Args),
    /// Print the OpenAPI document.
    Openapi(openapi::Args),
    /// Run a whole pipeline on this machine, with a Redis and a Postgres of its own.
    Dev(dev::Args),
    /// Send records from a file, from standard input, or generated.
    Send(Box<send::Args>),
    /// Write processed records to a file, as NDJSON or CSV, and continue one that was cut.
    Export(export::Args),
    /// Re-derive totals, summaries and alerts from the records, and compare them with what is stored and published.
    Verify(verify::Args),
    /// List sinks, resume a halted one.
    Sinks(sinks::Args),
    /// Acknowledge losses whose number no server holds.
    Losses(losses::Args),
    /// Make, list, rotate and revoke API keys.
    Keys(keys::Args),
    /// Print the configuration that is active, secrets hidden.
    Config(config::Args),
}

/// Connects a command to the schema of a pipeline, which has to exist.
async fn postgres(place: &Place, pipeline: &str, connections: u32) -> Result<Store, Failure> {
    let endpoint = place.postgres(spec(place).as_ref()).map_err(|error| Failure::of_url("Postgres", &error))?;
    let store = Failure::unless_answers(Store::connect(&endpoint, pipeline, connections)).await?;
    // Also whether the role may use the schema.
    store.pipeline().await?.ok_or_else(not_migrated)?;
    Ok(store)
}

/// Prepares a command's connections to Redis, which are opened when they are used.
fn redis(place: &Place, pipeline: &str) -> Result<Streams, Failure> {
    let endpoint = place.redis(spec(place).as_ref()).map_err(|error| Failure::of_url("Redis", &error))?;
    Ok(Streams::connect(&endpoint, pipeline)?)
}

/// The spec of the manifest, which names the Secrets; a command with a pipeline's name needs no manifest.
fn spec(place: &Place) -> Option<RecordPipelineSpec> {
    place.manifest().ok().map(|manifest| manifest.spec)
}

/// Adds the reason of an error of Postgres, in the words of `/status`.
fn with_reason(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref::<store::Error>().map(of_postgres) {
        Some(Problem {
            reason: reason @ (Reason::PostgresPermissionDenied | Reason::PostgresReadOnlyOrFull), ..
        }) => error.context(reason),
        _ => error,
    }
}

impl Command {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// A failure, described for a person.
    pub async fn run(self) -> anyhow::Result<()> {
        let outcome = match self {
            Self::Serve(args) => serve::run(args).await,
            Self::Work(args) => work::run(args).await,
            Self::Migrate(args) => migrate::run(args).await,
            Self::Purge(args) => purge::run(args).await,
            Self::Openapi(args) => openapi::run(args).await,
            Self::Dev(args) => dev::run(args).await,
            Self::Send(args) => send::run(*args).await,
            Self::Export(args) => export::run(args).await,
            Self::Verify(args) => verify::run(args).await,
            Self::Sinks(args) => sinks::run(args).await,
            Self::Losses(args) => losses::run(args).await,
            Self::Keys(args) => keys::run(args).await,
            Self::Config(args) => config::run(args).await,
        };
        outcome.map_err(with_reason)
    }
}
