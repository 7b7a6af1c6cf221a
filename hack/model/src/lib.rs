//! The protocol of ownership, epochs, transactions, acks, the log, the id ledger, dead letters and the sinks' cursors, as a
//! model that is checked exhaustively for small sizes. `hack/faults` links it to judge protocol traces ([`replay`]). Read it to learn the protocol: each step is
//! one script, one transaction, or one statement of it.
//!
//! # The way of a record
//!
//! A client sends records; serve appends them as an entry to their shard's input stream and answers ([`accept`]). A shard
//! has one owner by a lease in Postgres. An owner goes through these stages ([`own`], [`state::Stage`]):
//!
//! ```text
//! Take ─ Prepare ─ Cursors ─ Compare ─ Claim ⟲ ─ Read ⟲            Claim and Read give a batch: Commit ─ Ack ─ continue
//!  PG     Redis     Redis      PG      Redis     Redis                                            PG      Redis
//! ```
//!
//! - **Take** raises the epoch and draws a token: the fence. **Prepare** sets the fence beside the stream, so that no older
//!   owner's ack moves the watermarks any more, and returns them: the highest committed numbers that an ack carried. Where
//!   Redis holds a higher fence, the owner raises its epoch above it, in Postgres, and prepares again.
//! - **Compare** is one transaction under the fence. A log below the watermark or below a cursor is that of a Postgres
//!   that was rewound: the numbers in between become a gap, and the sequence continues above. A comparison belongs to one
//!   start of Postgres, as a rewind can restore the lease of a paused former owner: Postgres refuses a commit on another
//!   start, and the owner drops the batch in flight and prepares again.
//! - **Claim** reclaims all pending entries, in order, before the owner **reads** anything new, and at their end sets the
//!   watermarks again where Redis lost them; earlier they would cover entries that are still to come.
//! - **Commit** is one transaction, over one shard or several of a worker: see below. **Ack** follows for each shard by
//!   itself, raises the watermarks and trims.
//! - Each script compares fence, watermarks and acknowledged offset. A Redis with a lower fence, with other values than
//!   the owner's, or without the pending entry that the owner acknowledges was rewound: the owner reclaims again.
//!
//! The append numbers the records of a shard: their offsets. Postgres holds the offset up to which they are accounted for,
//! applied or lost. Offsets that are missing before a record are lost ([`write`](mod@write)); so is the rest when a read finds the
//! stream at its end, with nothing pending and nothing in flight. A rewound Redis has lost offsets: each producer (a serve
//! process) notes in Postgres how many records it appended, and passes that with each append. The append, and the owner
//! between batches, raise the counts of Redis to it ([`loss`]). Records that are applied and counted by no producer are
//! added to a sum, once every living producer has noted its count.
//!
//! Beside it a publisher per sink fetches the rows behind the sink's cursor, never above the watermark, and appends them
//! by a script that compares the cursor ([`publish`]). Workers start sinks, and move them to another stream, in steps that
//! any worker can do and repeat ([`sinks`]).
//!
//! # The transaction
//!
//! It decides whole entries of any shards of a worker whose batches are ready ([`commit`]). It
//!
//! 1. locks the shards' rows, and leaves out those that another transaction has locked;
//! 2. compares, per shard, fence, start of Postgres, numbers, applied entry and policy version; a shard that differs leaves,
//!    and its owner prepares again; the others continue;
//! 3. locks the dead letters whose replays came, then reads the ledger, and decides all shards over one map of ids
//!    ([`decide`]);
//! 4. changes the ledger's rows in the order of their ids. It waits for a row that another transaction has changed; an id
//!    that was taken meanwhile rolls all back, and the shards are decided again, together or apart;
//! 5. writes the rest and commits ([`write`](mod@write)).
//!
//! An entry above the shard's **applied entry** was never applied: only the ledger judges its ids. At or below it, each record
//! of the entry is looked for by its place in the stream, its index in the entry, and its content; one that is found counts
//! nowhere. After a rewind of Redis stream ids come again, so neither an id nor a neighbour proves that a record came.
//!
//! An open **dead letter** holds its id in the ledger. A replay appends the payload again with the dead letter's number. The
//! transaction that decides it closes the dead letter first, if it is open and has that content. A replay of a closed one
//! changes nothing; one whose dead letter Postgres does not hold is decided as a record. Replay and discard lock the dead
//! letter first, then its row of the ledger, which they change only while it names that dead letter ([`dead_letters`]).
//!
//! A **declared rollup** counts each record of the log once: a commit the records that it decides by the declaring policy
//! version or a later one, the background build those below ([`rollup`]). It is declared once in a run and never removed.
//!
//! A record gets the **period** of Postgres's clock, or that of the shard's newest record where the clock moved back.
//!
//! # Faults and properties
//!
//! Each fault of [`config::Faults`] happens at any moment, as often as its budget allows ([`faults`]): crashes, lost
//! leases (an owner that continues, or wakes up at any time), lost answers, repeated requests, policies, replays and
//! discards, a clock that moves back, a Redis without its last writes, a Postgres in an older state.
//!
//! The checker tests the properties of [`check`] in every state that can be reached. No run continues for ever (a test
//! shows it), so it tests liveness in the states in which nothing happens by itself any more. `tests/guards.rs` shows
//! which property fails without each [`guards::Guard`]; where several guards protect the same, it takes out all of them, and
//! shows that each is enough. `tests/exhaustive.rs` and `tests/transactions.rs` show that none fails with all guards.
//!
//! # Where the protocol ends
//!
//! - Where both servers are rewound before an owner could compare, or Redis to a state from before that, ids that a
//!   reader has seen can be given again with other content.
//! - A record that Postgres lost, and that a rewound Redis restores, is applied behind later ones and stays counted.
//! - A Redis that is rewound while a sink moves to another stream can lose that the old cursor was retired: numbers
//!   that a publisher still appends behind it come again behind the new one.
//! - Where a producer dies without its last note while Redis is rewound, the number of lost records is `uncertain`.
//! - A record of unknown outcome that is applied, and whose append a rewound Redis lost, can hide a lost one ([`loss`]).
//! - After a rewind of Redis a record that is sent again can get the place of its first copy. It counts nowhere, also where
//!   the dead letter of that copy was discarded in between.
//! - A sink whose cursor is missing, or of another generation, halts until an administrator continues it.
//!
//! # Not modelled
//!
//! Webhooks; sinks of dead letters; data errors, and savepoints; records that Postgres keeps no more; full memory; entries
//! that others delete; producers that are taken for dead and live; the folding of closed ones; an account that is not open.
//! Postgres ends one of two transactions that wait for each other; in the model both wait for ever. After a rewind of Redis the model
//! reuses stream ids at once; a real Redis does so only if its clock is rewound, too.

pub mod accept;
pub mod check;
pub mod commit;
pub mod config;
pub mod dead_letters;
pub mod decide;
pub mod faults;
pub mod guards;
pub mod loss;
pub mod normalise;
pub mod own;
pub mod protocol;
pub mod publish;
pub mod replay;
pub mod rollup;
pub mod servers;
pub mod sinks;
pub mod sizes;
pub mod state;
pub mod steps;
pub mod write;
