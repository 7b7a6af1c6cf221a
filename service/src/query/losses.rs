//! Acknowledging losses whose number no server holds.

use poem::web::Data;
use poem_openapi::{Object, OpenApi, param::Query};
use serde::Serialize;

use super::{Tags, answer::Answer, types::Word};
use crate::http::{App, auth::Administrator, problem::Failure};

/// The shards whose losses were acknowledged.
#[derive(Debug, Object, Serialize)]
pub(super) struct AcknowledgedLosses {
    /// Shards with an uncertain loss until now; empty: there were none.
    pub shards: Vec<u16>,
}

/// `/losses`.
#[derive(Debug)]
pub struct LossesApi;

#[OpenApi(tag = "Tags::Audit")]
impl LossesApi {
    /// Acknowledge uncertain losses
    ///
    /// `lossUncertain` of `/stats` becomes false. To be called when the clients have sent the records of that time again:
    /// records that were not lost are duplicates. The action is in the audit trail.
    #[oai(path = "/losses/acknowledge", method = "post", operation_id = "acknowledgeLosses")]
    async fn acknowledge(
        &self,
        app: Data<&App>,
        caller: Administrator,
        /// A note for the audit trail.
        reason: Query<Option<Word>>,
    ) -> Result<Answer<AcknowledgedLosses>, Failure> {
        let reason = reason.0.map_or_else(String::new, |reason| reason.0.to_string());
        let shards = app.store.acknowledge_losses(&caller.0, &reason).await?;
        let actor = &caller.0.name;
        tracing::info!(event = "query.losses.acknowledged", shards = shards.len(), %actor, "acknowledged uncertain losses");
        Ok(Answer(AcknowledgedLosses { shards: shards.into_iter().map(|shard| shard.get()).collect() }))
    }
}
