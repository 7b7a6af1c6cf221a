//! The purge of a pipeline: drops its schema, and locks its shards meanwhile.

use millrace_crds::{ADOPT, RecordPipeline};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::{
    Error, Pipeline, Store,
    pipeline::{leases_alive, read_pipeline},
};
use crate::domain::SinkStream;

/// A locked schema that will be dropped. No worker can take a shard until this value is dropped or the schema is.
#[derive(Debug)]
pub struct Purge {
    /// Inside a transaction, which ends with the connection.
    connection: PgConnection,
    schema: String,
    /// The pipeline that has claimed it.
    pub pipeline: Pipeline,
    /// Streams of its sinks, including streams from which a sink is moving away.
    pub sinks: Vec<SinkStream>,
    /// Number of processed records.
    pub records: i64,
}

impl Store {
    /// Checks that the manifest's pipeline has claimed the schema and that no lease is alive, and locks it. Returns
    /// `None` if there is no claimed schema.
    ///
    /// # Errors
    /// [`Error::OtherPipeline`] when another pipeline has claimed it, [`Error::PreviousWorkersActive`] when a lease is
    /// alive.
    pub async fn begin_purge(&self, manifest: &RecordPipeline) -> Result<Option<Purge>, Error> {
        // A separate connection: when it closes, Postgres rolls the transaction back.
        let mut connection = self.pool.acquire().await?.detach();
        sqlx::raw_sql("begin").execute(&mut connection).await?;
        let known =
            sqlx::query_scalar!("select to_regclass('pipeline') is not null and to_regclass('shards') is not null");
        if known.fetch_one(&mut connection).await? != Some(true) {
            return Ok(None);
        }
        sqlx::raw_sql("lock table pipeline, shards in exclusive mode").execute(&mut connection).await?;
        let Some(pipeline) = read_pipeline(&mut connection).await? else { return Ok(None) };
        let asked = (manifest.namespace(), manifest.metadata.name.as_str(), pipeline.uid_of(manifest));
        let claimed = (pipeline.namespace.as_str(), pipeline.name.as_str(), pipeline.uid.as_str());
        if asked != claimed && manifest.annotation(ADOPT) != pipeline.pipeline_id {
            let schema = Self::schema(&pipeline.name);
            return Err(Error::OtherPipeline(format!(
                "schema {schema} belongs to pipeline {}/{} of uid {} with id {id}, not to {}/{} of uid {}: nothing was \
                 removed; if it is the right one, set the annotation {ADOPT}: {id}",
                claimed.0,
                claimed.1,
                claimed.2,
                asked.0,
                asked.1,
                asked.2,
                id = pipeline.pipeline_id,
            )));
        }
        if leases_alive(&mut connection).await? {
            return Err(Error::PreviousWorkersActive(format!(
                "pipeline {}/{} still has active workers: stop them first, then retry; nothing was removed",
                pipeline.namespace, pipeline.name
            )));
        }
        let sinks =
            sqlx::query!("select name, stream, old_stream from sinks order by name").fetch_all(&mut connection).await?;
        let sinks = sinks
            .into_iter()
            .flat_map(|row| {
                let name = row.name;
                [row.stream, row.old_stream]
                    .into_iter()
                    .flatten()
                    .map(move |stream| SinkStream { stream, sink: name.clone() })
            })
            .collect();
        let records = sqlx::query_scalar!(r#"select coalesce(sum(processed), 0)::bigint as "records!" from shards"#)
            .fetch_one(&mut connection)
            .await?;
        let schema = Self::schema(&manifest.metadata.name);
        Ok(Some(Purge { connection, schema, pipeline, sinks, records }))
    }
}

impl Purge {
    /// Drops the schema.
    ///
    /// # Errors
    /// When Postgres fails or does not answer; then the schema may still exist.
    pub async fn drop_schema(mut self) -> Result<(), Error> {
        // Safe in SQL: the name of a manifest has only letters, digits and `-`.
        let drop = format!("drop schema {} cascade", self.schema);
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut self.connection).await?;
        sqlx::raw_sql("commit").execute(&mut self.connection).await?;
        Ok(self.connection.close().await?)
    }
}
