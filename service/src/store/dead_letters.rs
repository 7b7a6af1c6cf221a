//! Dead letters: lists, requests for replays, and discards. `commit` opens them, and closes them by a replay.

use chrono::{DateTime, Utc};
use serde::Serialize;
use sqlx::PgConnection;

use super::{
    Actor, Error, Store,
    admin::note_action,
    filter::{LimitArguments, is_unlimited},
    slow::Watch,
};
use crate::domain::{
    AccessLimit, DeadLetterId, DeadLetterReason, DeadLetterState, DestinationId, RecordId, Seq, ShardId, ShardSeq,
};

/// A dead letter as it is stored.
#[derive(Debug, Clone)]
pub struct StoredDeadLetter {
    /// Its shard.
    pub shard: ShardId,
    /// Its sequence number in the shard, among dead letters.
    pub seq: Seq,
    /// `open`, `replayed` or `discarded`.
    pub state: DeadLetterState,
    /// A stable code.
    pub reason: DeadLetterReason,
    /// The reason as a sentence.
    pub detail: String,
    /// Absent when the payload could not be read.
    pub record_id: Option<RecordId>,
    /// Absent when the payload could not be read.
    pub destination_id: Option<DestinationId>,
    /// When it was opened.
    pub opened_at: DateTime<Utc>,
    /// When `serve` received the entry.
    pub received_at: DateTime<Utc>,
    /// When it was closed.
    pub closed_at: Option<DateTime<Utc>>,
    /// The actor that closed it.
    pub closed_by: Option<String>,
    /// The actor that requested its latest replay.
    pub requested_by: Option<String>,
    /// The id of the dead letter whose replay failed with this one.
    pub replay_of: Option<String>,
    /// The payload as received.
    pub payload: Vec<u8>,
    /// W3C trace context of the request.
    pub traceparent: Option<String>,
}

/// Filters of dead letters.
#[derive(Debug, Clone, Default, Serialize)]
pub struct DeadLetterFilter {
    /// Their state.
    pub state: Option<DeadLetterState>,
    /// Their reason.
    pub reason: Option<DeadLetterReason>,
    /// Their id.
    pub record_id: Option<RecordId>,
    /// Their destination.
    pub destination_id: Option<DestinationId>,
    /// Opened at or after this.
    pub start: Option<DateTime<Utc>>,
    /// Opened before this.
    pub end: Option<DateTime<Utc>>,
    /// What the caller may reach: dead letters of other records, and those whose payload could not be read, are left out.
    #[serde(skip_serializing_if = "is_unlimited")]
    pub limit: AccessLimit,
}

impl Store {
    /// Dead letters after a position, by (shard, n), at most `limit`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn list_dead_letters(
        &self,
        filter: &DeadLetterFilter,
        after: ShardSeq,
        limit: i64,
    ) -> Result<Vec<StoredDeadLetter>, Error> {
        let access = LimitArguments::from(&filter.limit);
        let _watch = Watch::start("dead_letters.list");
        let dead_letters = sqlx::query_as!(
            StoredDeadLetter,
            r#"select shard as "shard: ShardId", n as "seq: Seq", state as "state: DeadLetterState",
                      reason as "reason: DeadLetterReason", detail, record_id as "record_id: RecordId",
                      destination_id as "destination_id: DestinationId", opened_at, received_at, closed_at, closed_by,
                      requested_by, replay_of, payload, traceparent
               from dead_letters
               where (shard, n) > ($1, $2)
                 and ($3::text is null or state = $3)
                 and ($4::text is null or reason = $4)
                 and ($5::text is null or record_id = $5)
                 and ($6::text is null or destination_id = $6)
                 and ($7::timestamptz is null or opened_at >= $7)
                 and ($8::timestamptz is null or opened_at < $8)
                 and is_in_ranges(source_id, $10, $11) and is_in_ranges(destination_id, $12, $13)
               order by shard, n
               limit $9"#,
            after.shard as ShardId,
            after.seq as Seq,
            filter.state as Option<DeadLetterState>,
            filter.reason as Option<DeadLetterReason>,
            filter.record_id.as_ref() as Option<&RecordId>,
            filter.destination_id.as_ref() as Option<&DestinationId>,
            filter.start,
            filter.end,
            limit,
            access.source_starts,
            access.source_ends,
            access.destination_starts,
            access.destination_ends,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(dead_letters)
    }

    /// The number of matching dead letters.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn count_dead_letters(&self, filter: &DeadLetterFilter) -> Result<i64, Error> {
        let access = LimitArguments::from(&filter.limit);
        let _watch = Watch::start("dead_letters.count");
        let count = sqlx::query_scalar!(
            r#"select count(*) as "count!" from dead_letters
               where ($1::text is null or state = $1)
                 and ($2::text is null or reason = $2)
                 and ($3::text is null or record_id = $3)
                 and ($4::text is null or destination_id = $4)
                 and ($5::timestamptz is null or opened_at >= $5)
                 and ($6::timestamptz is null or opened_at < $6)
                 and is_in_ranges(source_id, $7, $8) and is_in_ranges(destination_id, $9, $10)"#,
            filter.state as Option<DeadLetterState>,
            filter.reason as Option<DeadLetterReason>,
            filter.record_id.as_ref() as Option<&RecordId>,
            filter.destination_id.as_ref() as Option<&DestinationId>,
            filter.start,
            filter.end,
            access.source_starts,
            access.source_ends,
            access.destination_starts,
            access.destination_ends,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(count)
    }

    /// One dead letter.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn find_dead_letter(&self, id: DeadLetterId) -> Result<Option<StoredDeadLetter>, Error> {
        let dead_letter = sqlx::query_as!(
            StoredDeadLetter,
            r#"select shard as "shard: ShardId", n as "seq: Seq", state as "state: DeadLetterState",
                      reason as "reason: DeadLetterReason", detail, record_id as "record_id: RecordId",
                      destination_id as "destination_id: DestinationId", opened_at, received_at, closed_at, closed_by,
                      requested_by, replay_of, payload, traceparent
               from dead_letters where shard = $1 and n = $2"#,
            id.shard as ShardId,
            id.seq as Seq
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(dead_letter)
    }

    /// The dead letters of an id that a caller may reach, oldest first, at most 100.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn dead_letters_of(
        &self,
        record_id: &RecordId,
        limit: &AccessLimit,
    ) -> Result<Vec<StoredDeadLetter>, Error> {
        let access = LimitArguments::from(limit);
        let _watch = Watch::start("dead_letters.of_record");
        let dead_letters = sqlx::query_as!(
            StoredDeadLetter,
            r#"select shard as "shard: ShardId", n as "seq: Seq", state as "state: DeadLetterState",
                      reason as "reason: DeadLetterReason", detail, record_id as "record_id: RecordId",
                      destination_id as "destination_id: DestinationId", opened_at, received_at, closed_at, closed_by,
                      requested_by, replay_of, payload, traceparent
               from dead_letters
               where record_id = $1 and is_in_ranges(source_id, $2, $3) and is_in_ranges(destination_id, $4, $5)
               order by opened_at desc, shard desc, n desc limit 100"#,
            record_id as &RecordId,
            access.source_starts,
            access.source_ends,
            access.destination_starts,
            access.destination_ends,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(dead_letters.into_iter().rev().collect())
    }

    /// Stores the actor that requests the replay of open dead letters of one shard, and adds the action to the audit
    /// trail. Dead letters that are no longer open stay unchanged.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn note_replay(&self, shard: ShardId, numbers: &[Seq], actor: &Actor) -> Result<(), Error> {
        let mut transaction = self.begin().await?;
        let noted = sqlx::query_scalar!(
            r#"update dead_letters set requested_by = $3 where shard = $1 and n = any($2) and state = 'open'
               returning n as "n: Seq""#,
            shard as ShardId,
            numbers as &[Seq],
            &actor.name
        )
        .fetch_all(&mut *transaction)
        .await?;
        if !noted.is_empty() {
            let ids: Vec<String> = noted.into_iter().map(|seq| DeadLetterId { shard, seq }.to_string()).collect();
            note_action(&mut transaction, actor, "dead_letters.replay", &ids.join(", ")).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Discards a dead letter, and adds the action to the audit trail. Returns false if it is not open or does not exist.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn discard_dead_letter(&self, id: DeadLetterId, actor: &Actor) -> Result<bool, Error> {
        let mut turn = self.begin().await?;
        // Rolled back with the transaction unless the dead letter is discarded.
        note_action(&mut turn, actor, "dead_letters.discard", &id.to_string()).await?;
        // The dead letter first, then its id, as the commit of a replay.
        let discarded = sqlx::query!(
            r#"update dead_letters set state = 'discarded', closed_at = clock_timestamp(), closed_by = $3
               where shard = $1 and n = $2 and state = 'open'
               returning record_id as "record_id: RecordId""#,
            id.shard as ShardId,
            id.seq as Seq,
            &actor.name
        )
        .fetch_optional(&mut *turn)
        .await?;
        let Some(discarded) = discarded else { return Ok(false) };
        if let Some(record_id) = discarded.record_id {
            free_id(&mut turn, &record_id, id).await?;
        }
        turn.commit().await?;
        Ok(true)
    }
}

/// Frees the id of a dead letter whose row this transaction has locked. Returns false where the id does not name it.
pub(super) async fn free_id(
    connection: &mut PgConnection,
    record_id: &RecordId,
    dead_letter: DeadLetterId,
) -> Result<bool, Error> {
    let freed = sqlx::query!(
        "delete from record_ids where record_id = $1 and shard = $2 and number = $3 and period is null",
        record_id as &RecordId,
        dead_letter.shard as ShardId,
        dead_letter.seq as Seq,
    )
    .execute(connection)
    .await?;
    Ok(freed.rows_affected() == 1)
}
