//! `millrace config`: print what is active, secrets hidden.

use std::{env, path::Path};

use anyhow::Context as _;

use crate::{config::Place, store::Newest, telemetry::TelemetryArgs, tls::Endpoint, url::hide_password};

/// Flags of `millrace config`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    telemetry: TelemetryArgs,
}

/// Runs the command.
///
/// # Errors
/// A failure, described for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args { place, telemetry } = args;
    let manifest = place.manifest()?;
    say!("# where it runs");
    for setting in settings(&place, &telemetry) {
        say!("{setting}");
    }
    say!("\n# the manifest, defaults written out ({})", place.pipeline.display());
    say!("{}", serde_saphyr::to_string(&manifest).context("the manifest as YAML")?.trim_end());
    say!("\n# active");
    match active_manifest(&place, &manifest.metadata.name).await {
        Ok(Some(newest)) if newest.spec == manifest.spec => {
            say!("version {} of pipeline {}: what the file says", newest.version, newest.pipeline_id);
        }
        Ok(Some(newest)) => {
            say!(
                "version {} of pipeline {}: the file differs; this spec is active:",
                newest.version,
                newest.pipeline_id
            );
            say!("{}", serde_saphyr::to_string(&newest.spec).context("the spec as YAML")?.trim_end());
        }
        Ok(None) => say!("nothing yet: no process has registered the manifest"),
        Err(error) => say!("not known: {error:#}"),
    }
    Ok(())
}

async fn active_manifest(place: &Place, name: &str) -> anyhow::Result<Option<Newest>> {
    let store = super::postgres(place, name, 1).await?;
    let newest = match store.pipeline().await {
        Ok(Some(_)) => store.newest().await,
        Ok(None) => Ok(None),
        Err(error) => Err(error),
    };
    store.close().await;
    Ok(newest?)
}

/// The files of TLS connections.
fn tls_files(place: &Place) -> impl Iterator<Item = (&'static str, String, String)> {
    place.tls.all().map(|(name, variable, file)| match file {
        Some(file) => (name, file.display().to_string(), origin(true, variable)),
        None => (name, "none".to_owned(), origin(false, variable)),
    })
}

/// Where a setting came from.
fn origin(is_set: bool, variable: &'static str) -> String {
    match (is_set, env::var_os(variable)) {
        (false, _) => "default".to_owned(),
        (true, Some(_)) => variable.to_owned(),
        (true, None) => "flag".to_owned(),
    }
}

/// One line a setting: its name, its value, where it came from.
fn settings(place: &Place, telemetry: &TelemetryArgs) -> Vec<String> {
    let url = |endpoint: anyhow::Result<Endpoint>| {
        endpoint.map_or_else(|error| format!("({error:#})"), |endpoint| hide_password(endpoint.url()))
    };
    let path = |path: &Path| path.display().to_string();
    let server = |direct: bool, file: Option<&Path>, variable: &'static str, file_variable: &'static str| match file {
        Some(file) if !direct => format!("file {} ({})", file.display(), origin(true, file_variable)),
        _ if direct => origin(true, variable),
        _ => "not given".to_owned(),
    };
    let place_lines = [
        ("pipeline", path(&place.pipeline), origin(true, "MILLRACE_PIPELINE")),
        (
            "pipeline-name",
            place.pipeline_name.clone().unwrap_or_else(|| "the manifest's".to_owned()),
            origin(place.pipeline_name.is_some(), "MILLRACE_PIPELINE_NAME"),
        ),
        (
            "redis-url",
            url(place.redis_url()),
            server(
                place.redis_url.is_some(),
                place.redis_url_file.as_deref(),
                "MILLRACE_REDIS_URL",
                "MILLRACE_REDIS_URL_FILE",
            ),
        ),
        (
            "postgres-url",
            url(place.postgres_url()),
            server(
                place.postgres_url.is_some(),
                place.postgres_url_file.as_deref(),
                "MILLRACE_POSTGRES_URL",
                "MILLRACE_POSTGRES_URL_FILE",
            ),
        ),
    ];
    place_lines
        .into_iter()
        .chain(tls_files(place))
        .chain(telemetry.settings())
        .map(|(name, value, from)| format!("{name:<14} {value}  # {from}"))
        .collect()
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Only {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn settings_say_where_they_came_from_and_hide_passwords() {
        let only = Only::try_parse_from([
            "config",
            "--pipeline",
            "p.yaml",
            "--redis-url",
            "redis://:s3cret@host",
            "--postgres-url",
            "postgres://me:s3cret@host/db",
            "--log-format",
            "json",
        ]);
        let args = only.map_err(|error| error.to_string()).unwrap().args;
        let lines = settings(&args.place, &args.telemetry).join("\n");
        assert!(!lines.contains("s3cret"), "{lines}");
        assert!(lines.contains("redis://:(hidden)@host  # flag"), "{lines}");
        assert!(lines.contains("log-format     json  # flag"), "{lines}");
        assert!(lines.contains("# default"), "{lines}");
    }
}
