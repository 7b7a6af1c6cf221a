//! A file that is exported to, and its position beside it.
//!
//! The position must never be ahead of the bytes on disk: bytes behind it are cut off before the file is continued, and were
//! they missing before it, records would be.

use std::{
    fs::{self, File, OpenOptions},
    io::{Seek as _, SeekFrom, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use serde::{Deserialize, Serialize};

use super::{Format, pages::Page};

/// The position of an export, in `FILE.cursor`.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Position {
    /// The format and the parameters of the pages: another export does not continue this file.
    export: String,
    /// Up to here the file is whole.
    bytes: u64,
    /// Number of records in it.
    records: u64,
    /// Where the next page begins.
    cursor: Option<String>,
    /// Whether the last page is in it.
    complete: bool,
}

/// A file that is exported to by one process.
#[derive(Debug)]
pub(super) struct ExportFile {
    path: PathBuf,
    file: File,
    position: Position,
    is_continued: bool,
}

impl ExportFile {
    /// Creates a file, whose first page begins at a cursor, or opens one that an export with the same parameters began.
    ///
    /// # Errors
    /// When the file is not from such an export, or another process exports to it.
    pub(super) fn open(path: &Path, format: Format, query: &str, from: Option<String>) -> anyhow::Result<Self> {
        let shown = path.display();
        let export = format!("{}?{query}", format.media_type());
        let before = match fs::read(position_of(path)) {
            Ok(text) => Some(
                serde_json::from_slice::<Position>(&text)
                    .with_context(|| format!("{}: is no position of an export", position_of(path).display()))?,
            ),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => return Err(error).with_context(|| position_of(path).display().to_string()),
        };
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path);
        let mut file = file.with_context(|| shown.to_string())?;
        file.try_lock().with_context(|| format!("{shown}: another process exports to it"))?;
        let length = file.metadata().with_context(|| shown.to_string())?.len();
        let Some(position) = before else {
            if length > 0 {
                bail!(
                    "{shown}: exists, and no {} says how to continue it: name another file",
                    position_of(path).display()
                );
            }
            let position = Position { export, cursor: from, ..Position::default() };
            let file = Self { path: path.to_owned(), file, position, is_continued: false };
            // From now on it may have bytes of a page.
            file.store()?;
            return Ok(file);
        };
        if from.is_some() && from != position.cursor {
            bail!("{shown}: is continued where it ends: leave --from-cursor out, or name another file");
        }
        if position.export != export {
            bail!("{shown}: is another export ({}): export with the same flags, or name another file", position.export);
        }
        if length < position.bytes {
            bail!(
                "{shown}: has {length} bytes, and {} were written: it was changed; name another file",
                position.bytes
            );
        }
        file.set_len(position.bytes).with_context(|| shown.to_string())?;
        file.seek(SeekFrom::End(0)).with_context(|| shown.to_string())?;
        Ok(Self { path: path.to_owned(), file, position, is_continued: true })
    }

    /// Its path, for a person.
    pub(super) fn shown(&self) -> impl std::fmt::Display + '_ {
        self.path.display()
    }

    /// Whether an earlier export began it.
    pub(super) fn is_continued(&self) -> bool {
        self.is_continued
    }

    /// Whether it has all records that there were.
    pub(super) fn is_complete(&self) -> bool {
        self.position.complete
    }

    /// Number of records in it.
    pub(super) fn records(&self) -> u64 {
        self.position.records
    }

    /// Where the next page begins.
    pub(super) fn cursor(&self) -> Option<String> {
        self.position.cursor.clone()
    }

    /// Appends a page.
    ///
    /// # Errors
    /// When the disk refuses it: the file can be continued.
    pub(super) fn append(&mut self, page: &Page) -> anyhow::Result<()> {
        let lines = page.lines(self.position.bytes == 0);
        let written = self.file.write_all(lines).and_then(|()| self.file.sync_data());
        written.with_context(|| self.path.display().to_string())?;
        crate::fault::point("after_export_append");
        let position = &mut self.position;
        position.bytes += lines.len() as u64;
        position.records += page.records;
        position.complete = page.is_last;
        if page.next_cursor.is_some() {
            position.cursor.clone_from(&page.next_cursor);
        }
        self.store()
    }

    /// Replaces the position as a whole.
    fn store(&self) -> anyhow::Result<()> {
        let (path, new) = (position_of(&self.path), with_ending(&self.path, ".cursor.new"));
        let store = || {
            let mut file = File::create(&new)?;
            serde_json::to_writer(&mut file, &self.position)?;
            file.write_all(b"\n")?;
            file.sync_data()?;
            fs::rename(&new, &path)
        };
        store().with_context(|| path.display().to_string())
    }
}

fn position_of(path: &Path) -> PathBuf {
    with_ending(path, ".cursor")
}

fn with_ending(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}
