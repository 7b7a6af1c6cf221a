//! The fields of `spec.sinks[].webhook`. `kubectl explain` shows their docs.

use ipnet::IpNet;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    SecretKeyRef,
    validate::{Found, is_word, port_of},
};

/// Most ranges of addresses of one webhook.
const MOST_CIDRS: usize = 16;

/// An HTTP endpoint as a sink, by Standard Webhooks 1.0: each outcome is posted at least once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Webhook {
    /// The URL to post to: http or https, at most 2,000 characters, without a user or password.
    #[schemars(length(max = 2000))]
    #[x_kube(validation = Rule::new(r"self.matches(r'^https?://[^/?#@\s]+([/?#]\S*)?$')").message(
        "must be an http or https URL without spaces, user or password"
    ))]
    pub url: String,
    /// The Secret key that holds the signing keys, each as `whsec_` and base64, with white space between, in the order of
    /// use: each signs, so that receivers can change from one to the next. A change is followed without a restart.
    pub secret_ref: SecretKeyRef,
    /// The Secret key that holds further headers of each request, one `Name: value` a line, such as `Authorization`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers_secret_ref: Option<SecretKeyRef>,
    /// What a delivery waits for, Destination unless given. Destination: a destination's next delivery waits for a 2xx to
    /// the one before it. None: for nothing.
    #[serde(default)]
    pub ordering: Ordering,
    /// How long an answer may take, in seconds, 10 unless given, at most 60.
    #[serde(default = "default_timeout_seconds")]
    #[schemars(range(min = 1, max = 60))]
    pub timeout_seconds: u32,
    /// Most deliveries of a shard at once, 64 unless given, at most 256. As many may be repeated after a restart.
    #[serde(default = "default_max_in_flight")]
    #[schemars(range(min = 1, max = 256))]
    pub max_in_flight: u32,
    /// Ranges of addresses that deliveries may go to although they are private, loopback, link-local or of another special
    /// use, such as 10.1.0.0/16, at most 16.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 43)))]
    #[x_kube(validation = Rule::new("self.all(range, isCIDR(range))").message("must be ranges such as 10.1.0.0/16 or fd00::/8"))]
    pub allowed_cidrs: Vec<String>,
    /// An HTTP proxy that tunnels the connections (CONNECT), such as http://proxy.example.com:3128, without a user or
    /// password. It resolves the names: only an address in the URL itself is checked. Absent: none, whatever the environment
    /// has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 300))]
    #[x_kube(validation = Rule::new(r"self.matches(r'^http://[^/?#@\s]+:[0-9]{1,5}/?$')").message(
        "must be http://host:port, without a user, a password or a path"
    ))]
    pub proxy: Option<String>,
}

/// What a delivery waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum Ordering {
    /// The delivery before it of the same destination.
    #[default]
    Destination,
    /// Nothing.
    None,
}

fn default_timeout_seconds() -> u32 {
    10
}

fn default_max_in_flight() -> u32 {
    64
}

impl Webhook {
    /// The allowed ranges; one that is none is left out, and [`Self::check`] refuses it.
    #[must_use]
    pub fn allowed(&self) -> Vec<IpNet> {
        self.allowed_cidrs.iter().filter_map(|range| range.parse().ok()).collect()
    }

    /// The Secret keys that it names.
    pub fn secrets(&self) -> impl Iterator<Item = &SecretKeyRef> {
        std::iter::once(&self.secret_ref).chain(&self.headers_secret_ref)
    }

    /// The port that it connects to: of its proxy, if it has one.
    #[must_use]
    pub fn port(&self) -> i32 {
        port_of(self.proxy.as_ref().unwrap_or(&self.url))
    }

    pub(crate) fn check(&self, at: &str, found: &mut Found) {
        if !is_web_url(&self.url) {
            found.add(
                format!("{at}.url"),
                "must be an http(s) URL of at most 2,000 characters, without spaces, user or password",
            );
        }
        self.secret_ref.check(&format!("{at}.secretRef"), found);
        if let Some(reference) = &self.headers_secret_ref {
            reference.check(&format!("{at}.headersSecretRef"), found);
        }
        if !(1..=60).contains(&self.timeout_seconds) {
            found.add(format!("{at}.timeoutSeconds"), "must be between 1 and 60");
        }
        if !(1..=256).contains(&self.max_in_flight) {
            found.add(format!("{at}.maxInFlight"), "must be between 1 and 256");
        }
        if self.allowed_cidrs.len() > MOST_CIDRS {
            found.add(format!("{at}.allowedCidrs"), "must be at most 16");
        }
        if self.proxy.as_ref().is_some_and(|proxy| !is_proxy(proxy)) {
            found.add(format!("{at}.proxy"), "must be http://host:port, without a user, a password or a path");
        }
        let rule = "must be a range such as 10.1.0.0/16 or fd00::/8";
        found.check_networks(&format!("{at}.allowedCidrs"), &self.allowed_cidrs, rule);
    }
}

fn is_proxy(text: &str) -> bool {
    let place = text.strip_prefix("http://").map(|rest| rest.strip_suffix('/').unwrap_or(rest));
    let port = place.and_then(|place| place.rsplit_once(':')).and_then(|(_, port)| port.parse::<u16>().ok());
    is_web_url(text) && text.len() <= 300 && port.is_some_and(|port| port > 0)
}

fn is_web_url(text: &str) -> bool {
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let host = host.and_then(|rest| rest.split(['/', '?', '#']).next());
    is_word(text, 2000) && host.is_some_and(|host| !host.is_empty() && !host.contains('@'))
}
