//! Sinks that were started: which generation of which stream, from where, and what their publishers last said.

use rand::Rng as _;

use super::{Error, Numbers, Store};

/// A sink as Postgres holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkRow {
    /// Its name.
    pub name: String,
    /// `Processed`, `Alert`, `DeadLettered` or `Conflicted`.
    pub kind: String,
    /// The Redis stream.
    pub stream: Option<String>,
    /// Which start of it this is.
    pub cursor_generation: String,
    /// Whether the cursor was made.
    pub started: bool,
    /// The stream it is moving away from.
    pub old_stream: Option<String>,
    /// The cursor's generation there.
    pub old_cursor_generation: Option<String>,
    /// Removed from the manifest; its cursor is still to be taken away.
    pub removed: bool,
}

impl SinkRow {
    /// Which of a shard's numbers it counts by.
    #[must_use]
    pub fn counts_by(&self) -> usize {
        match self.kind.as_str() {
            "DeadLettered" => 1,
            "Conflicted" => 2,
            _ => 0,
        }
    }
}

/// What a publisher says of itself when it does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkState {
    /// `waiting`, `failing` or `halted`.
    pub state: &'static str,
    /// Why, and what to do.
    pub detail: String,
}

impl Store {
    /// All sinks.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn sinks(&self) -> Result<Vec<SinkRow>, Error> {
        Ok(sqlx::query_as!(
            SinkRow,
            "select name, kind, stream, cursor_generation, started, old_stream, old_cursor_generation, removed
             from sinks order by name",
        )
        .fetch_all(&self.pool)
        .await?)
    }

    /// Writes the start of a sink that is new: each shard begins after `after`, or after what it holds now where that is
    /// `None`. Does nothing where the sink is there already, or where `version` is not the newest policy.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn add_sink(
        &self,
        name: &str,
        kind: &str,
        stream: &str,
        cursor_generation: &str,
        from_beginning: bool,
        version: i64,
    ) -> Result<(), Error> {
        sqlx::query!(
            "with added as (
                 insert into sinks (name, kind, stream, cursor_generation, version)
                 select $1, $2, $3, $4, $6 where $6 = (select max(version) from policies)
                 on conflict (name) do nothing
                 returning name
             )
             insert into sink_starts (sink, shard, after)
             select added.name, shards.shard,
                    case when $5 then 0 when $2 = 'DeadLettered' then dead_letters when $2 = 'Conflicted' then conflicts
                         else records end
             from added, shards",
            name,
            kind,
            stream,
            cursor_generation,
            from_beginning,
            version,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Starts a sink again under a new generation, each shard after `after`, or after what it holds now, and notes who did
    /// it. True when there is such a sink.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn resume_sink(
        &self,
        name: &str,
        cursor_generation: &str,
        from_beginning: bool,
        actor: &str,
    ) -> Result<bool, Error> {
        let done = sqlx::query!(
            "with resumed as (
                 update sinks set cursor_generation = $2, started = false, old_stream = null, old_cursor_generation = null
                 where name = $1 and not removed returning name, kind
             ), cleared as (
                 delete from sink_states where sink = $1
             ), noted as (
                 insert into admin_actions (actor, action, reason)
                 select $4, 'sinks.resume', 'sink ' || name || case when $3 then ' from beginning' else ' from now' end
                 from resumed
             )
             insert into sink_starts (sink, shard, after)
             select resumed.name, shards.shard,
                    case when $3 then 0 when kind = 'DeadLettered' then dead_letters
                         when kind = 'Conflicted' then conflicts else records end
             from resumed, shards
             on conflict (sink, shard) do update set after = excluded.after",
            name,
            cursor_generation,
            from_beginning,
            actor,
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Where each shard's part of a sink begins.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn sink_starts(&self, name: &str) -> Result<Vec<(u16, i64)>, Error> {
        let rows = sqlx::query!("select shard, after from sink_starts where sink = $1 order by shard", name)
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.into_iter().map(|row| (row.shard as u16, row.after)).collect())
    }

    /// Says that a generation's cursor was made; false: the sink is of another by now.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn sink_started(&self, name: &str, cursor_generation: &str) -> Result<bool, Error> {
        let started = sqlx::query!(
            "update sinks set started = true where name = $1 and cursor_generation = $2",
            name,
            cursor_generation
        )
        .execute(&self.pool)
        .await?;
        Ok(started.rows_affected() > 0)
    }

    /// A name for one start of a sink: never given twice, and later ones sort behind earlier ones.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn cursor_generation(&self) -> Result<String, Error> {
        let micros =
            sqlx::query_scalar!(r#"select (extract(epoch from clock_timestamp()) * 1000000)::bigint as "now!""#)
                .fetch_one(&self.pool)
                .await?;
        Ok(format!("t{micros:016x}{:016x}", rand::rng().next_u64()))
    }

    /// Begins to move a sink to another stream, under a new generation, unless `version` is not the newest policy.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn move_sink(
        &self,
        row: &SinkRow,
        stream: &str,
        cursor_generation: &str,
        version: i64,
    ) -> Result<(), Error> {
        sqlx::query!(
            "update sinks set stream = $3, cursor_generation = $4, started = false, version = $5,
                    -- A start that was not finished has carried nothing: it goes on from where that one came, if from any.
                    old_stream = case when started then stream else old_stream end,
                    old_cursor_generation = case when started then cursor_generation else old_cursor_generation end
             where name = $1 and cursor_generation = $2 and $5 = (select max(version) from policies)",
            row.name,
            row.cursor_generation,
            stream,
            cursor_generation,
            version,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Writes where the old cursor of a moving sink stood: the new one begins there.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn set_starts(&self, row: &SinkRow, starts: &[(u16, i64)]) -> Result<(), Error> {
        let shards: Vec<i32> = starts.iter().map(|(shard, _)| i32::from(*shard)).collect();
        let after: Vec<i64> = starts.iter().map(|(_, after)| *after).collect();
        sqlx::query!(
            "insert into sink_starts (sink, shard, after)
             select sinks.name, s.shard, s.after
             from sinks, unnest($3::int[], $4::bigint[]) as s (shard, after)
             where sinks.name = $1 and sinks.cursor_generation = $2 and not sinks.started
             on conflict (sink, shard) do update set after = excluded.after",
            row.name,
            row.cursor_generation,
            &shards,
            &after,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Forgets the stream that a sink moved away from.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn sink_moved(&self, row: &SinkRow) -> Result<(), Error> {
        sqlx::query!(
            "update sinks set old_stream = null, old_cursor_generation = null where name = $1 and cursor_generation = $2",
            row.name,
            row.cursor_generation,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Marks a sink as removed, unless `version` is not the newest policy.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn remove_sink(&self, name: &str, version: i64) -> Result<(), Error> {
        sqlx::query!(
            "update sinks set removed = true where name = $1 and $2 = (select max(version) from policies)",
            name,
            version,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Forgets a removed sink whose cursor is gone.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn delete_sink(&self, row: &SinkRow) -> Result<(), Error> {
        sqlx::query!(
            "delete from sinks where name = $1 and cursor_generation = $2 and removed",
            row.name,
            row.cursor_generation
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Keeps what a publisher says of itself; `None`: it runs. Does nothing where the shard is not held by `token`: an owner that
    /// lost it must not speak after the next one. Without a token it is no owner that speaks.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn set_sink_state(
        &self,
        sink: &str,
        shard: u16,
        token: Option<&str>,
        state: Option<&SinkState>,
    ) -> Result<(), Error> {
        let shard = i32::from(shard);
        match state {
            Some(SinkState { state, detail }) => {
                sqlx::query!(
                    "insert into sink_states (sink, shard, state, detail)
                     select name, $2, $3, $4 from sinks
                     where name = $1 and ($5::text is null or $5 = (select token from shards where shard = $2 for share))
                     on conflict (sink, shard) do update
                     set state = excluded.state, detail = excluded.detail, since = now()",
                    sink,
                    shard,
                    state,
                    detail,
                    token,
                )
                .execute(&self.pool)
                .await?;
            }
            None => {
                sqlx::query!(
                    "delete from sink_states
                     where sink = $1 and shard = $2
                       and ($3::text is null or $3 = (select token from shards where shard = $2 for share))",
                    sink,
                    shard,
                    token,
                )
                .execute(&self.pool)
                .await?;
            }
        }
        Ok(())
    }

    /// What publishers say of themselves: (sink, shard, state, detail).
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn sink_states(&self) -> Result<Vec<(String, u16, String, String)>, Error> {
        let rows = sqlx::query!("select sink, shard, state, detail from sink_states order by sink, shard")
            .fetch_all(&self.pool)
            .await?;
        Ok(rows.into_iter().map(|row| (row.sink, row.shard as u16, row.state, row.detail)).collect())
    }

    /// The number a publisher of `kind` counts by, out of a shard's highest numbers.
    #[must_use]
    pub fn number_of(kind: millrace_crds::SinkEvent, numbers: Numbers) -> i64 {
        match kind {
            millrace_crds::SinkEvent::Processed | millrace_crds::SinkEvent::Alert => numbers[0],
            millrace_crds::SinkEvent::DeadLettered => numbers[1],
            millrace_crds::SinkEvent::Conflicted => numbers[2],
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::store::testing::TestPipeline;

    #[tokio::test]
    async fn a_move_continues_from_where_the_last_finished_start_carries() {
        let pipeline = TestPipeline::new("shards: 1").await;
        let store = &pipeline.store;
        let policy = "insert into policies (version, uid, generation, spec) values (1, '', 1, '{}')";
        sqlx::query(policy).execute(&store.pool).await.unwrap();
        let names: Vec<String> =
            [store.cursor_generation().await.unwrap(), store.cursor_generation().await.unwrap()].into();
        assert!(names.is_sorted() && names[0] != names[1], "{names:?}");
        store.add_sink("s", "Processed", "one", "a", true, 1).await.unwrap();
        let row = async || store.sinks().await.unwrap().remove(0);
        let old = async || row().await.old_stream.zip(row().await.old_cursor_generation);
        store.move_sink(&row().await, "two", "b", 1).await.unwrap();
        assert_eq!(old().await, None, "nothing was carried to the first");
        assert!(!store.sink_started("s", "a").await.unwrap(), "a start that is not wanted any more");
        assert!(store.sink_started("s", "b").await.unwrap());
        store.move_sink(&row().await, "three", "c", 1).await.unwrap();
        let two = Some(("two".to_owned(), "b".to_owned()));
        assert_eq!(old().await, two);
        store.move_sink(&row().await, "four", "d", 1).await.unwrap();
        assert_eq!(old().await, two, "the third was never started");
        assert!(store.sink_started("s", "d").await.unwrap());
        // Before the old cursor is taken away.
        store.move_sink(&row().await, "five", "e", 1).await.unwrap();
        assert_eq!(old().await, Some(("four".to_owned(), "d".to_owned())));
    }
}
