//! The fields of `spec.oidc`: the issuer whose access tokens may call the API beside API keys. `kubectl explain` shows their
//! docs.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    SecretKeyRef,
    validate::{Found, is_word, port_of},
};

/// Longest tolerated difference of clocks.
const LONGEST_SKEW: u32 = 300;
/// Most values of the claim of scopes that have a meaning.
const MOST_SCOPE_VALUES: usize = 64;
/// Most characters of a claim's name, and of a value of the claim of scopes.
const LONGEST_NAME: usize = 200;
/// The rule for an issuer's URL, for a person.
const ISSUER_RULE: &str = "must be an https URL of at most 500 characters, without user, password, query and fragment; http is \
                           for localhost, 127.0.0.0/8 and [::1] only";
/// The rule for the URL of keys, for a person.
const JWKS_RULE: &str = "must be an https URL of at most 2,000 characters, without user, password and fragment; http is for \
                         localhost, 127.0.0.0/8 and [::1] only";

/// The issuer of access tokens (JWT) that may call the API beside API keys: an OpenID provider, or another that publishes its
/// keys as a JWK set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Oidc {
    /// The URL of the issuer, byte by byte as it is in the claim `iss` of its tokens: https; http for localhost only.
    #[schemars(length(min = 1, max = 500))]
    #[x_kube(validation = Rule::new(r"self.matches(r'^(https://[^/?#@\s]+|http://(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?)(/[^?#\s]*)?$')")
        .message("must be an https URL without user, password, query and fragment; http is for localhost, 127.0.0.0/8 and [::1] only"))]
    pub issuer: String,
    /// The audience that tokens must have in the claim `aud`: the name of this API at the issuer.
    #[schemars(length(min = 1, max = 500))]
    #[x_kube(validation = Rule::new(r"!self.matches(r'\s')").message("must be 1 to 500 characters without white space"))]
    pub audience: String,
    /// The URL of the issuer's JWK set. Absent: as `<issuer>/.well-known/openid-configuration` names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2000))]
    #[x_kube(validation = Rule::new(r"self.matches(r'^(https://[^/?#@\s]+|http://(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?)([/?][^#\s]*)?$')")
        .message("must be an https URL without user, password and fragment; http is for localhost, 127.0.0.0/8 and [::1] only"))]
    pub jwks_url: Option<String>,
    /// The Secret key that holds the certificates of the authorities that may have signed the issuer's certificate, as PEM.
    /// They replace the system's. Absent: the system's. The pods follow a change without a restart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_secret_ref: Option<SecretKeyRef>,
    /// The scopes that a value of the claim of scopes gives, such as `"records:write": [ingest]`, 1 to 64 values. Other values
    /// give none.
    #[schemars(extend("minProperties" = 1, "maxProperties" = 64))]
    #[x_kube(validation = Rule::new("self.all(value, value.size() >= 1 && value.size() <= 200 && self[value].size() >= 1 && self[value].size() <= 3)")
        .message("each value must have 1 to 200 characters, and 1 to 3 of the scopes ingest, read and admin"))]
    pub scopes: BTreeMap<String, Vec<TokenScope>>,
    /// The claims that say what a token may do.
    #[serde(default)]
    pub claims: TokenClaims,
    /// How much the clocks of the issuer and of the pods may differ, in seconds, 60 unless given, at most 300.
    #[serde(default = "default_clock_skew_seconds")]
    #[schemars(range(max = 300))]
    pub clock_skew_seconds: u32,
}

/// A scope of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TokenScope {
    /// Sending records.
    Ingest,
    /// Queries.
    Read,
    /// Keys, dead letters and other changes; implies the others.
    Admin,
}

/// Names of claims: the name of a claim of the token, or a JSON pointer to one within another, such as `/realm_access/roles`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TokenClaims {
    /// The claim of scopes, `scope` unless given: a text of words with spaces between, or a list of texts.
    #[serde(default = "default_scopes_claim")]
    #[schemars(length(min = 1, max = 200))]
    pub scopes: String,
    /// The claim that limits a token to sources: a list of `exact=ID` and `prefix=TEXT`, or of the objects that a limited key
    /// has. A token without it is refused, unless it has the scope admin. Absent: tokens may reach any source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    pub source_ids: Option<String>,
    /// The same for destinations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200))]
    pub destination_ids: Option<String>,
}

impl Default for TokenClaims {
    fn default() -> Self {
        Self { scopes: default_scopes_claim(), source_ids: None, destination_ids: None }
    }
}

fn default_scopes_claim() -> String {
    "scope".to_owned()
}

fn default_clock_skew_seconds() -> u32 {
    60
}

impl Oidc {
    /// Whether keys may be read from a URL: one of https, or of http on loopback, without a user, a password or a fragment.
    #[must_use]
    pub fn is_url(text: &str) -> bool {
        let (authority, is_https) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (rest, true),
            (None, Some(rest)) => (rest, false),
            (None, None) => return false,
        };
        let authority = authority.split(['/', '?']).next().unwrap_or_default();
        let is_form = is_word(text, 2000) && !text.contains('#') && !authority.is_empty() && !authority.contains('@');
        is_form && (is_https || is_loopback(authority))
    }

    /// The ports that its keys are read from, as far as the manifest names them.
    #[must_use]
    pub fn ports(&self) -> Vec<i32> {
        let discovery = self.jwks_url.is_none().then_some(&self.issuer);
        self.jwks_url.iter().chain(discovery).map(|url| port_of(url)).collect()
    }

    pub(crate) fn check(&self, at: &str, found: &mut Found) {
        let Self { issuer, audience, jwks_url, ca_secret_ref, scopes, claims, clock_skew_seconds } = self;
        if !Self::is_url(issuer) || issuer.contains('?') || issuer.len() > 500 {
            found.add(format!("{at}.issuer"), ISSUER_RULE);
        }
        if !is_word(audience, 500) {
            found.add(format!("{at}.audience"), "must be 1 to 500 characters without white space");
        }
        if jwks_url.as_ref().is_some_and(|url| !Self::is_url(url)) {
            found.add(format!("{at}.jwksUrl"), JWKS_RULE);
        }
        if let Some(reference) = ca_secret_ref {
            reference.check(&format!("{at}.caSecretRef"), found);
        }
        if !(1..=MOST_SCOPE_VALUES).contains(&scopes.len()) {
            found.add(
                format!("{at}.scopes"),
                "must be 1 to 64 values of the claim of scopes: other tokens could do nothing",
            );
        }
        for (value, given) in scopes {
            if !is_name(value) || !(1..=3).contains(&given.len()) {
                let rule = "each value must have 1 to 200 characters, and 1 to 3 of the scopes ingest, read and admin";
                found.add(format!("{at}.scopes"), rule);
            }
        }
        for (field, name) in [
            ("scopes", Some(&claims.scopes)),
            ("sourceIds", claims.source_ids.as_ref()),
            ("destinationIds", claims.destination_ids.as_ref()),
        ] {
            if name.is_some_and(|name| !is_name(name)) {
                let rule = "must be the name of a claim, of 1 to 200 characters, or a JSON pointer such as /realm_access/roles";
                found.add(format!("{at}.claims.{field}"), rule);
            }
        }
        if *clock_skew_seconds > LONGEST_SKEW {
            found.add(
                format!("{at}.clockSkewSeconds"),
                "must be at most 300: a longer one accepts expired tokens for long",
            );
        }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.chars().count() <= LONGEST_NAME
}

/// Whether the host of `host[:port]` is this machine.
fn is_loopback(authority: &str) -> bool {
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (authority, ""),
    };
    let address = host.parse::<Ipv4Addr>().map(IpAddr::V4).ok().or_else(|| {
        let inner = host.strip_prefix('[')?.strip_suffix(']')?;
        inner.parse::<Ipv6Addr>().map(IpAddr::V6).ok()
    });
    port.bytes().all(|byte| byte.is_ascii_digit())
        && (host == "localhost" || address.is_some_and(|address| address.is_loopback()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_over_https_or_on_this_machine() {
        for url in [
            "https://login.example.com",
            "https://login.example.com:8443/realms/a?version=2",
            "http://localhost:3000/a",
            "http://127.0.0.1",
            "http://[::1]:3000/",
        ] {
            assert!(Oidc::is_url(url), "{url}");
        }
        for none in [
            "",
            "https://",
            "http://login.example.com",
            "http://localhost.example.com",
            "http://localhost:3000@login.example.com",
            "http://127.0.0.1.example.com",
            "http://10.0.0.1",
            "https://user:password@login.example.com",
            "https://login.example.com/#a",
            "https://login.example.com/ a",
            "ftp://login.example.com",
            "login.example.com",
        ] {
            assert!(!Oidc::is_url(none), "{none}");
        }
    }
}
