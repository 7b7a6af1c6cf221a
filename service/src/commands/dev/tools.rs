//! Finding the servers' programs.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::bail;

/// Postgres's programs on Debian: a directory for each version, not in PATH.
const POSTGRES: &str = "/usr/lib/postgresql";

/// A program, in PATH or where Debian puts Postgres's; the newest version when there are many.
///
/// # Errors
/// Names the Debian package to install.
pub(super) fn find(program: &str, package: &str) -> anyhow::Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let in_path = env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    match in_path.or_else(|| newest(Path::new(POSTGRES), program)) {
        Some(file) => Ok(file),
        None => bail!("{program} is not installed; on Debian: apt-get install {package} (hack/install-deps does it)"),
    }
}

fn newest(root: &Path, program: &str) -> Option<PathBuf> {
    let version = |dir: &PathBuf| dir.file_name().and_then(|name| name.to_str()?.parse::<u32>().ok());
    let mut versions: Vec<_> = fs::read_dir(root).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    versions.sort_by_key(version);
    versions.into_iter().rev().map(|dir| dir.join("bin").join(program)).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_postgres_is_taken_and_a_missing_program_names_its_package() {
        let root = tempfile::tempdir().expect("dir");
        for version in ["9", "15", "16"] {
            fs::create_dir_all(root.path().join(version).join("bin")).expect("dir");
        }
        for version in ["9", "15"] {
            fs::write(root.path().join(version).join("bin/postgres"), "").expect("file");
        }
        assert_eq!(newest(root.path(), "postgres"), Some(root.path().join("15/bin/postgres")));
        let error = find("no-such-program", "redis-server").expect_err("missing").to_string();
        assert!(error.contains("apt-get install redis-server"), "{error}");
    }
}
