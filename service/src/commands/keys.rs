//! `millrace keys`: make, list and revoke API keys.

use anyhow::{bail, ensure};
use sha2::{Digest as _, Sha256};

use crate::{
    config::Place,
    domain::{Text, render_time},
    store::Store,
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
        scopes: Vec<ScopeName>,
    },
    /// List all keys, without the keys themselves
    List,
    /// Revoke a key; it is refused within two seconds
    Revoke {
        /// Its id, as listed
        id: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
enum ScopeName {
    /// Sending records
    Ingest,
    /// Asking
    Read,
    /// Dead letters and other changes; allows all else, too
    Admin,
}

impl ScopeName {
    fn as_str(self) -> &'static str {
        match self {
            Self::Ingest => "ingest",
            Self::Read => "read",
            Self::Admin => "admin",
        }
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
        Action::Create { name, mut scopes } => {
            if let Err(rule) = Text::parse(name.as_str()) {
                bail!("--name {rule}");
            }
            scopes.sort_unstable();
            scopes.dedup();
            let scopes: Vec<String> = scopes.into_iter().map(|scope| scope.as_str().to_owned()).collect();
            let key = format!("mk_{}", hex::encode(rand::random::<[u8; 32]>()));
            let id = format!("key_{}", hex::encode(rand::random::<[u8; 6]>()));
            let hash: [u8; 32] = Sha256::digest(key.as_bytes()).into();
            store.create_key(&id, &name, &hash, &scopes, &actor()).await?;
            eprintln!("{id}, {name}: {}. The key is shown only now:", scopes.join(", "));
            say!("{key}");
        }
        Action::List => {
            for key in store.list_keys().await? {
                let state =
                    key.revoked_at.map_or_else(|| "active".to_owned(), |at| format!("revoked {}", render_time(at)));
                let (made, scopes) = (render_time(key.created_at), key.scopes.join(","));
                say!("{}\t{}\t{scopes}\tmade {made}\t{state}", key.id, key.name);
            }
        }
        Action::Revoke { id } => {
            ensure!(store.revoke_key(&id, &actor()).await?, "no active key has the id {id}; see `millrace keys list`");
            eprintln!("{id} is revoked");
        }
    }
    Ok(())
}

/// The person that runs the command, for the audit trail.
pub(super) fn actor() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten();
    user.map_or_else(|| "command".to_owned(), |user| format!("command:{}", user.name))
}
