//! Reads about sinks in the snapshot: started sinks and their start positions.

use super::Verification;
use crate::{
    domain::{OutcomeKind, Seq, ShardId, ShardSeq},
    store::Error,
};

/// A sink that was started.
#[derive(Debug, Clone)]
pub struct StartedSink {
    /// Its name.
    pub name: String,
    /// The outcomes that it publishes.
    pub kind: OutcomeKind,
    /// Its Redis stream.
    pub stream: String,
    /// The generation of its cursor.
    pub cursor_generation: String,
    /// Whether it had a filter at some time: it may have left any outcome out.
    pub filtered: bool,
}

impl Verification {
    /// The Redis sinks that were started and not removed.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn started_sinks(&mut self) -> Result<Vec<StartedSink>, Error> {
        let sinks = sqlx::query_as!(
            StartedSink,
            r#"select name, kind as "kind: OutcomeKind", stream as "stream!", cursor_generation, filtered
               from sinks where stream is not null and started and not removed order by name"#
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        Ok(sinks)
    }

    /// The pipeline's name and id: the source of every notification.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn source(&mut self) -> Result<String, Error> {
        let row = sqlx::query!("select name, pipeline_id from pipeline").fetch_one(&mut *self.snapshot).await?;
        Ok(format!("{}/{}", row.name, row.pipeline_id))
    }

    /// For each shard, the number after which a sink publishes outcomes.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn sink_starts(&mut self, sink: &str) -> Result<Vec<ShardSeq>, Error> {
        let starts = sqlx::query_as!(
            ShardSeq,
            r#"select shard as "shard: ShardId", after as "seq: Seq" from sink_starts where sink = $1 order by shard"#,
            sink
        )
        .fetch_all(&mut *self.snapshot)
        .await?;
        Ok(starts)
    }
}
