//! The URL of Redis: what the client would ignore is refused.

use super::server_url::{ServerUrl, hosts, shown, unknown};
use crate::streams;

const FORMS: &str = "not a URL of the form redis://user:password@host:6379/0, redis+sentinel://host:26379,host:26379/primary \
                     or redis+cluster://host:6379,host:6379; with TLS rediss://, rediss+sentinel:// or rediss+cluster://";

/// Checks a URL.
///
/// # Errors
/// Fault and remedy, without the URL.
pub(super) fn checked(text: &str) -> Result<String, String> {
    let (scheme, _) = text.split_once("://").ok_or_else(|| FORMS.to_owned())?;
    match scheme {
        "redis" | "valkey" | "rediss" | "valkeys" => one(text)?,
        "redis+sentinel" | "redis+cluster" | "rediss+sentinel" | "rediss+cluster" => {
            hosts(text)?;
        }
        "redis+unix" | "valkey+unix" | "unix" => socket(text)?,
        _ => return Err(FORMS.to_owned()),
    }
    // The words of the parser about a URL are constant: they hold no part of it.
    streams::check_url(text).map_err(|why| format!("not a URL of Redis: {why}"))?;
    Ok(text.to_owned())
}

fn one(text: &str) -> Result<(), String> {
    let url = ServerUrl::one(text, "use redis+sentinel:// or redis+cluster:// where there are several servers")?;
    if let Some((name, _)) = url.parameters(&[])?.first() {
        return Err(unknown(name, "this form has none; the database is the path, redis://host:6379/0"));
    }
    let url = &url.url;
    if !url.username().is_empty() && url.password().is_none_or(str::is_empty) {
        return Err(
            "it has a user without a password: put a colon before a password that has no user, redis://:password@host"
                .to_owned(),
        );
    }
    Ok(())
}

fn socket(text: &str) -> Result<(), String> {
    let url = ServerUrl::one(text, "name one")?;
    let known = ["db", "user", "pass"];
    match url.parameters(&[])?.iter().find(|(name, _)| !known.contains(&name.as_str())) {
        Some((name, _)) => Err(format!("the parameter {} is not known: db, user and pass are", shown(name))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redis_url_is_refused_with_cause_and_remedy() {
        for (url, words) in [
            ("s3cret", "not a URL of the form redis://"),
            ("http://s3cret@h", "not a URL of the form redis://"),
            ("rediss://:s3cret@h#insecure", "a # stands in it"),
            ("rediss+sentinel://:s3cret@h#insecure", "a # stands in it"),
            ("redis+sentinels://:s3cret@h/p", "rediss+sentinel://"),
            ("redis://:s3cret@h1,h2:6380", "redis+sentinel:// or redis+cluster://"),
            ("redis://:s3/cret@h", "/ as %2F"),
            ("redis+sentinel://:s3/cret@h/p", "/ as %2F"),
            ("redis+cluster://:s3#cret@h", "# as %23"),
            ("redis://:s3cret@h#insecure", "a # stands in it"),
            ("redis://:s3cret@h?db=2", "db is not known: this form has none; the database is the path"),
            ("redis://:s3cret@h/2?timeout=5", "timeout is not known"),
            ("redis://:s3cret@h/s3cret", "database number"),
            ("redis://s3cret@h", "a user without a password"),
            ("redis+unix:///tmp/x?passwd=s3cret", "passwd is not known: db, user and pass are"),
            ("redis+cluster://:s3cret@h?x=s3cret", "x is not known"),
            ("redis+sentinel://:s3cret@h/p?x=s3cret", "x is not known: sentinelUser and sentinelPassword are"),
            ("redis+sentinel://h/p?sentinelUser=s3cret", "sentinelUser without sentinelPassword"),
            ("redis+sentinel://h/p?sentinelPassword=a&sentinelPassword=s3cret", "given twice"),
            ("redis+cluster://s3cret@h", "a user without a password"),
        ] {
            let why = checked(url).expect_err(url);
            assert!(why.contains(words), "{url}: {why}");
            assert!(!why.contains("s3"), "{why}");
        }
    }

    #[test]
    fn a_redis_url_that_the_client_takes_whole_is_taken() {
        for url in [
            "redis://me:p%40%2F%23%3F%25@h:7000/2",
            "redis://:p:w@[::1]:6379",
            "redis+sentinel://:p@[::1],b:1/primary/1?sentinelUser=u&sentinelPassword=p",
            "redis+cluster://[::1]:7000,b",
            "rediss://me:p@h:7000/2",
            "rediss+sentinel://:p@a,b:1/primary",
            "rediss+cluster://:p@a:7000,b",
            "redis+unix:///tmp/x?db=1&user=u&pass=p",
        ] {
            assert_eq!(checked(url).as_deref(), Ok(url));
        }
    }
}
