//! `millrace keys`: create, list, rotate and revoke API keys.

use chrono::{DateTime, Utc};
use millrace_crds::RateLimits;

use crate::{
    config::Place,
    domain::{IdPattern, Scope, parse_time, render_time},
    http::new_key::{BrokenRule, FreshSecret, KeyWishes},
    store::{Actor, ApiKey, Store},
};

/// Flags of `millrace keys`.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Make a key and print it: the only time that it is shown
    Create {
        /// Its purpose: the actor in the audit trail
        #[arg(long)]
        name: String,
        /// A permission; may be given several times
        #[arg(long = "scope", required = true)]
        scopes: Vec<Scope>,
        /// Limit it to this source (exact=ID), or to those that begin with a text (prefix=TEXT); may be given several times
        #[arg(long = "source-id", value_name = "PATTERN")]
        source_ids: Vec<IdPattern>,
        /// Limit it to this destination (exact=ID), or to those that begin with a text (prefix=TEXT); may be given several times
        #[arg(long = "destination-id", value_name = "PATTERN")]
        destination_ids: Vec<IdPattern>,
        /// When it expires, such as 2027-01-31T00:00:00Z; never, unless given
        #[arg(long, value_name = "TIME", value_parser = parse_time)]
        expires_at: Option<DateTime<Utc>>,
        #[command(flatten)]
        limits: LimitArgs,
    },
    /// List all keys and their secrets' ids, without the secrets themselves
    List,
    /// Make a second secret for a key and print it; the first one stays valid until it is revoked
    Rotate {
        /// Its id, as listed
        id: String,
    },
    /// Revoke a key, or one secret of it; it is refused within two seconds
    Revoke {
        /// Its id, as listed
        id: String,
        /// Only this secret of it, by its id
        #[arg(long, value_name = "ID")]
        secret: Option<String>,
    },
}

/// Limits of a new key.
#[derive(Debug, clap::Args)]
struct LimitArgs {
    /// Most requests a second, at most spec.limits.perKey.requestsPerSecond
    #[arg(long, value_name = "N")]
    requests_per_second: Option<u64>,
    /// Most records a second, at most spec.limits.perKey.recordsPerSecond
    #[arg(long, value_name = "N")]
    records_per_second: Option<u64>,
    /// Most bytes of request bodies at once, at most spec.limits.perKey.bytesInFlight
    #[arg(long, value_name = "N")]
    bytes_in_flight: Option<u64>,
}

impl From<LimitArgs> for RateLimits {
    fn from(args: LimitArgs) -> Self {
        let LimitArgs { requests_per_second, records_per_second, bytes_in_flight } = args;
        Self { requests_per_second, records_per_second, bytes_in_flight }
    }
}

/// Runs the command.
///
/// # Errors
/// A failure, described for a person.
pub async fn run(args: Args) -> anyhow::Result<()> {
    let Args { place, action } = args;
    let pipeline = place.name()?;
    let store = super::postgres(&place, &pipeline, 1).await?;
    let outcome = act(&store, action).await;
    store.close().await;
    outcome
}

async fn act(store: &Store, action: Action) -> anyhow::Result<()> {
    match action {
        Action::Create { name, scopes, source_ids, destination_ids, expires_at, limits } => {
            let rate_limits = limits.into();
            let wishes = KeyWishes { name, scopes, source_ids, destination_ids, rate_limits, expires_at };
            let active = store.newest().await?.and_then(|newest| newest.spec.limits);
            let key = wishes.key(active).map_err(flag)?;
            let secret = FreshSecret::random();
            store.create_key(&key, secret.stored(), &actor()).await??;
            let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
            eprintln!("{}, {}: {}. The key is shown only now:", key.id, key.name, scopes.join(", "));
            say!("{}", secret.secret);
        }
        Action::List => {
            let now = store.clock().await?.into();
            for key in store.list_keys(None, i64::MAX).await? {
                list(&key, now);
            }
        }
        Action::Rotate { id } => {
            let secret = FreshSecret::random();
            store.rotate_key(&id, secret.stored(), &actor()).await??;
            eprintln!("{id} has the secret {}, too. It is shown only now:", secret.id);
            say!("{}", secret.secret);
        }
        Action::Revoke { id, secret: None } => {
            store.revoke_key(&id, &actor()).await??;
            eprintln!("{id} is revoked");
        }
        Action::Revoke { id, secret: Some(secret) } => {
            store.revoke_secret(&id, &secret, &actor()).await??;
            eprintln!("the secret {secret} of {id} is revoked");
        }
    }
    Ok(())
}

/// A line a key, and one a secret.
fn list(key: &ApiKey, now: DateTime<Utc>) {
    let state = match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {}", render_time(at)),
        (None, Some(at)) if at <= now => format!("expired {}", render_time(at)),
        (None, Some(at)) => format!("active until {}", render_time(at)),
        (None, None) => "active".to_owned(),
    };
    say!("{}\t{}\t{}\tmade {}\t{state}", key.id, key.name, key.scopes.join(","), render_time(key.created_at));
    for (field, patterns) in [("sourceIds", &key.source_ids), ("destinationIds", &key.destination_ids)] {
        for pattern in patterns {
            say!("\t{field}\t{pattern}");
        }
    }
    for (field, limit) in key.rate_limits.fields() {
        if let Some(limit) = limit {
            say!("\t{field}\t{limit}");
        }
    }
    for secret in &key.secrets {
        let used =
            secret.last_used_at.map_or_else(|| "never used".to_owned(), |at| format!("used {}", render_time(at)));
        let revoked = secret.revoked_at.map_or_else(String::new, |at| format!("\trevoked {}", render_time(at)));
        say!("\t{}\tmade {}\t{used}{revoked}", secret.id, render_time(secret.created_at));
    }
}

/// The flag that breaks a rule.
fn flag(broken: BrokenRule) -> anyhow::Error {
    let BrokenRule { field, rule } = broken;
    let flag = match field {
        "scopes" => "--scope",
        "sourceIds" => "--source-id",
        "destinationIds" => "--destination-id",
        "limits/requestsPerSecond" => "--requests-per-second",
        "limits/recordsPerSecond" => "--records-per-second",
        "limits/bytesInFlight" => "--bytes-in-flight",
        _ => "--name",
    };
    anyhow::anyhow!("{flag} {rule}")
}

/// The person that runs the command, for the audit trail.
pub(super) fn actor() -> Actor {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    Actor::command(user.as_ref().map(|user| user.name.as_str()))
}
