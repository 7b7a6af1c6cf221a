//! `RateLimit-Policy` and `RateLimit`, as in draft-ietf-httpapi-ratelimit-headers-11.
//!
//! A draft: the fields can change until it is an RFC. Must never be on an answer to which no limit applies.

use std::{fmt::Write as _, sync::atomic::Ordering};

use poem::{
    Response,
    http::{HeaderName, HeaderValue},
};

use super::{Admitted, Kind, Slot};

const POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
const STATE: HeaderName = HeaderName::from_static("ratelimit");

/// Adds both headers to the answer to a request that limits apply to.
pub(in crate::http) fn mark(slot: &Slot, response: &mut Response) {
    let Some(admitted) = slot.0.get() else { return };
    let (policy, state) = admitted.fields();
    for (name, text) in [(POLICY, policy), (STATE, state)] {
        if let Ok(value) = HeaderValue::try_from(text) {
            response.headers_mut().insert(name, value);
        }
    }
}

impl Admitted {
    /// The texts of both headers. Quotas are the parts of this process.
    pub(super) fn fields(&self) -> (String, String) {
        let (mut policy, mut state, now) = (String::new(), String::new(), self.limiter.now());
        for part in &self.parts {
            for kind in [Kind::Requests, Kind::Records] {
                let Some((bucket, rate)) = part.rate(kind) else { continue };
                let unit = if kind == Kind::Records { ";qu=\"records\"" } else { "" };
                let (name, (left, full)) = (format!("\"{}-{}\"", part.of.name(), kind.name()), bucket.left(now, rate));
                separate(&mut policy, &mut state);
                let _ = write!(policy, "{name};q={};w=1{unit}", (rate as u64).max(1));
                let _ = write!(state, "{name};r={left};t={full}");
            }
            if let Some(limit) = part.bytes {
                let left = limit.saturating_sub(part.usage.bytes.load(Ordering::Relaxed));
                separate(&mut policy, &mut state);
                let _ = write!(policy, "\"{}-bytes\";q={limit};qu=\"content-bytes\"", part.of.name());
                let _ = write!(state, "\"{}-bytes\";r={left}", part.of.name());
            }
        }
        (policy, state)
    }
}

fn separate(policy: &mut String, state: &mut String) {
    if !policy.is_empty() {
        policy.push_str(", ");
        state.push_str(", ");
    }
}
