//! The files of the console, embedded as they are.
//!
//! Must never weaken the policy of what a page may load: nothing but this origin's own files, and no script in a page.

use std::collections::HashMap;

use poem::{
    Response, Result,
    error::NotFoundError,
    http::{
        HeaderMap, StatusCode,
        header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH},
    },
};
use sha2::{Digest as _, Sha256};

/// What a page may load and do.
const CONTENT_SECURITY_POLICY: &str = "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; \
                                       frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const IMAGE: &str = "image/svg+xml";

macro_rules! files {
    ($($name:literal $content_type:ident),* $(,)?) => {
        [$(($name, $content_type, include_bytes!(concat!("web/", $name)))),*]
    };
}

/// Name, type and content of each file.
const FILES: &[(&str, &str, &[u8])] = &files![
    "index.html" HTML,
    "alerts.js" SCRIPT,
    "api.js" SCRIPT,
    "app.js" SCRIPT,
    "audit.js" SCRIPT,
    "conflicts.js" SCRIPT,
    "dead-letters.js" SCRIPT,
    "dom.js" SCRIPT,
    "icon.svg" IMAGE,
    "keys.js" SCRIPT,
    "list.js" SCRIPT,
    "overview.js" SCRIPT,
    "plot.js" SCRIPT,
    "policies.js" SCRIPT,
    "record.js" SCRIPT,
    "records.js" SCRIPT,
    "rollups.js" SCRIPT,
    "sinks.js" SCRIPT,
    "style.css" STYLE,
    "totals.js" SCRIPT,
    "views.js" SCRIPT,
    "workers.js" SCRIPT,
];

struct File {
    content_type: &'static str,
    content: &'static [u8],
    /// Another content has another one.
    tag: String,
}

/// The files by name.
pub(super) struct Files(HashMap<&'static str, File>);

impl Files {
    pub(super) fn new() -> Self {
        let files = FILES.iter().map(|&(name, content_type, content)| {
            let tag = format!("\"{}\"", hex::encode(&Sha256::digest(content)[..12]));
            (name, File { content_type, content, tag })
        });
        Self(files.collect())
    }

    /// The file of a name; without a name the page. A browser asks each time whether its copy is the newest.
    pub(super) fn answer(&self, name: &str, headers: &HeaderMap) -> Result<Response> {
        let name = if name.is_empty() { "index.html" } else { name };
        let file = self.0.get(name).ok_or(NotFoundError)?;
        let answer = Response::builder()
            .header(ETAG, &file.tag)
            .header(CACHE_CONTROL, "no-cache")
            .header("content-security-policy", CONTENT_SECURITY_POLICY)
            .header("cross-origin-opener-policy", "same-origin")
            .header("cross-origin-resource-policy", "same-origin")
            .header("referrer-policy", "no-referrer")
            .header("x-content-type-options", "nosniff")
            .header("x-frame-options", "DENY");
        let known = headers.get(IF_NONE_MATCH).and_then(|header| header.to_str().ok()).unwrap_or_default();
        if known.split(',').any(|tag| tag.trim().trim_start_matches("W/") == file.tag) {
            return Ok(answer.status(StatusCode::NOT_MODIFIED).finish());
        }
        Ok(answer.content_type(file.content_type).body(file.content))
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    #[test]
    fn every_file_of_the_folder_is_embedded_and_names_no_other_site() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/console/web");
        let found: BTreeSet<String> = fs::read_dir(folder)
            .expect("the folder")
            .map(|entry| entry.expect("an entry").file_name().into_string().expect("UTF-8"))
            .collect();
        assert_eq!(found, FILES.iter().map(|(name, ..)| (*name).to_owned()).collect());
        for (name, _, content) in FILES {
            let text = std::str::from_utf8(content).expect("UTF-8").replace("http://www.w3.org/", "");
            assert!(!text.contains("http://") && !text.contains("https://"), "{name}");
            assert!(!text.contains("innerHTML") && !text.contains("localStorage"), "{name}");
        }
    }
}
