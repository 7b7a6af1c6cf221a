//! Formats of streamed responses: selection by `Accept`, and CSV fields.

use poem::http::{HeaderMap, header::ACCEPT};

use crate::http::problem::Failure;

/// The format of a streamed response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// One JSON document.
    Json,
    /// One JSON object per line.
    Ndjson,
    /// RFC 4180.
    Csv,
}

impl Format {
    const ALL: [Self; 3] = [Self::Json, Self::Ndjson, Self::Csv];

    /// Its media type in `Accept`.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Ndjson => "application/x-ndjson",
            Self::Csv => "text/csv",
        }
    }

    /// Other media types that select it in `Accept`.
    fn aliases(self) -> &'static [&'static str] {
        match self {
            Self::Ndjson => &["application/ndjson", "application/jsonl", "application/x-jsonl"],
            _ => &[],
        }
    }

    /// Its value of `Content-Type`.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Csv => "text/csv; charset=utf-8; header=present",
            other => other.media_type(),
        }
    }

    /// The format that `Accept` prefers; JSON if the request has no `Accept`.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        let accepted: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
        if accepted.iter().all(|value| value.trim().is_empty()) {
            return Ok(Self::Json);
        }
        let accepted = accepted.join(",");
        Self::ALL
            .into_iter()
            .map(|format| (format, format.quality(&accepted)))
            // Of equal ones the first: `max_by_key` takes the last.
            .rev()
            .max_by_key(|(_, quality)| *quality)
            .filter(|(_, quality)| *quality > 0)
            .map(|(format, _)| format)
            .ok_or_else(|| {
                let detail = "Accept: must allow application/json, application/x-ndjson or text/csv";
                Failure::new(406, "not_acceptable", detail)
            })
    }

    /// The q-value of the format in thousandths: that of the most specific range that matches it.
    fn quality(self, accept: &str) -> u32 {
        let (mut best, mut quality) = (0, 0);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default().to_ascii_lowercase();
            let major = self.media_type().split('/').next().unwrap_or_default();
            let specific = match name.as_str() {
                "*/*" => 1,
                _ if name.strip_suffix("/*") == Some(major) => 2,
                _ if name == self.media_type() || self.aliases().contains(&name.as_str()) => 3,
                _ => continue,
            };
            let q = parts
                .filter_map(|part| part.split_once('='))
                .find(|(key, _)| key.trim().eq_ignore_ascii_case("q"))
                .map_or(1000, |(_, value)| thousandths(value.trim()));
            if specific > best {
                (best, quality) = (specific, q);
            }
        }
        quality
    }
}

/// Parses a q-value into thousandths. A malformed one counts as 1.
fn thousandths(value: &str) -> u32 {
    match value.split_once('.') {
        Some(("0", fraction)) if fraction.len() <= 3 => format!("{fraction:0<3}").parse().unwrap_or(1000),
        None if value == "0" => 0,
        _ => 1000,
    }
}

/// Writes one line of CSV.
pub(super) fn csv_line<'a>(out: &mut Vec<u8>, fields: impl IntoIterator<Item = &'a str>) {
    for (index, field) in fields.into_iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        if field.contains([',', '"', '\r', '\n']) {
            out.push(b'"');
            out.extend_from_slice(field.replace('"', "\"\"").as_bytes());
            out.push(b'"');
        } else {
            out.extend_from_slice(field.as_bytes());
        }
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_selects_the_format() {
        for (accept, format) in [
            ("", Some(Format::Json)),
            ("*/*", Some(Format::Json)),
            ("text/*", Some(Format::Csv)),
            ("text/csv", Some(Format::Csv)),
            ("application/x-ndjson, application/json;q=0.9", Some(Format::Ndjson)),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Some(Format::Json)),
            ("application/json;q=0, */*;q=0.1", Some(Format::Ndjson)),
            ("application/json;q=0.2, Text/CSV; Q=0.25", Some(Format::Csv)),
            ("application/ndjson", Some(Format::Ndjson)),
            ("application/jsonl", Some(Format::Ndjson)),
            ("application/X-JSONL;q=0.5, text/csv;q=0.4", Some(Format::Ndjson)),
            ("image/png", None),
            ("*/*;q=0", None),
            ("application/json;q=0.0", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(ACCEPT, accept.parse().expect("a header"));
            assert_eq!(Format::of(&headers).ok(), format, "{accept}");
        }
        assert_eq!(Format::of(&HeaderMap::new()).ok(), Some(Format::Json));
    }

    #[test]
    fn csv_fields_are_quoted_only_where_necessary() {
        let mut out = Vec::new();
        csv_line(&mut out, ["plain", "a,b", "say \"hi\"", "two\nlines", "", "é;\t"]);
        assert_eq!(String::from_utf8(out).expect("UTF-8"), "plain,\"a,b\",\"say \"\"hi\"\"\",\"two\nlines\",,é;\t\r\n");
    }
}
