//! Writes a period to the archive of the manifest before it is noted as no longer kept.
//!
//! Must never let a period pass that the archive does not hold.

use millrace_crds::{Reason, status_api::Problem};

use super::Context;
use crate::{
    archive::{Archive, ArchiveError, Owner},
    domain::Period,
    store,
};

/// The part of the board for the archive.
pub(super) const ARCHIVE: &str = "archive";

/// Whether a period may be dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Archived {
    /// The manifest has no archive.
    NotAsked,
    /// It is written, at this place.
    At(String),
    /// It is not written yet: the archive failed, or the manifest names another one now.
    Not,
}

/// Writes what is missing of a period.
///
/// # Errors
/// When Postgres does not answer. A failing archive is a problem of the process.
pub(super) async fn archive(context: &Context, period: Period) -> Result<Archived, store::Error> {
    let asked = || context.active_manifest.borrow().manifest.spec.archive.clone();
    let Some(spec) = asked() else {
        context.board.set(ARCHIVE, []);
        return Ok(Archived::NotAsked);
    };
    match write(context, &spec, period, || asked().as_ref() == Some(&spec)).await {
        Ok(archived) => {
            context.board.set(ARCHIVE, []);
            Ok(archived)
        }
        Err(ArchiveError::Store(error)) => Err(error),
        Err(error) => {
            report(context, period, &error);
            Ok(Archived::Not)
        }
    }
}

async fn write(
    context: &Context,
    spec: &millrace_crds::Archive,
    period: Period,
    continues: impl Fn() -> bool,
) -> Result<Archived, ArchiveError> {
    let active = context.active_manifest.borrow().clone();
    let owner = Owner { pipeline: &active.manifest.metadata.name, pipeline_id: &active.pipeline_id };
    let archive = Archive::open(spec, owner, context.archive_secrets.as_deref())?;
    let Some(written) = archive.write(&context.store, period, continues).await? else { return Ok(Archived::Not) };
    if written.objects > 0 {
        tracing::info!(
            event = "worker.archive.written",
            %period,
            place = archive.place(),
            objects = written.objects,
            records = written.records,
            bytes = written.bytes,
            "a partition that is due is in the archive"
        );
    }
    Ok(Archived::At(archive.place().to_owned()))
}

/// Shows why a period cannot be archived; logged once per cause.
fn report(context: &Context, period: Period, error: &ArchiveError) {
    let reason = match error {
        ArchiveError::Secret(error) => error.problem().map(|problem| problem.reason),
        ArchiveError::Store(_) | ArchiveError::Place { .. } => None,
    };
    let message = format!("the partition of {period} is due and stays until it is archived: {error}");
    let problem = Problem::new(reason.unwrap_or(Reason::ArchiveFailing), &message);
    if context.board.of(ARCHIVE) != [problem.clone()] {
        tracing::warn!(
            event = "worker.archive.failed",
            %period,
            %error,
            "a partition that is due cannot be archived; the worker retries"
        );
    }
    context.board.set(ARCHIVE, [problem]);
}
