//! The URL of Postgres: the driver would ignore some of it, and the product overwrites some.

use std::str::FromStr as _;

use sqlx::postgres::PgConnectOptions;

use super::server_url::{ServerUrl, shown, unknown};

const KNOWN: &str = "user, password, host, hostaddr, port, dbname, sslmode, options and statement-cache-capacity are";
/// Settings that the product makes on every connection.
const OURS: [&str; 12] = [
    "search_path",
    "timezone",
    "client_encoding",
    "statement_timeout",
    "idle_session_timeout",
    "transaction_timeout",
    "plan_cache_mode",
    "jit",
    "enable_seqscan",
    "idle_in_transaction_session_timeout",
    "lock_timeout",
    "default_transaction_isolation",
];

/// Checks a URL; answers it as the driver understands it.
///
/// # Errors
/// Fault and remedy, without the URL.
pub(super) fn checked(text: &str) -> Result<String, String> {
    if !["postgres://", "postgresql://"].iter().any(|scheme| text.starts_with(scheme)) {
        return Err("not a URL of the form postgres://user:password@host:5432/database".to_owned());
    }
    let url = ServerUrl::one(text, "name one, such as that of a proxy or a service that follows the primary")?;
    let mut is_named = Named::in_url(&url);
    let parameters = url.parameters(&["options"])?;
    for (name, value) in &parameters {
        parameter(name, value, &mut is_named)?;
    }
    let is_socket = parameters.iter().any(|(name, value)| name == "host" && value.starts_with('/'));
    match mode_of(&parameters) {
        mode @ ("require" | "verify-ca" | "verify-full") if is_socket => {
            return Err(format!("sslmode={mode} asks for TLS, which a socket has not: leave sslmode out"));
        }
        "verify-full" if !is_named.host => {
            return Err("sslmode=verify-full compares the certificate with the host's name, which is missing: \
                        postgres://user:password@host:5432/database?sslmode=verify-full"
                .to_owned());
        }
        _ => {}
    }
    PgConnectOptions::from_str(text).map_err(|_| {
        "not a URL of the form postgres://user:password@host:5432/database: a part of it cannot be decoded".to_owned()
    })?;
    // The driver keeps the brackets of a host and then looks the name up. A parameter replaces the host.
    let inner = url.url.host_str().and_then(|host| host.strip_prefix('[')?.strip_suffix(']'));
    Ok(match inner {
        Some(inner) => format!("{text}{}host={inner}", if text.contains('?') { '&' } else { '?' }),
        None => text.to_owned(),
    })
}

/// The `sslmode` of a URL that was checked.
pub(super) fn mode(text: &str) -> String {
    let parameters = ServerUrl::one(text, "").and_then(|url| url.parameters(&["options"])).unwrap_or_default();
    mode_of(&parameters).to_owned()
}

fn mode_of(parameters: &[(String, String)]) -> &str {
    let given = parameters.iter().find(|(name, _)| ["sslmode", "ssl-mode"].contains(&name.as_str()));
    // As the driver has it.
    given.map_or("prefer", |(_, mode)| mode)
}

/// Which parts are given before the parameters.
struct Named {
    user: bool,
    password: bool,
    host: bool,
    port: bool,
    database: bool,
}

impl Named {
    fn in_url(ServerUrl { url }: &ServerUrl) -> Self {
        Self {
            user: !url.username().is_empty(),
            password: url.password().is_some(),
            host: url.host_str().is_some_and(|host| !host.is_empty()),
            port: url.port().is_some(),
            database: !url.path().trim_start_matches('/').is_empty(),
        }
    }

    fn take(is_given: &mut bool, what: &str) -> Result<(), String> {
        match std::mem::replace(is_given, true) {
            true => Err(format!("the {what} is given twice: keep one, in front or as a parameter")),
            false => Ok(()),
        }
    }
}

fn parameter(name: &str, value: &str, is_named: &mut Named) -> Result<(), String> {
    match name {
        "sslmode" | "ssl-mode" => match value {
            "disable" | "prefer" | "require" | "verify-ca" | "verify-full" => Ok(()),
            _ => Err("sslmode must be disable, prefer, require, verify-ca or verify-full".to_owned()),
        },
        "sslrootcert" | "ssl-root-cert" | "ssl-ca" | "sslcert" | "ssl-cert" | "sslkey" | "ssl-key" => Err(format!(
            "{name} cannot be set here: name the file in spec.postgres.tls, or by --postgres-tls-ca-file, \
             --postgres-tls-cert-file and --postgres-tls-key-file"
        )),
        "user" => Named::take(&mut is_named.user, "user"),
        "password" => Named::take(&mut is_named.password, "password"),
        "dbname" => Named::take(&mut is_named.database, "database"),
        // A socket's directory beside a host that is a placeholder is usual.
        "host" if value.starts_with('/') => {
            is_named.host = true;
            Ok(())
        }
        "host" | "hostaddr" | "port" if value.contains(',') => {
            Err(format!("several hosts are not supported: the parameter {name} must name one"))
        }
        "host" | "hostaddr" => Named::take(&mut is_named.host, "host"),
        "port" => Named::take(&mut is_named.port, "port"),
        "statement-cache-capacity" => Ok(()),
        "application_name" => Err("application_name cannot be set: the product sets it on its connections".to_owned()),
        "options" => settings(value).try_for_each(setting),
        _ => match name.strip_prefix("options[").and_then(|name| name.strip_suffix(']')) {
            Some(name) => setting(name.to_owned()),
            None => Err(unknown(name, KNOWN)),
        },
    }
}

/// Names of the settings in `-c name=value --name=value`, as Postgres reads them.
fn settings(options: &str) -> impl Iterator<Item = String> {
    options.split_whitespace().filter_map(|word| {
        let word = word.strip_prefix("--").or_else(|| word.strip_prefix("-c")).unwrap_or(word);
        word.split_once('=').map(|(name, _)| name.to_owned())
    })
}

fn setting(name: String) -> Result<(), String> {
    let name = name.replace('-', "_").to_ascii_lowercase();
    match OURS.contains(&name.as_str()) {
        true => Err(format!("options must not set {}: the product sets it on its connections", shown(&name))),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_postgres_url_is_refused_with_cause_and_remedy() {
        for (url, words) in [
            ("redis://h/db", "postgres://user:password@host"),
            ("postgres://u:s3cret@h/db?sslmode=allow", "must be disable, prefer, require, verify-ca or verify-full"),
            ("postgres://u:s3cret@h/db?sslmode=s3cret", "must be disable, prefer, require, verify-ca or verify-full"),
            ("postgres://u:s3cret@h/db?sslrootcert=/s3cret", "sslrootcert cannot be set here: name the file in spec"),
            ("postgres:///db?user=u&sslmode=verify-full", "the host's name, which is missing"),
            ("postgres:///db?host=/s3cret&sslmode=verify-full", "TLS, which a socket has not"),
            ("postgres://h/db?host=/s3cret&sslmode=require", "TLS, which a socket has not"),
            ("postgres://u:s3cret@h1,h2:5433/db", "several hosts are not supported"),
            ("postgres:///db?host=h1,h2", "several hosts are not supported"),
            ("postgres://u:s3/cret@h/db", "/ as %2F"),
            ("postgres://u:s3?cret=1@h/db", "? as %3F"),
            ("postgres://u:12#s3cret@h/db", "# as %23"),
            ("postgres://u:12/s3cret@h/db", "percent-encoded"),
            ("postgres://u:12#s3cret", "# as %23"),
            ("postgres://u:s3[cret@h:5x/db", "percent-encoded"),
            ("postgres://u:%ff@h/db", "cannot be decoded"),
            ("postgres://u:s3cret@h/db?connect_timeout=5", "connect_timeout is not known"),
            ("postgres://u:s3cret@h/db?s3%20cret%23=5", "(hidden, for it is no name) is not known"),
            ("postgres://u:s3cret@h/db?user=other", "user is given twice"),
            ("postgres://u:s3cret@h/db?host=other", "host is given twice"),
            ("postgres://u:s3cret@h/db?sslmode=disable&sslmode=prefer", "sslmode is given twice"),
            ("postgres://u:s3cret@h/db?application_name=x", "application_name cannot be set"),
            ("postgres://u:s3cret@h/db?options=-csearch_path%3Dpublic", "must not set search_path"),
            ("postgres://u:s3cret@h/db?options=-c%20work_mem%3D1MB%20--TimeZone%3DUTC", "must not set timezone"),
            ("postgres://u:s3cret@h/db?options[search-path]=public", "must not set search_path"),
            ("postgres://u:s3cret@h/db?options[statement_timeout]=5s", "must not set statement_timeout"),
        ] {
            let why = checked(url).expect_err(url);
            assert!(why.contains(words), "{url}: {why}");
            assert!(!why.contains("s3"), "{why}");
        }
    }

    #[test]
    fn a_postgres_url_that_the_driver_takes_whole_is_taken() {
        for url in [
            "postgres://me:p%40%2F%23%3F%25@h:5433/db?sslmode=disable",
            "postgresql://me@h/db?options=-c%20temp_buffers%3D8MB&options=-cwork_mem%3D1MB",
            "postgres://me:p@h/db?sslmode=verify-full",
            "postgres://me:p@h/db?ssl-mode=verify-ca",
            "postgres:///db?host=h&sslmode=verify-full",
            "postgres://me:p@w@h/db",
            "postgres://me@localhost/db?host=/var/run/postgresql",
            "postgres:///db?host=/var/run/postgresql&user=me&port=5433",
        ] {
            assert_eq!(checked(url).as_deref(), Ok(url));
        }
    }

    #[tokio::test]
    async fn a_postgres_at_an_ipv6_address_answers() {
        // Where the machine has no IPv6 there is nothing to show.
        let Ok(listener) = tokio::net::TcpListener::bind("[::1]:0").await else { return };
        let port = listener.local_addr().expect("an address").port();
        let real = PgConnectOptions::from_str(&crate::store::testing::url()).expect("a URL");
        let way = (real.get_host().to_owned(), real.get_port());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let way = way.clone();
                tokio::spawn(async move {
                    let mut far = tokio::net::TcpStream::connect(way).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                });
            }
        });
        let mut url = reqwest::Url::parse(&crate::store::testing::url()).expect("a URL");
        url.set_host(Some("[::1]")).expect("a host");
        url.set_port(Some(port)).expect("a port");
        let url = checked(url.as_str()).expect("a URL of Postgres");
        let store = crate::store::Store::connect(&url, "nobody", 1).expect("a store");
        store.probe().await.expect("Postgres answers");
    }

    #[test]
    fn a_postgres_host_in_brackets_is_an_address() {
        for url in ["postgres://me:p@[::1]:5433/db", "postgres://me:p@[::1]:5433/db?sslmode=prefer"] {
            let options = PgConnectOptions::from_str(&checked(url).expect("a URL")).expect("options");
            assert_eq!((options.get_host(), options.get_port()), ("::1", 5433));
        }
    }
}
