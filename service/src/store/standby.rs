//! How far a standby has replayed what was committed on its primary.
//!
//! Each `serve` process notes its counts on the primary every second ([`Store::note_appends`]). A standby that shows a note
//! has replayed all that was committed before the process began it. No clock of a server is compared, and no position in a
//! log: another primary has other notes, so a standby that does not follow it shows none of them.
//!
//! It must never take a note for replayed that another server may have accepted.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use chrono::{DateTime, Utc};

use super::{Error, Server, Store, pool::Size, session::Session};
use crate::tls::Endpoint;

/// Most notes that are kept: an hour of them, the longest `maxStaleness`.
const KEPT: usize = 3_700;
/// Longest wait for a connection to a standby.
const LONGEST_ACQUIRE: Duration = Duration::from_secs(1);

/// A note of this process that was committed.
#[derive(Debug, Clone, Copy)]
struct Note {
    /// The time that it holds, by the primary's clock. It identifies the note.
    at: DateTime<Utc>,
    /// When this process began it.
    began: Instant,
    /// The primary that it was committed on.
    server: Server,
}

/// The newest notes of this process, oldest first.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<VecDeque<Note>>);

impl Notes {
    pub(super) fn add(&self, at: DateTime<Utc>, began: Instant, server: Server) {
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() == KEPT {
            notes.pop_front();
        }
        notes.push_back(Note { at, began, server });
    }

    /// When the note of this time was begun, if it was committed on this server. Of two with the same time, after a clock
    /// that was set back, the older one counts.
    fn began(&self, at: DateTime<Utc>, server: Server) -> Option<Instant> {
        let notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        notes.iter().find(|note| note.at == at && note.server == server).map(|note| note.began)
    }
}

/// What a server for queries shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replayed {
    /// Whether the server is a standby.
    pub is_standby: bool,
    /// The newest note of the process that it has; `None`: it has none.
    pub note: Option<DateTime<Utc>>,
    /// The server that was asked, or one before it.
    pub server: Server,
}

impl Store {
    /// As [`Store::connect`], of a standby. A caller that gets no connection within a second is to use the primary.
    ///
    /// # Errors
    /// When the URL is not a Postgres URL.
    pub fn connect_standby(endpoint: impl Into<Endpoint>, pipeline: &str, connections: u32) -> Result<Self, Error> {
        Self::connect_as(
            Session::of_queries(pipeline),
            endpoint.into(),
            pipeline,
            Size { connections, acquire_timeout: LONGEST_ACQUIRE },
        )
    }

    /// What this server has of the notes of a process.
    ///
    /// # Errors
    /// When it does not answer, or does not have the schema.
    pub async fn replayed(&self, process: &str) -> Result<Replayed, Error> {
        // Read first: a connection that is opened now can lead to a newer server.
        let server = self.server();
        let row = sqlx::query!(
            r#"select pg_is_in_recovery() as "is_standby!",
                      (select noted_at from producers where producer = $1 and shard = 0) as note"#,
            process,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Replayed { is_standby: row.is_standby, note: row.note, server })
    }

    /// When this process began the note of this time; `None`: the present primary never confirmed such a note.
    #[must_use]
    pub fn note_began(&self, at: DateTime<Utc>) -> Option<Instant> {
        self.shared.notes.began(at, self.server())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{AppendCount, ShardId};

    #[test]
    fn a_note_counts_for_the_server_that_committed_it_alone() {
        let (notes, at, began) = (Notes::default(), DateTime::UNIX_EPOCH, Instant::now());
        notes.add(at, began, Server(1));
        notes.add(at, began + Duration::from_secs(9), Server(1));
        assert_eq!(notes.began(at, Server(1)), Some(began), "the older of two");
        assert_eq!(notes.began(at, Server(2)), None);
        assert_eq!(notes.began(at + Duration::from_micros(1), Server(1)), None);
    }

    #[test]
    fn notes_are_bounded() {
        let (notes, began) = (Notes::default(), Instant::now());
        let at = |n: usize| DateTime::UNIX_EPOCH + Duration::from_secs(n as u64);
        (0..=KEPT).for_each(|n| notes.add(at(n), began, Server(1)));
        assert_eq!(notes.began(at(0), Server(1)), None);
        assert_eq!((notes.began(at(1), Server(1)), notes.began(at(KEPT), Server(1))), (Some(began), Some(began)));
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn a_server_shows_the_newest_note_of_a_process(pool: sqlx::PgPool) {
        let store = Store::of_test(pool);
        store.ensure_shards(1).await.unwrap();
        assert_eq!(store.replayed("serve-a").await.unwrap().note, None);
        let counts = || vec![AppendCount { shard: ShardId::new(0), appended: 0 }];
        let mut seen = Vec::new();
        for _ in 0..2 {
            let before = Instant::now();
            store.note_appends("serve-a", counts, false).await.unwrap();
            let replayed = store.replayed("serve-a").await.unwrap();
            assert!(!replayed.is_standby);
            let began = store.note_began(replayed.note.unwrap()).unwrap();
            assert!((before..=Instant::now()).contains(&began));
            seen.push(replayed.note);
        }
        assert!(seen[0] < seen[1] && store.replayed("serve-b").await.unwrap().note.is_none());
    }
}
