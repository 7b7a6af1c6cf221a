//! One batch in one transaction: lock the shard and compare its lease, read the stored state, write the decision.

use chrono::{DateTime, Utc};
use sqlx::{Postgres, Transaction};

use super::{Error, Store, columns::index_column, pool::Server, session::BEGIN};
use crate::domain::{
    Account, Attributes, DeadLetterId, DeadLetterReason, Decision, DestinationId, Item, Kind, Lease, Offset, Position,
    RecordId, Seq, ShardId, StreamId, Watermarks,
};

/// A transaction that has locked a shard's row and compared its lease.
#[derive(Debug)]
pub struct Commit {
    pub(super) transaction: Transaction<'static, Postgres>,
    pub(super) shard: ShardId,
    fence: Lease,
    shard_version: i64,
    /// The state of the shard.
    pub position: Position,
    /// The time of this server's clock.
    pub now: DateTime<Utc>,
    /// This server.
    pub server: Server,
}

/// The shard after a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AfterCommit {
    /// Its highest numbers.
    pub watermarks: Watermarks,
    /// All records up to it are applied or lost.
    pub accounted: Offset,
    /// Number of records that this commit found to be lost.
    pub lost: i64,
}

impl Store {
    /// Begins: locks the shard, and compares its lease and the version of its policy.
    ///
    /// `exclusive`: no other shard commits meanwhile. It is needed to open a dead letter, which takes an id that another
    /// shard could be about to store: there is no unique index over both tables.
    ///
    /// # Errors
    /// [`Error::Fenced`] or [`Error::OldPolicy`] when this owner, or its policy, is out of date.
    pub async fn begin_commit(
        &self,
        shard: ShardId,
        shards: u16,
        fence: &Lease,
        version: i64,
        exclusive: bool,
    ) -> Result<Commit, Error> {
        let mut transaction = self.commits.begin_with(BEGIN).await?;
        if exclusive {
            sqlx::query!("select pg_advisory_xact_lock(hashtextextended(current_schema(), 1))")
                .execute(&mut *transaction)
                .await?;
        }
        // An earlier statement than the one that looks for ids: under READ COMMITTED a statement that waited for a lock
        // continues with the snapshot from before the wait.
        let row = sqlx::query!(
            r#"with others as (select pg_advisory_xact_lock_shared(hashtextextended(current_schema(), 1)))
               select epoch, token, policy_version, records as "records: Seq", dead_letters as "dead_letters: Seq",
                      conflicts as "conflicts: Seq", coalesce(accounted, 0) as "accounted!: Offset", lost,
                      clock_timestamp() as "now!",
                      (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint as "server!"
               from shards, others where shard = $1 for update of shards"#,
            shard as ShardId,
        )
        .fetch_optional(&mut *transaction)
        .await?
        .ok_or(Error::Fenced)?;
        if row.epoch != fence.epoch || row.token != fence.token {
            return Err(Error::Fenced);
        }
        if row.policy_version > version {
            return Err(Error::OldPolicy(row.policy_version));
        }
        Ok(Commit {
            transaction,
            shard,
            fence: fence.clone(),
            shard_version: row.policy_version,
            position: Position {
                shard,
                shards,
                watermarks: Watermarks {
                    records: row.records,
                    dead_letters: row.dead_letters,
                    conflicts: row.conflicts,
                },
                account: Account { accounted: row.accounted, lost: row.lost },
            },
            now: row.now,
            server: Server(row.server),
        })
    }
}

impl Commit {
    /// Writes a decision and commits. Returns the state of the shard after it.
    ///
    /// # Errors
    /// [`Error::Raced`] when an id or a dead letter was taken meanwhile. On every error nothing is written, except that the
    /// outcome of a commit is unknown when the connection fails: the batch is decided again, and is found or not.
    pub async fn write(mut self, batch: &[Item], decision: &Decision, version: i64) -> Result<AfterCommit, Error> {
        let Decision {
            records,
            totals,
            duplicates,
            conflicts,
            dead_letters,
            closed,
            alerts,
            without_threshold,
            redelivered: _,
            account,
        } = decision;
        let before = self.position.watermarks;
        let watermarks = Watermarks {
            records: before.records.plus(records.len()),
            dead_letters: before.dead_letters.plus(dead_letters.len()),
            conflicts: before.conflicts.plus(conflicts.len()),
        };
        self.close_dead_letters(closed).await?;
        self.open_dead_letters(batch, decision).await?;
        self.insert_conflicts(batch, decision).await?;
        self.insert_duplicates(batch, decision).await?;
        self.insert_records(batch, decision).await?;
        let accounted = account.accounted;
        let written = sqlx::query_scalar!(
            r#"with position as (
                 update shards set records = $4, dead_letters = $5, conflicts = $6, processed = processed + $7,
                        duplicates = duplicates + $8, alerts = alerts + $9, accounted = coalesce($10, accounted), lost = $15,
                        policy_version = $11, without_threshold = without_threshold + $14
                 where shard = $1 and epoch = $2 and token = $3
                 returning 1
             ), noted as (
                 insert into shard_policies (shard, from_seq, version)
                 select $1, $12, $11 where $13::boolean
                 on conflict do nothing
             )
             select count(*) as "count!" from position"#,
            self.shard as ShardId,
            self.fence.epoch,
            self.fence.token,
            watermarks.records as Seq,
            watermarks.dead_letters as Seq,
            watermarks.conflicts as Seq,
            records.len() as i64,
            duplicates.len() as i64,
            alerts,
            (accounted > Offset::ZERO).then_some(accounted) as Option<Offset>,
            version,
            before.records.next() as Seq,
            self.shard_version < version,
            without_threshold,
            account.lost,
        )
        .fetch_one(&mut *self.transaction)
        .await?;
        assert_eq!(written, 1, "the shard's row is locked by this transaction");
        debug_assert!(totals.len() <= records.len(), "only new records change totals");
        crate::fault::point("before_commit");
        self.transaction.commit().await?;
        crate::fault::point("after_commit");
        Ok(AfterCommit { watermarks, accounted, lost: account.lost - self.position.account.lost })
    }

    #[expect(clippy::too_many_lines, reason = "one statement with an argument per column")]
    async fn insert_records(&mut self, batch: &[Item], decision: &Decision) -> Result<(), Error> {
        if decision.records.is_empty() {
            return Ok(());
        }
        let n = decision.records.len();
        macro_rules! columns { ($($name:ident: $type:ty),+ $(,)?) => { $(let mut $name: Vec<$type> = Vec::with_capacity(n);)+ } }
        columns!(
            seqs: Seq, received: DateTime<Utc>, times: DateTime<Utc>, previous_counts: i64, positives: bool, indexes: i16,
            ids: &str, sources: &str, destinations: &str, references: &str, units: &str, stream_ids: StreamId,
            values: String, previous_totals: String, thresholds: Option<String>, attributes: Option<&str>,
            traces: Option<&str>,
        );
        for new in &decision.records {
            let (input, record) = (&batch[new.item].input, &new.record);
            seqs.push(new.seq);
            received.push(input.received_at);
            times.push(record.time);
            previous_counts.push(new.previous.count);
            positives.push(record.kind == Kind::Positive);
            ids.push(record.record_id.as_str());
            sources.push(record.source_id.as_str());
            destinations.push(record.destination_id.as_str());
            references.push(record.reference.as_str());
            units.push(record.unit.as_str());
            stream_ids.push(input.position.entry);
            indexes.push(index_column(input.position));
            values.push(record.value.to_string());
            previous_totals.push(new.previous.total.to_string());
            thresholds.push(new.threshold.map(|threshold| threshold.to_string()));
            attributes.push(record.attributes.as_ref().map(Attributes::as_str));
            traces.push(input.traceparent.as_deref());
        }
        let mut key_destinations: Vec<&str> = Vec::new();
        let mut key_references: Vec<&str> = Vec::new();
        let mut key_units: Vec<&str> = Vec::new();
        let (mut key_counts, mut key_totals) = (Vec::new(), Vec::new());
        for (key, total) in &decision.totals {
            key_destinations.push(key.destination_id.as_str());
            key_references.push(key.reference.as_str());
            key_units.push(key.unit.as_str());
            key_counts.push(total.count);
            key_totals.push(total.total.to_string());
        }
        let inserted = sqlx::query_scalar!(
            r#"with inserted as (
                 insert into records (shard, epoch, processed_at, seq, received_at, time, previous_count, positive,
                     record_id, source_id, destination_id, reference, unit, stream_id, stream_index, value, previous_total,
                     threshold, attributes, traceparent)
                 select $1, $2, $3, n.seq, n.received_at, n.time, n.previous_count, n.positive, n.record_id, n.source_id,
                     n.destination_id, n.reference, n.unit, n.stream_id, n.stream_index, n.value::numeric, n.previous_total::numeric,
                     n.threshold::numeric, n.attributes, n.traceparent
                 from unnest($4::bigint[], $5::timestamptz[], $6::timestamptz[], $7::bigint[],
                     $8::boolean[], $9::text[], $10::text[], $11::text[], $12::text[], $13::text[], $14::text[],
                     $15::text[], $16::text[], $17::text[], $18::text[], $19::text[], $25::smallint[])
                     as n (seq, received_at, time, previous_count, positive, record_id, source_id, destination_id,
                           reference, unit, stream_id, value, previous_total, threshold, attributes, traceparent, stream_index)
                 on conflict (record_id) do nothing
                 returning 1
               ), summed as (
                 insert into totals (shard, destination_id, reference, unit, count, total)
                 select $1, k.destination_id, k.reference, k.unit, k.count, k.total::numeric
                 from unnest($20::text[], $21::text[], $22::text[], $23::bigint[], $24::text[])
                     as k (destination_id, reference, unit, count, total)
                 on conflict (destination_id, reference, unit) do update
                 set count = excluded.count, total = excluded.total
               )
               select count(*) as "count!" from inserted"#,
            self.shard as ShardId,
            self.fence.epoch,
            self.now,
            &seqs as &[Seq],
            &received,
            &times,
            &previous_counts,
            &positives,
            &ids as &[&str],
            &sources as &[&str],
            &destinations as &[&str],
            &references as &[&str],
            &units as &[&str],
            &stream_ids as &[StreamId],
            &values,
            &previous_totals,
            &thresholds as &[Option<String>],
            &attributes as &[Option<&str>],
            &traces as &[Option<&str>],
            &key_destinations as &[&str],
            &key_references as &[&str],
            &key_units as &[&str],
            &key_counts,
            &key_totals,
            &indexes,
        )
        .fetch_one(&mut *self.transaction)
        .await?;
        if inserted == n as i64 { Ok(()) } else { Err(Error::Raced) }
    }

    async fn insert_duplicates(&mut self, batch: &[Item], decision: &Decision) -> Result<(), Error> {
        if decision.duplicates.is_empty() {
            return Ok(());
        }
        let (mut ids, mut stream_ids, mut indexes, mut received) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for duplicate in &decision.duplicates {
            let input = &batch[duplicate.item].input;
            ids.push(duplicate.record_id.as_str());
            stream_ids.push(input.position.entry);
            indexes.push(index_column(input.position));
            received.push(input.received_at);
        }
        sqlx::query!(
            "insert into duplicates (shard, epoch, noted_at, record_id, stream_id, received_at, stream_index)
             select $1, $2, $3, * from unnest($4::text[], $5::text[], $6::timestamptz[], $7::smallint[])",
            self.shard as ShardId,
            self.fence.epoch,
            self.now,
            &ids as &[&str],
            &stream_ids as &[StreamId],
            &received,
            &indexes,
        )
        .execute(&mut *self.transaction)
        .await?;
        Ok(())
    }

    async fn insert_conflicts(&mut self, batch: &[Item], decision: &Decision) -> Result<(), Error> {
        for conflict in &decision.conflicts {
            let (input, record) = (&batch[conflict.item].input, &conflict.record);
            sqlx::query!(
                "insert into conflicts (shard, n, epoch, noted_at, received_at, record_id, destination_id, stream_id,
                     payload, traceparent, stream_index) values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                self.shard as ShardId,
                conflict.seq as Seq,
                self.fence.epoch,
                self.now,
                input.received_at,
                record.record_id.as_str(),
                record.destination_id.as_str(),
                input.position.entry as StreamId,
                &input.payload[..],
                input.traceparent.as_deref(),
                index_column(input.position),
            )
            .execute(&mut *self.transaction)
            .await?;
        }
        Ok(())
    }

    async fn open_dead_letters(&mut self, batch: &[Item], decision: &Decision) -> Result<(), Error> {
        for dead_letter in &decision.dead_letters {
            let input = &batch[dead_letter.item].input;
            let opened = sqlx::query!(
                "insert into dead_letters (shard, n, epoch, opened_at, received_at, record_id, destination_id, stream_id,
                     payload, reason, detail, traceparent, replay_of, stream_index)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
                 on conflict (record_id) where state = 'open' do nothing",
                self.shard as ShardId,
                dead_letter.seq as Seq,
                self.fence.epoch,
                self.now,
                input.received_at,
                dead_letter.record_id.as_ref().map(RecordId::as_str),
                dead_letter.destination_id.as_ref().map(DestinationId::as_str),
                input.position.entry as StreamId,
                &input.payload[..],
                dead_letter.reason as DeadLetterReason,
                dead_letter.detail,
                input.traceparent.as_deref(),
                dead_letter.replay_of.map(|dead_letter| dead_letter.to_string()),
                index_column(input.position),
            )
            .execute(&mut *self.transaction)
            .await?;
            if opened.rows_affected() != 1 {
                return Err(Error::Raced);
            }
        }
        Ok(())
    }

    /// Closes dead letters before others are opened: the next dead letter can take the same id.
    async fn close_dead_letters(&mut self, closed: &[DeadLetterId]) -> Result<(), Error> {
        if closed.is_empty() {
            return Ok(());
        }
        let shards: Vec<ShardId> = closed.iter().map(|dead_letter| dead_letter.shard).collect();
        let numbers: Vec<Seq> = closed.iter().map(|dead_letter| dead_letter.seq).collect();
        let done = sqlx::query!(
            "update dead_letters set state = 'replayed', closed_at = $3, closed_by = requested_by
             where (shard, n) in (select * from unnest($1::int[], $2::bigint[])) and state = 'open'",
            &shards as &[ShardId],
            &numbers as &[Seq],
            self.now,
        )
        .execute(&mut *self.transaction)
        .await?;
        if done.rows_affected() == closed.len() as u64 { Ok(()) } else { Err(Error::Raced) }
    }
}
