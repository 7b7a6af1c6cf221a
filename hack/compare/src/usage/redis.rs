//! Counters of Redis, from INFO.
//!
//! Must never take an absent counter for zero.

use anyhow::Context as _;

/// Counters since the start of Redis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RedisCounters {
    /// Reads from clients' sockets.
    pub(crate) reads: u64,
    /// Commands, those of scripts included.
    pub(crate) commands: u64,
    /// Bytes of the append-only file. They shrink when it is rewritten.
    pub(crate) aof_bytes: u64,
}

impl RedisCounters {
    /// From the answer of INFO.
    pub(crate) fn parse(info: &str) -> anyhow::Result<Self> {
        Ok(Self {
            reads: number(info, "total_reads_processed")?,
            commands: number(info, "total_commands_processed")?,
            aof_bytes: number(info, "aof_current_size")?,
        })
    }
}

/// A field of INFO's answer.
pub(crate) fn field<'a>(info: &'a str, name: &str) -> anyhow::Result<&'a str> {
    let mut fields = info.lines().filter_map(|line| line.split_once(':'));
    let value = fields.find_map(|(field, value)| (field == name).then_some(value.trim_end()));
    value.with_context(|| format!("INFO of Redis has no {name}"))
}

/// A numeric field of INFO's answer.
pub(crate) fn number(info: &str, name: &str) -> anyhow::Result<u64> {
    field(info, name)?.parse().with_context(|| format!("INFO of Redis: {name} is not a number"))
}

#[cfg(test)]
mod tests {
    use super::{RedisCounters, field};

    const INFO: &str = "# Stats\r\ntotal_commands_processed:90\r\ntotal_reads_processed:70\r\n\r\n# Persistence\r\n\
                        aof_current_size:1234\r\nrole:primary\r\n";

    #[test]
    fn counters_are_read_from_info() {
        let counters = RedisCounters::parse(INFO).unwrap();
        assert_eq!(counters, RedisCounters { reads: 70, commands: 90, aof_bytes: 1234 });
        assert_eq!(field(INFO, "role").unwrap(), "primary");
    }

    #[test]
    fn an_absent_counter_is_an_error() {
        assert!(RedisCounters::parse("total_commands_processed:90\r\n").is_err());
    }
}
