//! Processor times and memory of processes and of the machine, as Linux counts them in /proc.
//!
//! Must never lose the time of a process that ended: the parent has it, in the times of its waited-for children.

use std::{collections::HashMap, fs, time::Instant};

use anyhow::Context as _;

/// Ticks of /proc in a second: 100 on every Linux of these days, whatever the kernel's own timer is.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time in ticks of /proc.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Ticks(pub(crate) u64);

impl Ticks {
    /// Microseconds since an earlier count.
    pub(crate) fn micros_since(self, earlier: Self) -> f64 {
        self.0.saturating_sub(earlier.0) as f64 / TICKS_PER_SECOND * 1e6
    }
}

/// A process as /proc/PID/stat describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// User and system time of all its threads, ended ones included.
    own: Ticks,
    /// The same of its children that ended and were waited for, theirs included.
    children: Ticks,
}

impl Stat {
    fn parse(text: &str) -> Option<Self> {
        // The name in brackets may contain any character. Behind it is field 3, the state.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: u32::try_from(number(4)?).ok()?,
            own: Ticks(number(14)? + number(15)?),
            children: Ticks(number(16)? + number(17)?),
        })
    }

    fn read(pid: u32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }
}

/// All processes at one moment.
#[derive(Debug)]
pub(crate) struct Processes(HashMap<u32, Stat>);

impl Processes {
    /// Reads them.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let pids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        Ok(Self(pids.filter_map(|pid| Some((pid, Stat::read(pid)?))).collect()))
    }

    /// A process and its descendants, itself first.
    pub(crate) fn tree(&self, root: u32) -> Vec<u32> {
        let mut found: Vec<u32> = self.0.contains_key(&root).then_some(root).into_iter().collect();
        let mut next = 0;
        while next < found.len() {
            let parent = found[next];
            found.extend(self.0.iter().filter(|(_, stat)| stat.parent == parent).map(|(pid, _)| *pid));
            next += 1;
        }
        found
    }

    /// Time of a process and of its descendants, ended ones included.
    pub(crate) fn of_tree(&self, root: u32) -> anyhow::Result<Ticks> {
        let tree = self.tree(root);
        anyhow::ensure!(!tree.is_empty(), "process {root} ended");
        Ok(Ticks(tree.iter().filter_map(|pid| self.0.get(pid)).map(|stat| stat.own.0 + stat.children.0).sum()))
    }

    /// Time of a process alone.
    pub(crate) fn of_one(&self, pid: u32) -> anyhow::Result<Ticks> {
        Ok(self.0.get(&pid).with_context(|| format!("process {pid} ended"))?.own)
    }

    /// The parent of a process.
    pub(crate) fn parent(&self, pid: u32) -> Option<u32> {
        Some(self.0.get(&pid)?.parent)
    }
}

/// Processor time of the whole machine at one moment.
///
/// Linux counts idle time exactly, and samples all other time at its timer ticks: a load in step with the ticks is then
/// counted wrongly by a tenth and more. So busy time is the time of the clock, without idle time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Machine {
    at: Instant,
    times: Times,
}

/// The times of /proc/stat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Times {
    cores: usize,
    /// Idle time, waiting for a disk, and time that the host gave to other machines.
    idle: Ticks,
    /// Time in the kernel, interrupts included; sampled.
    kernel: Ticks,
}

impl Machine {
    /// Reads it.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        Ok(Self { at: Instant::now(), times: Times::parse(&text).context("/proc/stat has an unknown form")? })
    }

    /// Microseconds since an earlier moment in which a core was busy, over all cores.
    pub(crate) fn busy_micros_since(&self, earlier: &Self) -> f64 {
        let all = (self.at - earlier.at).as_secs_f64() * 1e6 * self.times.cores as f64;
        (all - self.times.idle.micros_since(earlier.times.idle)).max(0.0)
    }

    /// Microseconds in the kernel since an earlier moment, over all cores.
    pub(crate) fn kernel_micros_since(&self, earlier: &Self) -> f64 {
        self.times.kernel.micros_since(earlier.times.kernel)
    }
}

impl Times {
    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let times: Vec<u64> = line.split_whitespace().map_while(|time| time.parse().ok()).collect();
        let [_user, _nice, system, idle, iowait, irq, softirq, steal] = times.get(..8)?.try_into().ok()?;
        let is_core = |line: &&str| line.starts_with("cpu") && !line.starts_with("cpu ");
        Some(Self {
            cores: text.lines().filter(is_core).count(),
            idle: Ticks(idle + iowait + steal),
            kernel: Ticks(system + irq + softirq),
        })
    }
}

/// The most resident memory that a process has had, in MiB.
pub(crate) fn peak_mib(pid: u32) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    parse_peak_mib(&status).with_context(|| format!("process {pid} ended"))
}

fn parse_peak_mib(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        time::{Duration, Instant},
    };

    use super::{Machine, Processes, Stat, Ticks, Times, parse_peak_mib};

    const STAT: &str = "816 (postgres: x) y) S 700 816 816 0 -1 4194560 1953 7 0 0 106 22 31 4 20 0 1 0 99 1 2";

    fn stat(parent: u32, own: u64, children: u64) -> Stat {
        Stat { parent, own: Ticks(own), children: Ticks(children) }
    }

    #[test]
    fn a_name_with_brackets_and_spaces_hides_no_field() {
        assert_eq!(Stat::parse(STAT), Some(stat(700, 128, 35)));
        assert_eq!(Stat::parse("816 (postgres) S 700"), None);
    }

    #[test]
    fn a_tree_counts_descendants_and_children_that_ended() {
        let all = [(1, stat(0, 1_000, 1_000)), (10, stat(1, 5, 7)), (11, stat(10, 20, 0)), (12, stat(11, 100, 1))];
        let processes = Processes(HashMap::from(all));
        assert_eq!(processes.of_tree(10).unwrap(), Ticks(5 + 7 + 20 + 100 + 1));
        assert_eq!(processes.of_one(10).unwrap(), Ticks(5));
        assert!(processes.of_tree(99).is_err());
        assert!(processes.of_one(99).is_err());
    }

    #[test]
    fn idle_time_has_waiting_and_stolen_time_and_the_kernel_has_interrupts() {
        let text = "cpu  100 10 50 9000 800 3 4 5 60 0\ncpu0 1 1\ncpu1 1 1\nintr 7\n";
        assert_eq!(Times::parse(text), Some(Times { cores: 2, idle: Ticks(9_805), kernel: Ticks(57) }));
        assert_eq!(Times::parse("cpu  1 2 3\n"), None);
    }

    #[test]
    fn busy_time_is_that_of_the_clock_without_idle_time() {
        let times = |idle| Times { cores: 2, idle: Ticks(idle), kernel: Ticks(0) };
        let earlier = Machine { at: Instant::now(), times: times(1_000) };
        // Three seconds on two cores, four of the six idle.
        let later = Machine { at: earlier.at + Duration::from_secs(3), times: times(1_400) };
        assert!((later.busy_micros_since(&earlier) - 2e6).abs() < 1.0);
    }

    #[test]
    fn ticks_are_hundredths_of_a_second() {
        assert_eq!(Ticks(150).micros_since(Ticks(50)), 1e6);
    }

    #[test]
    fn the_peak_of_memory_is_in_mib() {
        assert_eq!(parse_peak_mib("VmPeak:\t 9000 kB\nVmHWM:\t    3072 kB\nVmRSS:\t 1 kB\n"), Some(3.0));
        assert_eq!(parse_peak_mib("State: Z\n"), None);
    }

    #[test]
    fn this_process_is_found_in_proc() {
        let processes = Processes::read().unwrap();
        assert_eq!(processes.tree(std::process::id())[0], std::process::id());
    }
}
