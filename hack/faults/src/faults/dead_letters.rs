//! Dead letters are replayed and discarded at once, many times, through both serve processes: each is closed once, and its
//! id is taken or free, never both.

use std::{collections::BTreeMap, time::Duration};

use tokio::{task::JoinSet, time::sleep};

use super::{Effect, Stage};
use crate::{
    check::Wrong,
    load::{history::Closed, record::Code},
    world::eventually,
};

/// Dead letters of a fault.
const DEAD_LETTERS: usize = 20;
/// Requests of each kind for a dead letter.
const REQUESTS: usize = 4;
/// Longest wait for each step.
const STEP: Duration = Duration::from_secs(40);

/// A dead letter and its id, as Postgres holds them.
#[derive(Debug, Clone, sqlx::FromRow)]
struct Stored {
    record_id: String,
    dead_letter: String,
    state: String,
    /// Whether the ledger has its id.
    taken: bool,
    /// Records with its id.
    records: i64,
}

impl Stage {
    pub(super) async fn dead_letters_at_once(&self, pick: u64) -> Effect {
        let Some(_held) = self.load.hold(STEP).await else { return Ok((false, "the load was not held".to_owned())) };
        let pairs = self.load.begin_pairs(DEAD_LETTERS);
        let refused: Vec<Code> = pairs.iter().map(|(refused, _)| *refused).collect();
        self.load.send(refused.clone()).await;
        let opened = async || self.stored(&refused).await.is_ok_and(|stored| stored.len() == DEAD_LETTERS);
        if !eventually(STEP, opened).await {
            return Ok((false, "they became no dead letters in time".to_owned()));
        }
        // From now on a replay is applied.
        self.load.send(pairs.iter().map(|(_, more)| *more).collect()).await;
        if !self.world.drains(STEP).await {
            return Ok((false, "it did not drain in time".to_owned()));
        }
        let discards = self.request_all(&self.stored(&refused).await?, pick).await;
        let closed = async || {
            // A request can have failed for another reason.
            let stored = self.stored(&refused).await.unwrap_or_default();
            let open = stored.iter().find(|one| one.state == "open");
            if let Some(open) = open {
                self.load.act(0, &format!("/dead-letters/{}/replay", open.dead_letter)).await;
            }
            open.is_none() && !stored.is_empty()
        };
        if !(eventually(STEP, closed).await && self.world.drains(STEP).await) {
            self.world.wrong(Wrong::Stuck, "dead letters stay open after their replay".to_owned());
            return Ok((false, "they are not closed".to_owned()));
        }
        let stored = self.stored(&refused).await?;
        self.check_closed(&stored, &discards);
        let replayed = stored.iter().filter(|one| one.state == "replayed").count();
        // A free id is a record's again; a taken one has a duplicate.
        self.load.send(refused).await;
        let both = replayed > 0 && replayed < DEAD_LETTERS;
        Ok((both, format!("{replayed} of {DEAD_LETTERS} replayed, the others discarded")))
    }

    /// Requests replays and discards of all dead letters at once. Returns how many discards of each were answered as done.
    async fn request_all(&self, stored: &[Stored], pick: u64) -> BTreeMap<String, u32> {
        let mut requests = JoinSet::new();
        for (n, one) in stored.iter().enumerate() {
            let is_replay_first = pick >> (n % 64) & 1 == 0;
            for request in 0..2 * REQUESTS {
                let is_replay = (request % 2 == 0) == is_replay_first;
                let verb = if is_replay { "replay" } else { "discard" };
                let path = format!("/dead-letters/{}/{verb}", one.dead_letter);
                let (load, id) = (self.load.clone(), one.record_id.clone());
                // A discard is done at once, a replay when a worker decides it: some wait for about as long.
                let pause = if is_replay { 0 } else { n as u64 * 25 };
                requests.spawn_local(async move {
                    sleep(Duration::from_millis(pause)).await;
                    let status = load.act(n + request / 2, &path).await;
                    (id, !is_replay && status == Some(200))
                });
            }
        }
        let mut discards = BTreeMap::new();
        while let Some(ended) = requests.join_next().await {
            if let Ok((id, discarded)) = ended {
                *discards.entry(id).or_default() += u32::from(discarded);
            }
        }
        discards
    }

    /// Checks that each was closed in one way, and notes the way for the check after the round.
    fn check_closed(&self, stored: &[Stored], discards: &BTreeMap<String, u32>) {
        for one in stored {
            let Stored { record_id: id, dead_letter, state, taken, records } = one;
            let closed = if state == "replayed" { Closed::Replayed } else { Closed::Discarded };
            let (discarded, due) = (discards.get(id).copied().unwrap_or_default(), closed == Closed::Replayed);
            if discarded > u32::from(!due) {
                let detail = format!("{discarded} discards of {dead_letter} were answered as done, and it is {state}");
                self.world.wrong(Wrong::Doubled, detail);
            }
            if (*taken, *records) != (due, i64::from(due)) {
                let detail = format!("{dead_letter} is {state}, its id {id} taken: {taken}, with {records} records");
                self.world.wrong(if due { Wrong::Lost } else { Wrong::Doubled }, detail);
            }
            if let Some(code) = Code::of_id(id) {
                self.load.history().closed.insert(code, closed);
            }
        }
    }

    /// The dead letters of these ids.
    async fn stored(&self, codes: &[Code]) -> anyhow::Result<Vec<Stored>> {
        let ids: Vec<String> = codes.iter().map(|code| code.id()).collect();
        let mut sql = self.world.postgres.lock().await.connect().await?;
        let query = "
            select d.record_id, d.shard || '-d' || d.n as dead_letter, d.state,
                   exists (select from record_ids i where i.record_id = d.record_id) as taken,
                   (select count(*) from records r
                    where r.destination_id = d.destination_id and r.record_id = d.record_id) as records
            from dead_letters d where d.record_id = any($1) order by d.record_id";
        Ok(sqlx::query_as(query).bind(ids).fetch_all(&mut sql).await?)
    }
}
