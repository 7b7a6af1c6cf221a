//! The machine, as a report describes it.

use std::fs;

use anyhow::Context as _;
use serde::Serialize;

/// A machine.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    pub(crate) cores: usize,
    /// The name of the processor.
    processor: String,
    memory_mib: u64,
    kernel: String,
}

impl Machine {
    /// This one.
    pub(crate) fn read() -> anyhow::Result<Self> {
        let memory =
            value(&fs::read_to_string("/proc/meminfo")?, "MemTotal").context("/proc/meminfo has no MemTotal")?;
        let kib: u64 = memory.split(' ').next().unwrap_or_default().parse().context("MemTotal")?;
        Ok(Self {
            cores: std::thread::available_parallelism()?.get(),
            processor: value(&fs::read_to_string("/proc/cpuinfo")?, "model name")
                .unwrap_or_else(|| "unknown".to_owned()),
            memory_mib: kib / 1024,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        })
    }
}

/// The first value of this name.
fn value(text: &str, name: &str) -> Option<String> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find_map(|(found, value)| (found.trim() == name).then(|| value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn a_value_is_found_by_its_name() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: another\n";
        assert_eq!(value(text, "model name").as_deref(), Some("Some CPU @ 2 GHz"));
        assert_eq!(value(text, "model"), None);
    }
}
