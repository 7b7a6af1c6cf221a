//! The claim of a schema by a pipeline, and the rows that every shard needs.
//!
//! It must never let a pipeline use the schema of another one: only [`Store::claim`] writes the owner of a schema.

use millrace_crds::{ADOPT, RecordPipeline};
use sqlx::PgConnection;

use super::{Error, Store};
use crate::domain::ShardId;

/// The pipeline that has claimed a schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline {
    /// Random, created at the first claim. Every stream and every notification carries it.
    pub pipeline_id: String,
    /// The manifest's namespace; `default` for a local file.
    pub namespace: String,
    /// The manifest's name.
    pub name: String,
    /// The manifest's uid; the pipeline id for a local file.
    pub uid: String,
    /// Number of shards, which never changes.
    pub shards: u16,
    /// The oldest schema number whose binaries can use this schema.
    pub min_compatible: i64,
}

impl Pipeline {
    /// The uid under which a manifest's versions are stored: its own, or for a local file the pipeline id.
    #[must_use]
    pub fn uid_of<'a>(&'a self, manifest: &'a RecordPipeline) -> &'a str {
        manifest.metadata.uid.as_deref().unwrap_or(&self.pipeline_id)
    }

    /// Checks whether a manifest may use this schema, regardless of its uid.
    ///
    /// # Errors
    /// [`Error::OtherPipeline`] names the owner of the schema and the remedy; [`Error::Refused`] when `shards` differs.
    pub fn admits(&self, manifest: &RecordPipeline) -> Result<(), Error> {
        let asked = (manifest.namespace(), manifest.metadata.name.as_str());
        if asked != (self.namespace.as_str(), self.name.as_str()) && manifest.annotation(ADOPT) != self.pipeline_id {
            return Err(Error::OtherPipeline(format!(
                "schema {} belongs to pipeline {}/{} with id {id}, not to {}/{}: use another name or database, or \
                 take it over with the annotation {ADOPT}: {id}",
                Store::schema(&self.name),
                self.namespace,
                self.name,
                asked.0,
                asked.1,
                id = self.pipeline_id,
            )));
        }
        if manifest.spec.shards != self.shards {
            return Err(Error::Refused(format!(
                "spec.shards is immutable: the pipeline has {} shards and the manifest says {}; restore {0}, or \
                 create a new pipeline with another name",
                self.shards, manifest.spec.shards,
            )));
        }
        Ok(())
    }
}

impl Store {
    /// Claims the schema for the manifest's pipeline, or checks that the pipeline has claimed it, and creates missing
    /// rows of shards. `fresh_id` becomes the pipeline id at the first claim.
    ///
    /// # Errors
    /// [`Error::OtherPipeline`] when another pipeline has claimed it, [`Error::PreviousWorkersActive`] when the uid is
    /// new and a worker still holds a lease, [`Error::Refused`] when `shards` differs. Each names the remedy.
    pub async fn claim(&self, manifest: &RecordPipeline, fresh_id: &str) -> Result<Pipeline, Error> {
        let mut tx = self.begin().await?;
        sqlx::query!(
            "insert into pipeline (pipeline_id, namespace, name, uid, shards) values ($1, $2, $3, $4, $5)
             on conflict do nothing",
            fresh_id,
            manifest.namespace(),
            manifest.metadata.name,
            manifest.metadata.uid.as_deref().unwrap_or(fresh_id),
            i32::from(manifest.spec.shards),
        )
        .execute(&mut *tx)
        .await?;
        sqlx::query!("select from pipeline for update").fetch_one(&mut *tx).await?;
        let mut pipeline = read_pipeline(&mut tx)
            .await?
            .ok_or_else(|| Error::Refused("the row of table pipeline is missing".to_owned()))?;
        pipeline.admits(manifest)?;
        let uid = pipeline.uid_of(manifest).to_owned();
        let (namespace, name) = (manifest.namespace(), &manifest.metadata.name);
        if (uid.as_str(), namespace, name) != (pipeline.uid.as_str(), pipeline.namespace.as_str(), &pipeline.name) {
            if leases_alive(&mut tx).await? {
                return Err(Error::PreviousWorkersActive(format!(
                    "pipeline {}/{} still has active workers under uid {}: stop its workers first, then retry",
                    pipeline.namespace, pipeline.name, pipeline.uid
                )));
            }
            let done = sqlx::query!("update pipeline set uid = $1, namespace = $2, name = $3", uid, namespace, name)
                .execute(&mut *tx)
                .await?;
            assert_eq!(done.rows_affected(), 1, "table pipeline has one row");
            (pipeline.uid, pipeline.namespace, pipeline.name) = (uid, namespace.to_owned(), name.clone());
        }
        tx.commit().await?;
        self.ensure_shards(pipeline.shards).await?;
        Ok(pipeline)
    }

    /// The pipeline that has claimed the schema; `None` if this binary needs a migration first, or the schema is not
    /// claimed.
    ///
    /// # Errors
    /// When Postgres cannot be reached; [`Error::TooNew`] when this binary is too old for the schema.
    pub async fn pipeline(&self) -> Result<Option<Pipeline>, Error> {
        let mut connection = self.pool.acquire().await?;
        if !Self::is_migrated(&mut connection).await? {
            Self::may_use_schema(&mut connection).await?;
            return Ok(None);
        }
        read_pipeline(&mut connection).await
    }

    /// Creates missing rows of shards: at the start, or after they were lost. A recreated row gets its highest numbers
    /// and counts from the stored rows, and the highest epoch that was ever used. Counts that cannot be derived
    /// (`lost`, records without a threshold) start at 0, and its account begins again. Returns the shards whose
    /// rows were created.
    ///
    /// # Errors
    /// When Postgres cannot be reached.
    pub async fn ensure_shards(&self, shards: u16) -> Result<Vec<ShardId>, Error> {
        let shards = i32::from(shards);
        let there =
            sqlx::query_scalar!("select count(*) from shards where shard < $1", shards).fetch_one(&self.pool).await?;
        if there == Some(i64::from(shards)) {
            return Ok(Vec::new());
        }
        // No worker can commit for a shard without its row, so the counted rows do not change meanwhile.
        let made = sqlx::query!(
            r#"insert into shards (shard, epoch, prepared, policy_version, records, dead_letters, conflicts, processed, duplicates, alerts, total_alerts, period, applied_entry)
               select shard,
                      (select coalesce(max(epoch), 0) from epochs e where e.shard = s.shard),
                      exists (select from epochs e where e.shard = s.shard),
                      (select coalesce(max(version), 0) from shard_policies p where p.shard = s.shard),
                      greatest((select coalesce(max(seq), 0) from records r where r.shard = s.shard), e.records,
                               (select coalesce(max(to_n), 0) from gaps g where g.shard = s.shard and kind = 'records')),
                      greatest((select coalesce(max(n), 0) from dead_letters d where d.shard = s.shard), e.dead_letters,
                               (select coalesce(max(to_n), 0) from gaps g where g.shard = s.shard and kind = 'dead_letters')),
                      greatest((select coalesce(max(n), 0) from conflicts c where c.shard = s.shard), e.conflicts,
                               (select coalesce(max(to_n), 0) from gaps g where g.shard = s.shard and kind = 'conflicts')),
                      (select count(*) from records r where r.shard = s.shard and r.seq > e.records) + e.processed,
                      (select count(*) from duplicates d where d.shard = s.shard) + e.duplicates,
                      (select count(threshold) from records r where r.shard = s.shard and r.seq > e.records) + e.alerts,
                      (select coalesce(sum(json_array_length(total_alerts::json)), 0) from records r
                       where r.shard = s.shard and r.seq > e.records and total_alerts is not null) + e.total_alerts,
                      (select coalesce(max(period), '-infinity') from shard_periods p where p.shard = s.shard),
                      -- Unknown: then every entry can have been applied.
                      (select '18446744073709551615-18446744073709551615' from epochs e where e.shard = s.shard limit 1)
               from generate_series(0, $1 - 1) s (shard)
               cross join lateral (
                   select coalesce(max(upto) filter (where kind = 'records'), 0) as records,
                          coalesce(max(upto) filter (where kind = 'dead_letters'), 0) as dead_letters,
                          coalesce(max(upto) filter (where kind = 'conflicts'), 0) as conflicts,
                          coalesce(sum(count) filter (where kind = 'records'), 0)::bigint as processed,
                          coalesce(sum(count) filter (where kind = 'duplicates'), 0)::bigint as duplicates,
                          coalesce(sum(x.alerts), 0)::bigint as alerts,
                          coalesce(sum(x.total_alerts), 0)::bigint as total_alerts
                   from expired_counts x where x.shard = s.shard
               ) e
               where not exists (select from shards there where there.shard = s.shard)
               on conflict do nothing
               returning shard as "shard: ShardId", epoch, records"#,
            shards
        )
        .fetch_all(&self.pool)
        .await?;
        for row in made.iter().filter(|row| row.epoch > 0 || row.records > 0) {
            let (shard, records) = (row.shard.get(), row.records);
            tracing::error!(
                event = "store.shard.recreated",
                shard,
                records,
                "the row of a shard was missing and was recreated"
            );
        }
        Ok(made.into_iter().map(|row| row.shard).collect())
    }
}

pub(super) async fn read_pipeline(connection: &mut PgConnection) -> Result<Option<Pipeline>, Error> {
    let row = sqlx::query!("select pipeline_id, namespace, name, uid, shards, min_compatible from pipeline")
        .fetch_optional(connection)
        .await?;
    Ok(row.map(|row| Pipeline {
        pipeline_id: row.pipeline_id,
        namespace: row.namespace,
        name: row.name,
        uid: row.uid,
        // A check of the table limits it to 1 to 256.
        shards: u16::try_from(row.shards).unwrap_or(u16::MAX),
        min_compatible: row.min_compatible,
    }))
}

/// Whether any worker holds a lease, by Postgres's clock.
pub(super) async fn leases_alive(connection: &mut PgConnection) -> Result<bool, Error> {
    let alive = sqlx::query_scalar!("select exists (select from shards where is_alive(lease_until))");
    Ok(alive.fetch_one(connection).await? == Some(true))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{
        Migrated,
        testing::{self, TestPipeline},
    };

    #[tokio::test]
    async fn concurrent_claims_create_one_pipeline() {
        let manifest = testing::manifest("shards: 3");
        let name = &manifest.metadata.name;
        let store = Store::connect(&testing::url(), name, 8).unwrap();
        assert_eq!(
            store.migrate(name).await.unwrap(),
            Migrated { from: 0, to: Store::schema_number(), contracting: 0 }
        );
        let (a, b) = tokio::join!(store.claim(&manifest, "a"), store.claim(&manifest, "b"));
        let (a, b) = (a.unwrap(), b.unwrap());
        assert_eq!(a, b);
        assert_eq!((a.uid.as_str(), a.namespace.as_str(), a.shards), (a.pipeline_id.as_str(), "default", 3));
        assert_eq!(store.pipeline().await.unwrap(), Some(a));
        let shards = sqlx::query_scalar!("select count(*) from shards").fetch_one(&store.pool).await.unwrap();
        assert_eq!(shards, Some(3));
        testing::drop_schema(name);
    }

    #[tokio::test]
    async fn a_store_can_be_redirected_to_another_server() {
        let test = TestPipeline::new("shards: 1").await;
        let name = &test.manifest.metadata.name;
        let store = Store::connect("postgres://nobody@127.0.0.1:1/none", name, 1).unwrap();
        assert!(matches!(store.pipeline().await, Err(Error::Sql(_))));
        store.redirect(&testing::url(), name).unwrap();
        assert_eq!(store.pipeline().await.unwrap(), Some(test.pipeline.clone()));
    }

    #[tokio::test]
    async fn another_pipeline_is_refused_until_it_adopts() {
        let test = TestPipeline::new("shards: 2").await;
        let (store, id) = (&test.store, &test.pipeline.pipeline_id);
        let mut other = test.manifest.clone();
        other.metadata.namespace = Some("prod".to_owned());
        let refused = store.claim(&other, "x").await.unwrap_err().to_string();
        assert!(refused.contains(&format!("{ADOPT}: {id}")), "{refused}");
        other.metadata.annotations.insert(ADOPT.to_owned(), "another".to_owned());
        store.claim(&other, "x").await.unwrap_err();
        other.metadata.annotations.insert(ADOPT.to_owned(), id.clone());
        let adopted = store.claim(&other, "x").await.unwrap();
        assert_eq!((adopted.namespace.as_str(), &adopted.pipeline_id), ("prod", id));
        let back = store.claim(&test.manifest, "x").await.unwrap_err().to_string();
        assert!(back.contains("belongs to pipeline prod/"), "{back}");
    }

    #[tokio::test]
    async fn the_number_of_shards_is_immutable() {
        let test = TestPipeline::new("shards: 2").await;
        let mut other = test.manifest.clone();
        other.spec.shards = 3;
        let refused = test.store.claim(&other, "x").await.unwrap_err().to_string();
        assert!(refused.contains("has 2 shards and the manifest says 3"), "{refused}");
    }

    #[tokio::test]
    async fn a_new_uid_claims_the_schema_once_no_lease_is_alive() {
        let test = TestPipeline::new("shards: 1").await;
        let mut recreated = test.manifest.clone();
        recreated.metadata.uid = Some("uid-2".to_owned());
        let until = "update shards set owner = 'w', lease_until = clock_timestamp() + $1::text::interval";
        sqlx::query(until).bind("1 minute").execute(&test.store.pool).await.unwrap();
        let refused = test.store.claim(&recreated, "x").await.unwrap_err().to_string();
        assert!(refused.contains("stop its workers first"), "{refused}");
        sqlx::query(until).bind("-1 second").execute(&test.store.pool).await.unwrap();
        let claimed = test.store.claim(&recreated, "x").await.unwrap();
        assert_eq!((claimed.uid.as_str(), claimed.pipeline_id), ("uid-2", test.pipeline.pipeline_id.clone()));
    }

    #[tokio::test]
    async fn a_lost_shard_row_is_recreated_with_its_numbers() {
        let test = TestPipeline::new("shards: 2").await;
        let pool = &test.store.pool;
        let fill = "
            insert into epochs (shard, epoch, worker) values (1, 7, 'w'), (0, 9, 'w');
            insert into shard_policies (shard, from_seq, version) values (1, 1, 4);
            insert into gaps (shard, kind, from_n, to_n) values (1, 'conflicts', 3, 20);
            insert into records (shard, seq, period, epoch, received_at, processed_at, time, previous_count, positive, record_id,
                source_id, destination_id, reference, unit, stream_id, value, previous_total, threshold)
            select 1, n, '2026-11-01', 7, now(), now(), now(), 0, true, n::text, 's', 'd', 'r', 'u', '1-1', 1, 0, case when n > 3 then 0 end
            from generate_series(1, 5) n;
            insert into duplicates values (1, 7, now(), now(), '1', '2-1', 0, gen_random_uuid());
            insert into dead_letters (shard, n, epoch, opened_at, received_at, stream_id, payload, reason, detail)
            values (1, 3, 7, now(), now(), '1-2', '', 'x', 'x');
            insert into conflicts values (1, 2, 7, now(), now(), '1', 'd', '3-1', '', null, 0, 's');
            delete from shards where shard = 1;";
        testing::create_partition(pool).await;
        sqlx::raw_sql(fill).execute(pool).await.unwrap();
        assert_eq!(test.store.ensure_shards(2).await.unwrap(), [ShardId::new(1)]);
        let row = sqlx::query!(
            "select epoch, policy_version, records, dead_letters, conflicts, processed, duplicates, alerts from shards where shard = 1"
        )
        .fetch_one(pool)
        .await
        .unwrap();
        let numbers = (row.epoch, row.policy_version, row.records, row.dead_letters, row.conflicts);
        assert_eq!(numbers, (7, 4, 5, 3, 20));
        assert_eq!((row.processed, row.duplicates, row.alerts), (5, 1, 2));
        assert!(test.store.ensure_shards(2).await.unwrap().is_empty());
    }
}
