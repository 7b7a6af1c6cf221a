-- Everything of one pipeline, in a schema of its own (search_path is set by the connection).
-- Texts that are keys or shown in order are COLLATE "C": byte order, the same on every server, and faster.

-- The pipeline of this schema: one row.
create table pipeline (
    one            boolean     primary key default true check (one),
    pipeline_id    text        not null,
    namespace      text        not null,
    name           text        not null,
    uid            text        not null,
    shards         integer     not null check (shards between 1 and 256),
    -- Oldest schema number whose binaries may still work on this schema.
    min_compatible bigint      not null default 1,
    created_at     timestamptz not null default now()
);

-- Every policy that was ever active: the manifest's spec, by policy version, which rises.
create table policies (
    version       bigint      primary key,
    uid           text        not null,
    generation    bigint      not null,
    -- Value of the annotation that allowed a lower generation of the same uid (an etcd that was restored); '' without.
    accepted      text        not null default '',
    spec          text        not null,
    registered_at timestamptz not null default now()
);
create index policies_uid on policies (uid, version);

-- Whether a lease or a heartbeat has not expired. None lasts longer than five minutes: one that ends later was taken before
-- the clock of this server was set back.
create function is_alive(until timestamptz) returns boolean language sql volatile as $$
    select until between clock_timestamp() and clock_timestamp() + interval '5 minutes'
$$;

-- Whether an id is in one of the ranges from `starts` up to, not including, `ends`; null: any id is. The ranges are sorted
-- and do not overlap. The bounds around all of them come first: an index can use these.
create function is_in_ranges(id text, starts text[], ends text[]) returns boolean language sql immutable parallel safe
return starts is null
    or (id collate "C" >= starts[1] and id collate "C" < ends[cardinality(ends)]
        and id collate "C" < ends[width_bucket(id collate "C", starts)]);

-- Local time as if it were UTC: offsets[1] seconds ahead before transitions[1], offsets[2] from then on, and so on.
create function local_time(at timestamptz, transitions timestamptz[], offsets integer[]) returns timestamptz
language sql stable parallel safe
return at + make_interval(secs => offsets[width_bucket(at, transitions) + 1]);

-- Live workers, which share the shards evenly. Only the clock of this server counts.
create table workers (
    worker     text        primary key,
    seen_until timestamptz not null,
    started_at timestamptz not null default now()
);

-- One row a shard: its lease, its fence (epoch, token), and its highest numbers. Locked by every commit of the shard.
create table shards (
    shard          integer     primary key,
    owner          text,
    lease_until    timestamptz,
    epoch          bigint      not null default 0,
    token          text        not null default '',
    policy_version bigint      not null default 0,
    -- Highest numbers given: of records (seq), dead letters, conflicts.
    records        bigint      not null default 0,
    dead_letters   bigint      not null default 0,
    conflicts      bigint      not null default 0,
    -- Counts.
    processed      bigint      not null default 0,
    duplicates     bigint      not null default 0,
    alerts         bigint      not null default 0,
    -- Thresholds on totals that records took a total over.
    total_alerts   bigint      not null default 0,
    -- Records of a unit without a threshold while other units had one.
    without_threshold bigint   not null default 0,
    -- Whether its stream and group were created: a group that has to be created after that was lost.
    prepared       boolean     not null default false,
    -- Records up to this offset are applied or lost. Null until an owner begins, at what Redis has acknowledged.
    accounted      bigint,
    -- Records that were lost before they were applied.
    lost           bigint      not null default 0,
    -- Since when further records can be lost, whose number no server holds; null: none.
    loss_uncertain_since timestamptz,
    -- Records of the producers whose rows are folded.
    folded         bigint      not null default 0,
    -- How often its stream or group was missing.
    recreated_streams bigint   not null default 0,
    -- The highest id of an entry that was ever applied: an entry above it never was. Null: none yet.
    applied_entry  text,
    -- The period of its newest records; it never falls.
    period         date        not null default '-infinity',
    -- Records that came after retention had closed their window of a declared rollup, once per rollup.
    late_after_retention bigint not null default 0
) with (fillfactor = 20);

-- The first record of each period of a shard.
create table shard_periods (
    shard    integer not null,
    period   date    not null,
    from_seq bigint  not null,
    primary key (shard, period)
);

-- The owner of a shard in each epoch, and the numbers and counts of the shard at its begin: their differences are the
-- counts of each epoch, without a row to update.
create table epochs (
    shard        integer     not null,
    epoch        bigint      not null,
    worker       text        not null,
    taken_at     timestamptz not null default now(),
    dead_letters bigint      not null default 0,
    conflicts    bigint      not null default 0,
    processed    bigint      not null default 0,
    duplicates   bigint      not null default 0,
    alerts       bigint      not null default 0,
    primary key (shard, epoch)
);

-- The first record of each policy version that a shard ran, so that every alert can be checked.
create table shard_policies (
    shard    integer     not null,
    from_seq bigint      not null,
    version  bigint      not null,
    since    timestamptz not null default now(),
    primary key (shard, from_seq, version)
);

-- Numbers that the owner skipped after a rewind of Postgres.
create table gaps (
    shard    integer     not null,
    kind     text        not null check (kind in ('records', 'dead_letters', 'conflicts')),
    from_n   bigint      not null,
    to_n     bigint      not null,
    noted_at timestamptz not null default now(),
    primary key (shard, kind, from_n)
);

-- The processed records: the log (shard, seq), the outbox and the rows of queries, in one. A partition holds the records of
-- one period of processing, by its first day. There is no default partition: Millrace creates partitions ahead.
create table records (
    shard          integer     not null,
    seq            bigint      not null,
    period         date        not null,
    epoch          bigint      not null,
    received_at    timestamptz not null,
    processed_at   timestamptz not null,
    time           timestamptz not null,
    previous_count bigint      not null,
    positive       boolean     not null,
    -- Its place in the input stream: its index in the entry `stream_id`.
    stream_index   smallint    not null default 0,
    record_id      text        collate "C" not null,
    source_id      text        collate "C" not null,
    destination_id text        collate "C" not null,
    reference      text        collate "C" not null,
    unit           text        collate "C" not null,
    stream_id      text        collate "C" not null,
    value          numeric     not null,
    previous_total numeric     not null,
    -- The threshold that was passed; null: no alert.
    threshold      numeric,
    -- The thresholds on totals that it took a total over, a JSON array; null: none.
    total_alerts   text,
    -- As received, byte for byte.
    attributes     text,
    traceparent    text,
    -- Of a reversal: the id of the record that it takes back, and the number of that record in the shard; the rest is in
    -- `reversals`. Null: it is no reversal.
    reverses       text        collate "C",
    original_seq   bigint,
    primary key (shard, seq, period)
) partition by list (period);
create index records_destination on records (destination_id, seq);
-- Few rows: for the alert filter and the alert publishers.
create index records_alerts on records (shard, seq) where threshold is not null;
create index records_total_alerts on records (shard, seq) where total_alerts is not null;
create index records_processed_at on records (processed_at);
create index records_time on records using brin (time) with (pages_per_range = 32);

-- The reversals of each record, in order. Without it, a look at one record would read an index of every partition.
create table reversals (
    shard        integer not null,
    original_seq bigint  not null,
    seq          bigint  not null,
    -- The period of the reversal.
    period       date    not null,
    -- What remains of the value of the original after it.
    rest         numeric not null,
    primary key (shard, original_seq, seq)
);

-- The partitions of the records. One that is being detached holds no records for queries any more.
create view partitions as
select substring(pg_get_expr(c.relpartbound, c.oid) from '\d{4,}-\d\d-\d\d')::date as period, i.inhdetachpending as is_detaching
from pg_inherits i join pg_class c on c.oid = i.inhrelid
where i.inhparent = 'records'::regclass;

-- Periods whose records are no longer kept. The row comes before the partition is detached: from then on its records count
-- as deleted, also where a query still finds them.
create table dropped_periods (
    period     date        primary key,
    noted_at   timestamptz not null default clock_timestamp(),
    -- The highest time and the latest commit of its records; null: it had none.
    last_time  timestamptz,
    last_processed_at timestamptz,
    -- When its partition was dropped; null: not yet.
    dropped_at timestamptz,
    -- Where its records were archived before; null: nowhere.
    archive    text,
    -- When the deletion of its ids began, and when it ended; null: not yet.
    ids_expired_at timestamptz,
    ids_deleted_at timestamptz
);

-- Objects of the archive: the records of a shard in a period from first_seq to last_seq, as zstd-packed NDJSON.
create table archive_objects (
    period    date    not null,
    shard     integer not null,
    first_seq bigint  not null,
    last_seq  bigint  not null,
    -- The last number that it may hold; in its name.
    until_seq bigint  not null,
    records   bigint  not null,
    bytes     bigint  not null,
    sha256    text    not null,
    -- The directory or bucket, with the pipeline's folder.
    place     text    not null,
    primary key (period, shard, first_seq)
);

-- Rows that retention deleted, so that counts can still be derived. destination_id is '' for records and duplicates, and
-- for dead letters whose payload could not be read.
create table expired_counts (
    shard          integer not null,
    kind           text    not null check (kind in ('records', 'duplicates', 'conflicts', 'dead_letters')),
    count          bigint  not null,
    -- The highest number; 0 for duplicates, which have none. No record up to it is kept.
    upto           bigint  not null default 0,
    -- Of records: those that raised an alert, and the alerts of totals. Of dead letters: those that were replayed.
    alerts         bigint  not null default 0,
    total_alerts   bigint  not null default 0,
    replayed       bigint  not null default 0,
    destination_id text    collate "C" not null default '',
    primary key (shard, kind, destination_id)
);

-- For each kind of other rows that retention deletes: the latest time of one that it deleted.
create table expired_until (
    kind  text        primary key check (kind in ('duplicates', 'conflicts', 'dead_letters')),
    until timestamptz not null
);

-- The id ledger: each id that is taken, by a record or by an open dead letter. It is the only unique index on ids.
create table record_ids (
    record_id text    collate "C" primary key,
    shard     integer not null,
    -- Number of the record in its shard, or of the dead letter.
    number    bigint  not null,
    -- Period of the record; null: a dead letter.
    period    date,
    -- Digest of the content (docs/digest.md).
    digest    uuid    not null
);

-- Per key, unit and shard: count and sum of the records of each sign. A destination's total is the sum over its keys.
create table totals (
    shard          integer not null,
    positive_count bigint  not null default 0,
    negative_count bigint  not null default 0,
    -- How many of the records raised an alert.
    alerts         bigint  not null default 0,
    -- The numbers of its first and of its last record.
    first_seq      bigint  not null default 0,
    last_seq       bigint  not null default 0,
    destination_id text    collate "C" not null,
    reference      text    collate "C" not null,
    unit           text    collate "C" not null,
    -- Sums without sign.
    positive_sum   numeric not null default 0,
    negative_sum   numeric not null default 0,
    count          bigint  not null generated always as (positive_count + negative_count) stored,
    total          numeric not null generated always as (positive_sum - negative_sum) stored,
    primary key (destination_id, reference, unit, shard)
) with (fillfactor = 70);

-- Declared rollups. Another definition, or a later declaration, is another id.
create table rollups (
    id             integer  primary key generated always as identity,
    name           text     not null,
    -- Length of a window in seconds.
    window_seconds integer  not null,
    -- Fields of the group: destinationId, reference, sourceId, in this order. Unit and sign always belong to the key.
    group_by       text[]   not null,
    -- Whether distinct sources are counted: rows are then kept per source, too.
    distinct_source boolean not null,
    -- The IANA time zone of its windows.
    time_zone      text     not null default 'UTC',
    -- The policy version that declared it. For each shard, records below the first record of that version (or a later one)
    -- are built, the others are counted by their commits.
    version        bigint   not null,
    -- The policy version that no longer has it; its rows are deleted. Null: declared.
    removed        bigint,
    -- Windows that start before it are closed: retention deletes their rows, and late records are not added. Null: none.
    closed_before  timestamptz,
    -- Records with an earlier time were dropped and may not be counted, because it was not complete then. Null: none.
    missing_before timestamptz
);

-- How far the background build of a rollup is, per shard. No row: not begun.
create table rollup_builds (
    rollup_id integer not null,
    shard     integer not null,
    -- The build covers records below it: the first that commits counted.
    until_seq bigint  not null,
    -- Records below it are built.
    next_seq  bigint  not null,
    -- Thresholds on its totals are decided for records from it on: the first one that was decided when the build was complete.
    -- Null: none yet.
    decided_from bigint,
    primary key (rollup_id, shard)
);

-- Count and sum (without sign) per rollup, shard, window, group, unit and sign. '' where not grouped by a field. source_id
-- also with distinct sources. window_start is local time in the rollup's zone, as if it were UTC.
create table rollup_totals (
    rollup_id      integer     not null,
    shard          integer     not null,
    -- Added by the build, or by commits.
    built          boolean     not null,
    positive       boolean     not null,
    window_start   timestamptz not null,
    count          bigint      not null,
    destination_id text collate "C" not null,
    reference      text collate "C" not null,
    source_id      text collate "C" not null,
    unit           text collate "C" not null,
    sum            numeric     not null,
    primary key (rollup_id, destination_id, window_start, reference, source_id, unit, positive, shard, built)
) with (fillfactor = 70);
-- For a time range of all destinations: rows are stored about in the order of their windows.
create index rollup_totals_window_start on rollup_totals using brin (window_start) with (pages_per_range = 32);

-- Per destination and shard: how many of its records had another outcome than to be processed, and how many dead letters
-- a replay closed. For the summary of the audit trail. '': the payload could not be read.
create table outcome_counts (
    shard          integer not null,
    duplicates     bigint  not null default 0,
    conflicts      bigint  not null default 0,
    dead_letters   bigint  not null default 0,
    replayed       bigint  not null default 0,
    destination_id text    collate "C" not null,
    primary key (destination_id, shard)
) with (fillfactor = 70);

-- Records whose id an earlier record with the same content has.
create table duplicates (
    shard       integer     not null,
    epoch       bigint      not null,
    noted_at    timestamptz not null,
    received_at timestamptz not null,
    record_id   text        collate "C" not null,
    stream_id   text        collate "C" not null,
    stream_index smallint   not null default 0,
    digest      uuid        not null
);
create index duplicates_id on duplicates (record_id, stream_id);
create index duplicates_noted_at on duplicates (noted_at);

-- Records whose id an earlier record with other content has; the refused content is kept.
create table conflicts (
    shard          integer     not null,
    n              bigint      not null,
    epoch          bigint      not null,
    noted_at       timestamptz not null,
    received_at    timestamptz not null,
    record_id      text        collate "C" not null,
    destination_id text        collate "C" not null,
    stream_id      text        collate "C" not null,
    -- The record as JSON, as received.
    payload        bytea       not null,
    traceparent    text,
    stream_index   smallint    not null default 0,
    -- Source of the refused content.
    source_id      text        collate "C" not null,
    primary key (shard, n)
);
create index conflicts_id on conflicts (record_id, stream_id);
create index conflicts_noted_at on conflicts (noted_at);
-- For webhooks: the outcome of a destination before another.
create index conflicts_destination on conflicts (destination_id, shard, n);

-- Records that could not be applied, and entries that hold none, with the reason; open until replayed or discarded.
create table dead_letters (
    shard          integer     not null,
    n              bigint      not null,
    epoch          bigint      not null,
    opened_at      timestamptz not null,
    received_at    timestamptz not null,
    -- Null where the payload could not be read.
    record_id      text        collate "C",
    destination_id text        collate "C",
    stream_id      text        collate "C" not null,
    payload        bytea       not null,
    -- A stable code and a sentence.
    reason         text        not null,
    detail         text        not null,
    traceparent    text,
    state          text        not null default 'open' check (state in ('open', 'replayed', 'discarded')),
    closed_at      timestamptz,
    -- The API key's name (or the command's user) that asked for the replay or discarded it.
    closed_by      text,
    requested_by   text,
    -- The dead letter whose replay this one is: `<shard>-d<n>`.
    replay_of      text,
    stream_index   smallint    not null default 0,
    -- Null where the payload could not be read.
    source_id      text        collate "C",
    primary key (shard, n)
);
create index dead_letters_id on dead_letters (record_id);
create index dead_letters_stream on dead_letters (stream_id);
create index dead_letters_opened_at on dead_letters (opened_at);
-- For webhooks: the outcome of a destination before another.
create index dead_letters_destination on dead_letters (coalesce(destination_id, ''), shard, n);
create index dead_letters_closed_at on dead_letters (closed_at) where closed_at is not null;
-- Few rows: an administrator discards one at a time.
create index dead_letters_discarded on dead_letters (destination_id) where state = 'discarded';

-- Poison candidates, entries that were delivered three times: each of their records is noted before a worker decides it,
-- so that the note remains when the worker dies. One row an entry, of the record that was noted last.
create table attempts (
    shard     integer     not null,
    stream_id text        not null,
    stream_index smallint not null,
    digest    bytea       not null,
    attempts  integer     not null,
    noted_at  timestamptz not null default now(),
    primary key (shard, stream_id)
);

-- Started sinks, by name. The cursor of a Redis stream is beside the stream, that of a webhook in webhook_cursors.
create table sinks (
    name        text    primary key,
    kind        text    not null check (kind in ('Processed', 'Alert', 'TotalAlert', 'DeadLettered', 'Conflicted')),
    -- The Redis stream; null for another kind of sink.
    stream      text,
    cursor_generation text    not null,
    -- False until the cursor was made beside the stream.
    started     boolean not null default false,
    -- The stream that it moves away from, with the generation of the cursor there.
    old_stream      text,
    old_cursor_generation text,
    -- Removed from the manifest; the row is deleted after the cursor.
    removed     boolean not null default false,
    -- A webhook that answered 410: nothing is delivered until `millrace sinks resume`.
    disabled    boolean not null default false,
    -- Whether it had a filter at some time: then any outcome can be missing in its stream.
    filtered    boolean not null default false,
    -- The sink ends before the first outcome at or after it; null: it has no end.
    until       timestamptz,
    -- When everything before its end was published; nothing is published after that. Null: not yet.
    completed_at timestamptz,
    version     bigint  not null
);

-- Where each shard's part of a sink begins: outcomes above `after` are published.
create table sink_starts (
    sink  text    not null references sinks (name) on delete cascade,
    shard integer not null,
    after bigint  not null,
    -- Where a rewind lets it begin again, if its cursor is above that; null: no rewind is under way.
    rewound_to bigint,
    -- The last number before the end of the sink; null: it has no end, or its time has not passed.
    upto  bigint,
    primary key (sink, shard)
);

-- The last state of a publisher, written when it changes; no row: it runs.
create table sink_states (
    sink   text        not null references sinks (name) on delete cascade,
    shard  integer     not null,
    state  text        not null check (state in ('waiting', 'halted', 'failing', 'disabled')),
    detail text        not null,
    since  timestamptz not null default now(),
    primary key (sink, shard)
);

-- The position of a webhook in each shard. Each outcome up to `cursor` is delivered, or is not of the sink, or is in
-- deliveries; so is each number of `done`, which are above it.
create table webhook_cursors (
    sink          text    not null references sinks (name) on delete cascade,
    shard         integer not null,
    cursor        bigint  not null,
    done          bigint[] not null default '{}',
    -- The lease of the publisher that may write. It is compared by each write.
    epoch         bigint  not null default 0,
    token         text    not null default '',
    -- Since when the endpoint fails as a whole; null: it does not.
    failing_since timestamptz,
    -- The filter that its publisher uses, and the number above which it used it.
    filter        text    not null default '',
    filter_after  bigint  not null,
    primary key (sink, shard)
) with (fillfactor = 20);

-- Deliveries of webhooks that did not succeed: they wait for a retry, or failed for good.
create table deliveries (
    sink            text        not null references sinks (name) on delete cascade,
    shard           integer     not null,
    -- Number of the outcome.
    n               bigint      not null,
    destination_id  text        collate "C" not null,
    state           text        not null check (state in ('waiting', 'failed')),
    -- Whether later outcomes of the destination wait for this one: those up to the cursor are implied by this row.
    ordered         boolean     not null,
    -- Whether an administrator asked for a retry that was not made yet.
    requested       boolean     not null default false,
    attempts        integer     not null,
    first_attempt_at timestamptz not null,
    next_attempt_at timestamptz not null,
    failed_at       timestamptz,
    -- The last attempts, as JSON.
    log             text        not null,
    primary key (sink, shard, n)
);
create index deliveries_requested on deliveries (sink, shard) where requested;

-- How many records each producer (serve process) has appended, flushed every second.
create table producers (
    producer     text        not null,
    shard        integer     not null,
    appended     bigint      not null,
    -- True once the process ended, and the count is its last.
    closed       boolean     not null default false,
    -- True while it is closed because it had died: it can be suspended, and continue.
    died         boolean     not null default false,
    -- True once shards.folded counts these records. The row stays: it distinguishes a producer of an older Redis from one
    -- that Postgres lost.
    folded       boolean     not null default false,
    noted_at     timestamptz not null default now(),
    primary key (producer, shard)
);
create index producers_not_folded on producers (shard) where not folded;

-- API keys, with their scopes and limits.
create table api_keys (
    id              text        primary key,
    name            text        not null,
    scopes          text[]      not null,
    -- The sources and destinations that it is limited to: JSON arrays of {"exact": id} and {"prefix": text}. []: any.
    source_ids      text        not null default '[]',
    destination_ids text        not null default '[]',
    -- Its own limits of what it may send: JSON as in spec.limits.perKey. {}: those of the manifest only.
    rate_limits     text        not null default '{}',
    created_at      timestamptz not null default now(),
    expires_at      timestamptz,
    revoked_at      timestamptz
);

-- The secrets of keys: one, or two while a key is rotated. Only the hash is kept.
create table api_key_secrets (
    id           text        primary key,
    key_id       text        not null references api_keys (id),
    hash         bytea       not null unique,
    created_at   timestamptz not null default now(),
    -- Noted at most once a minute by each process.
    last_used_at timestamptz,
    revoked_at   timestamptz
);
create index api_key_secrets_key on api_key_secrets (key_id);

-- Sessions of the console: who signed in with a secret that is active may call as its key. Only hashes are kept.
create table console_sessions (
    hash        bytea       primary key,
    -- The hash of the secret: where an active secret has another one, or none has it, the session has ended.
    secret_hash bytea       not null,
    created_at  timestamptz not null default now(),
    expires_at  timestamptz not null
);
create index console_sessions_secret on console_sessions (secret_hash, created_at);

-- Actions of administrators. Replays and discards are here, too, beside what the dead letters record.
create table admin_actions (
    n        bigint      generated always as identity primary key,
    time     timestamptz not null default now(),
    -- The name of the API key, or the user of a command.
    actor    text        not null,
    action   text        not null,
    reason   text        not null default '',
    -- The id of the API key, and the address of its client; null: by a command.
    actor_id text,
    address  text
);
create index admin_actions_time on admin_actions (time);

-- Runs of `millrace verify`, the last thousand.
create table verifications (
    n           bigint      generated always as identity primary key,
    started_at  timestamptz not null,
    ended_at    timestamptz not null default clock_timestamp(),
    -- The shards and the time to which it was limited; both null: it compared everything.
    shards      integer[],
    since       timestamptz,
    -- Records that it compared.
    records     bigint      not null,
    -- Null: it could not compare everything.
    differences bigint,
    -- The first differences, one a line, or why it could not compare.
    problems    text        not null default ''
);

-- The audit trail is derived. One view a source, so that each can be read in order and stop early; `applied` is when the
-- source was applied, `step` its facts in order. An entry is received and queued once: the outcome of a replay (same id,
-- same received_at as the dead letter) does not repeat those facts. The steps are constants: Postgres prepares rows of
-- expressions again for each record.

-- When an entry was queued: its stream id's milliseconds; where the id is no time, when it was received.
create function queued_at(stream_id text, received_at timestamptz) returns timestamptz language sql immutable parallel safe
return case when length(split_part(stream_id, '-', 1)) <= 13
            then timestamptz '1970-01-01 00:00:00+00' + split_part(stream_id, '-', 1)::bigint * interval '1 millisecond'
            else received_at end;

create view audit_records as
select r.processed_at as applied, r.shard, 1 as kind, r.seq as n, f.step,
       case f.step when 1 then 'RECEIVED' when 2 then 'QUEUED' when 3 then 'PROCESSED' else 'ALERTED' end as action,
       case f.step when 1 then r.received_at when 2 then queued_at(r.stream_id, r.received_at) else r.processed_at end as time,
       r.record_id, r.destination_id, r.source_id, case when f.step > 2 then r.epoch end as epoch, null::text as actor,
       null::text as actor_id, null::text as address, case when f.step = 4 then 'above ' || r.threshold::text end as reason
from records r cross join (values (1), (2), (3), (4)) f (step)
where (f.step < 4 or r.threshold is not null)
  and (f.step > 2 or not exists (select from dead_letters d where d.record_id = r.record_id and d.state = 'replayed'
                                                              and d.received_at = r.received_at));

create view audit_duplicates as
select u.noted_at as applied, u.shard, 2 as kind, hashtextextended(u.record_id || ' ' || u.stream_id || ' ' || u.stream_index, 0) as n, f.step,
       case f.step when 1 then 'RECEIVED' when 2 then 'QUEUED' when 3 then 'DROPPED' end as action,
       case f.step when 1 then u.received_at when 2 then queued_at(u.stream_id, u.received_at) else u.noted_at end as time,
       u.record_id,
       coalesce((select r.destination_id from record_ids i join records r
                     on r.shard = i.shard and r.seq = i.number and r.period = i.period
                 where i.record_id = u.record_id),
                (select d.destination_id from dead_letters d where d.record_id = u.record_id
                 order by d.opened_at limit 1)) as destination_id,
       coalesce((select r.source_id from record_ids i join records r
                     on r.shard = i.shard and r.seq = i.number and r.period = i.period
                 where i.record_id = u.record_id),
                (select d.source_id from dead_letters d where d.record_id = u.record_id
                 order by d.opened_at limit 1)) as source_id,
       case when f.step > 2 then u.epoch end as epoch, null::text as actor, null::text as actor_id, null::text as address,
       case when f.step = 3 then 'duplicate' end as reason
from duplicates u cross join (values (1), (2), (3)) f (step)
where f.step > 2 or not exists (select from dead_letters d where d.record_id = u.record_id and d.state = 'replayed'
                                                             and d.received_at = u.received_at);

create view audit_conflicts as
select c.noted_at as applied, c.shard, 3 as kind, c.n, f.step,
       case f.step when 1 then 'RECEIVED' when 2 then 'QUEUED' when 3 then 'CONFLICT' end as action,
       case f.step when 1 then c.received_at when 2 then queued_at(c.stream_id, c.received_at) else c.noted_at end as time,
       c.record_id, c.destination_id, c.source_id,
       case when f.step > 2 then c.epoch end as epoch, null::text as actor, null::text as actor_id, null::text as address,
       case when f.step = 3 then 'record_conflict' end as reason
from conflicts c cross join (values (1), (2), (3)) f (step)
where f.step > 2 or not exists (select from dead_letters d where d.record_id = c.record_id and d.state = 'replayed'
                                                             and d.received_at = c.received_at);

create view audit_dead_letters as
select d.opened_at as applied, d.shard, 4 as kind, d.n, f.step,
       case f.step when 1 then 'RECEIVED' when 2 then 'QUEUED' when 3 then 'DEAD_LETTERED' end as action,
       case f.step when 1 then d.received_at when 2 then queued_at(d.stream_id, d.received_at) else d.opened_at end as time,
       d.record_id, d.destination_id, d.source_id,
       case when f.step > 2 then d.epoch end as epoch, null::text as actor, null::text as actor_id, null::text as address,
       case when f.step = 3 then d.reason end as reason
from dead_letters d cross join (values (1), (2), (3)) f (step)
where f.step > 2 or d.replay_of is null;

create view audit_closed as
select d.closed_at as applied, d.shard, 5 as kind, d.n, 1 as step, upper(d.state) as action, d.closed_at as time,
       d.record_id, d.destination_id, d.source_id, null::bigint as epoch, coalesce(d.closed_by, d.requested_by) as actor,
       null::text as actor_id, null::text as address, d.reason
from dead_letters d
where d.closed_at is not null;

create view audit_admin as
select a.time as applied, -1 as shard, 6 as kind, a.n, 1 as step, 'ADMIN' as action, a.time, null::text as record_id,
       null::text as destination_id, null::text as source_id, null::bigint as epoch, a.actor, a.actor_id, a.address,
       case when a.reason = '' then a.action else a.action || ': ' || a.reason end as reason
from admin_actions a;

-- All of them, to be counted.
create view audit_facts as
select * from audit_records union all select * from audit_duplicates union all select * from audit_conflicts
union all select * from audit_dead_letters union all select * from audit_closed union all select * from audit_admin;
