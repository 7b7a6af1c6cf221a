//! Further headers of each request, from a Secret.

use std::fmt;

use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Most headers.
const MOST: usize = 16;

/// Headers that are not shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ExtraHeaders(HeaderMap);

impl fmt::Debug for ExtraHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} headers (hidden)", self.0.len())
    }
}

impl ExtraHeaders {
    /// Reads one `Name: value` a line.
    ///
    /// # Errors
    /// The form that a line lacks, with its number; never its content.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut headers = HeaderMap::new();
        for (index, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let at = index + 1;
            let parsed = line.split_once(':').and_then(|(name, value)| {
                let name = HeaderName::try_from(name.trim()).ok()?;
                let mut value = HeaderValue::try_from(value.trim()).ok()?;
                value.set_sensitive(true);
                Some((name, value))
            });
            let (name, value) =
                parsed.ok_or_else(|| format!("line {at} must be a header, such as Authorization: Bearer …"))?;
            if is_own(&name) {
                return Err(format!("line {at} must not be a header that each delivery has, or one of the connection"));
            }
            headers.append(name, value);
        }
        if headers.is_empty() || headers.len() > MOST {
            return Err(format!("must be 1 to {MOST} headers, one a line"));
        }
        Ok(Self(headers))
    }

    /// Adds them to those of a request.
    pub(super) fn add_to(&self, headers: &mut HeaderMap) {
        headers.extend(self.0.clone());
    }
}

fn is_own(name: &HeaderName) -> bool {
    name.as_str().starts_with("webhook-")
        || name.as_str() == "traceparent"
        || [
            header::HOST,
            header::CONTENT_LENGTH,
            header::CONTENT_TYPE,
            header::TRANSFER_ENCODING,
            header::CONNECTION,
            header::EXPECT,
            header::TE,
            header::TRAILER,
            header::UPGRADE,
        ]
        .contains(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_a_line_each_and_none_of_a_delivery_is_replaced() {
        let headers = ExtraHeaders::parse("Authorization: Bearer a:b\n\nx-team:  7 \n").expect("headers");
        let mut map = HeaderMap::new();
        headers.add_to(&mut map);
        assert_eq!(
            (map[header::AUTHORIZATION].to_str().ok(), map["x-team"].to_str().ok()),
            (Some("Bearer a:b"), Some("7"))
        );
        assert!(!format!("{headers:?}").contains("Bearer"));
        for wrong in ["", "x", "a b: c", "Host: h", "Webhook-Id: 1", "content-length: 1", "a: \u{7}"] {
            let refused = ExtraHeaders::parse(&format!("Authorization: s3cret\n{wrong}"));
            // Nothing behind the first line is no mistake.
            assert_eq!(refused.is_err(), !wrong.is_empty(), "{wrong}");
            assert!(refused.err().is_none_or(|why| !why.contains("s3cret")));
        }
    }
}
