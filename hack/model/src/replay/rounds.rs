//! The traces of one pipeline in a folder: a file per process, and one per round, `round-00001.json`, with what the round
//! shall be judged by. So a folder that is kept can be judged again as it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use super::{Disturbed, Judged, Replay};

/// The border of a round, and what the replay needs to know of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Round {
    /// Its number.
    pub round: u64,
    /// The kinds of its faults, for people.
    pub faults: Vec<String>,
    /// What they may have done to the servers.
    pub disturbed: Disturbed,
    /// How many bytes each trace had at its end.
    pub lengths: BTreeMap<String, u64>,
}

/// What was judged of a round; an error names the first step that does not fit.
pub type Verdict = Result<Judged, String>;

/// The traces in a folder, and their replay.
#[derive(Debug)]
pub struct Folder {
    dir: PathBuf,
    replay: Replay,
    /// By file: its number as a process, and how far it is read.
    read: BTreeMap<String, (usize, u64)>,
}

impl Folder {
    /// The traces in a folder, from their first line on.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self { dir, replay: Replay::default(), read: BTreeMap::new() }
    }

    /// Judges what was written since the last call, and writes the round beside it.
    ///
    /// # Errors
    /// The first step that does not fit, or a line that is none of a trace.
    pub fn judge(&mut self, round: u64, faults: Vec<String>, disturbed: Disturbed) -> Result<Judged, String> {
        let mut border = Round { round, faults, disturbed, lengths: self.lengths()? };
        let mut judged = self.judge_to(&border);
        if judged.is_err() {
            // A process may have written between the looks at two files.
            border.lengths = self.lengths()?;
            judged = self.judge_to(&border);
        }
        let text = serde_json::to_string_pretty(&border).map_err(|error| error.to_string())?;
        let file = self.dir.join(format!("round-{round:05}.json"));
        fs::write(&file, text).map_err(|error| format!("{}: {error}", file.display()))?;
        judged
    }

    /// Judges the steps up to the end of a round.
    ///
    /// # Errors
    /// As [`Self::judge`].
    pub fn judge_to(&mut self, round: &Round) -> Result<Judged, String> {
        for (name, length) in &round.lengths {
            self.read(name, *length).map_err(|error| format!("{name}: {error}"))?;
        }
        self.replay.judge(round.disturbed).map_err(|rejected| rejected.to_string())
    }

    /// How long each trace is now.
    fn lengths(&self) -> Result<BTreeMap<String, u64>, String> {
        let mut names = names(&self.dir, "jsonl")?;
        // What a worker reads was appended before: its trace is looked at first.
        names.sort_by_key(|name| name.contains("serve"));
        let length = |name: String| {
            let length = fs::metadata(self.dir.join(&name)).map_err(|error| format!("{name}: {error}"))?.len();
            Ok((name, length))
        };
        names.into_iter().map(length).collect()
    }

    fn read(&mut self, name: &str, to: u64) -> Result<(), String> {
        let next = self.read.len();
        let (process, from) = self.read.entry(name.to_owned()).or_insert((next, 0));
        let mut bytes = Vec::new();
        let read = File::open(self.dir.join(name)).and_then(|mut file| {
            file.seek(SeekFrom::Start(*from))?;
            file.take(to.saturating_sub(*from)).read_to_end(&mut bytes)
        });
        *from += read.map_err(|error| error.to_string())? as u64;
        self.replay.read(*process, std::str::from_utf8(&bytes).map_err(|error| error.to_string())?)
    }
}

/// Judges the rounds of a kept folder again, up to the first that is rejected. Without rounds beside them, the traces are
/// those of one round without faults.
///
/// # Errors
/// The folder cannot be read.
pub fn judge_again(dir: &Path) -> Result<Vec<(Round, Verdict)>, String> {
    let mut folder = Folder::new(dir.to_owned());
    let mut rounds = Vec::new();
    for name in names(dir, "json")?.into_iter().collect::<BTreeSet<_>>() {
        let text = fs::read_to_string(dir.join(&name)).map_err(|error| format!("{name}: {error}"))?;
        rounds.push(serde_json::from_str(&text).map_err(|error| format!("{name}: {error}"))?);
    }
    if rounds.is_empty() {
        let lengths = folder.lengths()?;
        rounds.push(Round { round: 1, faults: Vec::new(), disturbed: Disturbed::default(), lengths });
    }
    let mut judged = Vec::new();
    for round in rounds {
        let result = folder.judge_to(&round);
        let is_rejected = result.is_err();
        judged.push((round, result));
        if is_rejected {
            break;
        }
    }
    Ok(judged)
}

/// The names of the files with this extension.
fn names(dir: &Path, extension: &str) -> Result<Vec<String>, String> {
    let files = fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let names = files.flatten().map(|file| file.file_name().to_string_lossy().into_owned());
    Ok(names.filter(|name| Path::new(name).extension().is_some_and(|there| there == extension)).collect())
}
