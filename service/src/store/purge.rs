//! The end of a pipeline: its schema goes, and nobody takes a shard meanwhile.

use millrace_crds::{ADOPT, RecordPipeline};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};

use super::{
    Error, Pipeline, Store,
    pipeline::{leases_alive, read_pipeline},
};

/// A schema that is about to go. Its shards are locked, so that none is taken, until it is dropped or let go.
#[derive(Debug)]
pub struct Purge {
    /// Inside a transaction.
    connection: PgConnection,
    schema: String,
    /// Whose it is.
    pub pipeline: Pipeline,
    /// Streams of its sinks, those that they are moving away from, too, each with the sink's name.
    pub sinks: Vec<(String, String)>,
    /// Records in it.
    pub records: i64,
}

impl Store {
    /// Makes sure that the schema is this manifest's and that no lease lives, and locks it; `None`: there is none that
    /// was claimed.
    ///
    /// # Errors
    /// [`Error::OtherPipeline`] when it is another's, [`Error::PreviousWorkersActive`] when a lease lives.
    pub async fn begin_purge(&self, manifest: &RecordPipeline) -> Result<Option<Purge>, Error> {
        // A connection of its own: what is left undone is rewound with it.
        let mut connection = self.pool.acquire().await?.detach();
        sqlx::query!("select set_config('lock_timeout', '5000', false)").fetch_one(&mut connection).await?;
        sqlx::raw_sql("begin").execute(&mut connection).await?;
        let known =
            sqlx::query_scalar!("select to_regclass('pipeline') is not null and to_regclass('shards') is not null");
        if known.fetch_one(&mut connection).await? != Some(true) {
            return Ok(None);
        }
        sqlx::raw_sql("lock table pipeline, shards in exclusive mode").execute(&mut connection).await?;
        let Some(pipeline) = read_pipeline(&mut connection).await? else { return Ok(None) };
        let asked = (manifest.namespace(), manifest.metadata.name.as_str(), pipeline.uid_of(manifest));
        let stands = (pipeline.namespace.as_str(), pipeline.name.as_str(), pipeline.uid.as_str());
        if asked != stands && manifest.annotation(ADOPT) != pipeline.pipeline_id {
            let schema = Self::schema(&pipeline.name);
            return Err(Error::OtherPipeline(format!(
                "schema {schema} belongs to pipeline {}/{} of uid {} with id {id}, not to {}/{} of uid {}: nothing was \
                 removed; if it is this one, say so with the annotation {ADOPT}: {id}",
                stands.0,
                stands.1,
                stands.2,
                asked.0,
                asked.1,
                asked.2,
                id = pipeline.pipeline_id,
            )));
        }
        if leases_alive(&mut connection).await? {
            return Err(Error::PreviousWorkersActive(format!(
                "pipeline {}/{} is still worked: stop its workers first, then try again; nothing was removed",
                pipeline.namespace, pipeline.name
            )));
        }
        let sinks =
            sqlx::query!("select name, stream, old_stream from sinks order by name").fetch_all(&mut connection).await?;
        let sinks = sinks
            .into_iter()
            .flat_map(|row| {
                let name = row.name;
                [row.stream, row.old_stream].into_iter().flatten().map(move |stream| (stream, name.clone()))
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
    /// When Postgres does not do it, or does not answer; then it may be there still.
    pub async fn drop_schema(mut self) -> Result<(), Error> {
        // Made of a manifest's name, which is letters, digits and `-` only.
        let drop = format!("drop schema {} cascade", self.schema);
        sqlx::raw_sql(AssertSqlSafe(drop)).execute(&mut self.connection).await?;
        sqlx::raw_sql("commit").execute(&mut self.connection).await?;
        Ok(self.connection.close().await?)
    }
}
