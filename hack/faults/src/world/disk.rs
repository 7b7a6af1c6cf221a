//! A disk that can be filled and can lose power: a mounted file. Needs root.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, ensure};

use super::eventually;

/// Its size. The file is sparse.
const BYTES: u64 = 16 << 30;
/// Longest wait until nothing uses it any more.
const UNUSED: Duration = Duration::from_secs(20);
/// Shuts an ext4 down without a flush of its journal: `EXT4_IOC_SHUTDOWN`, `EXT4_GOING_FLAGS_NOLOGFLUSH`. A program of its
/// own, as the call is no safe one.
const SHUTDOWN: &str = "import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587D, struct.pack('I', 2))";
/// A file that is never flushed.
const UNFLUSHED: &str = "unflushed";

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
        let this = Self { at: at.to_owned(), image: image.to_owned() };
        this.mount_image()?;
        Ok(this)
    }

    fn mount_image(&self) -> anyhow::Result<()> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at))
    }

    /// Flushes all that was written.
    pub(crate) fn flush(&self) -> anyhow::Result<()> {
        Ok(nix::unistd::syncfs(fs::File::open(&self.at)?)?)
    }

    /// Its power fails: what was not flushed is gone, and every call on its files fails.
    pub(crate) fn lose_power(&self) -> anyhow::Result<()> {
        fs::write(self.at.join(UNFLUSHED), "gone")?;
        run(Command::new("python3").args(["-c", SHUTDOWN]).arg(&self.at))
    }

    /// Its power is back. Nothing may use it any more. Returns whether what was not flushed is gone.
    pub(crate) async fn restore_power(&self) -> anyhow::Result<bool> {
        let unmount = || run(Command::new("umount").arg(&self.at));
        ensure!(eventually(UNUSED, async || unmount().is_ok()).await, "{} is in use", self.at.display());
        self.mount_image()?;
        let unflushed = self.at.join(UNFLUSHED);
        // Another file's flush takes its name with it, and never its content.
        let is_gone = fs::read(&unflushed).map_or(true, |bytes| bytes.is_empty());
        if unflushed.exists() {
            fs::remove_file(&unflushed).with_context(|| unflushed.display().to_string())?;
        }
        Ok(is_gone)
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
    with_disk(|_| Ok(())).is_ok()
}

/// Whether a disk can lose power here.
pub(crate) fn can_lose_power() -> bool {
    with_disk(Disk::lose_power).is_ok()
}

fn with_disk<T>(act: impl FnOnce(&Disk) -> anyhow::Result<T>) -> anyhow::Result<T> {
    let dir = tempfile::tempdir()?;
    let at = dir.path().join("disk");
    fs::create_dir(&at)?;
    act(&Disk::mount(&dir.path().join("image"), &at)?)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command.output()?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[tokio::test]
    async fn a_disk_that_loses_power_keeps_what_was_flushed_alone() {
        if !can_lose_power() {
            eprintln!("skipped: no disk can lose power here: root, loop devices, mkfs.ext4 or python3 is missing");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("disk");
        fs::create_dir(&at).unwrap();
        let disk = Disk::mount(&dir.path().join("image"), &at).unwrap();
        let mut flushed = fs::File::create(at.join("flushed")).unwrap();
        flushed.write_all(b"there").unwrap();
        flushed.sync_all().unwrap();
        fs::write(at.join("written"), "not there").unwrap();
        flushed.write_all(b", and not there").unwrap();
        disk.lose_power().unwrap();
        assert!(flushed.sync_all().is_err(), "it has no power");
        drop(flushed);
        assert!(disk.restore_power().await.unwrap());
        assert_eq!(fs::read_to_string(at.join("flushed")).unwrap(), "there");
        assert!(!at.join("written").exists());
    }
}
