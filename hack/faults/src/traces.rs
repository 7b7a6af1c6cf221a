//! The protocol traces of a pipeline's processes, judged by the model after each round.

use std::path::PathBuf;

use millrace_model::replay::{Disturbed, Judged, rounds::Folder};

use crate::plan::{Fault, Harm, Kind};

/// The traces of one pipeline, and their replay.
#[derive(Debug)]
pub(crate) struct Traces {
    folder: Folder,
}

impl Traces {
    /// The traces in a folder.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { folder: Folder::new(dir) }
    }

    /// Judges what was written since the last call.
    ///
    /// # Errors
    /// The first step that does not fit, or a line that is none of a trace.
    pub(crate) fn judge(&mut self, round: u64, faults: &[Fault]) -> Result<Judged, String> {
        let names = faults.iter().map(|fault| fault.kind.name().to_owned()).collect();
        self.folder.judge(round, names, disturbed(faults))
    }
}

/// What faults may have done to the servers.
fn disturbed(faults: &[Fault]) -> Disturbed {
    let has = |test: &dyn Fn(Kind) -> bool| faults.iter().any(|fault| test(fault.kind));
    let writes = |kind| matches!(kind, Kind::RedisGroup | Kind::RedisMalformed | Kind::RedisHash);
    Disturbed {
        redis: has(&|kind| kind.harm() == Harm::Redis || writes(kind)),
        postgres: has(&|kind| kind.harm() == Harm::Postgres),
    }
}
