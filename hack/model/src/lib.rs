//! The protocol of ownership, epochs, acks, the log and the sinks' cursors, as a model that is checked exhaustively for
//! small sizes. It is linked into nothing. Read it to learn the protocol: each step is one script or one transaction, a
//! few lines long, with nothing around it.
//!
//! # The way of an entry
//!
//! A client sends a record; serve appends it to its shard's stream and answers ([`accept`]). A shard has one owner by a
//! lease in Postgres; an owner goes through these stages ([`own`], [`state::Stage`]):
//!
//! ```text
//! Take ─ Prepare ─ Cursors ─ Compare ─ Claim ⟲ ─ Read ⟲            Claim and Read give a batch: Commit ─ Ack ─ continue
//!  PG     Redis     Redis      PG      Redis     Redis                                            PG      Redis
//! ```
//!
//! - **Take** raises the epoch and draws a token: the fence. **Prepare** sets it beside the stream and answers the
//!   mark, the highest committed numbers that an ack came with. The fence comes first: once it stands, no older ack
//!   moves the mark. Where a higher one stands, the epoch is raised above it, in Postgres, and Prepare begins again.
//! - **Compare** is one transaction under the fence. A log below the mark or below a cursor is that of a Postgres that
//!   was rewound: the numbers in between become a gap, and the sequence continues above. Nothing is written before it, so a
//!   crash anywhere on the way is safe. It belongs to one start of Postgres: a commit on another one is refused, the
//!   batch in flight dropped, and the owner prepares again. To compare numbers with stored ones would not do: the
//!   lease of a paused former owner can come back together with the numbers that it holds.
//! - **Claim** takes all pending entries over, in order, before anything new is **read**. When none is left, the mark
//!   is set again where Redis lost it; earlier it would cover entries that are still to come.
//! - **Commit** compares fence, start of Postgres and policy version, judges each entry by what is stored ([`commit`]),
//!   and writes all of it. **Ack** comes behind, raises the mark and trims.
//! - Each script compares fence and mark. A fence that stands lower, a mark below the one that the owner knows, or an
//!   ack of what is not pending is a Redis that was rewound: pending entries are taken over again.
//!
//! Beside it a publisher per sink fetches what comes behind the sink's cursor, never above the mark, and appends it by a
//! script that compares the cursor ([`publish`]). Sinks are started, and moved to another stream, in steps that any
//! worker can do and do again ([`sinks`]). Losses are counted by owners, in an order that matters ([`count`]).
//!
//! # What goes wrong
//!
//! Each fault of [`config::Faults`] happens at any moment, as often as its budget says ([`faults`]): crashes, lost
//! leases (an owner that continues, or is paused and wakes up at any time), lost answers, repeated requests, policies, a
//! Redis without its last writes, a Postgres in an older state. Nobody is told of a server that was rewound; connections
//! are recreated in silence.
//!
//! # What is checked
//!
//! The properties of [`check`], in every state that can be reached. No run continues for ever (a test shows it), so what
//! has to come about in the end is checked where nothing happens by itself any more. Each [`config::Guard`] can be
//! taken out; `tests/guards.rs` shows what breaks without it, `tests/exhaustive.rs` that nothing does with all of them.
//!
//! # Where the protocol ends
//!
//! - Where both servers are rewound before an owner could compare, or Redis to a state from before that, nobody may
//!   hold which ids a reader has seen: they can be given again with other content.
//! - A record that Postgres lost, and a Redis that is rewound later brings again, is processed behind what came after
//!   it.
//! - A Redis that is rewound while a sink moves to another stream can lose that the old cursor was retired: numbers
//!   that a publisher still appends behind it come again behind the new one.
//! - A sink whose cursor is gone, or of another start, halts until someone says where to continue.
//!
//! # What is left out
//!
//! Dead letters, replays and webhooks; batches that fail; full memory; entries that others delete; a serve process that
//! dies with counts that it did not note. A worker's clock has no part in the protocol. Stream ids are given again at
//! once after a Redis that was rewound, which a clock that was rewound would be needed for.

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
