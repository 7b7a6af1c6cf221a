//! Cross-origin requests of browsers (CORS), for the origins that the manifest allows; none by default.
//!
//! Must never allow credentials of a browser, such as cookies: a page sends its API key in a header. Refuses no request:
//! it is the browser that keeps an answer from a page.

use millrace_crds::Cors;
use poem::{
    Response,
    http::{
        HeaderMap, HeaderValue, Method,
        header::{
            ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
            ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
        },
    },
};
use tokio::sync::watch;

use crate::config::ActiveManifest;

/// Headers that a page may send.
const SENT: &str = "accept, authorization, content-encoding, content-type, idempotency-key, millrace-read-from, prefer, \
                    traceparent, tracestate";
/// Headers of answers that a page may read.
const SHOWN: &str = "allow, millrace-complete-since, millrace-read-from, ratelimit, ratelimit-policy, retry-after, \
                     www-authenticate";
/// For how long a browser keeps the answer to a preflight, in seconds.
const KEPT_SECONDS: &str = "600";

/// The origins that are allowed, followed.
pub(super) struct CrossOrigin(watch::Receiver<ActiveManifest>);

/// The judgement on one request.
pub(super) struct Judgement {
    /// Value of `Access-Control-Allow-Origin`; `None`: the page may not read the answer.
    allowed: Option<HeaderValue>,
    /// Whether the answer to another origin would differ.
    varies: bool,
    is_preflight: bool,
}

impl CrossOrigin {
    pub(super) fn new(manifest: watch::Receiver<ActiveManifest>) -> Self {
        Self(manifest)
    }

    /// Judges a request by its headers.
    pub(super) fn judge(&self, method: &Method, headers: &HeaderMap) -> Judgement {
        let active = self.0.borrow();
        let cors = active.manifest.spec.serve.as_ref().and_then(|serve| serve.cors.as_ref());
        judge(cors, method, headers)
    }
}

fn judge(cors: Option<&Cors>, method: &Method, headers: &HeaderMap) -> Judgement {
    let is_preflight = method == Method::OPTIONS && headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    let Some(Cors { allowed_origins }) = cors else {
        return Judgement { allowed: None, varies: false, is_preflight };
    };
    let is_any = allowed_origins.iter().any(|origin| origin == Cors::ANY);
    let allowed = headers.get(ORIGIN).and_then(|origin| match is_any {
        true => Some(HeaderValue::from_static(Cors::ANY)),
        false => allowed_origins.iter().any(|allowed| allowed.as_bytes() == origin.as_bytes()).then(|| origin.clone()),
    });
    Judgement { allowed, varies: !is_any, is_preflight }
}

impl Judgement {
    /// Adds the headers to an answer; `methods` are those of the path.
    pub(super) fn mark(self, response: &mut Response, methods: Option<&HeaderValue>) {
        let headers = response.headers_mut();
        if self.varies {
            headers.append(VARY, HeaderValue::from_static("Origin"));
        }
        let Some(origin) = self.allowed else { return };
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        if !self.is_preflight {
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(SHOWN));
        } else if let Some(methods) = methods {
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, methods.clone());
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(SENT));
            headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static(KEPT_SECONDS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(origins: &[&str], origin: &str) -> Option<String> {
        let cors = Cors { allowed_origins: origins.iter().map(|&origin| origin.to_owned()).collect() };
        let headers = [(ORIGIN, HeaderValue::from_str(origin).expect("a header"))].into_iter().collect();
        let mut response = Response::default();
        judge(Some(&cors), &Method::GET, &headers).mark(&mut response, None);
        assert!(response.headers().get("access-control-allow-credentials").is_none());
        let value = response.headers().get(ACCESS_CONTROL_ALLOW_ORIGIN);
        value.map(|value| value.to_str().expect("text").to_owned())
    }

    #[test]
    fn an_origin_is_compared_as_a_whole() {
        let known = ["https://app.example.com", "http://localhost:3000"];
        for origin in known {
            assert_eq!(allowed(&known, origin).as_deref(), Some(origin));
        }
        for other in [
            "https://app.example.com.evil.example",
            "https://evil-app.example.com",
            "http://app.example.com",
            "https://app.example.com:8443",
            "http://localhost",
            "null",
        ] {
            assert_eq!(allowed(&known, other), None, "{other}");
        }
        assert_eq!(allowed(&["*"], "https://anything.example").as_deref(), Some("*"));
    }
}
