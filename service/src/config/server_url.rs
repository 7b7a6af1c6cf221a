//! Rules that URLs of both servers share.
//!
//! A message never contains the URL, nor a part of it that may belong to a password.

use reqwest::Url;

/// The rule for reserved characters, as a message ends with it.
const ENCODE: &str = "write such characters of user and password percent-encoded: @ as %40, / as %2F, : as %3A, # as %23, ? as %3F, % as %25";

/// A URL whose parts can be trusted: none of them is the rest of a password.
pub(super) struct ServerUrl {
    pub(super) url: Url,
}

impl ServerUrl {
    /// Splits a URL that names one server.
    ///
    /// # Errors
    /// Why it is not one, and the remedy.
    pub(super) fn one(text: &str, several: &str) -> Result<Self, String> {
        if hosts(text)?.contains(',') {
            return Err(format!("several hosts are not supported here: {several}"));
        }
        let url = Url::parse(text).map_err(|error| format!("not a URL ({error}): {ENCODE}"))?;
        Ok(Self { url })
    }

    /// The parameters, decoded. One that is given twice is an error: one of its values would be dropped.
    pub(super) fn parameters(&self, may_repeat: &[&str]) -> Result<Vec<(String, String)>, String> {
        let parameters: Vec<(String, String)> =
            self.url.query_pairs().map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
        for (index, (name, _)) in parameters.iter().enumerate() {
            let is_repeated = parameters[..index].iter().any(|(earlier, _)| earlier == name);
            if is_repeated && !may_repeat.contains(&name.as_str()) {
                return Err(format!("the parameter {} is given twice", shown(name)));
            }
        }
        Ok(parameters)
    }
}

/// The hosts of a URL, with their ports.
///
/// # Errors
/// When a character that ends the host's part is followed by `@`: a password holds it, and a parser would take the rest of
/// the password for a path, a parameter or a fragment.
pub(super) fn hosts(text: &str) -> Result<&str, String> {
    let (_, rest) = text.split_once("://").unwrap_or(("", text));
    let (authority, behind) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    if behind.contains('@') {
        return Err(format!("the password probably holds a character that must be percent-encoded: {ENCODE}"));
    }
    if behind.contains('#') {
        return Err(format!("a # stands in it, which no URL of a server has: {ENCODE}"));
    }
    Ok(authority.rsplit_once('@').map_or(authority, |(_, hosts)| hosts))
}

/// A parameter's name as a message shows it: only characters that a name has, so that a password that was taken for one
/// stays hidden.
pub(super) fn shown(name: &str) -> String {
    let is_name = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || "_-[].".contains(c));
    match !name.is_empty() && name.len() <= 40 && is_name(name) {
        true => name.to_owned(),
        false => "(hidden, for it is no name)".to_owned(),
    }
}

pub(super) fn unknown(name: &str, known: &str) -> String {
    format!("the parameter {} is not known: {known}", shown(name))
}

#[cfg(test)]
mod tests {
    use super::super::{postgres_url, redis_url};

    #[test]
    fn the_documented_bad_urls_get_the_documented_messages() {
        let docs = include_str!("../../../docs/servers.md");
        let (_, section) = docs.split_once("## Bad input").expect("the section");
        let mut rows = 0;
        for line in section.lines().take_while(|line| !line.starts_with("## ")) {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let [_, case, message, _] = cells.as_slice() else { continue };
            let url = case.trim_matches('`');
            let refused = match url.split_once("://") {
                Some(("postgres", _)) => postgres_url::checked(url),
                Some(("redis", _)) => redis_url::checked(url),
                _ => continue,
            };
            let why = refused.expect_err(url);
            let is_documented = match message.strip_suffix('…') {
                Some(beginning) => why.starts_with(beginning),
                None => why == *message,
            };
            assert!(is_documented, "{url}: {why}, not {message}");
            rows += 1;
        }
        assert!(rows >= 10, "{rows} rows");
    }
}
