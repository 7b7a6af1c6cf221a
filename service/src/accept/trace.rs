//! W3C trace context of a request, as it travels in the entry.

use poem::Request;

/// The request's `traceparent`, if it is given once and well-formed; else the trace begins anew behind this service.
pub(super) fn parent(request: &Request) -> Option<String> {
    let mut headers = request.headers().get_all("traceparent").iter();
    let text = headers.next()?.to_str().ok()?;
    (headers.next().is_none() && is_traceparent(text)).then(|| text.to_owned())
}

fn is_traceparent(text: &str) -> bool {
    let parts: Vec<&str> = text.split('-').collect();
    let hex = |part: &str, length: usize| {
        part.len() == length && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let some = |part: &str| part.bytes().any(|byte| byte != b'0');
    matches!(parts.as_slice(), [version, trace, span, flags]
        if hex(version, 2) && *version != "ff" && hex(trace, 32) && some(trace) && hex(span, 16) && some(span) && hex(flags, 2))
}

#[cfg(test)]
mod tests {
    use super::is_traceparent;

    #[test]
    fn only_the_form_of_the_standard_is_taken() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(is_traceparent(good));
        for bad in [
            "",
            &good[..54],
            &good.to_uppercase(),
            &good.replace("00f067aa0ba902b7", "0000000000000000"),
            &good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &format!("ff{}", &good[2..]),
            &format!("{good}-00"),
        ] {
            assert!(!is_traceparent(bad), "{bad}");
        }
    }
}
