//! Sinks: their streams, cursor generations and start positions, and the states of their publishers.

use chrono::{DateTime, Utc};
use millrace_crds::status_api::{PublisherState, PublisherStatus};
use rand::Rng as _;

use super::{Actor, Error, Store, columns::unzipped};
use crate::domain::{OutcomeKind, Seq, ShardId, ShardSeq};

/// A sink in Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkRow {
    /// Its name.
    pub name: String,
    /// The outcomes that it publishes.
    pub kind: OutcomeKind,
    /// The Redis stream.
    pub stream: Option<String>,
    /// The generation of its cursor.
    pub cursor_generation: String,
    /// Whether the cursor was created.
    pub started: bool,
    /// The stream from which it moves away.
    pub old_stream: Option<String>,
    /// The generation of the cursor of the old stream.
    pub old_cursor_generation: Option<String>,
    /// Removed from the manifest; its cursor is not deleted yet.
    pub removed: bool,
    /// A webhook that answered 410.
    pub disabled: bool,
    /// Whether it had a filter at some time.
    pub filtered: bool,
    /// Before the first outcome at or after it the sink ends.
    pub until: Option<DateTime<Utc>>,
    /// Whether all before its end was published.
    pub completed: bool,
}

/// A sink to add.
#[derive(Debug)]
pub struct NewSink<'a> {
    /// Its name.
    pub name: &'a str,
    /// The outcomes that it publishes.
    pub kind: OutcomeKind,
    /// The Redis stream; `None`: a webhook.
    pub stream: Option<&'a str>,
    /// The generation of its cursor.
    pub cursor_generation: &'a str,
    /// Where each shard starts.
    pub begins: SinkBegins<'a>,
    /// Before the first outcome at or after it the sink ends.
    pub until: Option<DateTime<Utc>>,
}

/// Where the shards of a sink start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SinkBegins<'a> {
    /// At their first outcomes.
    Beginning,
    /// After their current highest numbers.
    Now,
    /// After these numbers.
    After(&'a [ShardSeq]),
}

/// The state of a publisher that does not run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkState {
    /// For programs.
    pub state: PublisherState,
    /// The cause and the remedy.
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
            r#"select name, kind as "kind: OutcomeKind", stream, cursor_generation, started, old_stream,
                      old_cursor_generation, removed, disabled, filtered, until,
                      completed_at is not null as "completed!"
               from sinks order by name"#,
        )
        .fetch_all(&self.pool)
        .await?)
    }

    /// Adds a new sink. Does nothing if the sink exists, or if `version` is not the newest policy version.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn add_sink(&self, sink: &NewSink<'_>, version: i64) -> Result<(), Error> {
        let after = match sink.begins {
            SinkBegins::After(after) => after,
            SinkBegins::Beginning | SinkBegins::Now => &[],
        };
        let (shards, after) = unzipped(after);
        sqlx::query!(
            "with added as (
                 insert into sinks (name, kind, stream, cursor_generation, version, until)
                 select $1, $2, $3, $4, $6, $7 where $6 = (select max(version) from policies)
                 on conflict (name) do nothing
                 returning name
             )
             insert into sink_starts (sink, shard, after)
             select added.name, shards.shard,
                    case when b.after is not null then b.after when $5 then 0 when $2 = 'DeadLettered' then dead_letters
                         when $2 = 'Conflicted' then conflicts else records end
             from added, shards left join unnest($8::int[], $9::bigint[]) as b (shard, after) on b.shard = shards.shard",
            sink.name,
            sink.kind as OutcomeKind,
            sink.stream,
            sink.cursor_generation,
            sink.begins == SinkBegins::Beginning,
            version,
            sink.until,
            &shards as &[ShardId],
            &after as &[Seq],
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Starts a sink again with a new cursor generation: each shard at the beginning with `from_beginning`, else after
    /// its current highest number. Adds the action to the audit trail. Returns whether the sink exists.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn resume_sink(
        &self,
        name: &str,
        cursor_generation: &str,
        from_beginning: bool,
        actor: &Actor,
    ) -> Result<bool, Error> {
        let done = sqlx::query!(
            "with resumed as (
                 update sinks set cursor_generation = $2, started = false, disabled = false, old_stream = null,
                        old_cursor_generation = null, completed_at = null
                 where name = $1 and not removed returning name, kind
             ), cleared as (
                 delete from sink_states where sink = $1
             ), noted as (
                 insert into admin_actions (actor, actor_id, address, action, reason)
                 select $4, $5, $6, 'sinks.resume', 'sink ' || name || case when $3 then ' from beginning' else ' from now' end
                 from resumed
             )
             insert into sink_starts (sink, shard, after)
             select resumed.name, shards.shard,
                    case when $3 then 0 when kind = 'DeadLettered' then dead_letters
                         when kind = 'Conflicted' then conflicts else records end
             from resumed, shards
             on conflict (sink, shard) do update set after = excluded.after, rewound_to = null",
            name,
            cursor_generation,
            from_beginning,
            &actor.name,
            actor.key_id.as_deref(),
            actor.address_column(),
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// For each shard, the number after which a sink starts.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn sink_starts(&self, name: &str) -> Result<Vec<ShardSeq>, Error> {
        let starts = sqlx::query_as!(
            ShardSeq,
            r#"select shard as "shard: ShardId", after as "seq: Seq" from sink_starts where sink = $1 order by shard"#,
            name
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(starts)
    }

    /// Stores that the cursor of a generation was created. Returns false if the sink has another generation by now.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn sink_started(&self, name: &str, cursor_generation: &str) -> Result<bool, Error> {
        let started = sqlx::query!(
            "with started as (
                 update sinks set started = true where name = $1 and cursor_generation = $2 returning name
             ), begun as (
                 update sink_starts set rewound_to = null
                 from started where sink = name and rewound_to is not null
             )
             select name from started",
            name,
            cursor_generation
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(started.is_some())
    }

    /// A new cursor generation: unique, and later ones sort after earlier ones.
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

    /// Begins to move a sink to another stream, with a new cursor generation. Does nothing if `version` is not the
    /// newest policy version.
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
                    -- A start that was not finished has published nothing: the move continues from the stream before
                    -- it.
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

    /// Stores the final positions of the old cursor of a sink that moves or is rewound: the new cursor starts there, or
    /// where the rewind is below that.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn set_starts(&self, row: &SinkRow, starts: &[ShardSeq]) -> Result<(), Error> {
        let (shards, after) = unzipped(starts);
        sqlx::query!(
            // Locks the row of the sink: a start that ends meanwhile has ended the rewind, too.
            "with sink as (
                 select name from sinks where name = $1 and cursor_generation = $2 and not started for share
             )
             insert into sink_starts (sink, shard, after)
             select sink.name, s.shard, s.after
             from sink, unnest($3::int[], $4::bigint[]) as s (shard, after)
             on conflict (sink, shard) do update set after = least(excluded.after, sink_starts.rewound_to)",
            row.name,
            row.cursor_generation,
            &shards as &[ShardId],
            &after as &[Seq],
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Deletes the reference to the stream that a sink has left.
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

    /// Marks a sink as removed. Does nothing if `version` is not the newest policy version.
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

    /// Notes that a sink has a filter, before it leaves an outcome out.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn sink_filtered(&self, name: &str) -> Result<(), Error> {
        sqlx::query!("update sinks set filtered = true where name = $1", name).execute(&self.pool).await?;
        Ok(())
    }

    /// Deletes a removed sink, once its cursor is deleted.
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

    /// Stores the state of a publisher; `None` if it runs. Does nothing if `token` does not own the shard: an owner
    /// that lost the shard must not overwrite the state of its successor. Pass no token if the caller is not an owner.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn set_sink_state(
        &self,
        sink: &str,
        shard: ShardId,
        token: Option<&str>,
        state: Option<&SinkState>,
    ) -> Result<(), Error> {
        match state {
            Some(SinkState { state, detail }) => {
                sqlx::query!(
                    "insert into sink_states (sink, shard, state, detail)
                     select name, $2, $3, $4 from sinks
                     where name = $1 and ($5::text is null or $5 = (select token from shards where shard = $2 for share))
                     on conflict (sink, shard) do update
                     set state = excluded.state, detail = excluded.detail, since = now()",
                    sink,
                    shard as ShardId,
                    state.as_str(),
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
                    shard as ShardId,
                    token,
                )
                .execute(&self.pool)
                .await?;
            }
        }
        Ok(())
    }

    /// The publishers that do not run, by sink and shard. A state of another version is read as failing.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn sink_states(&self) -> Result<Vec<PublisherStatus>, Error> {
        let rows = sqlx::query!(
            r#"select sink, shard as "shard: ShardId", state, detail from sink_states order by sink, shard"#
        )
        .fetch_all(&self.pool)
        .await?;
        let status = rows.into_iter().map(|row| PublisherStatus {
            sink: row.sink,
            shard: row.shard.get(),
            state: PublisherState::parse(&row.state),
            detail: row.detail,
        });
        Ok(status.collect())
    }
}

#[cfg(test)]
mod tests;
