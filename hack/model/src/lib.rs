//! An executable model of Millrace's protocol.

mod accept;
pub mod check;
mod commit;
pub mod config;
mod count;
mod faults;
mod own;
pub mod protocol;
mod publish;
mod sinks;
pub mod state;
