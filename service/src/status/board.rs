//! Current problems of a process, set by its parts.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_crds::RecordPipeline;
use serde::Serialize;

use super::ActivePolicy;

/// Kinds of problems, the worst first: those that keep a process from its pipeline at all, then its servers, then its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Reason {
    /// The schema or a stream belongs to another pipeline.
    OtherPipeline,
    /// The schema needs a newer binary.
    SchemaTooNew,
    /// The content of a Secret cannot be used.
    SecretInvalid,
    /// A Secret, or a key of it, is not there.
    SecretNotFound,
    /// The schema is not there, or older than this binary.
    NotMigrated,
    /// Postgres cannot be asked.
    PostgresUnreachable,
    /// Postgres answers and takes no writes.
    PostgresReadOnlyOrFull,
    /// Redis cannot be asked.
    RedisUnreachable,
    /// Redis does not admit the user, or refuses it a command or key.
    RedisAccessDenied,
    /// Redis takes no entries.
    RedisReadOnlyOrFull,
    /// The schema is not claimed for the manifest's uid.
    UidNotClaimed,
    /// The manifest is none, or breaks rules.
    ManifestInvalid,
    /// The manifest may not be put active.
    ManifestRefused,
}

/// A current problem.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Its kind.
    pub reason: Reason,
    /// Description for a person; never a secret.
    pub message: String,
}

impl Problem {
    /// A problem.
    #[must_use]
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

/// Problems and state that the parts of a process set. Clones are the same board.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Written>>);

#[derive(Debug, Default)]
struct Written {
    problems: BTreeMap<Cow<'static, str>, Vec<Problem>>,
    pipeline: Option<String>,
    manifest: Option<FileId>,
    active_policy: Option<ActivePolicy>,
}

/// Which object the manifest's file shows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct FileId {
    uid: Option<String>,
    generation: i64,
}

/// Content of the board.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) problems: Vec<Problem>,
    pub(super) pipeline: Option<String>,
    pub(super) manifest: Option<FileId>,
    pub(super) active_policy: Option<ActivePolicy>,
}

impl Board {
    /// Sets what is wrong in the eyes of one part, in place of what it said before; nothing: all is well there.
    pub fn set(&self, part: impl Into<Cow<'static, str>>, problems: impl IntoIterator<Item = Problem>) {
        self.written().problems.insert(part.into(), problems.into_iter().collect());
    }

    /// The last problems of one part.
    #[must_use]
    pub fn of(&self, part: &'static str) -> Vec<Problem> {
        self.written().problems.get(part).cloned().unwrap_or_default()
    }

    /// Says which pipeline it is.
    pub fn pipeline(&self, name: &str) {
        self.written().pipeline = Some(name.to_owned());
    }

    /// Says which manifest the file shows; `None`: none that can be read.
    pub fn manifest(&self, manifest: Option<&RecordPipeline>) {
        self.written().manifest = manifest.map(|manifest| FileId {
            uid: manifest.metadata.uid.clone(),
            generation: manifest.metadata.generation.unwrap_or(0),
        });
    }

    /// Says by which version this process works.
    pub fn active_policy(&self, active_policy: ActivePolicy) {
        self.written().active_policy = Some(active_policy);
    }

    pub(super) fn told(&self) -> Told {
        let written = self.written();
        let Written { problems, pipeline, manifest, active_policy } = &*written;
        Told {
            problems: worst_first(problems.values().flatten().cloned()),
            pipeline: pipeline.clone(),
            manifest: manifest.clone(),
            active_policy: active_policy.clone(),
        }
    }

    fn written(&self) -> MutexGuard<'_, Written> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Each problem once, the worst first.
pub(super) fn worst_first(problems: impl IntoIterator<Item = Problem>) -> Vec<Problem> {
    let mut problems: Vec<Problem> = problems.into_iter().collect();
    problems.sort();
    problems.dedup();
    problems
}
