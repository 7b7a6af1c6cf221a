//! Shared parts of commands: why one failed. Those that run as a Job retry for a while, and leave one line about their
//! outcome.

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use millrace_crds::{
    Reason,
    status_api::{Problem, TerminationMessage},
};

use crate::{
    board::reason_of_postgres,
    config::{Place, SecretError},
    store::{self, Store},
    streams::{self, Streams},
    tls::Endpoint,
};

/// Longest message: what Kubernetes keeps of a termination log has an end.
const LONGEST_MESSAGE: usize = 2_000;
/// Longest wait of one attempt for a lock. A waiting migration makes others wait behind it, so it tries again and again.
const LONGEST_LOCK: Duration = Duration::from_secs(5);

/// Flags of such a command.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct JobArgs {
    #[command(flatten)]
    pub(super) place: Place,
    /// How long a Secret that is missing and a server that is unavailable are waited for, in milliseconds
    #[arg(long, value_name = "MS", env = "MILLRACE_WAIT_MS", default_value_t = 60_000)]
    pub(super) wait_ms: u64,
    /// Where one line of JSON about the outcome is left, such as /dev/termination-log
    #[arg(long, value_name = "FILE", env = "MILLRACE_TERMINATION_LOG")]
    pub(super) termination_log: Option<PathBuf>,
}

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
#[error("{reason}: {message}")]
pub(super) struct Failure {
    pub(super) reason: Reason,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }

    /// Whether it may be fixed while it is waited.
    fn may_pass(&self) -> bool {
        let named = matches!(
            self.reason,
            Reason::SecretNotFound
                | Reason::SecretInvalid
                | Reason::PostgresUnreachable
                | Reason::RedisUnreachable
                | Reason::LockNotAvailable
                | Reason::PostgresReadOnlyOrFull
                | Reason::PostgresStandby
                | Reason::PostgresAccessDenied
                | Reason::PostgresDatabaseNotFound
                | Reason::RedisAccessDenied
        );
        named || self.reason.is_of_tls()
    }

    /// The store if its server answers. It comes with the error of its URL.
    pub(super) async fn unless_answers(store: Result<Store, store::Error>) -> Result<Store, Self> {
        // That it is a URL was seen when it was read; options in it may still be wrong.
        let store = store.map_err(|_| Self::new(Reason::SecretInvalid, "the URL of Postgres is not understood"))?;
        match store.probe().await {
            Ok(()) => Ok(store),
            Err(error) => Err(store.tls_problem(&error).map_or_else(|| Self::from(error), Self::from)),
        }
    }

    /// Of an error of this Redis.
    pub(super) fn of_streams(streams: &Streams, error: streams::Error) -> Self {
        streams.tls_problem(&error).map_or_else(|| Self::from(error), Self::from)
    }

    /// Of a URL of `server`.
    pub(super) fn of_url(server: &str, error: &SecretError) -> Self {
        let (reason, message) = match error {
            SecretError::NotFound(name) => (Reason::SecretNotFound, name.clone()),
            SecretError::Invalid(what) => (Reason::SecretInvalid, what.clone()),
            SecretError::Tls(reason, what) => (reason.clone(), what.clone()),
            SecretError::NotGiven(what) => (Reason::Failed, format!("the URL of {server}: {what}")),
        };
        Self::new(reason, message)
    }
}

impl From<Problem> for Failure {
    fn from(Problem { reason, message }: Problem) -> Self {
        Self { reason, message }
    }
}

impl From<store::Error> for Failure {
    fn from(error: store::Error) -> Self {
        let reason = match &error {
            store::Error::PreviousWorkersActive(_) => Reason::PreviousWorkersActive,
            store::Error::Locked(_) => Reason::LockNotAvailable,
            store::Error::Refused(_) => Reason::Failed,
            error => match reason_of_postgres(error) {
                Reason::PostgresUnreachable if !error.is_unavailable() => Reason::Failed,
                Reason::PostgresLocked => Reason::LockNotAvailable,
                Reason::NotMigrated => Reason::Failed,
                reason => reason,
            },
        };
        Self::new(reason, error.to_string())
    }
}

impl From<streams::Error> for Failure {
    fn from(error: streams::Error) -> Self {
        let reason = match error {
            streams::Error::Refused(_) => Reason::OtherPipeline,
            streams::Error::Denied(_) => Reason::RedisAccessDenied,
            _ => Reason::RedisUnreachable,
        };
        Self::new(reason, error.to_string())
    }
}

impl JobArgs {
    /// A job of this process, not of a cluster: it waits up to a minute and leaves no line.
    pub(super) fn local(place: &Place) -> Self {
        Self { place: place.clone(), wait_ms: 60_000, termination_log: None }
    }

    /// Tries until it succeeds, fails for good, or time is up. An attempt gets the time that is left.
    pub(super) async fn retry<T>(
        &self,
        mut attempt: impl AsyncFnMut(Duration) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let (began, longest) = (Instant::now(), Duration::from_millis(self.wait_ms));
        let mut pause = Duration::from_millis(200);
        let mut said = String::new();
        loop {
            let failure = match attempt(longest.saturating_sub(began.elapsed())).await {
                Err(failure) if failure.may_pass() && began.elapsed() < longest => failure,
                outcome => return outcome,
            };
            if failure.message != said {
                eprintln!("waiting: {failure}");
                said = failure.message;
            }
            tokio::time::sleep(pause.min(longest.saturating_sub(began.elapsed()))).await;
            pause = (pause * 2).min(Duration::from_secs(2));
        }
    }

    /// A store whose server answers. Its sessions wait for a lock no longer than there is time.
    pub(super) async fn reach(endpoint: &Endpoint, pipeline: &str, left: Duration) -> Result<Store, Failure> {
        let longest = left.min(LONGEST_LOCK);
        Failure::unless_answers(Store::connect_waiting(endpoint, pipeline, 2, longest)).await
    }

    /// Leaves a line about how it ended, and gives it on as the command's own end.
    ///
    /// # Errors
    /// Why the command did not do what it should.
    pub(super) fn leave(&self, ended: Result<TerminationMessage, Failure>) -> anyhow::Result<()> {
        let (outcome, result) = match ended {
            Ok(outcome) => (outcome, Ok(())),
            Err(failure) => {
                let (reason, message) = (failure.reason.clone(), failure.message.clone());
                let outcome = TerminationMessage { reason, message, schema: None, pipeline_id: None, contract: None };
                (outcome, Err(anyhow::Error::from(failure)))
            }
        };
        if let Some(file) = &self.termination_log
            && let Err(error) = fs::write(file, line(outcome))
        {
            eprintln!("millrace: cannot write {}: {error}", file.display());
        }
        result
    }
}

fn line(mut message: TerminationMessage) -> String {
    if let Some((end, _)) = message.message.char_indices().nth(LONGEST_MESSAGE) {
        message.message.truncate(end);
    }
    let line = serde_json::json!(message).to_string();
    format!("{line}\n")
}

#[cfg(test)]
mod tests {
    use millrace_crds::status_api::SchemaNumbers;

    use super::*;

    #[test]
    fn the_line_about_an_outcome_fits_where_it_is_kept() {
        let outcome = TerminationMessage {
            reason: Reason::Migrated,
            message: "ä".repeat(10_000),
            schema: Some(SchemaNumbers { from: 0, to: 1 }),
            pipeline_id: Some("id".to_owned()),
            contract: Some(0),
        };
        let line = line(outcome);
        assert!(line.len() <= 4096 && line.ends_with("}\n"), "{}", line.len());
        let line: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(line["reason"], "Migrated");
        assert_eq!((&line["schema"]["from"], &line["schema"]["to"]), (&0.into(), &1.into()));
        assert_eq!((&line["pipelineId"], &line["contract"]), (&"id".into(), &0.into()));
    }
}
