//! Rewinds of sinks: they publish again from an earlier point.
//!
//! A rewind is a new start of the sink, with a generation of its own, so that no publisher of the old one moves the cursor
//! any more. It must never move a cursor forward: outcomes would be left out.

use super::{Actor, Error, SinkRow, Store, admin::note_action, columns::unzipped, session::BEGIN};
use crate::domain::{Seq, ShardId, ShardSeq};

impl Store {
    /// Lets a sink begin again after these numbers, in the shards in which it is above them, and adds the action with its
    /// `reason` to the audit trail. Returns false if the sink has another generation by now, is not started, moves, or is
    /// disabled; and for a webhook, if no cursor is above.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn rewind_sink(
        &self,
        row: &SinkRow,
        points: &[ShardSeq],
        cursor_generation: &str,
        actor: &Actor,
        reason: &str,
    ) -> Result<bool, Error> {
        let (shards, after) = unzipped(points);
        let mut turn = self.pool.begin_with(BEGIN).await?;
        // The cursor of a stream is ended by a worker, that of a webhook is here.
        let rewound = sqlx::query!(
            "update sinks set cursor_generation = $3, completed_at = null, started = stream is null,
                    old_stream = stream, old_cursor_generation = case when stream is null then null else cursor_generation end
             where name = $1 and cursor_generation = $2 and started and old_stream is null and not removed and not disabled",
            row.name,
            row.cursor_generation,
            cursor_generation,
        )
        .execute(&mut *turn)
        .await?;
        if rewound.rows_affected() == 0 {
            return Ok(false);
        }
        if row.stream.is_some() {
            sqlx::query!(
                "update sink_starts s set rewound_to = p.after
                 from unnest($2::int[], $3::bigint[]) as p (shard, after) where s.sink = $1 and s.shard = p.shard",
                row.name,
                &shards as &[ShardId],
                &after as &[Seq],
            )
            .execute(&mut *turn)
            .await?;
        } else if !rewind_webhook(&mut turn, &row.name, &shards, &after).await? {
            return Ok(false);
        }
        sqlx::query!("delete from sink_states where sink = $1", row.name).execute(&mut *turn).await?;
        note_action(&mut turn, actor, "sinks.rewind", reason).await?;
        turn.commit().await?;
        Ok(true)
    }

    /// The highest number of each shard that a webhook has delivered, or keeps as a delivery that waits.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn webhook_highest(&self, sink: &str) -> Result<Vec<ShardSeq>, Error> {
        Ok(sqlx::query_as!(
            ShardSeq,
            r#"select shard as "shard: ShardId", greatest(cursor, (select max(d) from unnest(done) d)) as "seq!: Seq"
               from webhook_cursors where sink = $1 order by shard"#,
            sink
        )
        .fetch_all(&self.pool)
        .await?)
    }
}

/// Moves the cursors of a webhook back, and takes the right to write them from their publishers. Returns whether one moved.
async fn rewind_webhook(
    turn: &mut sqlx::PgConnection,
    sink: &str,
    shards: &[ShardId],
    after: &[Seq],
) -> Result<bool, Error> {
    // In an earlier statement than the one that deletes: a publisher may be adding a delivery.
    sqlx::query!("select from webhook_cursors where sink = $1 order by shard for update", sink)
        .fetch_all(&mut *turn)
        .await?;
    let moved = sqlx::query_scalar!(
        r#"with moved as (
               update webhook_cursors c
               set cursor = least(c.cursor, p.after), done = array(select d from unnest(c.done) d where d <= p.after),
                   filter_after = least(c.filter_after, p.after), failing_since = null, epoch = 0, token = ''
               from unnest($2::int[], $3::bigint[]) as p (shard, after)
               where c.sink = $1 and c.shard = p.shard
                 and p.after < greatest(c.cursor, (select max(d) from unnest(c.done) d))
               returning c.sink, c.shard, p.after
           ), begins as (
               update sink_starts s set after = least(s.after, m.after) from moved m where s.sink = m.sink and s.shard = m.shard
           ), dropped as (
               delete from deliveries d using moved m where d.sink = m.sink and d.shard = m.shard and d.n > m.after
           )
           select count(*) > 0 as "moved!" from moved"#,
        sink,
        shards as &[ShardId],
        after as &[Seq],
    )
    .fetch_one(&mut *turn)
    .await?;
    Ok(moved)
}
