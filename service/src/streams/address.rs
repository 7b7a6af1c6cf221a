//! Redis URLs: one server, the primary of the sentinels, or a cluster.
//!
//! `redis://[user:password@]host[:port][/db]`, the common form;
//! `redis+sentinel://[user:password@]host[:port],…/primary[/db][?sentinelUser=…&sentinelPassword=…]`;
//! `redis+cluster://[user:password@]host[:port],…`. User and password are those of the data servers. With `rediss` in
//! place of `redis`, every connection is one of TLS, those to the sentinels too.

use std::{fmt, str::FromStr};

use redis::{ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo as _, RedisError, RedisResult};

use super::tls;
use crate::tls::Endpoint;

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26_379;

/// Host and port of a server.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Node {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// A parsed URL. Its connection settings are the same for all servers; `each` has them for one.
#[derive(Clone)]
pub(super) enum Address {
    /// A server.
    One(ConnectionInfo),
    /// Servers of a cluster, which return the primaries.
    Cluster { each: ConnectionInfo, seeds: Vec<Node> },
    /// Sentinels that return the primary of this name, with the settings of their connections.
    Sentinel { each: ConnectionInfo, seeds: Vec<Node>, sentinel: Box<ConnectionInfo>, primary: String },
}

/// Checks that a URL is a Redis URL.
///
/// # Errors
/// The cause, which has no part of the URL except the name of a parameter.
pub fn check_url(url: &str) -> Result<(), String> {
    let cause = |error: RedisError| error.to_string().replace(" - InvalidClientConfig", "");
    url.parse::<Address>().map(|_| ()).map_err(cause)
}

impl Address {
    /// The connection settings of a data server.
    pub(super) fn of(&self, node: &Node) -> ConnectionInfo {
        let (Self::One(each) | Self::Cluster { each, .. } | Self::Sentinel { each, .. }) = self;
        at(each, node)
    }

    /// The connection settings of a server that returns the primaries: a sentinel, or a server of the cluster.
    pub(super) fn discovery(&self, node: &Node) -> ConnectionInfo {
        match self {
            Self::Sentinel { sentinel, .. } => at(sentinel, node),
            _ => self.of(node),
        }
    }

    /// Gives the connections of TLS their files; other connections stay as they are.
    ///
    /// # Errors
    /// When a file cannot be used.
    pub(super) fn with_files(self, endpoint: &Endpoint) -> RedisResult<Self> {
        let with = |info: ConnectionInfo| tls::with_files(info, endpoint);
        Ok(match self {
            Self::One(info) => Self::One(with(info)?),
            Self::Cluster { each, seeds } => Self::Cluster { each: with(each)?, seeds },
            Self::Sentinel { each, seeds, sentinel, primary } => {
                Self::Sentinel { each: with(each)?, seeds, sentinel: Box::new(with(*sentinel)?), primary }
            }
        })
    }

    /// The servers of the URL, for the first discovery.
    pub(super) fn seeds(&self) -> &[Node] {
        match self {
            Self::One(_) => &[],
            Self::Cluster { seeds, .. } | Self::Sentinel { seeds, .. } => seeds,
        }
    }
}

/// The same connection settings for another server.
fn at(info: &ConnectionInfo, node: &Node) -> ConnectionInfo {
    let (host, port) = (node.host.clone(), node.port);
    let addr = match info.addr() {
        ConnectionAddr::TcpTls { tls_params, .. } => {
            ConnectionAddr::TcpTls { host, port, insecure: false, tls_params: tls_params.clone() }
        }
        _ => ConnectionAddr::Tcp(host, port),
    };
    info.clone().set_addr(addr)
}

fn wrong(why: &'static str) -> RedisError {
    (ErrorKind::InvalidClientConfig, why).into()
}

/// The error of an invalid parameter. It shows the name only if that has just letters and digits: other text may be
/// part of a password.
fn wrong_parameter(name: &str, why: &str) -> RedisError {
    let is_word = !name.is_empty() && name.len() <= 40 && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    let name = if is_word { name } else { "(hidden, for it is no name)" };
    (ErrorKind::InvalidClientConfig, "the URL's parameters", format!("{name} {why}")).into()
}

/// The credentials of the sentinels, in the form before the host of a URL.
fn sentinel_credentials(query: &str) -> RedisResult<String> {
    let (mut name, mut password) = (None, None);
    for option in query.split('&').filter(|option| !option.is_empty()) {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        let place = match key {
            "sentinelUser" => &mut name,
            "sentinelPassword" => &mut password,
            _ => return Err(wrong_parameter(key, "is not known: sentinelUser and sentinelPassword are")),
        };
        if place.replace(value).is_some() {
            return Err(wrong_parameter(key, "is given twice"));
        }
    }
    match (name.unwrap_or_default(), password.unwrap_or_default()) {
        ("", "") => Ok(String::new()),
        (_, "") => Err(wrong("sentinelUser without sentinelPassword: give both")),
        (name, password) => Ok(format!("{name}:{password}")),
    }
}

impl FromStr for Address {
    type Err = RedisError;

    fn from_str(url: &str) -> RedisResult<Self> {
        let Some((scheme, rest)) = url.split_once("://") else { return Ok(Self::One(url.into_connection_info()?)) };
        let (each_scheme, sentinel) = match scheme {
            "redis+sentinel" => ("redis", true),
            "rediss+sentinel" => ("rediss", true),
            "redis+cluster" => ("redis", false),
            "rediss+cluster" => ("rediss", false),
            _ => return Ok(Self::One(url.into_connection_info()?)),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let port = if sentinel { SENTINEL_PORT } else { PORT };
        let seeds: Vec<Node> =
            hosts.split(',').map(|host| node(host, port)).collect::<Option<_>>().ok_or_else(|| {
                wrong("a host is missing or its port is invalid: host[:port], several with commas, IPv6 in brackets")
            })?;
        // The parts become the URL of one server, so that they have the same meaning as there.
        let info = |user: &str, db: &str| {
            let at = if user.is_empty() { "" } else { "@" };
            format!("{each_scheme}://{user}{at}{}/{db}", seeds[0]).into_connection_info()
        };
        if !user.is_empty() && user.split_once(':').is_none_or(|(_, password)| password.is_empty()) {
            return Err(wrong("it has a user without a password: put a colon before a password that has no user"));
        }
        if !sentinel {
            if let Some(parameter) = query.split('&').find(|parameter| !parameter.is_empty()) {
                let name = parameter.split('=').next().unwrap_or_default();
                return Err(wrong_parameter(name, "is not known: a cluster's URL has none"));
            }
            if !path.is_empty() {
                return Err(wrong("a cluster has only database 0: the URL ends with its hosts"));
            }
            return Ok(Self::Cluster { each: info(user, "")?, seeds });
        }
        let (primary, db) = path.split_once('/').unwrap_or((path, ""));
        if primary.is_empty() {
            return Err(wrong("the name of the primary is missing: redis+sentinel://host:26379,host:26379/primary"));
        }
        let credentials = sentinel_credentials(query)?;
        Ok(Self::Sentinel {
            each: info(user, db)?,
            sentinel: Box::new(info(&credentials, "")?),
            primary: primary.to_owned(),
            seeds,
        })
    }
}

fn node(text: &str, port: u16) -> Option<Node> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            let port = if rest.is_empty() { port } else { rest.strip_prefix(':')?.parse().ok()? };
            (host, port)
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, port.parse().ok()?),
            None => (text, port),
        },
    };
    (!host.is_empty()).then(|| Node { host: host.to_owned(), port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hosts(address: &Address) -> Vec<String> {
        address.seeds().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn the_url_of_one_server_has_the_common_form() {
        let Ok(Address::One(info)) = "redis://:secret@cache:7000/2".parse() else { panic!("one server") };
        assert_eq!((info.redis_settings().db(), info.redis_settings().password()), (2, Some("secret")));
        assert!("https://cache".parse::<Address>().is_err());
    }

    #[test]
    fn the_url_of_sentinels_has_hosts_a_name_and_two_credentials() {
        let url = "redis+sentinel://me:p%40ss@a:1,b,[::1]:3/primary/4?sentinelPassword=t%2Fo";
        let address: Address = url.parse().unwrap();
        assert_eq!(hosts(&address), ["a:1", "b:26379", "[::1]:3"]);
        let node = Node { host: "other".into(), port: 9 };
        let (info, sentinel) = (address.of(&node), address.discovery(&node));
        assert_eq!(info.addr().to_string(), "other:9");
        let settings = info.redis_settings();
        assert_eq!((settings.username(), settings.password(), settings.db()), (Some("me"), Some("p@ss"), 4));
        assert_eq!((sentinel.redis_settings().password(), sentinel.redis_settings().db()), (Some("t/o"), 0));
        let Address::Sentinel { primary, .. } = address else { panic!("sentinels") };
        assert_eq!(primary, "primary");
    }

    #[test]
    fn the_url_of_a_cluster_has_hosts() {
        let address: Address = "redis+cluster://:p@a:7001,b".parse().unwrap();
        assert_eq!(hosts(&address), ["a:7001", "b:6379"]);
        assert_eq!(address.discovery(&address.seeds()[1]).redis_settings().password(), Some("p"));
    }

    #[test]
    fn the_error_of_a_url_names_the_wrong_part() {
        for (url, why) in [
            ("redis+cluster://", "host"),
            ("redis+cluster://a:b", "port"),
            ("redis+cluster://a/1", "database 0"),
            ("redis+sentinel://a,b", "name of the primary"),
            ("redis+sentinel://a/p?x=y", "sentinelPassword"),
        ] {
            let Err(error) = url.parse::<Address>() else { panic!("{url} is accepted") };
            assert!(error.to_string().contains(why), "{url}: {error}");
        }
    }
}
