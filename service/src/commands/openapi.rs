//! `millrace openapi`: print the OpenAPI document.

use std::io::Write as _;

use crate::routes;

/// Flags of `millrace openapi`.
#[derive(Debug, clap::Args)]
pub struct Args {}

/// Runs the command. Needs no server.
///
/// # Errors
/// A failure, described for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args {} = args;
    std::io::stdout().lock().write_all(routes::document().as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_document_is_the_one_that_is_served() {
        let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/openapi.json");
        let committed = std::fs::read_to_string(committed).expect("docs/openapi.json is committed");
        assert!(committed == routes::document(), "run: millrace openapi > docs/openapi.json");
    }

    #[test]
    fn no_key_stands_in_the_document_twice() {
        crate::domain::members(routes::document().as_bytes(), "").expect("an object without repeated keys");
        let paths: serde_json::Value = serde_json::from_str(&routes::document()).expect("JSON");
        for path in ["/records", "/records/batch", "/health", "/ready"] {
            assert!(paths["paths"].get(path).is_some(), "{path}");
        }
    }
}
