//! Numbers that are skipped: after a Postgres that was rewound, none is ever given twice.

use super::{Commit, Error, Numbers, Store, pool::Server};
use crate::streams::Fence;

/// Where a shard's log stands, and in which server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ShardProgress {
    /// Highest numbers given.
    pub numbers: Numbers,
    /// Duplicates noted.
    pub duplicates: i64,
    /// One that was restored, or took the place of another, is another server.
    pub server: Server,
}

impl ShardProgress {
    /// Whether a transaction finds the log where it was left. In a server that was rewound a fence that was good once is
    /// good again, and so may be its numbers.
    #[must_use]
    pub fn is_where(&self, commit: &Commit) -> bool {
        let position = &commit.position;
        self.server == commit.server && self.numbers == [position.records, position.dead_letters, position.conflicts]
    }
}

impl Store {
    /// Where a shard's log stands.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn progress_of(&self, shard: u16) -> Result<ShardProgress, Error> {
        let row = sqlx::query!(
            r#"select records, dead_letters, conflicts, duplicates,
                      (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint as "server!"
               from shards where shard = $1"#,
            i32::from(shard),
        )
        // By a connection for commits: where a server was replaced, old connections live on for a while.
        .fetch_one(&self.commits)
        .await?;
        Ok(ShardProgress {
            numbers: [row.records, row.dead_letters, row.conflicts],
            duplicates: row.duplicates,
            server: Server(row.server),
        })
    }

    /// Lifts a shard's highest numbers to `least` where they are lower, and notes what is skipped. Answers where they
    /// stand then.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the shard is another's by now.
    pub async fn skip_to(&self, shard: u16, fence: &Fence, least: Numbers) -> Result<Numbers, Error> {
        let row = sqlx::query!(
            r#"with stood as (
                   select records, dead_letters, conflicts from shards
                   where shard = $1 and epoch = $2 and token = $3 and owner is not null for update
               ), noted as (
                   insert into gaps (shard, kind, from_n, to_n)
                   select $1, kind, stands + 1, least
                   from stood cross join lateral (values
                       ('records', records, $4::bigint), ('dead_letters', dead_letters, $5::bigint),
                       ('conflicts', conflicts, $6::bigint)) as kinds (kind, stands, least)
                   where least > stands
               )
               update shards set records = greatest(shards.records, $4),
                      dead_letters = greatest(shards.dead_letters, $5),
                      conflicts = greatest(shards.conflicts, $6)
               from stood where shard = $1
               returning shards.records, shards.dead_letters, shards.conflicts"#,
            i32::from(shard),
            fence.epoch,
            fence.token,
            least[0],
            least[1],
            least[2],
        )
        .fetch_optional(&self.pool)
        .await?
        .ok_or(Error::Fenced)?;
        Ok([row.records, row.dead_letters, row.conflicts])
    }
}

#[cfg(test)]
mod tests {
    use crate::store::{Error, testing::TestPipeline};

    #[tokio::test]
    async fn what_is_skipped_is_noted_and_only_by_the_owner() {
        let pipeline = TestPipeline::new("shards: 1").await;
        let store = &pipeline.store;
        let fence = store.take("one", 0, "token", 60_000).await.unwrap().unwrap();
        sqlx::query("update shards set records = 7, conflicts = 4, duplicates = 2").execute(&store.pool).await.unwrap();
        let other = crate::streams::Fence { token: "other".to_owned(), ..fence.clone() };
        assert!(matches!(store.skip_to(0, &other, [9, 9, 9]).await, Err(Error::Fenced)));
        let stands = store.progress_of(0).await.unwrap();
        assert_eq!((stands.numbers, stands.duplicates), ([7, 0, 4], 2), "nothing was done");
        assert_eq!(store.skip_to(0, &fence, [10, 2, 3]).await.unwrap(), [10, 2, 4]);
        assert_eq!(store.skip_to(0, &fence, [10, 2, 3]).await.unwrap(), [10, 2, 4], "again, and nothing is behind");
        let gaps: Vec<(String, i64, i64)> =
            sqlx::query_as("select kind, from_n, to_n from gaps order by kind").fetch_all(&store.pool).await.unwrap();
        assert_eq!(gaps, [("dead_letters".to_owned(), 1, 2), ("records".to_owned(), 8, 10)]);
    }
}
