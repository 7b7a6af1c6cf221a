//! Points at which the crash tests kill the process, and settings of times. Without the feature `fault-points` they are nothing.

/// A named point. With the feature, `MILLRACE_FAULT=<name>:<n>` kills the process with SIGKILL when it is passed the
/// n-th time (n from 1), `<name>:<n>:panic` panics there, `<name>:<n>:stop` suspends it with SIGSTOP, and
/// `<name>:<n>:term` sends it SIGTERM.
#[inline]
pub fn point(name: &'static str) {
    #[cfg(feature = "fault-points")]
    armed::pass(name);
    #[cfg(not(feature = "fault-points"))]
    let _ = name;
}

/// Called with the ids of records that are about to be decided. With the feature, `MILLRACE_FAULT_POISON=<recordId>:kill`
/// kills the process when that record is among them, `…:panic` panics.
#[inline]
pub fn deciding<'a>(ids: impl Iterator<Item = &'a str>) {
    #[cfg(feature = "fault-points")]
    armed::decide(ids);
    #[cfg(not(feature = "fault-points"))]
    drop(ids);
}

/// How far the clock of commits and of retention is ahead of Postgres's. With the feature, `MILLRACE_FAULT_CLOCK_DAYS=<n>` sets
/// it; a negative number sets it back.
#[inline]
#[must_use]
pub fn clock_shift() -> chrono::TimeDelta {
    #[cfg(feature = "fault-points")]
    return *armed::CLOCK_SHIFT;
    #[cfg(not(feature = "fault-points"))]
    chrono::TimeDelta::zero()
}

/// How long a partition that is being detached waits for its readers. With the feature, `MILLRACE_FAULT_READERS_MS=<n>` sets it.
#[inline]
#[must_use]
pub fn wait_for_readers(usual: std::time::Duration) -> std::time::Duration {
    #[cfg(feature = "fault-points")]
    return armed::READERS.unwrap_or(usual);
    #[cfg(not(feature = "fault-points"))]
    usual
}

/// How many numbers of a shard are one object of an archive. With the feature, `MILLRACE_FAULT_ARCHIVE_NUMBERS=<n>` sets it.
#[inline]
#[must_use]
pub fn archive_numbers(usual: i64) -> i64 {
    #[cfg(feature = "fault-points")]
    return armed::ARCHIVE_NUMBERS.unwrap_or(usual);
    #[cfg(not(feature = "fault-points"))]
    usual
}

#[cfg(feature = "fault-points")]
mod armed {
    use std::sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    };

    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };

    static ARMED: LazyLock<Option<(String, u64, String)>> = LazyLock::new(|| {
        let setting = std::env::var("MILLRACE_FAULT").ok()?;
        let (name, at) = setting.split_once(':')?;
        let (n, act) = at.split_once(':').unwrap_or((at, "kill"));
        Some((name.to_owned(), n.parse().ok()?, act.to_owned()))
    });
    pub(super) static CLOCK_SHIFT: LazyLock<chrono::TimeDelta> = LazyLock::new(|| {
        let days = std::env::var("MILLRACE_FAULT_CLOCK_DAYS").ok().and_then(|days| days.parse().ok());
        chrono::TimeDelta::days(days.unwrap_or(0))
    });
    pub(super) static READERS: LazyLock<Option<std::time::Duration>> = LazyLock::new(|| {
        let ms = std::env::var("MILLRACE_FAULT_READERS_MS").ok()?.parse().ok()?;
        Some(std::time::Duration::from_millis(ms))
    });
    pub(super) static ARCHIVE_NUMBERS: LazyLock<Option<i64>> =
        LazyLock::new(|| std::env::var("MILLRACE_FAULT_ARCHIVE_NUMBERS").ok()?.parse().ok());
    static PASSED: AtomicU64 = AtomicU64::new(0);

    pub(super) fn pass(name: &str) {
        if let Some((armed, n, act)) = ARMED.as_ref()
            && armed == name
            && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *n
        {
            assert!(act != "panic", "the fault of a test");
            signal_self(match act.as_str() {
                "stop" => Signal::SIGSTOP,
                "term" => Signal::SIGTERM,
                _ => Signal::SIGKILL,
            });
        }
    }

    static POISON: LazyLock<Option<(String, String)>> = LazyLock::new(|| {
        let setting = std::env::var("MILLRACE_FAULT_POISON").ok()?;
        let (id, act) = setting.rsplit_once(':')?;
        Some((id.to_owned(), act.to_owned()))
    });

    pub(super) fn decide<'a>(mut ids: impl Iterator<Item = &'a str>) {
        let Some((poison, act)) = POISON.as_ref() else { return };
        if ids.any(|id| id == poison) {
            assert!(act == "kill", "the poison of a test");
            signal_self(Signal::SIGKILL);
        }
    }

    fn signal_self(signal: Signal) {
        let _ = kill(Pid::this(), signal);
    }
}
