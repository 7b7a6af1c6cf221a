//! The rows that a decision writes: ids, records, totals, duplicates, conflicts, dead letters.

use chrono::{DateTime, NaiveDate, Utc};

use super::{
    Error,
    columns::{index_column, total_alerts_column},
    dead_letters::free_id,
    group::{DecidedPart, GroupCommit, Part},
    slow::Watch,
};
use crate::domain::{
    Attributes, ContentDigest, DeadLetterId, DeadLetterReason, Decision, DestinationId, Holder, IdChange, IdLedger,
    Kind, RecordId, Seq, ShardId, SourceId, StreamId, TakenId,
};

/// SQLSTATE of a unique violation.
const UNIQUE_VIOLATION: &str = "23505";

/// An id that another transaction took meanwhile is a race: nothing of it is due to the data.
fn raced(error: sqlx::Error) -> Error {
    match &error {
        sqlx::Error::Database(database)
            if database.code().as_deref() == Some(UNIQUE_VIOLATION) && database.table() == Some("record_ids") =>
        {
            Error::Raced
        }
        _ => Error::Sql(error),
    }
}

impl GroupCommit {
    /// Dead letters come before ids, and ids in their order: all transactions lock in one order.
    pub(super) async fn write_rows(&mut self, parts: &[DecidedPart<'_>], ids: &IdLedger) -> Result<(), Error> {
        let _watch = Watch::start("commit.rows");
        for DecidedPart { part, decision } in parts {
            self.close_dead_letters(&decision.closed).await?;
            self.open_dead_letters(part, decision).await?;
            self.insert_conflicts(part, decision).await?;
        }
        self.insert_duplicates(parts).await?;
        self.count_outcomes(parts).await?;
        self.insert_reversals(parts).await?;
        let changes = ids.changes();
        if changes.iter().all(|change| matches!(change, IdChange::Take { .. })) {
            return self.insert_records(parts, &changes).await;
        }
        // All changes in the order of ids.
        for changes in
            changes.chunk_by(|one, other| matches!((one, other), (IdChange::Take { .. }, IdChange::Take { .. })))
        {
            match changes {
                [IdChange::Move { record_id, from, by }] => self.move_id(record_id, *from, *by).await?,
                taken => self.insert_ids(taken).await?,
            }
        }
        self.insert_records(parts, &[]).await
    }

    /// Gives the id of a closed dead letter to its new holder.
    async fn move_id(&mut self, record_id: &RecordId, from: DeadLetterId, by: Option<TakenId>) -> Result<(), Error> {
        let (shard, number) = (from.shard, from.seq);
        let moved = match by {
            Some(by) => {
                let to = self.id_row(by);
                sqlx::query!(
                    "update record_ids set shard = $4, number = $5, period = $6, digest = $7
                     where record_id = $1 and shard = $2 and number = $3 and period is null",
                    record_id as &RecordId,
                    shard as ShardId,
                    number as Seq,
                    to.shard as ShardId,
                    to.number as Seq,
                    to.period,
                    by.digest as ContentDigest,
                )
                .execute(&mut *self.transaction)
                .await?
                .rows_affected()
                    == 1
            }
            None => free_id(&mut self.transaction, record_id, from).await?,
        };
        if moved { Ok(()) } else { Err(Error::Raced) }
    }

    fn id_row(&self, by: TakenId) -> IdRow {
        match by.holder {
            Holder::Record(record) => {
                let period = self.shard(record.shard).period.first();
                IdRow { shard: record.shard, number: record.seq, period: Some(period) }
            }
            Holder::DeadLetter(dead_letter) => {
                IdRow { shard: dead_letter.shard, number: dead_letter.seq, period: None }
            }
        }
    }

    async fn insert_ids(&mut self, changes: &[IdChange]) -> Result<(), Error> {
        let taken = self.id_columns(changes);
        if taken.ids.is_empty() {
            return Ok(());
        }
        sqlx::query!(
            "insert into record_ids (record_id, shard, number, period, digest)
             select * from unnest($1::text[], $2::int[], $3::bigint[], $4::date[], $5::uuid[])",
            &taken.ids as &[&str],
            &taken.shards as &[ShardId],
            &taken.numbers as &[Seq],
            &taken.periods as &[Option<NaiveDate>],
            &taken.digests as &[ContentDigest],
        )
        .execute(&mut *self.transaction)
        .await
        .map_err(raced)?;
        Ok(())
    }

    /// The ids that are taken.
    fn id_columns<'a>(&self, changes: &'a [IdChange]) -> IdColumns<'a> {
        let mut columns = IdColumns::default();
        for change in changes {
            if let IdChange::Take { record_id, by } = change {
                let row = self.id_row(*by);
                columns.ids.push(record_id.as_str());
                columns.shards.push(row.shard);
                columns.numbers.push(row.number);
                columns.periods.push(row.period);
                columns.digests.push(by.digest);
            }
        }
        columns
    }

    #[expect(clippy::too_many_lines, reason = "one statement with an argument per column")]
    async fn insert_records(&mut self, parts: &[DecidedPart<'_>], changes: &[IdChange]) -> Result<(), Error> {
        let n = parts.iter().map(|part| part.decision.records.len()).sum();
        if n == 0 {
            // Without the tables of records, which a dead letter does not need.
            return self.insert_ids(changes).await;
        }
        macro_rules! columns { ($($name:ident: $type:ty),+ $(,)?) => { $(let mut $name: Vec<$type> = Vec::with_capacity(n);)+ } }
        columns!(
            shards: ShardId, epochs: i64, periods: NaiveDate,
            seqs: Seq, received: DateTime<Utc>, times: DateTime<Utc>, previous_counts: i64, positives: bool, indexes: i16,
            ids: &str, sources: &str, destinations: &str, references: &str, units: &str, stream_ids: StreamId,
            values: String, previous_totals: String, thresholds: Option<String>, total_alerts: Option<String>, attributes: Option<&str>,
            traces: Option<&str>,
        );
        let reversals = ReversalColumns::of(parts);
        let taken = self.id_columns(changes);
        let mut totals = TotalColumns::default();
        for DecidedPart { part, decision } in parts {
            let locked = self.shard(part.shard);
            for new in &decision.records {
                let (input, record) = (&part.batch[new.item].input, &new.record);
                shards.push(part.shard);
                epochs.push(locked.epoch());
                periods.push(locked.period.first());
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
                total_alerts.push(total_alerts_column(&new.total_alerts));
                attributes.push(record.attributes.as_ref().map(Attributes::as_str));
                traces.push(input.traceparent.as_deref());
            }
            for (key, change) in &decision.totals {
                totals.shards.push(part.shard);
                totals.destinations.push(key.destination_id.as_str());
                totals.references.push(key.reference.as_str());
                totals.units.push(key.unit.as_str());
                totals.positive_counts.push(change.positive_count);
                totals.negative_counts.push(change.negative_count);
                totals.positive_sums.push(change.positive_sum.to_string());
                totals.negative_sums.push(change.negative_sum.to_string());
                totals.alerts.push(change.alerts);
                totals.first.push(change.first);
                totals.last.push(change.last);
            }
        }
        sqlx::query!(
            r#"with taken as (
                 insert into record_ids (record_id, shard, number, period, digest)
                 select * from unnest($1::text[], $2::int[], $3::bigint[], $4::date[], $5::uuid[])
               ), summed as (
                 insert into totals as t (shard, destination_id, reference, unit, positive_count, negative_count,
                     positive_sum, negative_sum, alerts, first_seq, last_seq)
                 select k.shard, k.destination_id, k.reference, k.unit, k.positive_count, k.negative_count,
                     k.positive_sum::numeric, k.negative_sum::numeric, k.alerts, k.first_seq, k.last_seq
                 from unnest($6::int[], $7::text[], $8::text[], $9::text[], $10::bigint[], $11::bigint[], $12::text[],
                         $13::text[], $35::bigint[], $39::bigint[], $40::bigint[])
                     as k (shard, destination_id, reference, unit, positive_count, negative_count, positive_sum,
                           negative_sum, alerts, first_seq, last_seq)
                 on conflict (destination_id, reference, unit, shard) do update
                 set positive_count = t.positive_count + excluded.positive_count,
                     negative_count = t.negative_count + excluded.negative_count,
                     positive_sum = t.positive_sum + excluded.positive_sum,
                     negative_sum = t.negative_sum + excluded.negative_sum,
                     alerts = t.alerts + excluded.alerts, last_seq = excluded.last_seq
               )
               insert into records (shard, epoch, period, processed_at, seq, received_at, time, previous_count, positive,
                   record_id, source_id, destination_id, reference, unit, stream_id, stream_index, value, previous_total,
                   threshold, attributes, traceparent, reverses, original_seq, total_alerts)
               select n.shard, n.epoch, n.period, $14, n.seq, n.received_at, n.time, n.previous_count, n.positive,
                   n.record_id, n.source_id, n.destination_id, n.reference, n.unit, n.stream_id, n.stream_index,
                   n.value::numeric, n.previous_total::numeric, n.threshold::numeric, n.attributes, n.traceparent,
                   n.reverses, n.original_seq, n.total_alerts
               from unnest($15::int[], $16::bigint[], $17::date[], $18::bigint[], $19::timestamptz[], $20::timestamptz[],
                       $21::bigint[], $22::boolean[], $23::text[], $24::text[], $25::text[], $26::text[], $27::text[],
                       $28::text[], $29::smallint[], $30::text[], $31::text[], $32::text[], $33::text[], $34::text[],
                       $36::text[], $37::bigint[], $38::text[])
                   as n (shard, epoch, period, seq, received_at, time, previous_count, positive, record_id, source_id,
                         destination_id, reference, unit, stream_id, stream_index, value, previous_total, threshold,
                         attributes, traceparent, reverses, original_seq, total_alerts)"#,
            &taken.ids as &[&str],
            &taken.shards as &[ShardId],
            &taken.numbers as &[Seq],
            &taken.periods as &[Option<NaiveDate>],
            &taken.digests as &[ContentDigest],
            &totals.shards as &[ShardId],
            &totals.destinations as &[&str],
            &totals.references as &[&str],
            &totals.units as &[&str],
            &totals.positive_counts,
            &totals.negative_counts,
            &totals.positive_sums,
            &totals.negative_sums,
            self.now,
            &shards as &[ShardId],
            &epochs,
            &periods,
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
            &indexes,
            &values,
            &previous_totals,
            &thresholds as &[Option<String>],
            &attributes as &[Option<&str>],
            &traces as &[Option<&str>],
            &totals.alerts,
            &reversals.reverses as &[Option<&str>],
            &reversals.originals as &[Option<Seq>],
            &total_alerts as &[Option<String>],
            &totals.first as &[Seq],
            &totals.last as &[Seq],
        )
        .execute(&mut *self.transaction)
        .await
        .map_err(raced)?;
        Ok(())
    }

    async fn open_dead_letters(&mut self, part: &Part<'_>, decision: &Decision) -> Result<(), Error> {
        let epoch = self.shard(part.shard).epoch();
        for dead_letter in &decision.dead_letters {
            let input = &part.batch[dead_letter.item].input;
            sqlx::query!(
                "insert into dead_letters (shard, n, epoch, opened_at, received_at, record_id, destination_id, stream_id,
                     payload, reason, detail, traceparent, replay_of, stream_index, source_id)
                 values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)",
                part.shard as ShardId,
                dead_letter.seq as Seq,
                epoch,
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
                dead_letter.source_id.as_ref().map(SourceId::as_str),
            )
            .execute(&mut *self.transaction)
            .await?;
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

/// What an id names, as columns.
struct IdRow {
    shard: ShardId,
    number: Seq,
    period: Option<NaiveDate>,
}

/// The columns of reversals: empty where no record is one, which Postgres takes for nulls.
#[derive(Default)]
struct ReversalColumns<'a> {
    reverses: Vec<Option<&'a str>>,
    originals: Vec<Option<Seq>>,
}

impl<'a> ReversalColumns<'a> {
    fn of(parts: &[DecidedPart<'a>]) -> Self {
        let mut columns = Self::default();
        let new = || parts.iter().flat_map(|part| &part.decision.records);
        if new().any(|new| new.reversal.is_some()) {
            for new in new() {
                columns.reverses.push(new.record.reverses.as_ref().map(RecordId::as_str));
                columns.originals.push(new.reversal.map(|reversal| reversal.original));
            }
        }
        columns
    }
}

/// Ids that are taken, as columns.
#[derive(Default)]
struct IdColumns<'a> {
    ids: Vec<&'a str>,
    shards: Vec<ShardId>,
    numbers: Vec<Seq>,
    periods: Vec<Option<NaiveDate>>,
    digests: Vec<ContentDigest>,
}

/// Changes of totals, as columns.
#[derive(Default)]
struct TotalColumns<'a> {
    shards: Vec<ShardId>,
    destinations: Vec<&'a str>,
    references: Vec<&'a str>,
    units: Vec<&'a str>,
    positive_counts: Vec<i64>,
    negative_counts: Vec<i64>,
    positive_sums: Vec<String>,
    negative_sums: Vec<String>,
    alerts: Vec<i64>,
    first: Vec<Seq>,
    last: Vec<Seq>,
}
