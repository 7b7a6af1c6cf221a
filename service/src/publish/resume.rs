//! The start of a sink that is halted or disabled.
//!
//! Must never touch a stream: it writes in Postgres where a sink starts again, and the workers make its cursor.

use millrace_crds::status_api::PublisherState;

use crate::{
    store::{self, Actor, SinkRow, Store},
    streams::{self, Streams},
};

/// Where a sink starts again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, poem_openapi::Enum)]
#[oai(rename = "SinkStart", rename_all = "camelCase")]
pub enum ResumeFrom {
    /// With what happens from now on.
    Now,
    /// With all that is stored.
    Beginning,
}

/// Why a sink does not start again.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// No sink has the name.
    #[error("there is no sink {name}; there are: {known}")]
    Unknown {
        /// The name.
        name: String,
        /// The names of all sinks.
        known: String,
    },
    /// It is neither halted nor disabled: it would repeat all of its outcomes, or leave a gap.
    #[error("{0} is neither halted nor disabled: it continues by itself; its states show what it waits for")]
    Runs(String),
    /// The position of a halted sink is lost.
    #[error("{0}: `from` is needed, now or beginning: the position of a halted sink is lost")]
    FromMissing(String),
    /// From the beginning, all ids come again behind the entries of its stream.
    #[error(
        "{stream} still has entries, and from the beginning all ids come again behind them: empty it first \
         (XTRIM {stream} MAXLEN 0), or say `repeat` if its readers leave out ids that they have seen, or `from` now"
    )]
    HasEntries {
        /// The stream.
        stream: String,
    },
    /// The manifest no longer has it.
    #[error("{0} is being removed")]
    Removed(String),
    /// Postgres does not answer.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Redis does not answer.
    #[error(transparent)]
    Streams(#[from] streams::Error),
}

/// The row of a sink.
///
/// # Errors
/// When there is none of that name, or Postgres does not answer.
pub async fn find_sink(store: &Store, name: &str) -> Result<SinkRow, ResumeError> {
    let mut known = store.sinks().await?;
    let Some(index) = known.iter().position(|known| known.name == name) else {
        let known: Vec<String> = known.into_iter().map(|row| row.name).collect();
        return Err(ResumeError::Unknown { name: name.to_owned(), known: known.join(", ") });
    };
    Ok(known.swap_remove(index))
}

/// Whether a publisher of a sink is halted.
///
/// # Errors
/// When Postgres does not answer.
pub async fn is_halted(store: &Store, name: &str) -> Result<bool, store::Error> {
    let states = store.sink_states().await?;
    Ok(states.iter().any(|status| status.sink == name && status.state == PublisherState::Halted))
}

/// Whether the cursor of a sink's newest start is beside its stream; one that was never made is not gone.
///
/// # Errors
/// When Redis does not answer.
pub async fn has_cursor(streams: &Streams, row: &SinkRow) -> Result<bool, streams::Error> {
    let Some(stream) = row.stream.as_ref().filter(|_| row.started) else { return Ok(true) };
    Ok(streams.sink_snapshot(stream).await?.cursor_generation.as_ref() == Some(&row.cursor_generation))
}

/// Lets a halted sink start again at `from`, or without it a disabled webhook continue at its position.
///
/// # Errors
/// When its state does not allow it, or a server does not answer.
pub async fn resume_sink(
    store: &Store,
    streams: &Streams,
    name: &str,
    from: Option<ResumeFrom>,
    repeat: bool,
    actor: &Actor,
) -> Result<(), ResumeError> {
    let row = find_sink(store, name).await?;
    let Some(from) = from else {
        if row.stream.is_some() {
            return Err(ResumeError::FromMissing(row.name));
        }
        let enabled = store.enable_webhook(name, actor).await?;
        return if enabled { Ok(()) } else { Err(ResumeError::Runs(row.name)) };
    };
    // One whose shards are idle has not noticed yet that its cursor is gone.
    if !is_halted(store, name).await? && !row.disabled && has_cursor(streams, &row).await? {
        return Err(ResumeError::Runs(row.name));
    }
    if let Some(stream) = row.stream.as_ref().filter(|_| from == ResumeFrom::Beginning && !repeat)
        && streams.sink_snapshot(stream).await?.newest.is_some()
    {
        return Err(ResumeError::HasEntries { stream: stream.clone() });
    }
    let fresh = store.cursor_generation().await?;
    let resumed = store.resume_sink(name, &fresh, from == ResumeFrom::Beginning, actor).await?;
    if resumed { Ok(()) } else { Err(ResumeError::Removed(row.name)) }
}
