//! `millrace-operator check`: request `/ready` of a running operator.

use anyhow::{Context as _, ensure};

/// Flags of `millrace-operator check`.
#[derive(Debug, clap::Args)]
pub(crate) struct CheckArgs {
    /// Where the operator answers, such as http://millrace:8080
    #[arg(long, env = "MILLRACE_OPERATOR_URL", default_value = "http://127.0.0.1:8080")]
    url: String,
}

/// Runs the command.
///
/// # Errors
/// When the operator is unreachable or not ready.
pub(crate) async fn run(args: CheckArgs) -> anyhow::Result<()> {
    let url = format!("{}/ready", args.url.trim_end_matches('/'));
    let response = reqwest::get(&url).await.with_context(|| format!("cannot reach {url}"))?;
    let (status, body) = (response.status(), response.text().await.unwrap_or_default());
    ensure!(status.is_success(), "{url} answered {status}: {}", body.trim());
    println!("{url}: {}", body.trim());
    Ok(())
}
