//! A small disk that can be filled: a mounted file. Needs root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::ensure;

/// Its size. The file is sparse.
const BYTES: u64 = 16 << 30;

/// A mounted disk; unmounted when it is dropped.
#[derive(Debug)]
pub(crate) struct Disk {
    at: PathBuf,
    image: PathBuf,
}

impl Disk {
    /// Makes a disk in a file and mounts it on a folder.
    pub(crate) fn mount(image: &Path, at: &Path) -> anyhow::Result<Self> {
        fs::File::create(image)?.set_len(BYTES)?;
        run(Command::new("mkfs.ext4")
            .args(["-q", "-m", "0", "-E", "lazy_itable_init=1,lazy_journal_init=1"])
            .arg(image))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(image).arg(at))?;
        Ok(Self { at: at.to_owned(), image: image.to_owned() })
    }

    /// Fills the disk.
    pub(crate) fn fill(&self) -> anyhow::Result<()> {
        let room = nix::sys::statvfs::statvfs(&self.at)?;
        let bytes = room.blocks_available() * room.fragment_size();
        // The rest in small pieces: the file system keeps some blocks for itself.
        for (n, bytes) in
            [bytes * 99 / 100, bytes / 200, bytes / 1_000, 1 << 20, 64 << 10, 4 << 10].into_iter().enumerate()
        {
            let piece = || Command::new("fallocate").arg("-l").arg(bytes.to_string()).arg(self.ballast(n)).output();
            if n < 3 {
                piece()?;
            } else {
                // Until there is no room for one more.
                let mut more = 0;
                while more < 400 && {
                    let file = self.ballast(n * 1_000 + more);
                    let made = Command::new("fallocate").arg("-l").arg(bytes.to_string()).arg(file).output()?;
                    made.status.success()
                } {
                    more += 1;
                }
            }
        }
        Ok(())
    }

    /// Removes the files that fill it.
    pub(crate) fn free(&self) -> anyhow::Result<()> {
        for entry in fs::read_dir(&self.at)?.flatten() {
            if entry.file_name().to_string_lossy().starts_with("ballast-") {
                fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    fn ballast(&self, n: usize) -> PathBuf {
        self.at.join(format!("ballast-{n}"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        if run(Command::new("umount").arg(&self.at)).is_err() {
            // A process still uses it: the kernel unmounts it when that ends.
            let _ = run(Command::new("umount").arg("--lazy").arg(&self.at));
        }
        let _ = fs::remove_file(&self.image);
    }
}

/// Whether a disk can be mounted here.
pub(crate) fn can_mount() -> bool {
    let Ok(dir) = tempfile::tempdir() else { return false };
    let at = dir.path().join("disk");
    fs::create_dir(&at).is_ok() && Disk::mount(&dir.path().join("image"), &at).is_ok()
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
