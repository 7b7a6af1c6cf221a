//! The positions of webhooks, and their deliveries that did not succeed. Each write names the lease that claimed the position.

use chrono::{DateTime, Utc};

use super::{Actor, Error, Store, slow::Watch};
use crate::domain::{Attempt, DeliveryState, Lease, OutcomeFilter, Seq, ShardId, ShardSeq};

/// The position of a webhook in a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookPosition {
    /// Each outcome up to it is delivered, or not of the sink, or in `deliveries`.
    pub cursor: Seq,
    /// Numbers above the cursor of which the same holds.
    pub done: Vec<Seq>,
    /// Since when the endpoint fails as a whole.
    pub failing_since: Option<DateTime<Utc>>,
    /// The number above which the sink has its filter.
    pub filter_after: Seq,
    /// The time of Postgres's clock.
    pub now: DateTime<Utc>,
}

/// A delivery that did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeliveryRow {
    /// The number of the outcome.
    pub seq: Seq,
    /// Its destination; empty: none is known.
    pub destination_id: String,
    /// Its state.
    pub state: DeliveryState,
    /// Whether later outcomes of the destination wait for it.
    pub ordered: bool,
    /// Number of attempts.
    pub attempts: i32,
    /// When the first one failed.
    pub first_attempt_at: DateTime<Utc>,
    /// When the next one is due.
    pub next_attempt_at: DateTime<Utc>,
    /// When its retries ended.
    pub failed_at: Option<DateTime<Utc>>,
    /// The last attempts.
    pub log: Vec<Attempt>,
}

/// One publisher of a webhook: its sink, its shard, and the lease by which it claimed the position.
#[derive(Debug, Clone)]
pub struct WebhookClaim {
    /// The sink.
    pub sink: String,
    /// The shard.
    pub shard: ShardId,
    /// The lease of the shard's owner.
    pub lease: Lease,
}

/// What a publisher of a webhook stores at once.
#[derive(Debug, Clone, Copy)]
pub struct WebhookChanges<'a> {
    /// As in [`WebhookPosition`].
    pub cursor: Seq,
    /// As in [`WebhookPosition`].
    pub done: &'a [Seq],
    /// As in [`WebhookPosition`].
    pub failing_since: Option<DateTime<Utc>>,
    /// Rows to write.
    pub rows: &'a [DeliveryRow],
    /// Numbers of rows to delete.
    pub removed: &'a [Seq],
}

impl Store {
    /// Creates the positions of a webhook where its sink starts, and notes it as started. Returns false if the sink has
    /// another generation by now.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn start_webhook(&self, sink: &str, cursor_generation: &str) -> Result<bool, Error> {
        let started = sqlx::query_scalar!(
            r#"with started as (
                   update sinks set started = true
                   where name = $1 and cursor_generation = $2 and not started and not removed returning name
               ), dropped as (
                   delete from deliveries d using started s where d.sink = s.name
               ), placed as (
                   insert into webhook_cursors as c (sink, shard, cursor, filter_after)
                   select s.name, b.shard, b.after, b.after from started s join sink_starts b on b.sink = s.name
                   on conflict (sink, shard) do update
                   set cursor = excluded.cursor, filter_after = excluded.filter_after, done = '{}', failing_since = null,
                       filter = '', epoch = 0, token = ''
               )
               select count(*) > 0 as "started!" from started"#,
            sink,
            cursor_generation,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(started)
    }

    /// Claims the position of a webhook for the owner of its shard: no earlier owner can write it from now on. `None`: the
    /// shard is another's by now, the sink has another generation, or it is disabled.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn claim_webhook(
        &self,
        claim: &WebhookClaim,
        cursor_generation: &str,
        filter: &OutcomeFilter,
    ) -> Result<Option<(WebhookPosition, Vec<DeliveryRow>)>, Error> {
        let row = sqlx::query!(
            r#"update webhook_cursors c
               set epoch = $4, token = $5, filter = $6,
                   filter_after = case when c.filter = $6 then c.filter_after
                                       else greatest(c.cursor, (select max(d) from unnest(c.done) as d)) end
               from sinks s, shards h
               where c.sink = $1 and c.shard = $2 and s.name = c.sink and s.cursor_generation = $3 and s.started
                 and not s.removed and not s.disabled and h.shard = c.shard and h.epoch = $4 and h.token = $5
                 and h.owner is not null and c.epoch <= $4
               returning c.cursor as "cursor: Seq", c.done as "done: Vec<Seq>", c.failing_since, c.filter_after as "filter_after: Seq",
                         clock_timestamp() as "now!""#,
            claim.sink,
            claim.shard as ShardId,
            cursor_generation,
            claim.lease.epoch,
            claim.lease.token,
            filter.text,
        )
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let position = WebhookPosition {
            cursor: row.cursor,
            done: row.done,
            failing_since: row.failing_since,
            filter_after: row.filter_after,
            now: row.now,
        };
        Ok(Some((position, self.waiting_deliveries(claim).await?)))
    }

    async fn waiting_deliveries(&self, claim: &WebhookClaim) -> Result<Vec<DeliveryRow>, Error> {
        let rows = sqlx::query!(
            r#"select n as "seq: Seq", destination_id, state as "state: DeliveryState", ordered, attempts,
                      first_attempt_at, next_attempt_at, failed_at, log
               from deliveries where sink = $1 and shard = $2 and state = 'waiting' order by n"#,
            claim.sink,
            claim.shard as ShardId,
        )
        .fetch_all(&self.pool)
        .await?;
        let rows = rows.into_iter().map(|row| DeliveryRow {
            seq: row.seq,
            destination_id: row.destination_id,
            state: row.state,
            ordered: row.ordered,
            attempts: row.attempts,
            first_attempt_at: row.first_attempt_at,
            next_attempt_at: row.next_attempt_at,
            failed_at: row.failed_at,
            log: attempts(&row.log),
        });
        Ok(rows.collect())
    }

    /// Stores the progress of a publisher in one transaction.
    ///
    /// # Errors
    /// [`Error::Fenced`] when another publisher has claimed the position, or the sink was started again.
    pub async fn store_deliveries(&self, claim: &WebhookClaim, changes: WebhookChanges<'_>) -> Result<(), Error> {
        let _watch = Watch::start("webhook.deliveries");
        let WebhookChanges { cursor, done, failing_since, rows, removed } = changes;
        let numbers: Vec<Seq> = rows.iter().map(|row| row.seq).collect();
        let destinations: Vec<&str> = rows.iter().map(|row| row.destination_id.as_str()).collect();
        let states: Vec<&str> = rows.iter().map(|row| row.state.as_str()).collect();
        let ordered: Vec<bool> = rows.iter().map(|row| row.ordered).collect();
        let attempts: Vec<i32> = rows.iter().map(|row| row.attempts).collect();
        let first: Vec<DateTime<Utc>> = rows.iter().map(|row| row.first_attempt_at).collect();
        let next: Vec<DateTime<Utc>> = rows.iter().map(|row| row.next_attempt_at).collect();
        let failed: Vec<Option<DateTime<Utc>>> = rows.iter().map(|row| row.failed_at).collect();
        let logs: Vec<String> = rows.iter().map(|row| log_text(&row.log)).collect();
        let is_owner = sqlx::query_scalar!(
            r#"with owned as (
                   update webhook_cursors set cursor = $5, done = $6, failing_since = $7
                   where sink = $1 and shard = $2 and epoch = $3 and token = $4 returning sink, shard
               ), removed as (
                   delete from deliveries d using owned o
                   where d.sink = o.sink and d.shard = o.shard and d.n = any($8)
               ), written as (
                   insert into deliveries (sink, shard, n, destination_id, state, ordered, attempts, first_attempt_at,
                       next_attempt_at, failed_at, log)
                   select o.sink, o.shard, w.*
                   from owned o, unnest($9::bigint[], $10::text[], $11::text[], $12::boolean[], $13::int[],
                       $14::timestamptz[], $15::timestamptz[], $16::timestamptz[], $17::text[]) w
                   on conflict (sink, shard, n) do update
                   set state = excluded.state, ordered = excluded.ordered, attempts = excluded.attempts,
                       first_attempt_at = excluded.first_attempt_at, next_attempt_at = excluded.next_attempt_at,
                       failed_at = excluded.failed_at, log = excluded.log, requested = false
               )
               select count(*) > 0 as "owner!" from owned"#,
            claim.sink,
            claim.shard as ShardId,
            claim.lease.epoch,
            claim.lease.token,
            cursor as Seq,
            done as &[Seq],
            failing_since,
            removed as &[Seq],
            &numbers as &[Seq],
            &destinations as &[&str],
            &states as &[&str],
            &ordered,
            &attempts,
            &first,
            &next,
            &failed as &[Option<DateTime<Utc>>],
            &logs,
        )
        .fetch_one(&self.pool)
        .await?;
        if is_owner { Ok(()) } else { Err(Error::Fenced) }
    }

    /// Stores the result of a retry that an administrator asked for, of a delivery that had failed: `None`, it succeeded.
    ///
    /// # Errors
    /// [`Error::Fenced`] as of [`Self::store_deliveries`].
    pub async fn store_retry(&self, claim: &WebhookClaim, seq: Seq, log: Option<&[Attempt]>) -> Result<(), Error> {
        let text = log.map(log_text);
        let is_owner = sqlx::query_scalar!(
            r#"with owned as (
                   select sink, shard from webhook_cursors
                   where sink = $1 and shard = $2 and epoch = $3 and token = $4 for update
               ), removed as (
                   delete from deliveries d using owned o
                   where d.sink = o.sink and d.shard = o.shard and d.n = $5 and d.state = 'failed' and $6::text is null
               ), kept as (
                   update deliveries d set log = $6, attempts = d.attempts + 1, requested = false
                   from owned o where d.sink = o.sink and d.shard = o.shard and d.n = $5 and $6::text is not null
               )
               select count(*) > 0 as "owner!" from owned"#,
            claim.sink,
            claim.shard as ShardId,
            claim.lease.epoch,
            claim.lease.token,
            seq as Seq,
            text,
        )
        .fetch_one(&self.pool)
        .await?;
        if is_owner { Ok(()) } else { Err(Error::Fenced) }
    }

    /// Deliveries whose retry an administrator asked for, at most 64.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn requested_deliveries(&self, sink: &str, shard: ShardId) -> Result<Vec<RequestedDelivery>, Error> {
        let rows = sqlx::query!(
            r#"select n as "seq: Seq", state as "state: DeliveryState", log from deliveries
               where sink = $1 and shard = $2 and requested order by n limit 64"#,
            sink,
            shard as ShardId,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .map(|row| RequestedDelivery { seq: row.seq, state: row.state, log: attempts(&row.log) })
            .collect())
    }

    /// Disables a webhook whose endpoint answered that it is gone: no publisher delivers until it is resumed.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn disable_webhook(&self, claim: &WebhookClaim, cursor_generation: &str) -> Result<(), Error> {
        sqlx::query!(
            "update sinks set disabled = true
             where name = $1 and cursor_generation = $2
               and exists (select from webhook_cursors where sink = $1 and shard = $3 and epoch = $4 and token = $5)",
            claim.sink,
            cursor_generation,
            claim.shard as ShardId,
            claim.lease.epoch,
            claim.lease.token,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Enables a disabled webhook: it continues at its position. Adds the action to the audit trail. Returns whether it was
    /// disabled.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn enable_webhook(&self, sink: &str, actor: &Actor) -> Result<bool, Error> {
        let done = sqlx::query!(
            "with enabled as (
                 update sinks set disabled = false where name = $1 and disabled and not removed returning name
             ), cleared as (
                 delete from sink_states where sink = $1 and state = 'disabled'
             )
             insert into admin_actions (actor, action, reason, actor_id, address)
             select $2, 'sinks.resume', 'sink ' || name || ' at its position', $3, $4 from enabled",
            sink,
            &actor.name,
            actor.key_id.as_deref(),
            actor.address_column(),
        )
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected() > 0)
    }

    /// For each shard, the number up to which a webhook has delivered all outcomes, or given them up.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn webhook_floors(&self, sink: &str) -> Result<Vec<ShardSeq>, Error> {
        Ok(sqlx::query_as!(
            ShardSeq,
            r#"select c.shard as "shard: ShardId", least(c.cursor, waiting.n - 1) as "seq!: Seq"
               from webhook_cursors c
               left join (select shard, min(n) as n from deliveries where sink = $1 and state = 'waiting' group by shard) waiting
                   using (shard)
               where c.sink = $1 order by c.shard"#,
            sink
        )
        .fetch_all(&self.pool)
        .await?)
    }

    /// The cursors of all webhooks.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn webhook_cursors(&self) -> Result<Vec<WebhookCursor>, Error> {
        Ok(sqlx::query_as!(
            WebhookCursor,
            r#"select c.sink, c.shard as "shard: ShardId", c.cursor as "cursor: Seq" from webhook_cursors c
               order by sink, shard"#
        )
        .fetch_all(&self.pool)
        .await?)
    }
}

/// A delivery whose retry an administrator asked for.
#[derive(Debug, Clone)]
pub struct RequestedDelivery {
    /// The number of the outcome.
    pub seq: Seq,
    /// Its state.
    pub state: DeliveryState,
    /// The last attempts.
    pub log: Vec<Attempt>,
}

/// The cursor of a webhook in a shard.
#[derive(Debug, Clone)]
pub struct WebhookCursor {
    /// The sink.
    pub sink: String,
    /// The shard.
    pub shard: ShardId,
    /// The cursor.
    pub cursor: Seq,
}

fn log_text(log: &[Attempt]) -> String {
    serde_json::to_string(log).unwrap_or_default()
}

/// The attempts of a row; none where a newer version wrote them in another form.
pub(super) fn attempts(log: &str) -> Vec<Attempt> {
    serde_json::from_str(log).unwrap_or_default()
}

#[cfg(test)]
mod tests;
