-- Rows that are there before a round: SCHEMA and ROWS are replaced. Ids are of the form of random ids.
set search_path = "SCHEMA";
set synchronous_commit = off;
insert into records (shard, seq, period, epoch, received_at, processed_at, time, previous_count, positive, record_id,
    source_id, destination_id, reference, unit, stream_id, stream_index, value, previous_total)
select 1000 + i % 16, i, date_trunc('month', now() at time zone 'UTC')::date, 1, now(), now(),
    timestamptz '2026-01-31 12:00:00Z', i / 1000, true, left(md5(i::text), 16) || '-row-' || i, 'source-' || i % 97,
    'destination-' || i % 1000, 'reference-' || i % 7, 'EUR', '1767225600000-' || i, i % 200, i % 1100 + 0.25, i
from generate_series(1, ROWS) i;
insert into record_ids (record_id, shard, number, period, digest)
select left(md5(i::text), 16) || '-row-' || i, 1000 + i % 16, i, date_trunc('month', now() at time zone 'UTC')::date,
    gen_random_uuid()
from generate_series(1, ROWS) i;
vacuum (analyze) records;
vacuum (analyze) record_ids;
