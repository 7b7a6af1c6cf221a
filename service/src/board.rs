//! Current problems of a process, set by its parts.

mod causes;
mod tls;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use millrace_crds::{
    Metadata,
    status_api::{ActivePolicy, ManifestOrigin, Problem},
};

pub(crate) use causes::{cause, not_migrated, of_no_writes, of_postgres, of_redis, reason_of_postgres, silent};
pub(crate) use tls::{of_store, of_streams};

/// Problems and state that the parts of a process set. Clones are the same board.
#[derive(Debug, Clone, Default)]
pub struct Board(Arc<Mutex<Written>>);

#[derive(Debug, Default)]
struct Written {
    problems: BTreeMap<Cow<'static, str>, Vec<Problem>>,
    pipeline: Option<String>,
    manifest: Option<ManifestOrigin>,
    active_policy: Option<ActivePolicy>,
}

/// Content of the board.
#[derive(Debug)]
pub(crate) struct Content {
    pub(crate) problems: Vec<Problem>,
    pub(crate) pipeline: Option<String>,
    pub(crate) manifest: Option<ManifestOrigin>,
    pub(crate) active_policy: Option<ActivePolicy>,
}

impl Board {
    /// Replaces the problems of one part; none: it is well.
    pub fn set(&self, part: impl Into<Cow<'static, str>>, problems: impl IntoIterator<Item = Problem>) {
        self.written().problems.insert(part.into(), problems.into_iter().collect());
    }

    /// The last problems of one part.
    #[must_use]
    pub fn of(&self, part: &'static str) -> Vec<Problem> {
        self.written().problems.get(part).cloned().unwrap_or_default()
    }

    /// Sets the name of the pipeline.
    pub fn pipeline(&self, name: &str) {
        self.written().pipeline = Some(name.to_owned());
    }

    /// Sets the object that the manifest of the file was made from; `None`: the file cannot be read.
    pub fn manifest(&self, metadata: Option<&Metadata>) {
        self.written().manifest = metadata
            .map(|metadata| ManifestOrigin { uid: metadata.uid.clone(), generation: metadata.generation.unwrap_or(0) });
    }

    /// Sets the version that this process runs.
    pub fn active_policy(&self, active_policy: ActivePolicy) {
        self.written().active_policy = Some(active_policy);
    }

    pub(crate) fn content(&self) -> Content {
        let written = self.written();
        let Written { problems, pipeline, manifest, active_policy } = &*written;
        Content {
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
pub(crate) fn worst_first(problems: impl IntoIterator<Item = Problem>) -> Vec<Problem> {
    let mut problems: Vec<Problem> = problems.into_iter().collect();
    problems.sort();
    problems.dedup();
    problems
}
