-- Facts after a position in the trail, at most $11. Each branch ends at the limit by itself, on the index of its own time;
-- only then are the branches merged. $1 to $5: the position (applied, shard, kind, n, step); $6 to $10: the filters;
-- $12, $13: shard and number of the record that $7 names; $14 to $17: the limit of the caller, as in filter.rs.
with facts as (
    (select * from audit_records
     where applied >= $1 and (applied, shard, 1, n, step) > ($1, $2, $3, $4, $5)
       and ($6::text[] is null or action = any($6))
       and ($7::text is null or record_id = $7 and shard = $12 and n = $13)
       and ($8::text is null or destination_id = $8)
       and ($9::timestamptz is null or time >= $9)
       and ($10::timestamptz is null or time < $10)
       and ($14::text[] is null or is_in_ranges(source_id, $14, $15))
       and ($16::text[] is null or is_in_ranges(destination_id, $16, $17))
     order by applied, shard, n, step limit $11)
    union all
    (select * from audit_duplicates
     where applied >= $1 and (applied, shard, 2, n, step) > ($1, $2, $3, $4, $5)
       and ($6::text[] is null or action = any($6))
       and ($7::text is null or record_id = $7)
       and ($8::text is null or destination_id = $8)
       and ($9::timestamptz is null or time >= $9)
       and ($10::timestamptz is null or time < $10)
       and ($14::text[] is null or is_in_ranges(source_id, $14, $15))
       and ($16::text[] is null or is_in_ranges(destination_id, $16, $17))
     order by applied, shard, n, step limit $11)
    union all
    (select * from audit_conflicts
     where applied >= $1 and (applied, shard, 3, n, step) > ($1, $2, $3, $4, $5)
       and ($6::text[] is null or action = any($6))
       and ($7::text is null or record_id = $7)
       and ($8::text is null or destination_id = $8)
       and ($9::timestamptz is null or time >= $9)
       and ($10::timestamptz is null or time < $10)
       and ($14::text[] is null or is_in_ranges(source_id, $14, $15))
       and ($16::text[] is null or is_in_ranges(destination_id, $16, $17))
     order by applied, shard, n, step limit $11)
    union all
    (select * from audit_dead_letters
     where applied >= $1 and (applied, shard, 4, n, step) > ($1, $2, $3, $4, $5)
       and ($6::text[] is null or action = any($6))
       and ($7::text is null or record_id = $7)
       and ($8::text is null or destination_id = $8)
       and ($9::timestamptz is null or time >= $9)
       and ($10::timestamptz is null or time < $10)
       and ($14::text[] is null or is_in_ranges(source_id, $14, $15))
       and ($16::text[] is null or is_in_ranges(destination_id, $16, $17))
     order by applied, shard, n, step limit $11)
    union all
    (select * from audit_closed
     where applied >= $1 and (applied, shard, 5, n, step) > ($1, $2, $3, $4, $5)
       and ($6::text[] is null or action = any($6))
       and ($7::text is null or record_id = $7)
       and ($8::text is null or destination_id = $8)
       and ($9::timestamptz is null or time >= $9)
       and ($10::timestamptz is null or time < $10)
       and ($14::text[] is null or is_in_ranges(source_id, $14, $15))
       and ($16::text[] is null or is_in_ranges(destination_id, $16, $17))
     order by applied, shard, n, step limit $11)
    union all
    (select * from audit_admin
     where applied >= $1 and (applied, shard, 6, n, step) > ($1, $2, $3, $4, $5)
       and ($6::text[] is null or action = any($6))
       and ($7::text is null or record_id = $7)
       and ($8::text is null or destination_id = $8)
       and ($9::timestamptz is null or time >= $9)
       and ($10::timestamptz is null or time < $10)
       and ($14::text[] is null or is_in_ranges(source_id, $14, $15))
       and ($16::text[] is null or is_in_ranges(destination_id, $16, $17))
     order by applied, shard, n, step limit $11)
)
select f.applied as "applied!", f.shard as "shard!", f.kind as "kind!", f.n as "n!", f.step as "step!",
       f.action as "action!", f.time as "time!", f.record_id, f.destination_id, e.worker as "worker?",
       f.actor, f.actor_id, f.address, f.reason
from facts f left join epochs e on e.shard = f.shard and e.epoch = f.epoch
order by f.applied, f.shard, f.kind, f.n, f.step
limit $11
