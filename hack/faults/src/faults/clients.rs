//! Faults of clients: they send other requests for a while.

use std::time::Duration;

use tokio::time::sleep;

use super::{Effect, Stage};
use crate::load::{
    Mode,
    record::{HERD, HOT},
};

impl Stage {
    pub(super) async fn clients(&self, mode: Mode, lasts: Duration) -> Effect {
        let before = self.sent(mode);
        self.load.set(mode, true);
        sleep(lasts + Duration::from_secs(1)).await;
        self.load.set(mode, false);
        let sent = self.sent(mode) - before;
        Ok((sent > 0, format!("{sent} sent")))
    }

    /// How many such requests or entries clients have sent so far.
    fn sent(&self, mode: Mode) -> u64 {
        let history = self.load.history();
        match mode {
            Mode::HERD => history.count(HERD).into(),
            Mode::HOT => history.count(HOT).into(),
            Mode::CUT => history.answers.requests.get("upload cut").copied().unwrap_or(0),
            Mode::DUPLICATES => history.duplicates,
            Mode::POISON => history.placed,
            _ => 0,
        }
    }
}
