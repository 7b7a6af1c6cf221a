//! Properties that hold for any bytes from outside. Each function is one target of `hack/fuzz-run` and lives beside the
//! code that it tests. It panics when a property does not hold.
//!
//! Compiled for fuzzing and tests only. The tests run each target on the tracked inputs in `fuzz/seeds/`, and on the local
//! corpus in `fuzz/corpus/` when `hack/fuzz-run` made one.

pub use crate::{
    accept::fuzzing::framing,
    domain::fuzzing::{amount, record},
    query::fuzzing::cursor,
    streams::fuzzing::entry,
};

#[cfg(test)]
mod tests {
    use std::{
        fs,
        panic::catch_unwind,
        path::{Path, PathBuf},
    };

    fn inputs(dir: &Path) -> Vec<PathBuf> {
        fs::read_dir(dir).unwrap().map(|file| file.unwrap().path()).collect()
    }

    /// Runs a target on its seeds, and on its corpus when there is one.
    fn run(name: &str, target: fn(&[u8])) {
        let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
        let mut files = inputs(&fuzz.join("seeds").join(name));
        assert!(files.len() >= 10, "{name} has {} seeds only", files.len());
        let corpus = fuzz.join("corpus").join(name);
        if corpus.exists() {
            files.extend(inputs(&corpus));
        }
        let fails = |file: &PathBuf| {
            let bytes = fs::read(file).unwrap();
            catch_unwind(|| target(&bytes)).is_err()
        };
        let failed: Vec<_> = files.into_iter().filter(fails).collect();
        assert!(failed.is_empty(), "{name} fails on {failed:#?}");
    }

    #[test]
    fn records_hold_their_properties() {
        run("record", super::record);
    }

    #[test]
    fn amounts_hold_their_properties() {
        run("amount", super::amount);
    }

    #[test]
    fn framing_holds_its_properties() {
        run("framing", super::framing);
    }

    #[test]
    fn cursors_hold_their_properties() {
        run("cursor", super::cursor);
    }

    #[test]
    fn entries_hold_their_properties() {
        run("entry", super::entry);
    }
}
