//! Whose schema this is, and that it is whole: the migration, the claim, and the rows that every shard needs.
//!
//! Must never hand one pipeline's schema to another: [`Store::claim`] is the only place that writes whose it is.

use std::sync::LazyLock;

use millrace_crds::{ADOPT, RecordPipeline};
use sqlx::{
    Connection as _, PgConnection,
    migrate::{Migrate as _, Migration, Migrator},
};

use super::{Error, Store};

static STEPS: LazyLock<Steps> = LazyLock::new(|| Steps::of(sqlx::migrate!("../migrations")));

/// The migrations that a binary knows. Those whose file's name ends in `_contract` take something away that an older
/// binary uses: they run only when they are asked for, after all others.
struct Steps {
    expanding: Migrator,
    all: Migrator,
}

impl Steps {
    fn of(mut all: Migrator) -> Self {
        let expanding = all.iter().filter(|migration| !contracts(migration)).cloned().collect();
        let mut expanding = Migrator::with_migrations(expanding);
        for migrations in [&mut all, &mut expanding] {
            // An older binary has to go on working on a schema that a newer one expanded; `min_compatible` says when not.
            // And each of the two lists passes over what only the other has.
            migrations.set_ignore_missing(true);
        }
        Self { expanding, all }
    }

    /// The newest step that this binary needs.
    fn number(&self) -> i64 {
        self.expanding.iter().map(|migration| migration.version).max().unwrap_or(0)
    }

    /// How many contracting steps are not among those that were applied.
    fn contracting(&self, applied: &[i64]) -> usize {
        self.all.iter().filter(|step| contracts(step) && !applied.contains(&step.version)).count()
    }
}

fn contracts(migration: &Migration) -> bool {
    // The file's name with spaces for its underscores.
    migration.description.split(' ').next_back() == Some("contract")
}

/// What a migration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Migrated {
    /// The schema's number before; 0: there was none.
    pub from: i64,
    /// The schema's number now.
    pub to: i64,
    /// How many contracting steps wait until they are asked for.
    pub contracting: usize,
}

/// Whose schema this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pipeline {
    /// Random, made at the first migration; beside every stream and in every notification.
    pub pipeline_id: String,
    /// The manifest's namespace, `default` for a local file.
    pub namespace: String,
    /// The manifest's name.
    pub name: String,
    /// The manifest's uid; the pipeline id for a local file.
    pub uid: String,
    /// Number of shards; never changes.
    pub shards: u16,
    /// Oldest schema number whose binaries may still work on this schema.
    pub min_compatible: i64,
}

impl Pipeline {
    /// The uid under which a manifest's versions are counted: its own, or of a local file the pipeline id.
    #[must_use]
    pub fn uid_of<'a>(&'a self, manifest: &'a RecordPipeline) -> &'a str {
        manifest.metadata.uid.as_deref().unwrap_or(&self.pipeline_id)
    }

    /// Whether a manifest may work on this schema as it stands, its uid aside.
    ///
    /// # Errors
    /// [`Error::OtherPipeline`] says whose the schema is and what to do; [`Error::Refused`] when `shards` differs.
    pub fn admits(&self, manifest: &RecordPipeline) -> Result<(), Error> {
        let asked = (manifest.namespace(), manifest.metadata.name.as_str());
        if asked != (self.namespace.as_str(), self.name.as_str()) && manifest.annotation(ADOPT) != self.pipeline_id {
            return Err(Error::OtherPipeline(format!(
                "schema {} belongs to pipeline {}/{} with id {id}, not to {}/{}: use another name or database, or take it \
                 over with the annotation {ADOPT}: {id}",
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
                "spec.shards is immutable: the pipeline has {} shards and the manifest says {}; write {0} again, or make a \
                 new pipeline under another name",
                self.shards, manifest.spec.shards,
            )));
        }
        Ok(())
    }
}

impl Store {
    /// The newest schema number that this binary needs.
    #[must_use]
    pub fn schema_number() -> i64 {
        STEPS.number()
    }

    /// Makes the pipeline's schema, or brings it up to date by all steps that expand. Several may run at once: they take
    /// turns.
    ///
    /// # Errors
    /// When Postgres cannot be reached, or a migration fails; [`Error::TooNew`] when this binary is too old for the schema.
    pub async fn migrate(&self, pipeline: &str) -> Result<Migrated, Error> {
        self.migrate_by(&STEPS, pipeline, false).await
    }

    /// The same, and takes away what only older binaries use: for when no process of an older version is left.
    ///
    /// # Errors
    /// As [`Self::migrate`].
    pub async fn migrate_and_contract(&self, pipeline: &str) -> Result<Migrated, Error> {
        self.migrate_by(&STEPS, pipeline, true).await
    }

    async fn migrate_by(&self, steps: &Steps, pipeline: &str, contract: bool) -> Result<Migrated, Error> {
        // A connection of its own, closed at the end whatever happens: the lock goes with it.
        let mut turn = self.pool.acquire().await?.detach();
        let schema = Self::schema(pipeline);
        sqlx::query!("select pg_advisory_lock(hashtextextended('millrace migrate ' || $1, 0))", schema)
            .execute(&mut turn)
            .await?;
        let outcome = Self::migrate_alone(steps, &mut turn, &schema, contract).await;
        turn.close().await?;
        outcome
    }

    async fn migrate_alone(
        steps: &Steps,
        turn: &mut PgConnection,
        schema: &str,
        contract: bool,
    ) -> Result<Migrated, Error> {
        let known = sqlx::query_scalar!("select exists (select from pg_namespace where nspname = $1)", schema);
        let made = known.fetch_one(&mut *turn).await? != Some(true);
        // Asked first, for `create schema if not exists` wants the right to create even where it does nothing.
        if made {
            turn.create_schema_if_not_exists(schema).await.map_err(refused)?;
        }
        let newest = |applied: &[i64]| applied.iter().copied().max().unwrap_or(0);
        let from = if made { 0 } else { newest(&Self::applied(turn).await?) };
        if from > 0 {
            Self::compatible(steps, turn).await?;
        }
        steps.expanding.run_direct(None, turn, false).await.map_err(refused)?;
        if contract {
            steps.all.run_direct(None, turn, false).await.map_err(refused)?;
        }
        let applied = Self::applied(turn).await?;
        Ok(Migrated { from, to: newest(&applied), contracting: steps.contracting(&applied) })
    }

    /// The numbers of the migrations that were applied; empty before the first.
    async fn applied(connection: &mut PgConnection) -> Result<Vec<i64>, Error> {
        let known = sqlx::query_scalar!("select to_regclass('_sqlx_migrations') is not null");
        if known.fetch_one(&mut *connection).await? != Some(true) {
            return Ok(Vec::new());
        }
        let applied = connection.list_applied_migrations(&STEPS.all.table_name).await.map_err(refused)?;
        Ok(applied.iter().map(|migration| migration.version).collect())
    }

    async fn compatible(steps: &Steps, connection: &mut PgConnection) -> Result<(), Error> {
        if sqlx::query_scalar!("select to_regclass('pipeline') is not null").fetch_one(&mut *connection).await?
            != Some(true)
        {
            return Ok(());
        }
        let least = sqlx::query_scalar!("select min_compatible from pipeline").fetch_optional(connection).await?;
        match least {
            Some(least) if least > steps.number() => Err(Error::TooNew(format!(
                "the schema needs a millrace that knows schema {least}; this one knows {}: use a newer version",
                steps.number()
            ))),
            _ => Ok(()),
        }
    }

    /// Writes whose schema this is, or makes sure that it is this manifest's, and that every shard has its row.
    /// `fresh_id` becomes the pipeline id when this is the first claim.
    ///
    /// # Errors
    /// [`Error::OtherPipeline`] when it is another's, [`Error::StillWorked`] when a new uid comes while a worker still holds
    /// a lease, [`Error::Refused`] when `shards` differs: each says what to do.
    pub async fn claim(&self, manifest: &RecordPipeline, fresh_id: &str) -> Result<Pipeline, Error> {
        let mut tx = self.pool.begin().await?;
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
            .ok_or_else(|| Error::Refused("the row of table pipeline is gone".to_owned()))?;
        pipeline.admits(manifest)?;
        let uid = pipeline.uid_of(manifest).to_owned();
        let (namespace, name) = (manifest.namespace(), &manifest.metadata.name);
        if (uid.as_str(), namespace, name) != (pipeline.uid.as_str(), pipeline.namespace.as_str(), &pipeline.name) {
            if leases_alive(&mut tx).await? {
                return Err(Error::StillWorked(format!(
                    "pipeline {}/{} is still worked under uid {}: stop its workers first, then try again",
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

    /// Whose schema this is; `None` while it is not migrated as far as this binary needs it, or not claimed yet.
    ///
    /// # Errors
    /// When Postgres cannot be reached; [`Error::TooNew`] when this binary is too old for the schema.
    pub async fn pipeline(&self) -> Result<Option<Pipeline>, Error> {
        let mut connection = self.pool.acquire().await?;
        let applied = Self::applied(&mut connection).await?;
        if !STEPS.expanding.iter().all(|step| applied.contains(&step.version)) {
            return Ok(None);
        }
        Self::compatible(&STEPS, &mut connection).await?;
        read_pipeline(&mut connection).await
    }

    /// Makes the rows of shards that have none: at the start, or when they vanished. A row that is made again gets its
    /// highest numbers and counts from what is stored, and an epoch above all that were; what cannot be counted again
    /// (`lost`, settled entries of other programs) starts at 0. Returns the shards whose rows were made.
    ///
    /// # Errors
    /// When Postgres cannot be reached.
    pub async fn ensure_shards(&self, shards: u16) -> Result<Vec<u16>, Error> {
        let shards = i32::from(shards);
        let there =
            sqlx::query_scalar!("select count(*) from shards where shard < $1", shards).fetch_one(&self.pool).await?;
        if there == Some(i64::from(shards)) {
            return Ok(Vec::new());
        }
        // Without its row no worker can commit for a shard, so these counts stand still while they are taken.
        let made = sqlx::query!(
            r#"insert into shards (shard, epoch, prepared, policy_version, records, dead_letters, conflicts, processed, duplicates, alerts)
               select shard,
                      (select coalesce(max(epoch), 0) from epochs e where e.shard = s.shard),
                      exists (select from epochs e where e.shard = s.shard),
                      (select coalesce(max(version), 0) from shard_policies p where p.shard = s.shard),
                      greatest((select coalesce(max(seq), 0) from records r where r.shard = s.shard),
                               (select coalesce(max(to_n), 0) from gaps g where g.shard = s.shard and kind = 'records')),
                      greatest((select coalesce(max(n), 0) from dead_letters d where d.shard = s.shard),
                               (select coalesce(max(to_n), 0) from gaps g where g.shard = s.shard and kind = 'dead_letters')),
                      greatest((select coalesce(max(n), 0) from conflicts c where c.shard = s.shard),
                               (select coalesce(max(to_n), 0) from gaps g where g.shard = s.shard and kind = 'conflicts')),
                      (select count(*) from records r where r.shard = s.shard),
                      (select count(*) from duplicates d where d.shard = s.shard),
                      (select count(threshold) from records r where r.shard = s.shard)
               from generate_series(0, $1 - 1) s (shard)
               where not exists (select from shards there where there.shard = s.shard)
               on conflict do nothing
               returning shard, epoch, records"#,
            shards
        )
        .fetch_all(&self.pool)
        .await?;
        for row in made.iter().filter(|row| row.epoch > 0 || row.records > 0) {
            let (shard, records) = (row.shard, row.records);
            tracing::error!(shard, records, "store.shard.made_again");
        }
        Ok(made.into_iter().filter_map(|row| u16::try_from(row.shard).ok()).collect())
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
        // The table checks that it is 1 to 256.
        shards: u16::try_from(row.shards).unwrap_or(u16::MAX),
        min_compatible: row.min_compatible,
    }))
}

/// Whether any worker holds a lease, by Postgres's clock.
pub(super) async fn leases_alive(connection: &mut PgConnection) -> Result<bool, Error> {
    let alive = sqlx::query_scalar!("select exists (select from shards where lease_until > clock_timestamp())");
    Ok(alive.fetch_one(connection).await? == Some(true))
}

fn refused(error: sqlx::migrate::MigrateError) -> Error {
    match error {
        sqlx::migrate::MigrateError::Execute(error) => Error::Sql(error),
        error => Error::Refused(format!("the schema cannot be migrated: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{SqlSafeStr as _, migrate::MigrationType};

    use super::*;
    use crate::store::testing::{self, TestPipeline};

    #[tokio::test]
    async fn migrations_and_claims_at_once_make_one_pipeline() {
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
    async fn migrations_take_turns() {
        let manifest = testing::manifest("shards: 1");
        let name = &manifest.metadata.name;
        let store = Store::connect(&testing::url(), name, 8).unwrap();
        assert_eq!(store.pipeline().await.unwrap(), None, "no schema yet");
        let outcomes = futures::future::join_all((0..4).map(|_| store.migrate(name))).await;
        let made = outcomes.into_iter().map(Result::unwrap).filter(|migrated| migrated.from == 0).count();
        assert_eq!(made, 1);
        assert_eq!(store.pipeline().await.unwrap(), None, "not claimed yet");
        testing::drop_schema(name);
    }

    #[tokio::test]
    async fn a_store_can_be_turned_to_another_server() {
        let test = TestPipeline::new("shards: 1").await;
        let name = &test.manifest.metadata.name;
        let store = Store::connect("postgres://nobody@127.0.0.1:1/none", name, 1).unwrap();
        assert!(matches!(store.pipeline().await, Err(Error::Sql(_))));
        store.redirect(&testing::url(), name).unwrap();
        assert_eq!(store.pipeline().await.unwrap(), Some(test.pipeline.clone()));
    }

    #[tokio::test]
    async fn a_binary_that_is_too_old_is_refused() {
        let test = TestPipeline::new("shards: 1").await;
        sqlx::query!("update pipeline set min_compatible = 999").execute(&test.store.pool).await.unwrap();
        assert!(matches!(test.store.pipeline().await, Err(Error::TooNew(why)) if why.contains("999")));
        let again = test.store.migrate(&test.manifest.metadata.name).await;
        assert!(matches!(again, Err(Error::TooNew(why)) if why.contains("newer version")));
    }

    /// The steps of a later release: two that expand, and between them one that takes away what the first made needless.
    fn later() -> Steps {
        let step = |version, name: &'static str, sql: &'static str| {
            Migration::new(version, name.into(), MigrationType::Simple, sql.into_sql_str(), false)
        };
        let mut steps: Vec<Migration> = STEPS.all.iter().cloned().collect();
        steps.push(step(1_001, "ways", "create table ways (n bigint)"));
        steps.push(step(
            1_002,
            "no ways contract",
            "alter table ways drop column n; update pipeline set min_compatible = 1001",
        ));
        steps.push(step(1_003, "means", "create table means (n bigint)"));
        Steps::of(Migrator::with_migrations(steps))
    }

    #[tokio::test]
    async fn what_expands_runs_at_once_and_what_contracts_when_it_is_asked_for() {
        let test = TestPipeline::new("shards: 1").await;
        let (store, name, now) = (&test.store, &test.manifest.metadata.name, Store::schema_number());
        let columns = async || {
            sqlx::query_scalar::<_, i64>(
                "select count(*) from information_schema.columns
                 where table_schema = current_schema() and table_name in ('ways', 'means')",
            )
            .fetch_one(&store.pool)
            .await
            .unwrap()
        };
        let expanded = store.migrate_by(&later(), name, false).await.unwrap();
        assert_eq!(expanded, Migrated { from: now, to: 1_003, contracting: 1 });
        assert_eq!(columns().await, 2);
        // A binary of today works on it, and its `migrate` lets it be.
        assert_eq!(store.pipeline().await.unwrap().as_ref(), Some(&test.pipeline));
        assert_eq!(
            store.migrate_and_contract(name).await.unwrap(),
            Migrated { from: 1_003, to: 1_003, contracting: 0 }
        );
        assert_eq!(store.migrate_by(&later(), name, false).await.unwrap().contracting, 1, "it still waits");

        let contracted = store.migrate_by(&later(), name, true).await.unwrap();
        assert_eq!(contracted, Migrated { from: 1_003, to: 1_003, contracting: 0 });
        assert_eq!(columns().await, 1);
        // From here on a binary of today is too old.
        assert!(matches!(store.pipeline().await, Err(Error::TooNew(_))));
        assert!(matches!(store.migrate(name).await, Err(Error::TooNew(_))));
        store.migrate_by(&later(), name, true).await.unwrap();
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
    async fn shards_are_immutable() {
        let test = TestPipeline::new("shards: 2").await;
        let mut other = test.manifest.clone();
        other.spec.shards = 3;
        let refused = test.store.claim(&other, "x").await.unwrap_err().to_string();
        assert!(refused.contains("has 2 shards and the manifest says 3"), "{refused}");
    }

    #[tokio::test]
    async fn a_new_uid_resumes_once_no_lease_is_alive() {
        let test = TestPipeline::new("shards: 1").await;
        let mut anew = test.manifest.clone();
        anew.metadata.uid = Some("uid-2".to_owned());
        let until = "update shards set owner = 'w', lease_until = clock_timestamp() + $1::text::interval";
        sqlx::query(until).bind("1 minute").execute(&test.store.pool).await.unwrap();
        let refused = test.store.claim(&anew, "x").await.unwrap_err().to_string();
        assert!(refused.contains("stop its workers first"), "{refused}");
        sqlx::query(until).bind("-1 second").execute(&test.store.pool).await.unwrap();
        let claimed = test.store.claim(&anew, "x").await.unwrap();
        assert_eq!((claimed.uid.as_str(), claimed.pipeline_id), ("uid-2", test.pipeline.pipeline_id.clone()));
    }

    #[tokio::test]
    async fn a_vanished_shard_row_comes_back_with_its_numbers() {
        let test = TestPipeline::new("shards: 2").await;
        let pool = &test.store.pool;
        let fill = "
            insert into epochs (shard, epoch, worker) values (1, 7, 'w'), (0, 9, 'w');
            insert into shard_policies (shard, from_seq, version) values (1, 1, 4);
            insert into gaps (shard, kind, from_n, to_n) values (1, 'conflicts', 3, 20);
            insert into records (shard, seq, epoch, received_at, processed_at, time, previous_count, positive, record_id,
                source_id, destination_id, reference, unit, stream_id, value, previous_total, threshold)
            select 1, n, 7, now(), now(), now(), 0, true, n::text, 's', 'd', 'r', 'u', '1-1', 1, 0, case when n > 3 then 0 end
            from generate_series(1, 5) n;
            insert into duplicates values (1, 7, now(), now(), '1', '2-1');
            insert into dead_letters (shard, n, epoch, opened_at, received_at, stream_id, payload, reason, detail)
            values (1, 3, 7, now(), now(), '1-2', '', 'x', 'x');
            insert into conflicts values (1, 2, 7, now(), now(), '1', 'd', '3-1', '');
            delete from shards where shard = 1;";
        sqlx::raw_sql(fill).execute(pool).await.unwrap();
        assert_eq!(test.store.ensure_shards(2).await.unwrap(), [1]);
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
