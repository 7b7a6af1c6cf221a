//! The outcomes of appended records, for requests that wait.

use super::{Error, Store, columns::index_column};
use crate::domain::{
    DeadLetterId, DeadLetterReason, DestinationId, RecordId, Seq, ShardId, SourceId, StreamId, StreamPosition,
};

/// A record whose outcome a request waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Awaited {
    /// Its shard.
    pub shard: ShardId,
    /// Its id.
    pub record_id: RecordId,
    /// Its place in the shard's stream.
    pub position: StreamPosition,
}

/// The outcome of a record, once it is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// Its outcome; of a duplicate, the present outcome of its original.
    pub outcome: Outcome,
    /// Whether its id was taken by the same content.
    pub duplicate: bool,
    /// Of a duplicate: the record or dead letter whose outcome it is, where that could be read. Its id can be taken by
    /// other content since.
    pub original: Option<Original>,
}

/// The source and the destination of the original of a duplicate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Original {
    /// Its source.
    pub source_id: SourceId,
    /// Its destination.
    pub destination_id: DestinationId,
}

/// The records before a record on the same destination, reference and unit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Before {
    /// Their number.
    pub count: i64,
    /// Their sum, as a decimal.
    pub total: String,
    /// The unit.
    pub unit: String,
}

/// The outcome of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It is in the log.
    Processed {
        /// Its number in the shard.
        seq: Seq,
        /// The records before it; `None`: it is no longer kept.
        before: Option<Before>,
    },
    /// Its id is taken by other content.
    Conflict {
        /// The conflict's number in the shard.
        seq: Seq,
    },
    /// It could not be applied.
    DeadLettered {
        /// The dead letter.
        dead_letter: DeadLetterId,
        /// A stable code.
        reason: DeadLetterReason,
        /// A sentence.
        detail: String,
    },
}

impl Store {
    /// The outcomes of those that are applied, by their index in `awaited`.
    ///
    /// # Errors
    /// When Postgres does not answer.
    #[expect(clippy::too_many_lines, reason = "one statement reads the outcomes of all")]
    pub async fn outcomes_of(&self, awaited: &[Awaited]) -> Result<Vec<(usize, Applied)>, Error> {
        let shards: Vec<ShardId> = awaited.iter().map(|record| record.shard).collect();
        let records: Vec<&str> = awaited.iter().map(|record| record.record_id.as_str()).collect();
        let entries: Vec<StreamId> = awaited.iter().map(|record| record.position.entry).collect();
        let indexes: Vec<i16> = awaited.iter().map(|record| index_column(record.position)).collect();
        // The original of a duplicate is a record, or the dead letter that took the id: the open one, else the newest.
        let rows = sqlx::query!(
            r#"
            with awaited as (
                select * from unnest($1::int[], $2::text[], $3::text[], $4::smallint[])
                    with ordinality as a (shard, record_id, stream_id, stream_index, at)
            ),
            hits as (
                select a.at, false as duplicate, r.shard, r.seq, r.period, null::bigint as conflict,
                    null::bigint as dead_letter
                from awaited a
                join record_ids i on i.record_id = a.record_id and i.shard = a.shard
                join records r on r.shard = i.shard and r.seq = i.number and r.period = i.period
                    and r.stream_id = a.stream_id and r.stream_index = a.stream_index
                union all
                select a.at, true, coalesce(i.shard, l.shard), i.number, i.period, null, l.n
                from awaited a join lateral (
                    select 1 from duplicates d
                    where d.record_id = a.record_id and d.stream_id = a.stream_id and d.stream_index = a.stream_index
                        and d.shard = a.shard limit 1
                ) d on true
                left join record_ids i on i.record_id = a.record_id and i.period is not null
                left join lateral (
                    select l.shard, l.n from dead_letters l
                    where i.record_id is null and l.record_id = a.record_id
                    order by l.state = 'open' desc, l.opened_at desc, l.n desc limit 1
                ) l on true
                where coalesce(i.shard, l.shard) is not null
                union all
                select a.at, false, c.shard, null, null, c.n, null
                from awaited a join conflicts c
                    on c.record_id = a.record_id and c.stream_id = a.stream_id and c.stream_index = a.stream_index
                        and c.shard = a.shard
                union all
                select a.at, false, l.shard, null, null, null, l.n
                from awaited a join dead_letters l
                    on l.stream_id = a.stream_id and l.stream_index = a.stream_index and l.shard = a.shard
                        and l.record_id = a.record_id
            )
            select h.at as "at!", h.duplicate as "duplicate!", h.shard as "shard!: ShardId",
                h.seq as "seq?: Seq", h.conflict as "conflict?: Seq", h.dead_letter as "dead_letter?: Seq",
                r.previous_count as "previous_count?", r.previous_total::text as previous_total, r.unit as "unit?",
                coalesce(r.source_id, l.source_id) as "source_id?: SourceId",
                coalesce(r.destination_id, l.destination_id) as "destination_id?: DestinationId", l.reason as "reason?: DeadLetterReason", l.detail as "detail?"
            from hits h left join records r on r.shard = h.shard and r.seq = h.seq and r.period = h.period
                left join dead_letters l on l.shard = h.shard and l.n = h.dead_letter
            "#,
            &shards as &[ShardId],
            &records as &[&str],
            &entries as &[StreamId],
            &indexes,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(rows
            .into_iter()
            .filter_map(|row| {
                let before = row.previous_count.zip(row.previous_total).zip(row.unit);
                let outcome = if let Some(seq) = row.seq {
                    let before = before.map(|((count, total), unit)| Before { count, total, unit });
                    Outcome::Processed { seq, before }
                } else if let Some(seq) = row.conflict {
                    Outcome::Conflict { seq }
                } else {
                    let dead_letter = DeadLetterId { shard: row.shard, seq: row.dead_letter? };
                    Outcome::DeadLettered { dead_letter, reason: row.reason?, detail: row.detail? }
                };
                let original = row.source_id.zip(row.destination_id).filter(|_| row.duplicate);
                let original = original.map(|(source_id, destination_id)| Original { source_id, destination_id });
                let applied = Applied { outcome, duplicate: row.duplicate, original };
                Some((usize::try_from(row.at - 1).ok()?, applied))
            })
            .collect())
    }
}

#[cfg(test)]
mod tests {
    use sqlx::PgPool;

    use super::*;
    use crate::store::testing;

    fn awaited(record_id: &str, stream_id: &str) -> Awaited {
        Awaited {
            shard: ShardId::new(1),
            record_id: RecordId::stored(record_id),
            position: StreamPosition { entry: stream_id.parse().expect("an id"), index: 2 },
        }
    }

    async fn run(pool: &PgPool, statement: &'static str) {
        sqlx::query(statement).execute(pool).await.expect("a statement of the test");
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn each_outcome_is_found_by_the_place_of_the_record(pool: PgPool) {
        run(
            &pool,
            "insert into record_ids values ('r', 1, 7, '2026-11-01', gen_random_uuid()), ('q', 1, 8, '2026-11-01', gen_random_uuid())",
        )
        .await;
        testing::create_partition(&pool).await;
        run(
            &pool,
            "insert into records values (1, 7, '2026-11-01', 1, now(), now(), now(), 3, true, 2, 'r', 's', 'd', 'k', 'u', '5-0', 1, 10.20),
             (1, 8, '2026-11-01', 1, now(), now(), now(), 0, true, 1, 'q', 's', 'd', 'k', 'u', '5-0', 1, 0)",
        )
        .await;
        run(
            &pool,
            "insert into duplicates values (1, 1, now(), now(), 'r', '6-0', 2, gen_random_uuid()), (1, 1, now(), now(), 'l', '9-0', 2, gen_random_uuid())",
        )
        .await;
        run(&pool, "insert into conflicts values (1, 4, 1, now(), now(), 'r', 'd', '7-0', 'x', null, 2, 's')").await;
        run(
            &pool,
            "insert into dead_letters (shard, n, epoch, opened_at, received_at, record_id, stream_id, stream_index, payload, reason, detail)
             values (1, 2, 1, now(), now(), 'l', '8-0', 2, 'x', 'malformed', 'because')",
        )
        .await;
        let store = Store::of_test(pool);
        let records = [
            awaited("r", "5-0"),
            awaited("r", "6-0"),
            awaited("r", "7-0"),
            awaited("l", "8-0"),
            awaited("l", "9-0"),
            // Not applied: another id, another index, another entry, another shard.
            awaited("x", "5-0"),
            awaited("q", "5-0"),
            awaited("r", "5-1"),
            Awaited { shard: ShardId::new(2), ..awaited("r", "5-0") },
        ];
        let mut applied = store.outcomes_of(&records).await.expect("answered");
        applied.sort_by_key(|(index, _)| *index);
        let processed = Outcome::Processed {
            seq: Seq::new(7),
            before: Some(Before { count: 3, total: "10.20".to_owned(), unit: "u".to_owned() }),
        };
        let dead_letter = Outcome::DeadLettered {
            dead_letter: DeadLetterId { shard: ShardId::new(1), seq: Seq::new(2) },
            reason: DeadLetterReason::Malformed,
            detail: "because".to_owned(),
        };
        let expected = [
            (processed.clone(), false),
            (processed, true),
            (Outcome::Conflict { seq: Seq::new(4) }, false),
            (dead_letter.clone(), false),
            (dead_letter, true),
        ];
        // The payload of the dead letter could not be read.
        let original = Original { source_id: SourceId::stored("s"), destination_id: DestinationId::stored("d") };
        let expected = expected.map(|(outcome, duplicate)| {
            let is_record = matches!(outcome, Outcome::Processed { .. });
            Applied { outcome, duplicate, original: Some(original.clone()).filter(|_| duplicate && is_record) }
        });
        assert_eq!(applied, expected.into_iter().enumerate().collect::<Vec<_>>());
    }
}
