//! Processor times and memory of processes and of the machine, as Linux counts them in /proc.
//!
//! Must never lose the time of a process that ended: the parent has it, in the times of its waited-for children.

use std::{collections::HashMap, fs};

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

/// Processor time of the whole machine, over all cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Machine {
    /// Without idle time, waiting for a disk, and time that the host gave to other machines.
    pub(crate) busy: Ticks,
    /// Of it, time in the kernel, interrupts included.
    pub(crate) kernel: Ticks,
}

impl Machine {
    /// Reads it.
    pub(crate) fn read() -> anyhow::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/stat")?).context("/proc/stat has an unknown form")
    }

    fn parse(text: &str) -> Option<Self> {
        let line = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let times: Vec<u64> = line.split_whitespace().map_while(|time| time.parse().ok()).collect();
        let [user, nice, system, _idle, _iowait, irq, softirq] = times.get(..7)?.try_into().ok()?;
        let kernel = system + irq + softirq;
        Some(Self { busy: Ticks(user + nice + kernel), kernel: Ticks(kernel) })
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
    use std::collections::HashMap;

    use super::{Machine, Processes, Stat, Ticks, parse_peak_mib};

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
    fn idle_and_stolen_time_of_the_machine_is_not_busy() {
        let text = "cpu  100 10 50 9000 800 3 4 5 60 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(Machine::parse(text), Some(Machine { busy: Ticks(167), kernel: Ticks(57) }));
        assert_eq!(Machine::parse("cpu  1 2 3\n"), None);
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
