//! The results of `millrace verify`, stored for metrics and for people.

use std::time::Duration;

use chrono::{DateTime, Utc};

use super::{Differences, Scope};
use crate::{
    domain::ShardId,
    store::{Error, Store},
};

/// Runs that are kept.
const RUNS: i64 = 1_000;
/// Differences whose text is stored.
const STORED: usize = 20;

/// A run that ended.
#[derive(Debug)]
pub struct VerifyRun<'a> {
    /// How long it took.
    pub took: Duration,
    /// The part of the pipeline that it compared.
    pub scope: &'a Scope,
    /// Number of records that it compared.
    pub records: i64,
    /// What it found, or why it could not compare everything.
    pub found: Result<&'a Differences, String>,
}

/// What the last runs found. A run with a limited scope counts only where it found differences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VerifyResult {
    /// When the last run without differences ended, in seconds since 1970.
    pub last_success: Option<i64>,
    /// The differences of the last run.
    pub differences: Option<i64>,
    /// Whether the last run, whatever its scope, could not compare.
    pub failed: Option<bool>,
}

/// A stored run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredVerifyRun {
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub ended_at: DateTime<Utc>,
    /// The shards that it compared; `None`: all.
    pub shards: Option<Vec<ShardId>>,
    /// The time from which on it compared; `None`: all records.
    pub since: Option<DateTime<Utc>>,
    /// Number of records that it compared.
    pub records: i64,
    /// Number of differences; `None`: it could not compare everything.
    pub differences: Option<i64>,
}

impl Store {
    /// Stores a run.
    ///
    /// # Errors
    /// When Postgres is unavailable, or the role may not write.
    pub async fn store_verify_run(&self, run: &VerifyRun<'_>) -> Result<(), Error> {
        let VerifyRun { took, scope, records, found } = run;
        let (differences, problems) = match found {
            Ok(differences) => {
                let lines = differences.first.iter().take(STORED).map(|difference| format!("{difference}\n"));
                (Some(i64::try_from(differences.count).unwrap_or(i64::MAX)), lines.collect())
            }
            Err(problem) => (None, problem.clone()),
        };
        // A text of Postgres has no U+0000; a damaged entry may.
        let problems: String = problems.replace('\0', "\u{fffd}");
        sqlx::query!(
            "with removed as (
                 delete from verifications where n <= (select max(n) from verifications) - $7
             )
             insert into verifications (started_at, shards, since, records, differences, problems)
             values (clock_timestamp() - make_interval(secs => $1), $2, $3, $4, $5, $6)",
            took.as_secs_f64(),
            scope.numbers() as Option<Vec<i32>>,
            scope.since,
            records,
            differences,
            problems,
            RUNS - 1
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The last run, whatever its scope.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn last_verify_run(&self) -> Result<Option<StoredVerifyRun>, Error> {
        let run = sqlx::query_as!(
            StoredVerifyRun,
            r#"select started_at, ended_at, shards as "shards: Vec<ShardId>", since, records, differences
               from verifications order by n desc limit 1"#
        );
        Ok(run.fetch_optional(&self.pool).await?)
    }

    /// What the last runs found.
    ///
    /// # Errors
    /// When Postgres is unavailable.
    pub async fn verify_result(&self) -> Result<VerifyResult, Error> {
        let row = sqlx::query!(
            r#"select extract(epoch from max(ended_at) filter (where differences = 0))::bigint as last_success,
                      (array_agg(differences order by n desc))[1] as differences,
                      (select differences is null from verifications order by n desc limit 1) as failed
               from verifications
               where differences > 0 or (differences = 0 and shards is null and since is null)"#
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(VerifyResult { last_success: row.last_success, differences: row.differences, failed: row.failed })
    }
}
