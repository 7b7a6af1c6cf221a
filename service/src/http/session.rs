//! Sessions of the console in requests: the cookie, and the token against forgery.
//!
//! A browser sends a cookie by itself. So a request that changes something also needs a header, whose value only a page of
//! this origin can read; and a request that comes from another origin is refused. Must never accept an API key in a cookie,
//! or a session's token as an API key.

use poem::{
    Request,
    http::{HeaderMap, HeaderName, Method, header::COOKIE},
};
use sha2::{Digest as _, Sha256};

use super::{keyring::Hash, problem::Failure};

/// The begin of a cookie's name. The name of the pipeline follows: cookies of a host are shared by all its ports.
const COOKIE_PREFIX: &str = "millrace_session_";
/// The header with the token against forgery.
const FORGERY_TOKEN: HeaderName = HeaderName::from_static("x-millrace-forgery-token");
/// The header by which a browser tells from where a page sends a request.
const FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// The secret of a session, which only the cookie holds.
#[derive(Clone)]
pub(crate) struct SessionToken(String);

impl SessionToken {
    /// Makes a token of 256 random bits.
    pub(crate) fn random() -> Self {
        Self(hex::encode(rand::random::<[u8; 32]>()))
    }

    /// What is stored of it.
    pub(crate) fn hash(&self) -> Hash {
        Sha256::digest(format!("session:{}", self.0)).into()
    }

    /// The token against forgery of this session. It does not show the session's token.
    pub(crate) fn forgery_token(&self) -> String {
        hex::encode(Sha256::digest(format!("forgery:{}", self.0)))
    }

    /// The value of `Set-Cookie` that begins the session.
    pub(crate) fn cookie(&self, pipeline: &str, seconds: i64, is_https: bool) -> String {
        let secure = if is_https { "; Secure" } else { "" };
        let token = &self.0;
        format!("{COOKIE_PREFIX}{pipeline}={token}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}")
    }

    /// Refuses a request of this session that another origin sent, or that changes something without the token against
    /// forgery.
    pub(crate) fn check_forgery(&self, request: &Request) -> Result<(), Failure> {
        if is_of_another_origin(request.headers()) {
            return Err(Failure::new(
                403,
                "forged_request",
                "a page of another origin sent this request with the console's cookie",
            ));
        }
        if *request.method() == Method::GET {
            return Ok(());
        }
        let sent = request.headers().get(FORGERY_TOKEN).map_or(&[][..], |header| header.as_bytes());
        // Digests, so that the time of the comparison tells nothing.
        if Sha256::digest(sent) == Sha256::digest(self.forgery_token()) {
            return Ok(());
        }
        let detail = "with the console's cookie, a request that changes something needs the header X-Millrace-Forgery-Token; \
                      GET /console/session returns its value";
        Err(Failure::new(403, "forged_request", detail))
    }
}

/// The value of `Set-Cookie` that removes the session's cookie.
pub(crate) fn removed_cookie(pipeline: &str) -> String {
    format!("{COOKIE_PREFIX}{pipeline}=; Path=/; Max-Age=0; HttpOnly; SameSite=Strict")
}

/// The session tokens in a request's cookies. There are several where several pipelines are reached by one host.
pub(crate) fn tokens(headers: &HeaderMap) -> impl Iterator<Item = SessionToken> {
    let cookies = headers.get_all(COOKIE).into_iter().filter_map(|header| header.to_str().ok());
    let pairs = cookies.flat_map(|header| header.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.filter(|(name, _)| name.starts_with(COOKIE_PREFIX)).map(|(_, token)| SessionToken(token.to_owned()))
}

/// Whether a browser tells that a page of another origin sent the request. `none`: the person did, as by a bookmark.
pub(crate) fn is_of_another_origin(headers: &HeaderMap) -> bool {
    headers.get(FETCH_SITE).is_some_and(|site| !matches!(site.as_bytes(), b"same-origin" | b"none"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_consoles_cookies_are_sessions() {
        let headers = |cookie: &str| [(COOKIE, cookie.parse().expect("a header"))].into_iter().collect::<HeaderMap>();
        let found = |cookie: &str| tokens(&headers(cookie)).map(|token| token.0).collect::<Vec<_>>();
        assert_eq!(found("a=b; millrace_session_x=1;millrace_session_y=2"), ["1", "2"]);
        assert!(found("other=mk_a; millrace=1; session").is_empty());
    }

    #[test]
    fn a_session_is_neither_its_forgery_token_nor_its_hash() {
        let token = SessionToken::random();
        let shown = [token.forgery_token(), hex::encode(token.hash())];
        assert!(shown.iter().all(|text| *text != token.0) && shown[0] != shown[1]);
        assert!(token.cookie("p", 60, true).ends_with("; HttpOnly; SameSite=Strict; Secure"));
        assert!(!token.cookie("p", 60, false).contains("Secure"));
    }
}
