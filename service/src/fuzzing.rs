//! What must hold of any bytes that come from outside: one function a target of `hack/fuzz-run`, each beside the code
//! that it is about. They panic when it does not hold.
//!
//! Only in fuzzing and in tests; must never be part of a build that runs. Inputs made by hand stand in `fuzz/seeds/`, what
//! fuzzing found worth keeping in `fuzz/corpus/`, and the tests here try both again.

pub use crate::{
    accept::fuzzing::framing,
    domain::fuzzing::{amount, record},
    query::fuzzing::cursor,
    streams::fuzzing::entry,
};

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Tries again what fuzzing kept of a target.
    fn kept(name: &str, target: fn(&[u8])) {
        for inputs in ["seeds", "corpus"] {
            let inputs = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(inputs).join(name);
            let files: Vec<_> = fs::read_dir(&inputs).unwrap().map(|file| file.unwrap().path()).collect();
            assert!(files.len() >= 10, "{} has {} inputs only", inputs.display(), files.len());
            for file in files {
                let bytes = fs::read(&file).unwrap();
                let held = std::panic::catch_unwind(|| target(&bytes));
                assert!(held.is_ok(), "{}", file.display());
            }
        }
    }

    #[test]
    fn what_was_kept_of_records_holds() {
        kept("record", super::record);
    }

    #[test]
    fn what_was_kept_of_amounts_holds() {
        kept("amount", super::amount);
    }

    #[test]
    fn what_was_kept_of_framing_holds() {
        kept("framing", super::framing);
    }

    #[test]
    fn what_was_kept_of_cursors_holds() {
        kept("cursor", super::cursor);
    }

    #[test]
    fn what_was_kept_of_entries_holds() {
        kept("entry", super::entry);
    }
}
