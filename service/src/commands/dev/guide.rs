//! Output for a person once the pipeline runs: `dev.env`, and commands to copy.

use std::{net::SocketAddr, path::Path};

use millrace_crds::{RecordPipeline, SinkEvent};

use super::{home::write_private, servers::Servers};

/// Writes the variables that the other commands read. The file holds passwords.
pub(super) fn write_env(file: &Path, address: SocketAddr, servers: &Servers, manifest: &Path) -> anyhow::Result<()> {
    let text = format!(
        "MILLRACE_URL=http://{address}\nMILLRACE_REDIS_URL={}\nMILLRACE_POSTGRES_URL={}\nMILLRACE_PIPELINE={}\n",
        servers.redis_url,
        servers.postgres_url,
        quoted(&manifest.display().to_string()),
    );
    write_private(file, text.as_bytes())
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if text.bytes().all(is_plain) { text.to_owned() } else { format!("'{}'", text.replace('\'', r"'\''")) }
}

/// Commands to copy: post a record, ask for totals, read the sinks' streams.
pub(super) fn commands(address: SocketAddr, env: &Path, manifest: &RecordPipeline) -> String {
    let mut text = format!(
        "\nThe pipeline {name} runs at http://{address} (documentation: http://{address}/docs). Try:\n\n\
         curl -sS http://{address}/records -H 'Content-Type: application/json' -d '{{\"recordId\": \"rec-1\", \
         \"time\": \"2026-01-31T12:00:00Z\", \"sourceId\": \"shop-1\", \"destinationId\": \"account-1\", \
         \"type\": \"positive\", \"value\": 125.50, \"unit\": \"EUR\", \"reference\": \"order-1\"}}'\n\n\
         curl -sS 'http://{address}/records/aggregations?startTime=2026-01-01T00:00:00Z&type=positive'\n\n\
         set -a; . {env}; set +a   # variables for redis-cli, millrace send, millrace verify\n",
        name = manifest.metadata.name,
        env = quoted(&env.display().to_string()),
    );
    for sink in &manifest.spec.sinks {
        if let Some(stream) = sink.stream(&manifest.metadata.name) {
            let what = match sink.event {
                SinkEvent::Processed => "notifications",
                SinkEvent::Alert => "alerts",
                SinkEvent::TotalAlert => "alerts of totals",
                SinkEvent::DeadLettered => "dead letters",
                SinkEvent::Conflicted => "conflicts",
            };
            text.push_str(&format!(
                "redis-cli --no-auth-warning -u \"$MILLRACE_REDIS_URL\" XRANGE {stream} - + COUNT 10   # {what}\n"
            ));
        }
    }
    text.push_str("\nCtrl-C drains and stops all of it.\n");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_one_word() {
        assert_eq!(quoted("/a/b-c.yaml"), "/a/b-c.yaml");
        assert_eq!(quoted("/a b/it's"), r"'/a b/it'\''s'");
    }

    #[test]
    fn the_built_in_manifest_is_valid_and_its_streams_are_shown() {
        let manifest = RecordPipeline::from_yaml(include_str!("pipeline.yaml")).expect("valid");
        let text = commands(([127, 0, 0, 1], 8080).into(), Path::new("/d/dev.env"), &manifest);
        assert!(text.contains("XRANGE dev.notifications") && text.contains("XRANGE dev.alerts"), "{text}");
        assert!(text.contains("\"value\": 125.50"), "{text}");
    }
}
