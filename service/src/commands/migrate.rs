//! `millrace migrate`: bring a pipeline's schema up to date.

use std::time::Duration;

use anyhow::Context as _;

use crate::{
    config::Place,
    store::{Error, Migrated, Store},
};

/// How long Postgres is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Flags of `millrace migrate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
}

/// Runs the command.
///
/// # Errors
/// What stopped it, in words for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    migrate(&args.place).await
}

/// Makes the schema of a pipeline or brings it up to date, claims it, and prints what was done. Waits up to a minute for
/// Postgres.
///
/// # Errors
/// What stopped it, in words for a person: Postgres is away, or the schema is another pipeline's.
pub async fn migrate(place: &Place) -> anyhow::Result<()> {
    let manifest = place.manifest()?;
    let name = &manifest.metadata.name;
    let store = Store::connect(&place.postgres_url()?, name, 2).context("the URL of Postgres")?;
    let outcome = async {
        let migrated = until_there(&store, name).await?;
        let fresh_id = hex::encode(rand::random::<[u8; 16]>());
        anyhow::Ok((migrated, store.claim(&manifest, &fresh_id).await?))
    };
    let outcome = outcome.await;
    store.close().await;
    let (Migrated { from, to }, pipeline) = outcome?;
    let schema = Store::schema(name);
    match from {
        0 => say!("schema {schema}: made, number {to}"),
        from if from < to => say!("schema {schema}: brought from number {from} to {to}"),
        _ => say!("schema {schema}: number {to} already"),
    }
    say!(
        "pipeline {}/{}: id {}, {} shards, uid {}",
        pipeline.namespace,
        pipeline.name,
        pipeline.pipeline_id,
        pipeline.shards,
        pipeline.uid
    );
    Ok(())
}

async fn until_there(store: &Store, name: &str) -> anyhow::Result<Migrated> {
    let (mut waited, mut pause) = (Duration::ZERO, Duration::from_millis(200));
    loop {
        match store.migrate(name).await {
            Err(Error::Sql(error)) if is_away(&error) && waited < LONGEST_WAIT => {
                eprintln!("waiting for Postgres: {error}");
            }
            outcome => return Ok(outcome?),
        }
        tokio::time::sleep(pause).await;
        waited += pause;
        pause = (pause * 2).min(Duration::from_secs(5));
    }
}

/// Whether waiting may help: no connection, or a server that starts, stops or is full (SQLSTATE classes 57P and 53).
fn is_away(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_) | sqlx::Error::PoolTimedOut => true,
        sqlx::Error::Database(error) => {
            error.code().is_some_and(|code| code.starts_with("57P") || code.starts_with("53"))
        }
        _ => false,
    }
}
