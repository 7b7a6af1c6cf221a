//! URLs as they may be shown.

/// A URL without its password and its parameters, which may hold one, but for `sslmode`; what is no URL is hidden whole.
#[must_use]
pub(crate) fn hide_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "(hidden)".to_owned() };
    let (rest, query) = rest.split_once(['?', '#']).unwrap_or((rest, ""));
    let sslmode = query
        .split(['&', '#'])
        .filter_map(|pair| pair.strip_prefix("sslmode="))
        .find(|value| ["disable", "prefer", "require", "verify-ca", "verify-full"].contains(value))
        .map(|value| format!("?sslmode={value}"))
        .unwrap_or_default();
    // The last @ before the path ends the user's part: a password may itself hold one.
    let (authority, path) = rest.split_at(rest.rfind('@').map_or(0, |at| at));
    let shown = match (authority.is_empty(), path.strip_prefix('@')) {
        (false, Some(host)) => match authority.split_once(':') {
            Some((user, _)) => format!("{user}:(hidden)@{host}"),
            None => format!("{authority}@{host}"),
        },
        _ => rest.to_owned(),
    };
    format!("{scheme}://{shown}{sslmode}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_hidden() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
            ("redis://:s3cret@host:6379", "redis://:(hidden)@host:6379"),
            ("postgres://me:s3:cr@et@host/db?password=s3cret", "postgres://me:(hidden)@host/db"),
            ("postgres://me:s3/cret@host/db", "postgres://me:(hidden)@host/db"),
            ("postgres://me@host/db?password=s3cret&sslmode=verify-full", "postgres://me@host/db?sslmode=verify-full"),
            ("postgres://me@host/db", "postgres://me@host/db"),
            ("redis+sentinel://:s3@a:1,b/p?sentinelPassword=s3cret", "redis+sentinel://:(hidden)@a:1,b/p"),
            ("redis+cluster://me:s3cret@a:1,b:2", "redis+cluster://me:(hidden)@a:1,b:2"),
            ("s3cret", "(hidden)"),
        ] {
            assert_eq!(hide_password(url), shown);
        }
    }
}
