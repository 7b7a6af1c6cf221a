//! The data directory of `millrace dev`: whose it is, what it stores, and which user the servers run as.
//!
//! Must never leave a password where another user can read it.

use std::{
    fs::{self, File, OpenOptions},
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use nix::{
    fcntl::{Flock, FlockArg},
    unistd::{Gid, Uid, User, chown},
};
use serde::{Deserialize, Serialize};

/// Directory of Postgres's files when its user cannot reach the data directory.
const ELSEWHERE: &str = "/var/lib/millrace";

/// The data directory, held by this process alone.
#[derive(Debug)]
pub(super) struct Home {
    /// Absolute.
    pub(super) dir: PathBuf,
    pub(super) state: State,
    /// The account that Postgres runs as; `None`: that of this process.
    pub(super) account: Option<Account>,
    /// Postgres's files, owned by that user.
    pub(super) postgres: PathBuf,
    /// Held as long as this process lives.
    _lock: Flock<File>,
}

/// State that is kept across restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State {
    /// Names this directory's files elsewhere: a directory that is recreated is not taken for the one before.
    pub(super) id: String,
    pub(super) redis_port: u16,
    pub(super) redis_password: String,
    pub(super) postgres_port: u16,
    pub(super) postgres_password: String,
}

/// Another user to step down to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Account {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
}

impl Home {
    /// Takes the directory, making it when it is not there.
    ///
    /// # Errors
    /// When another process holds it, or it cannot be written.
    pub(super) fn take(dir: &Path) -> anyhow::Result<Self> {
        if !dir.exists() {
            make_private(dir, None)?;
            // Others may pass through, for Postgres runs as one of them, but see nothing.
            if Uid::effective().is_root() {
                fs::set_permissions(dir, fs::Permissions::from_mode(0o711))?;
            }
        }
        let dir = dir.canonicalize().with_context(|| format!("cannot reach {}", dir.display()))?;
        let lock = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(dir.join("lock"))
            .with_context(|| format!("cannot write into {}", dir.display()))?;
        let Ok(lock) = Flock::lock(lock, FlockArg::LockExclusiveNonblock) else {
            bail!("{} is used by another `millrace dev`; give this one another --data-dir", dir.display());
        };
        let account = if Uid::effective().is_root() { Some(Account::lesser()?) } else { None };
        let state = State::load(&dir.join("state.json"))?;
        let postgres = match account {
            Some(account) if !account.reaches(&dir)? => {
                let place = Path::new(ELSEWHERE).join(&state.id);
                tracing::info!(event = "dev.postgres.elsewhere", place = %place.display(), "Postgres is kept elsewhere, because its user cannot access the data directory");
                place
            }
            _ => dir.join("postgres"),
        };
        // Before anything is made under them, the id and the passwords are kept.
        state.save(&dir)?;
        make_private(&postgres, account)?;
        Ok(Self { dir, state, account, postgres, _lock: lock })
    }

    /// Finds ports for servers that do not run: the stored ones when they are free, else others.
    pub(super) fn choose_ports(&mut self) -> anyhow::Result<()> {
        // Both stay bound until both are known, so that they differ.
        let redis = free_port(self.state.redis_port)?;
        let postgres = free_port(self.state.postgres_port)?;
        self.state.redis_port = redis.local_addr()?.port();
        self.state.postgres_port = postgres.local_addr()?.port();
        self.state.save(&self.dir)
    }
}

impl State {
    fn load(file: &Path) -> anyhow::Result<Self> {
        match fs::read(file) {
            Ok(text) => {
                serde_json::from_slice(&text).with_context(|| format!("{} is not what dev wrote", file.display()))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self {
                id: password(),
                redis_port: 0,
                redis_password: password(),
                postgres_port: 0,
                postgres_password: password(),
            }),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
        }
    }
}

impl State {
    fn save(&self, dir: &Path) -> anyhow::Result<()> {
        write_private(&dir.join("state.json"), &serde_json::to_vec_pretty(self)?)
    }
}

/// 32 hexadecimal digits from the operating system's random numbers.
fn password() -> String {
    hex::encode(rand::random::<[u8; 16]>())
}

fn free_port(wanted: u16) -> anyhow::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, wanted))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .context("no free port on 127.0.0.1")
}

/// Replaces a file that only its owner may read, whole or not at all.
pub(super) fn write_private(file: &Path, content: &[u8]) -> anyhow::Result<()> {
    let fresh = file.with_extension("new");
    let write = || -> std::io::Result<()> {
        let mut target = OpenOptions::new().create(true).write(true).truncate(true).mode(0o600).open(&fresh)?;
        target.write_all(content)?;
        target.sync_all()?;
        fs::rename(&fresh, file)
    };
    write().with_context(|| format!("cannot write {}", file.display()))
}

/// Makes a directory that only its owner may enter.
pub(super) fn make_private(dir: &Path, account: Option<Account>) -> anyhow::Result<()> {
    let make = || -> std::io::Result<()> {
        fs::create_dir_all(dir)?;
        fs::set_permissions(dir, fs::Permissions::from_mode(0o700))?;
        if let Some(Account { uid, gid }) = account {
            chown(dir, Some(uid), Some(gid))?;
        }
        Ok(())
    };
    make().with_context(|| format!("cannot make {}", dir.display()))
}

impl Account {
    /// `postgres`, else `nobody`.
    fn lesser() -> anyhow::Result<Self> {
        for name in ["postgres", "nobody"] {
            if let Some(User { uid, gid, .. }) = User::from_name(name)? {
                return Ok(Self { uid, gid });
            }
        }
        bail!("Postgres refuses to run as root, and there is neither a user postgres nor a user nobody to step down to")
    }

    /// Whether this user may pass through a directory and all above it.
    fn reaches(self, dir: &Path) -> anyhow::Result<bool> {
        for above in dir.ancestors() {
            let about = fs::metadata(above).with_context(|| format!("cannot reach {}", above.display()))?;
            let pass = match (about.uid() == self.uid.as_raw(), about.gid() == self.gid.as_raw()) {
                (true, _) => 0o100,
                (false, true) => 0o010,
                (false, false) => 0o001,
            };
            if about.mode() & pass == 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_has_one_owner_and_keeps_its_state() {
        let dir = tempfile::tempdir().expect("dir");
        let mut home = Home::take(dir.path()).expect("first");
        let refused = Home::take(dir.path()).expect_err("second").to_string();
        assert!(refused.contains("is used by another"), "{refused}");
        home.choose_ports().expect("ports");
        let state = home.state.clone();
        assert_ne!(state.redis_port, state.postgres_port);
        let mode = fs::metadata(dir.path().join("state.json")).expect("state").mode();
        assert_eq!(mode & 0o777, 0o600);
        drop(home);

        let mut again = Home::take(dir.path()).expect("again");
        assert_eq!(again.state, state);
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, state.redis_port)).expect("free");
        again.choose_ports().expect("ports");
        assert_ne!(again.state.redis_port, state.redis_port);
        assert_eq!(again.state.postgres_port, state.postgres_port);
        drop(taken);
    }

    #[test]
    fn a_directory_without_permission_is_out_of_reach() {
        let dir = tempfile::tempdir().expect("dir");
        let other = Account { uid: Uid::from_raw(65_533), gid: Gid::from_raw(65_533) };
        for (mode, reached) in [(0o700, false), (0o711, true)] {
            fs::set_permissions(dir.path(), fs::Permissions::from_mode(mode)).expect("mode");
            assert_eq!(other.reaches(dir.path()).expect("reachability"), reached, "{mode:o}");
        }
    }
}
