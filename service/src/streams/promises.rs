//! The settings of Redis that decide which acknowledged records survive a crash, and its clock.
//!
//! It must never fail where a server refuses `CONFIG` or `INFO`, as managed servers do: what is not shown is unknown.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    time::{Duration, SystemTime},
};

use super::{
    Error, Streams,
    connect::Queries,
    info::{field, infos},
};

/// A setting that no server shows.
const UNKNOWN: &str = "unknown";

/// Settings of Redis that decide which records survive a crash; `unknown` where the server hides them. The servers of a
/// cluster may differ: then they are a list.
#[derive(Debug, Clone)]
pub struct RedisPromises {
    /// `appendonly`.
    pub appendonly: String,
    /// `appendfsync`.
    pub appendfsync: String,
    /// `maxmemory-policy`.
    pub maxmemory_policy: String,
    /// `redis_version`; of Valkey, which returns an old version of Redis there, `valkey` and its own.
    pub version: String,
}

/// Why Redis may lose records that it acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Weakness {
    /// By a crash.
    NotDurable(String),
    /// By its eviction policy.
    Evicts(String),
}

impl fmt::Display for Weakness {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotDurable(settings) => write!(
                f,
                "Redis may lose acknowledged records when it crashes: it has {settings}; set appendonly yes and appendfsync \
                 always"
            ),
            Self::Evicts(policy) => {
                write!(f, "Redis may evict records: it has maxmemory-policy {policy}; set maxmemory-policy noeviction")
            }
        }
    }
}

impl RedisPromises {
    /// What the settings that are known do not promise.
    #[must_use]
    pub fn weaknesses(&self) -> Vec<Weakness> {
        let mut weaknesses = Vec::new();
        let wrong = |value: &str, right: &str| value != right && value != UNKNOWN;
        let settings: Vec<String> =
            [("appendonly", &self.appendonly, "yes"), ("appendfsync", &self.appendfsync, "always")]
                .into_iter()
                .filter(|(_, value, right)| wrong(value, right))
                .map(|(name, value, _)| format!("{name} {value}"))
                .collect();
        if !settings.is_empty() {
            weaknesses.push(Weakness::NotDurable(settings.join(" and ")));
        }
        if wrong(&self.maxmemory_policy, "noeviction") {
            weaknesses.push(Weakness::Evicts(self.maxmemory_policy.clone()));
        }
        weaknesses
    }

    /// Whether a setting that matters is unknown.
    #[must_use]
    pub fn are_unknown(&self) -> bool {
        [&self.appendonly, &self.appendfsync, &self.maxmemory_policy].into_iter().any(|value| value == UNKNOWN)
    }
}

/// The values of all servers that show one.
fn said(values: BTreeSet<String>) -> String {
    match values.is_empty() {
        true => UNKNOWN.to_owned(),
        false => values.into_iter().collect::<Vec<_>>().join(", "),
    }
}

/// The version of a server, by its `INFO`.
fn version(info: &str) -> Option<String> {
    let valkey = field(info, "valkey_version").map(|version| format!("valkey {version}"));
    valkey.or_else(|| field(info, "redis_version").map(str::to_owned))
}

/// `CONFIG GET` of each server; empty where it is refused.
async fn configurations(queries: &Queries) -> Result<Vec<HashMap<String, String>>, Error> {
    let mut configurations = Vec::new();
    for mut connection in queries.each() {
        let mut command = redis::cmd("CONFIG");
        command.arg("GET").arg(&["appendonly", "appendfsync", "maxmemory-policy"]);
        configurations.push(match command.query_async(&mut connection).await {
            Ok(found) => found,
            Err(error) if error.code().is_some() => HashMap::new(),
            Err(error) => return Err(Error::of(error)),
        });
    }
    Ok(configurations)
}

impl Streams {
    /// The settings of the servers.
    ///
    /// # Errors
    /// When Redis does not answer. A server that refuses the command is not an error.
    pub async fn promises(&self) -> Result<RedisPromises, Error> {
        let queries = self.queries().await?;
        let mut values: [BTreeSet<String>; 4] = Default::default();
        let infos = infos(&queries, &["server", "memory", "persistence"]).await?;
        for (config, info) in configurations(&queries).await?.into_iter().zip(infos) {
            let shown = |name: &str| info.as_deref().and_then(|info| field(info, name)).map(str::to_owned);
            // Where CONFIG is refused, INFO shows two of the three.
            let aof = || shown("aof_enabled").map(|on| if on == "1" { "yes" } else { "no" }.to_owned());
            let of_server = [
                config.get("appendonly").cloned().or_else(aof),
                config.get("appendfsync").cloned(),
                config.get("maxmemory-policy").cloned().or_else(|| shown("maxmemory_policy")),
                info.as_deref().and_then(version),
            ];
            values.iter_mut().zip(of_server).for_each(|(values, value)| values.extend(value));
        }
        let [appendonly, appendfsync, maxmemory_policy, version] = values.map(said);
        Ok(RedisPromises { appendonly, appendfsync, maxmemory_policy, version })
    }

    /// The clock of each server, in the time since 1970.
    ///
    /// # Errors
    /// When Redis does not answer.
    pub async fn clocks(&self) -> Result<Vec<SystemTime>, Error> {
        let mut clocks = Vec::new();
        for mut connection in self.queries().await?.each() {
            let (seconds, micros): (u64, u64) =
                redis::cmd("TIME").query_async(&mut connection).await.map_err(Error::of)?;
            clocks.push(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds) + Duration::from_micros(micros));
        }
        Ok(clocks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn promises(appendonly: &str, appendfsync: &str, policy: &str) -> RedisPromises {
        let [appendonly, appendfsync, maxmemory_policy] = [appendonly, appendfsync, policy].map(str::to_owned);
        RedisPromises { appendonly, appendfsync, maxmemory_policy, version: "7.0.0".to_owned() }
    }

    #[test]
    fn the_version_of_valkey_is_its_own() {
        let redis = "# Server\r\nredis_version:7.0.15\r\nredis_git_sha1:00000000\r\n";
        assert_eq!(version(redis).as_deref(), Some("7.0.15"));
        let valkey = "# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:9.1.2\r\n";
        assert_eq!(version(valkey).as_deref(), Some("valkey 9.1.2"));
        assert_eq!(version("# Memory\r\n"), None);
    }

    #[test]
    fn weak_settings_are_named_and_unknown_ones_are_not() {
        let shown = |promises: RedisPromises| promises.weaknesses().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert!(shown(promises("yes", "always", "noeviction")).is_empty());
        assert!(shown(promises("unknown", "unknown", "unknown")).is_empty());
        assert!(promises("yes", "unknown", "noeviction").are_unknown());
        assert!(!promises("yes", "always", "noeviction").are_unknown());
        for (weak, words) in [
            (promises("no", "always", "noeviction"), "appendonly no;"),
            (promises("yes", "everysec", "noeviction"), "appendfsync everysec;"),
            (promises("no", "everysec", "unknown"), "appendonly no and appendfsync everysec;"),
            (promises("yes", "always", "allkeys-lru"), "maxmemory-policy allkeys-lru;"),
            // One server of a cluster.
            (promises("yes", "always, everysec", "noeviction"), "appendfsync always, everysec;"),
        ] {
            let shown = shown(weak);
            assert!(shown.len() == 1 && shown[0].contains(words), "{shown:?}");
        }
    }

    #[tokio::test]
    async fn a_server_shows_its_settings_and_its_clock() {
        let streams = Streams::connect(&crate::streams::testing::url(), "promises").expect("URL");
        let promises = streams.promises().await.expect("promises");
        assert_eq!((promises.appendonly.as_str(), promises.appendfsync.as_str()), ("yes", "always"));
        assert_ne!(promises.version, UNKNOWN);
        let before = SystemTime::now();
        let clocks = streams.clocks().await.expect("clocks");
        // The same machine.
        assert!(clocks.iter().all(|clock| *clock >= before && *clock <= SystemTime::now()), "{clocks:?}");
    }
}
