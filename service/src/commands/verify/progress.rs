//! How far the passes are: a bar on a terminal, else a line every ten seconds, on standard error.

use std::{
    io::IsTerminal as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio_util::task::AbortOnDropHandle;

const BAR_EVERY: Duration = Duration::from_millis(200);
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Number of records that were compared.
#[derive(Debug, Default)]
pub(super) struct Progress(AtomicU64);

impl Progress {
    pub(super) fn add(&self, records: usize) {
        self.0.fetch_add(records as u64, Ordering::Relaxed);
    }

    /// Shows it until the value is dropped. `total` is the expected number of records.
    pub(super) fn show(self: &Arc<Self>, total: u64) -> Shown {
        let (this, start) = (Arc::clone(self), Instant::now());
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{bar:32} {percent:>3}% {msg} · {eta} left");
            ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let shown = bar.clone();
        let task = tokio::spawn(async move {
            loop {
                tokio::time::sleep(if shown.is_some() { BAR_EVERY } else { LINE_EVERY }).await;
                let records = this.0.load(Ordering::Relaxed);
                let rate = records as f64 / start.elapsed().as_secs_f64();
                match &shown {
                    Some(bar) => {
                        bar.set_position(records);
                        bar.set_message(format!("{records} records · {rate:.0}/s"));
                    }
                    None => eprintln!("verify: {records} of {total} records, {rate:.0}/s"),
                }
            }
        });
        Shown { bar, _task: AbortOnDropHandle::new(task) }
    }
}

/// Progress that is shown.
pub(super) struct Shown {
    bar: Option<ProgressBar>,
    _task: AbortOnDropHandle<()>,
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
