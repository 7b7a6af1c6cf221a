//! Actions of administrators in the audit trail, and who performed them.

use std::{net::IpAddr, sync::Arc};

use sqlx::PgConnection;

use super::Error;

/// Who performs an administrative action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Actor {
    /// The name of the API key, or `command:` and the user of a command.
    pub name: Arc<str>,
    /// The id of the API key; `None`: a command, or access is open.
    pub key_id: Option<Arc<str>>,
    /// The address of the client; `None`: a command.
    pub address: Option<IpAddr>,
}

impl Actor {
    /// The user of a command.
    #[must_use]
    pub fn command(user: Option<&str>) -> Self {
        let name = user.map_or_else(|| "command".to_owned(), |user| format!("command:{user}"));
        Self { name: name.into(), key_id: None, address: None }
    }

    /// The address as the column has it.
    pub(super) fn address_column(&self) -> Option<String> {
        self.address.map(|address| address.to_string())
    }
}

/// Adds an action to the audit trail, in the transaction that performs it.
pub(super) async fn note_action(
    connection: &mut PgConnection,
    actor: &Actor,
    action: &str,
    reason: &str,
) -> Result<(), Error> {
    sqlx::query!(
        "insert into admin_actions (actor, action, reason, actor_id, address) values ($1, $2, $3, $4, $5)",
        &actor.name,
        action,
        reason,
        actor.key_id.as_deref(),
        actor.address_column(),
    )
    .execute(connection)
    .await?;
    Ok(())
}
