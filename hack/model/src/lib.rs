//! The protocol of ownership, epochs, acks, the log and the sinks' cursors, as a model that is checked exhaustively for
//! small sizes. No other crate links it. Read it to learn the protocol: each step is one script or one transaction, a
//! few lines long, with nothing around it.
//!
//! # The way of an entry
//!
//! A client sends a record; serve appends it to its shard's input stream and answers ([`accept`]). A shard has one owner
//! by a lease in Postgres. An owner goes through these stages ([`own`], [`state::Stage`]):
//!
//! ```text
//! Take ─ Prepare ─ Cursors ─ Compare ─ Claim ⟲ ─ Read ⟲            Claim and Read give a batch: Commit ─ Ack ─ continue
//!  PG     Redis     Redis      PG      Redis     Redis                                            PG      Redis
//! ```
//!
//! - **Take** raises the epoch and draws a token: the fence. **Prepare** sets the fence beside the stream and returns the
//!   watermarks, the highest committed numbers that an ack carried. The fence comes first: after it no older owner's ack
//!   moves the watermarks. Where Redis holds a higher fence, the owner raises its epoch above it, in Postgres, and
//!   prepares again.
//! - **Compare** is one transaction under the fence. A log below the watermark or below a cursor is that of a Postgres
//!   that was rewound: the numbers in between become a gap, and the sequence continues above. Nothing is written before
//!   it, so a crash at any stage is safe. A comparison belongs to one start of Postgres: Postgres refuses a commit on
//!   another start, and the owner drops the batch in flight and prepares again. Comparing the owner's numbers with the
//!   stored ones does not suffice: a rewind can restore the lease of a paused former owner together with the numbers that
//!   this owner holds.
//! - **Claim** reclaims all pending entries, in order, before the owner **reads** anything new. When none is left, the
//!   owner sets the watermarks again where Redis lost them; earlier they would cover entries that are still to come.
//! - **Commit** compares fence, start of Postgres and policy version, decides each entry by the stored rows ([`commit`]),
//!   and writes all of it. **Ack** follows, raises the watermarks and trims.
//! - Each script compares fence and watermarks. A Redis with a lower fence, with a watermark below the owner's, or
//!   without the pending entry that the owner acknowledges was rewound: the owner reclaims pending entries again.
//!
//! Beside it a publisher per sink fetches the rows behind the sink's cursor, never above the watermark, and appends them
//! by a script that compares the cursor ([`publish`]). Workers start sinks, and move them to another stream, in steps that
//! any worker can do and repeat ([`sinks`]). Owners count losses, in an order that matters ([`count`]).
//!
//! # Faults
//!
//! Each fault of [`config::Faults`] happens at any moment, as often as its budget allows ([`faults`]): crashes, lost
//! leases (an owner that continues, or is paused and wakes up at any time), lost answers, repeated requests, policies, a
//! Redis without its last writes, a Postgres in an older state. No process gets a notice of a rewind; connections are
//! recreated silently.
//!
//! # Properties
//!
//! The checker tests the properties of [`check`] in every state that can be reached. No run continues for ever (a test
//! shows it), so it tests liveness in the states in which nothing happens by itself any more. Each [`config::Guard`] can
//! be taken out; `tests/guards.rs` shows which property fails without it, `tests/exhaustive.rs` that none fails with all
//! of them.
//!
//! # Where the protocol ends
//!
//! - Where both servers are rewound before an owner could compare, or Redis to a state from before that, possibly no
//!   server holds the ids that a reader has seen: they can be given again with other content.
//! - A record that Postgres lost, and that a later rewind of Redis restores, is applied behind the records that came
//!   after it.
//! - A Redis that is rewound while a sink moves to another stream can lose that the old cursor was retired: numbers
//!   that a publisher still appends behind it come again behind the new one.
//! - A sink whose cursor is missing, or of another generation, halts until an administrator names the place to continue.
//!
//! # Not modelled
//!
//! Dead letters, replays and webhooks; batches that fail; full memory; entries that others delete; a serve process that
//! dies with counts that it did not note. A worker's clock has no part in the protocol. After a rewind of Redis the model
//! reuses stream ids at once; a real Redis does so only if its clock is rewound, too.

pub mod accept;
pub mod check;
pub mod commit;
pub mod config;
pub mod count;
pub mod faults;
pub mod own;
pub mod protocol;
pub mod publish;
pub mod servers;
pub mod sinks;
pub mod state;
