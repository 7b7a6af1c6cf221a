//! The `millrace` binary.

use std::process::ExitCode;

use clap::Parser as _;
use millrace::commands::verify::NotCompared;

/// Measured beside the allocator of glibc: 1.05 times the single records per second (docs/decisions/0015).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[tokio::main]
async fn main() -> ExitCode {
    match millrace::commands::Command::parse().run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("millrace: {error:#}");
            // As for flags that are wrong.
            if error.is::<NotCompared>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}
