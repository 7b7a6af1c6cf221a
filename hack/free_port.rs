//! A free port of this machine: shared by the tools that start servers and processes (hack/compare, hack/faults).
//!
//! Must never give a port twice to one process.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicU16, Ordering},
};

/// A free port on loopback: below those that the system gives to connections, and each only once.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = (std::process::id() % 1_500) as u16 * 10;
    loop {
        let port = 12_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 18_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
