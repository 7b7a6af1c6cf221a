//! Policy versions: the numbered contents of the manifest, and the decision whether a file becomes a new version.
//!
//! Versions rise by one and never change. A version must never be registered without the lock on the pipeline's row:
//! two processes that see the same change at once register one version.

use chrono::{DateTime, Utc};
use millrace_crds::{ACCEPT_GENERATION, RecordPipelineSpec};

use super::{
    Error, Store,
    pipeline::{leases_alive, read_pipeline},
    rollups,
};
use crate::domain::DeclaredRollup;

/// The newest version of the manifest.
#[derive(Debug, Clone, PartialEq)]
pub struct Newest {
    /// Its number, from 1.
    pub version: i64,
    /// The pipeline id, read in the same statement. A different one means that the database is of another pipeline.
    pub pipeline_id: String,
    /// The content of the manifest.
    pub spec: RecordPipelineSpec,
    /// The uid of the manifest of this version; for a local file the pipeline id.
    pub uid: String,
    /// The generation of that manifest.
    pub generation: i64,
}

/// A version as a list shows it.
#[derive(Debug, Clone)]
pub struct ListedPolicy {
    /// Its number.
    pub version: i64,
    /// The uid of its manifest; for a local file the pipeline id.
    pub uid: String,
    /// The generation of that manifest.
    pub generation: i64,
    /// Its content, as JSON.
    pub spec: String,
    /// When it was registered.
    pub registered_at: DateTime<Utc>,
}

/// The content of a file, offered as the next version.
#[derive(Debug, Clone, Copy)]
pub struct Offer<'a> {
    /// The manifest's uid; `None` for a local file.
    pub uid: Option<&'a str>,
    /// The manifest's generation; meaningless without a uid.
    pub generation: i64,
    /// The value of the annotation that accepts a lower generation; empty without the annotation.
    pub accept: &'a str,
    /// The content of the manifest.
    pub spec: &'a RecordPipelineSpec,
    /// Whether the file changed while the process ran.
    pub changed: bool,
}

/// The result of an offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registered {
    /// The offer is the newest version now.
    AsNew(i64),
    /// The offer equals the newest version.
    Same(i64),
    /// The offer was active before; the newest version stays active.
    Passed(i64),
    /// The offer is a local file of a process that may not register; the newest version stays active.
    Differs(i64),
    /// The offer is refused, with the cause and the remedy.
    Refused(String),
}

/// The stored state against which an offer is judged.
struct Seen {
    newest: Option<Version>,
    /// The versions of the offer's uid, ascending.
    of_uid: Vec<Version>,
    leases_alive: bool,
}

#[derive(Clone)]
struct Version {
    version: i64,
    uid: String,
    generation: i64,
    accepted: String,
    /// `None` if a newer version of this software wrote it.
    spec: Option<RecordPipelineSpec>,
}

enum Judgement {
    Register { generation: i64, accepted: String },
    Leave(Registered),
}

/// Decides whether an offer becomes a new version. `uid` is the offer's uid or, for a local file, the pipeline id.
fn judge(offer: &Offer<'_>, uid: &str, seen: &Seen) -> Judgement {
    let leave = |outcome| Judgement::Leave(outcome);
    let same = |version: &Version| version.spec.as_ref() == Some(offer.spec);
    let register = |generation| Judgement::Register { generation, accepted: offer.accept.to_owned() };
    let newest = seen.newest.as_ref();
    if offer.uid.is_none() {
        let next = seen.of_uid.iter().map(|version| version.generation).max().unwrap_or(0) + 1;
        return match newest {
            None => register(next),
            Some(newest) if same(newest) => leave(Registered::Same(newest.version)),
            Some(_) if offer.changed || !seen.leases_alive => register(next),
            Some(newest) => leave(Registered::Differs(newest.version)),
        };
    }
    let Some(newest) = newest else { return register(offer.generation) };
    let is_newest = newest.uid == uid && newest.generation == offer.generation;
    if is_newest && same(newest) {
        return leave(Registered::Same(newest.version));
    }
    if !offer.accept.is_empty() {
        // Each value of the annotation accepts once: a process with an old file must not register that content again.
        let taken = |version: &&Version| version.generation == offer.generation && version.accepted == offer.accept;
        return match seen.of_uid.iter().find(taken) {
            Some(_) => leave(Registered::Passed(newest.version)),
            None => register(offer.generation),
        };
    }
    // Generations must rise again from the last one that an annotation accepted.
    let start = seen.of_uid.iter().rposition(|version| !version.accepted.is_empty()).unwrap_or(0);
    let line = &seen.of_uid[start..];
    let remedy = format!(
        "if the cluster was restored from a backup, set the annotation {ACCEPT_GENERATION} to a value that it did not \
         have before"
    );
    match line.iter().max_by_key(|version| version.generation) {
        Some(highest) if highest.generation > offer.generation => leave(Registered::Refused(format!(
            "generation {} of uid {uid} is lower than {}, which was active before: the file is old; {remedy}",
            offer.generation, highest.generation
        ))),
        Some(highest) if highest.generation == offer.generation && same(highest) => {
            leave(Registered::Passed(newest.version))
        }
        Some(highest) if highest.generation == offer.generation => leave(Registered::Refused(format!(
            "generation {} of uid {uid} was registered with other content; {remedy}",
            offer.generation
        ))),
        _ => register(offer.generation),
    }
}

impl Store {
    /// Offers a file's content as the next version of the manifest.
    ///
    /// # Errors
    /// When Postgres cannot be reached, or no pipeline has claimed the schema.
    pub async fn register(&self, offer: &Offer<'_>) -> Result<Registered, Error> {
        let mut tx = self.begin().await?;
        // The lock first, the reads in later statements: these see transactions that committed while the lock waited.
        sqlx::query!("select from pipeline for update").fetch_optional(&mut *tx).await?;
        let pipeline =
            read_pipeline(&mut tx).await?.ok_or_else(|| Error::Refused("the schema is not claimed".to_owned()))?;
        let uid = offer.uid.unwrap_or(&pipeline.pipeline_id);
        let rows = sqlx::query!(
            "select version, uid, generation, accepted, spec from policies
             where uid = $1 or version = (select max(version) from policies) order by version",
            uid
        )
        .fetch_all(&mut *tx)
        .await?;
        let mut of_uid: Vec<Version> = rows
            .into_iter()
            .map(|row| Version {
                version: row.version,
                uid: row.uid,
                generation: row.generation,
                accepted: row.accepted,
                spec: RecordPipelineSpec::from_canonical(&row.spec).ok(),
            })
            .collect();
        // Ascending, so the newest is the last; it may have another uid.
        let newest = of_uid.last().cloned();
        let version = newest.as_ref().map_or(0, |newest| newest.version) + 1;
        of_uid.retain(|version| version.uid == uid);
        let seen = Seen { newest, of_uid, leases_alive: leases_alive(&mut tx).await? };
        let (generation, accepted) = match judge(offer, uid, &seen) {
            Judgement::Leave(outcome) => return Ok(outcome),
            Judgement::Register { generation, accepted } => (generation, accepted),
        };
        sqlx::query!(
            "insert into policies (version, uid, generation, accepted, spec) values ($1, $2, $3, $4, $5)",
            version,
            uid,
            generation,
            accepted,
            offer.spec.canonical(),
        )
        .execute(&mut *tx)
        .await?;
        rollups::declare(&mut tx, version, offer.spec.rollups.iter().map(DeclaredRollup::of)).await?;
        tx.commit().await?;
        Ok(Registered::AsNew(version))
    }

    /// Versions from the newest one down, below a version, at most `limit`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn list_policies(&self, below: Option<i64>, limit: i64) -> Result<Vec<ListedPolicy>, Error> {
        let policies = sqlx::query_as!(
            ListedPolicy,
            "select version, uid, generation, spec, registered_at from policies
             where $1::bigint is null or version < $1 order by version desc limit $2",
            below,
            limit,
        );
        Ok(policies.fetch_all(&self.pool).await?)
    }

    /// Whether a version has this content, or a newer version exists. A Postgres that was rewound may have lost the
    /// version, and assigned its number to other content.
    ///
    /// # Errors
    /// When Postgres cannot be reached.
    pub async fn knows_policy(&self, version: i64, spec: &RecordPipelineSpec) -> Result<bool, Error> {
        let newest = sqlx::query!("select version, spec from policies order by version desc limit 1")
            .fetch_optional(&self.pool)
            .await?;
        Ok(newest.is_some_and(|newest| {
            // A spec that only a newer version of this software can read counts as equal.
            let equals = |text: &str| RecordPipelineSpec::from_canonical(text).map_or(true, |known| known == *spec);
            newest.version > version || (newest.version == version && equals(&newest.spec))
        }))
    }

    /// The newest version; `None` before the first.
    ///
    /// # Errors
    /// When Postgres cannot be reached; [`Error::TooNew`] when a newer version of this software wrote it.
    pub async fn newest(&self) -> Result<Option<Newest>, Error> {
        let row = sqlx::query!(
            "select version, spec, policies.uid, generation, pipeline_id from policies, pipeline
             order by version desc limit 1"
        )
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            let spec = RecordPipelineSpec::from_canonical(&row.spec).map_err(|error| {
                let version = row.version;
                Error::TooNew(format!(
                    "version {version} of the manifest needs a newer millrace than this one: {error}"
                ))
            })?;
            let (uid, generation) = (row.uid, row.generation);
            Ok(Newest { version: row.version, pipeline_id: row.pipeline_id, spec, uid, generation })
        })
        .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::TestPipeline;

    fn spec(threshold: &str) -> RecordPipelineSpec {
        RecordPipelineSpec::from_canonical(&format!(r#"{{"shards": 1, "threshold": "{threshold}"}}"#)).unwrap()
    }

    async fn offer(
        test: &TestPipeline,
        uid: Option<&str>,
        generation: i64,
        accept: &str,
        threshold: &str,
        changed: bool,
    ) -> Registered {
        let spec = spec(threshold);
        test.store.register(&Offer { uid, generation, accept, spec: &spec, changed }).await.unwrap()
    }

    #[tokio::test]
    async fn a_local_file_is_registered_when_it_changes_or_nothing_runs() {
        let test = TestPipeline::new("shards: 1").await;
        let local = async |threshold, changed| offer(&test, None, 0, "", threshold, changed).await;
        assert_eq!(local("1", false).await, Registered::AsNew(1));
        assert_eq!(local("1", true).await, Registered::Same(1));
        assert_eq!(local("1.00", true).await, Registered::Same(1), "another spelling is not a change");
        assert_eq!(local("2", false).await, Registered::AsNew(2), "no lease is alive");
        let lease = "update shards set lease_until = clock_timestamp() + interval '1 minute'";
        sqlx::query(lease).execute(&test.store.pool).await.unwrap();
        assert_eq!(local("1", false).await, Registered::Differs(2));
        assert_eq!(local("1", true).await, Registered::AsNew(3), "it changed while the process ran");
        let newest = test.store.newest().await.unwrap().unwrap();
        assert_eq!(
            (newest.version, newest.spec, newest.pipeline_id),
            (3, spec("1"), test.pipeline.pipeline_id.clone())
        );
    }

    #[tokio::test]
    async fn processes_that_see_the_same_change_register_one_version() {
        let test = TestPipeline::new("shards: 1").await;
        // Many rounds: the offers only collide once all connections are open.
        for round in 1..=20 {
            let threshold = round.to_string();
            let all = futures::future::join_all((0..4).map(|_| offer(&test, None, 0, "", &threshold, true))).await;
            assert_eq!(all.iter().filter(|outcome| **outcome == Registered::AsNew(round)).count(), 1, "{all:?}");
            assert_eq!(all.iter().filter(|outcome| **outcome == Registered::Same(round)).count(), 3, "{all:?}");
        }
    }

    #[tokio::test]
    async fn a_generation_is_registered_once_and_an_older_one_is_refused() {
        let test = TestPipeline::new("shards: 1").await;
        let of_u =
            async |generation, accept, threshold| offer(&test, Some("u"), generation, accept, threshold, true).await;
        assert_eq!(of_u(1, "", "1").await, Registered::AsNew(1));
        assert_eq!(of_u(1, "", "1").await, Registered::Same(1));
        assert_eq!(of_u(3, "", "3").await, Registered::AsNew(2));
        assert_eq!(of_u(4, "", "3").await, Registered::AsNew(3), "each generation, also with the same content");
        let lower = of_u(2, "", "2").await;
        assert!(matches!(&lower, Registered::Refused(why) if why.contains(ACCEPT_GENERATION)), "{lower:?}");
        let other = of_u(4, "", "9").await;
        assert!(matches!(&other, Registered::Refused(why) if why.contains("other content")), "{other:?}");

        assert_eq!(of_u(2, "restored", "2").await, Registered::AsNew(4), "the annotation accepts it");
        assert_eq!(of_u(2, "", "2").await, Registered::Same(4));
        assert_eq!(of_u(3, "", "33").await, Registered::AsNew(5), "generations rise from there");
        assert_eq!(of_u(2, "restored", "2").await, Registered::Passed(5), "an old file is not registered again");

        assert_eq!(offer(&test, Some("v"), 1, "", "1", false).await, Registered::AsNew(6), "a recreated resource");
        assert_eq!(of_u(3, "", "33").await, Registered::Passed(6));
    }
}
