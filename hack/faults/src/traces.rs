//! The protocol traces of a pipeline's processes, judged by the model after each round.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::PathBuf,
};

use millrace_model::replay::{Disturbed, Judged, Replay};

use crate::plan::{Fault, Kind};

/// The traces of one pipeline, and their replay.
#[derive(Debug)]
pub(crate) struct Traces {
    dir: PathBuf,
    replay: Replay,
    /// By file: its number as a process, and how far it is read.
    read: BTreeMap<OsString, (usize, u64)>,
    /// A trace was rejected: the replay has no state any more.
    ended: bool,
}

impl Traces {
    /// The traces in a folder.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, replay: Replay::default(), read: BTreeMap::new(), ended: false }
    }

    /// Judges what was written since the last call.
    ///
    /// # Errors
    /// The first step that does not fit, or a line that is none of a trace.
    pub(crate) fn judge(&mut self, faults: &[Fault]) -> Result<Judged, String> {
        if self.ended {
            return Ok(Judged::default());
        }
        let judged =
            self.read_all().and_then(|()| self.replay.judge(disturbed(faults)).map_err(|error| error.to_string()));
        // A process may have written between the reads of two files.
        let judged = judged.or_else(|_| {
            self.read_all()?;
            self.replay.judge(disturbed(faults)).map_err(|error| error.to_string())
        });
        self.ended = judged.is_err();
        judged
    }

    fn read_all(&mut self) -> Result<(), String> {
        let names: BTreeSet<OsString> =
            fs::read_dir(&self.dir).into_iter().flatten().flatten().map(|file| file.file_name()).collect();
        // What a worker reads was appended before: its trace is read first.
        let (serves, others): (Vec<_>, Vec<_>) =
            names.into_iter().partition(|name| name.to_string_lossy().contains("serve"));
        for name in others.into_iter().chain(serves) {
            self.read(name).map_err(|error| format!("a protocol trace cannot be read: {error}"))?;
        }
        Ok(())
    }

    fn read(&mut self, name: OsString) -> Result<(), String> {
        let next = self.read.len();
        let mut file = File::open(self.dir.join(&name)).map_err(|error| error.to_string())?;
        let (process, from) = self.read.entry(name).or_insert((next, 0));
        let mut text = String::new();
        file.seek(SeekFrom::Start(*from))
            .and_then(|_| file.read_to_string(&mut text))
            .map_err(|error| error.to_string())?;
        *from += text.len() as u64;
        self.replay.read(*process, &text)
    }
}

/// What faults may have done to the servers.
fn disturbed(faults: &[Fault]) -> Disturbed {
    let has = |kinds: &[Kind]| faults.iter().any(|fault| kinds.contains(&fault.kind));
    Disturbed {
        redis: has(&[
            Kind::RedisGroup,
            Kind::RedisMalformed,
            Kind::RedisCut,
            Kind::RedisFlush,
            Kind::RedisTrim,
            Kind::RedisStream,
            Kind::RedisHash,
            Kind::RedisIds,
        ]),
        postgres: has(&[Kind::PostgresAsyncStandby, Kind::PostgresRestore]),
    }
}
