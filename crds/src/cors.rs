//! The field `spec.serve.cors`: the web pages that may call the API from a browser.

use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::validate::Found;

/// The form of an origin, for a person.
const FORM: &str = "must be an origin such as https://app.example.com or http://localhost:3000, in lower case, without a path \
                    and without a slash at its end; or *";

/// Cross-origin requests of browsers. Cookies are never used, and credentials of a browser never admitted: a page sends its
/// API key in a header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Cors {
    /// The origins of the pages, such as `https://app.example.com`, 1 to 32, compared as a whole; or `*` alone, for any.
    #[schemars(length(min = 1, max = 32), inner(length(min = 1, max = 300)))]
    #[x_kube(
        validation = Rule::new(r"self.all(origin, origin == '*' || origin.matches(r'^https?://([a-z0-9]([-a-z0-9.]*[a-z0-9])?|\[[0-9a-f:.]+\])(:[0-9]{1,5})?$'))")
            .message("each must be an origin such as https://app.example.com or http://localhost:3000, in lower case, without a path and without a slash at its end; or *"),
        validation = Rule::new("self.size() == 1 || self.all(origin, origin != '*')")
            .message("* must be the only one"),
    )]
    pub allowed_origins: Vec<String>,
}

impl Cors {
    /// What stands for any origin.
    pub const ANY: &str = "*";

    pub(crate) fn check(&self, at: &str, found: &mut Found) {
        let Self { allowed_origins } = self;
        if !(1..=32).contains(&allowed_origins.len()) {
            found.add(format!("{at}.allowedOrigins"), "must be 1 to 32 origins; leave cors out to allow none");
        }
        for (index, origin) in allowed_origins.iter().enumerate() {
            let at = format!("{at}.allowedOrigins[{index}]");
            if origin == Self::ANY && allowed_origins.len() > 1 {
                found.add(at, "* must be the only one");
            } else if origin != Self::ANY && !is_origin(origin) {
                found.add(at, FORM);
            }
        }
    }
}

/// Whether a text is an origin as browsers send it. The rule of the API server has the same form.
fn is_origin(text: &str) -> bool {
    let Some(rest) = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")) else { return false };
    // The colons of an IPv6 address are inside its brackets.
    let colon = rest.rfind(':').filter(|&colon| !rest[colon..].contains(']'));
    let (host, port) = colon.map_or((rest, None), |colon| (&rest[..colon], Some(&rest[colon + 1..])));
    let is_port = |port: &str| (1..=5).contains(&port.len()) && port.bytes().all(|byte| byte.is_ascii_digit());
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let is_host = match host.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        Some(address) => {
            !address.is_empty() && address.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b':' | b'.'))
        }
        None => {
            host.bytes().all(|byte| is_word(byte) || matches!(byte, b'-' | b'.'))
                && host.bytes().next().is_some_and(is_word)
                && host.bytes().last().is_some_and(is_word)
        }
    };
    text.len() <= 300 && is_host && port.is_none_or(is_port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_what_a_browser_sends() {
        for origin in
            ["https://app.example.com", "http://localhost:3000", "https://[::1]:8443", "http://10.0.0.1", "https://a"]
        {
            assert!(is_origin(origin), "{origin}");
        }
        for none in [
            "null",
            "https://",
            "https://App.example.com",
            "https://app.example.com/",
            "https://app.example.com:",
            "https://app.example.com:123456",
            "https://*.example.com",
            "https://[]",
            "https://a b",
            "ftp://a",
            "a.example.com",
        ] {
            assert!(!is_origin(none), "{none}");
        }
    }
}
