//! The rights that the user of Redis needs, and the question which of them it lacks.
//!
//! It must never run a command to find out whether it is allowed: Redis answers that from a script.

use std::{collections::BTreeSet, fmt, sync::LazyLock};

use redis::Script;

use super::{Error, Streams, keys};
use crate::domain::ShardId;

/// The commands of `serve` and `work`, with arguments that Redis takes keys from. A test compares them with the scripts.
const COMMANDS: [&str; 29] = [
    "PING",
    "UNWATCH",
    "TIME",
    "EVALSHA script 0",
    "SCRIPT LOAD script",
    "EXISTS {key}",
    "DEL {key}",
    "HGET {key} field",
    "HMGET {key} field",
    "HGETALL {key}",
    "HKEYS {key}",
    "HSET {key} field value",
    "HDEL {key} field",
    "HINCRBY {key} field 1",
    "XADD {key} * field value",
    "XLEN {key}",
    "XRANGE {key} - +",
    "XREVRANGE {key} + -",
    "XTRIM {key} MINID 0",
    "XACK {key} workers 0-0",
    "XPENDING {key} workers",
    "XCLAIM {key} workers consumer 0 0-0",
    "XREADGROUP GROUP workers consumer STREAMS {key} >",
    "XREAD STREAMS {key} 0",
    "XINFO GROUPS {key}",
    "XINFO STREAM {key}",
    "XINFO CONSUMERS {key}",
    "XGROUP CREATE {key} workers 0",
    "XGROUP DELCONSUMER {key} workers consumer",
];

static RIGHTS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("scripts/rights.lua")));

/// The rights that a user lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MissingRights {
    /// Commands, as an ACL names them.
    pub commands: Vec<String>,
    /// Keys on which some of the other commands are refused.
    pub keys: Vec<String>,
}

impl MissingRights {
    /// Whether the user lacks nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty() && self.keys.is_empty()
    }
}

impl fmt::Display for MissingRights {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.keys.iter().map(|key| format!("key {key}"));
        let all: Vec<String> = self.commands.iter().cloned().chain(keys).collect();
        write!(
            f,
            "{}: the user of Redis lacks these rights; docs/servers.md has all that it needs, under Redis",
            all.join(", ")
        )
    }
}

/// The name of a command in an ACL.
fn name(command: &str) -> String {
    let mut words = command.split(' ');
    let first = words.next().unwrap_or_default();
    match (first, words.next()) {
        ("XINFO" | "XGROUP" | "SCRIPT", Some(second)) => format!("{first}|{second}"),
        _ => first.to_owned(),
    }
}

/// Sorts refused pairs of a command and a key into commands and keys.
fn sorted(refused: &BTreeSet<(usize, usize)>, commands: &[&str], keys: &[String]) -> MissingRights {
    let of_key = |command: &str| command.contains("{key}");
    let keyed: Vec<usize> = (1..=commands.len()).filter(|at| of_key(commands[at - 1])).collect();
    let is_closed = |key: usize| !keyed.is_empty() && keyed.iter().all(|command| refused.contains(&(*command, key)));
    let open: Vec<usize> = (1..=keys.len()).filter(|key| !is_closed(*key)).collect();
    let is_missing = |command: usize| match of_key(commands[command - 1]) {
        true => !open.is_empty() && open.iter().all(|key| refused.contains(&(command, *key))),
        false => refused.contains(&(command, 0)),
    };
    let missing: Vec<usize> = (1..=commands.len()).filter(|command| is_missing(*command)).collect();
    let lacks = |key: &usize| keyed.iter().any(|at| !missing.contains(at) && refused.contains(&(*at, *key)));
    MissingRights {
        commands: missing.iter().map(|at| name(commands[at - 1])).collect(),
        keys: (1..=keys.len()).filter(lacks).map(|key| keys[key - 1].clone()).collect(),
    }
}

impl Streams {
    /// Whether the keys of input streams are not among the missing ones.
    #[must_use]
    pub fn may_append(&self, missing: &MissingRights) -> bool {
        let own = self.input_keys();
        !missing.keys.iter().any(|key| own.contains(key))
    }

    /// The keys of one shard.
    fn input_keys(&self) -> [String; 2] {
        let shard = ShardId::new(0);
        [keys::records(&self.pipeline, shard), keys::fence(&self.pipeline, shard)]
    }

    /// The rights that the user lacks on any server, to the input streams and to the streams of sinks.
    ///
    /// # Errors
    /// When Redis does not answer, or refuses the user, its password, or the question itself.
    pub async fn missing_rights(&self, streams: &[String]) -> Result<MissingRights, Error> {
        let sinks = streams.iter().flat_map(|stream| [stream.clone(), keys::cursor(stream)]);
        let keys: Vec<String> = self.input_keys().into_iter().chain(sinks).collect();
        self.refused(&COMMANDS, &keys).await
    }

    /// The rights that the user lacks for transactions, which only `millrace verify` uses.
    ///
    /// # Errors
    /// As [`Self::missing_rights`].
    pub async fn missing_for_verify(&self) -> Result<MissingRights, Error> {
        self.refused(&["MULTI", "EXEC"], &[]).await
    }

    async fn refused(&self, commands: &[&str], keys: &[String]) -> Result<MissingRights, Error> {
        let mut refused = BTreeSet::new();
        for mut connection in self.queries().await?.each() {
            let mut call = RIGHTS.arg(keys.len());
            keys.iter().for_each(|key| _ = call.arg(key));
            commands.iter().for_each(|command| _ = call.arg(*command));
            let pairs: Vec<usize> = call.invoke_async(&mut connection).await.map_err(Error::of)?;
            refused.extend(pairs.chunks_exact(2).map(|pair| (pair[0], pair[1])));
        }
        Ok(sorted(&refused, commands, keys))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names() -> Vec<String> {
        COMMANDS.iter().map(|command| name(command)).collect()
    }

    /// The commands of the scripts that `serve` and `work` run, and those that they send beside scripts.
    fn used() -> BTreeSet<String> {
        let scripts = [
            include_str!("scripts/append.lua"),
            include_str!("scripts/claim.lua"),
            include_str!("scripts/drop.lua"),
            include_str!("scripts/fence.lua"),
            include_str!("scripts/measure.lua"),
            include_str!("scripts/prepare.lua"),
            include_str!("scripts/publish.lua"),
            include_str!("scripts/reconcile.lua"),
            include_str!("scripts/retire.lua"),
            include_str!("scripts/start.lua"),
            include_str!("scripts/turn.lua"),
            include_str!("scripts/backlog.lua"),
        ];
        let direct = ["PING", "UNWATCH", "EVALSHA", "SCRIPT|LOAD", "HGETALL", "XREAD", "XREVRANGE", "XRANGE"];
        let mut used: BTreeSet<String> = direct.map(str::to_owned).into();
        for call in scripts.iter().flat_map(|script| script.split("call('").skip(1)) {
            let words: Vec<&str> = call.split('\'').collect();
            used.insert(name(&format!("{} {}", words[0], words.get(2).unwrap_or(&""))));
        }
        // Its refusal is no error.
        used.remove("INFO");
        used
    }

    #[test]
    fn the_rights_are_those_of_the_scripts() {
        let mut names = names();
        names.sort();
        let used: Vec<String> = used().into_iter().collect();
        assert_eq!(names, used);
    }

    #[test]
    fn the_documented_rights_are_those_that_are_checked() {
        let docs = include_str!("../../../docs/servers.md");
        let words: BTreeSet<&str> = docs
            .lines()
            .skip_while(|line| !line.starts_with("ACL SETUSER millrace"))
            .take_while(|line| !line.starts_with("```"))
            .flat_map(str::split_whitespace)
            .filter(|word| word.starts_with('+'))
            .collect();
        let names: Vec<String> = names().iter().map(|name| format!("+{}", name.to_lowercase())).collect();
        assert_eq!(words, names.iter().map(String::as_str).collect());
    }

    #[test]
    fn refused_pairs_name_commands_and_keys() {
        let keys = ["a", "b", "c"].map(str::to_owned);
        let position = |word: &str| 1 + COMMANDS.iter().position(|command| command.starts_with(word)).unwrap();
        let (time, exists, xadd) = (position("TIME"), position("EXISTS"), position("XADD"));
        let all =
            |key: usize| (1..=COMMANDS.len()).filter(|at| COMMANDS[at - 1].contains("{key}")).map(move |at| (at, key));
        let mut refused = BTreeSet::from([(time, 0), (exists, 1), (exists, 2), (xadd, 2)]);
        refused.extend(all(3));
        let missing = sorted(&refused, &COMMANDS, &keys);
        assert_eq!(missing.commands, ["TIME", "EXISTS"]);
        assert_eq!(missing.keys, ["b", "c"]);
        assert!(missing.to_string().starts_with("TIME, EXISTS, key b, key c: "), "{missing}");
        assert!(sorted(&BTreeSet::new(), &COMMANDS, &keys).is_empty());
        // No key at all: nothing is known about commands on keys.
        let missing = sorted(&(1..=3).flat_map(all).collect(), &COMMANDS, &keys);
        assert_eq!((missing.commands.len(), missing.keys.len()), (0, 3));
    }
}
