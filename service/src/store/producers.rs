//! How many records each producer has appended, and how many records are lost.

use std::time::Instant;

use chrono::{DateTime, Utc};
use sqlx::PgConnection;

use super::{Actor, Error, Store};
use crate::{
    domain::{AppendCount, Lease, Offset, ShardId},
    protocol_trace,
};

/// A producer whose counts were not noted for this many seconds is dead: it notes them every second.
const DEAD_SECONDS: f64 = 5.0;

/// A producer that died is folded after this many seconds. One that was only suspended and continues until then finds its
/// count in Redis; without it, the append would take Redis for rewound.
const OVER_SECONDS: f64 = 3600.0;

/// A producer of a shard, whose records are not folded.
#[derive(Debug, Clone, PartialEq)]
pub struct Producer {
    /// Its name.
    pub name: String,
    /// Number of records that it has appended, as it noted.
    pub appended: i64,
    /// Whether it has ended, and the count is its last.
    pub closed: bool,
    /// Whether it can be folded: it has closed, or died so long ago that it is not suspended.
    pub is_over: bool,
    /// Seconds since its last note, where it is dead and has not closed.
    pub dead_for: Option<f64>,
}

/// The counts of a shard in Postgres.
#[derive(Debug, Clone, PartialEq)]
pub struct ShardAccount {
    /// All records up to it are applied or lost.
    pub accounted: Offset,
    /// Number of records of the producers that are folded.
    pub folded: i64,
    /// The other producers, by name.
    pub producers: Vec<Producer>,
    /// The time of Postgres's clock.
    pub now: DateTime<Utc>,
    /// The oldest of the last notes of the producers that live; `None`: none lives.
    pub oldest_note: Option<DateTime<Utc>>,
}

impl Store {
    /// Notes the counts of a producer. A noted count never falls. `counts` is called after the time that is noted with them,
    /// however long the note takes. `closed`: the producer ends, and these are its last.
    ///
    /// # Errors
    /// When Postgres refuses the write.
    pub async fn note_appends(
        &self,
        producer: &str,
        counts: impl FnOnce() -> Vec<AppendCount>,
        closed: bool,
    ) -> Result<(), Error> {
        // Read first: a connection that is opened now can lead to a newer server, never to an older one.
        let server = self.server();
        let mut connection = self.pool.acquire().await?;
        let began = Instant::now();
        let at = sqlx::query_scalar!(r#"select clock_timestamp() as "at!""#).fetch_one(&mut *connection).await?;
        let counts = counts();
        let shards: Vec<ShardId> = counts.iter().map(|count| count.shard).collect();
        let appended: Vec<i64> = counts.iter().map(|count| count.appended).collect();
        for _ in 0..2 {
            let written = sqlx::query!(
                "insert into producers (producer, shard, appended, closed, noted_at)
                 select $1, u.shard, u.appended, $4, $5 from unnest($2::int[], $3::bigint[]) as u (shard, appended)
                 on conflict (producer, shard) do update set
                     appended = greatest(producers.appended, excluded.appended),
                     closed = excluded.closed,
                     died = false,
                     noted_at = excluded.noted_at
                 where not producers.folded",
                producer,
                &shards as &[ShardId],
                &appended,
                closed,
                at,
            )
            .execute(&mut *connection)
            .await?
            .rows_affected();
            if written == shards.len() as u64 {
                self.shared.notes.add(at, began, server);
                break;
            }
            // A folded row is not written: this producer was taken for dead.
            unfold(&mut connection, producer).await?;
        }
        Ok(())
    }

    /// Number of processes that have noted their counts within the time after which they are dead.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn live_producers(&self) -> Result<u32, Error> {
        let live = sqlx::query_scalar!(
            r#"select count(*) as "count!" from producers
               where shard = 0 and not folded and not closed and noted_at > clock_timestamp() - $1 * interval '1 second'"#,
            DEAD_SECONDS,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(u32::try_from(live).unwrap_or(u32::MAX))
    }

    /// Notes a producer that only Redis has. Returns false where its records are folded: Redis was rewound to before it
    /// was removed there.
    ///
    /// # Errors
    /// When Postgres refuses the write.
    pub async fn note_unknown_producer(&self, producer: &str, count: AppendCount) -> Result<bool, Error> {
        let noted = sqlx::query_scalar!(
            r#"insert into producers (producer, shard, appended) values ($1, $2, $3)
               on conflict (producer, shard) do update set appended = greatest(producers.appended, $3)
               where not producers.folded
               returning 1"#,
            producer,
            count.shard as ShardId,
            count.appended,
        )
        .fetch_optional(&self.pool)
        .await?;
        Ok(noted.is_some())
    }

    /// Folds closed producers into one sum of the shard. Returns the names of those that were folded.
    ///
    /// # Errors
    /// When Postgres refuses the write.
    pub async fn fold_producers(&self, shard: ShardId, producers: &[String]) -> Result<Vec<String>, Error> {
        let folded = sqlx::query_scalar!(
            "with folded as (
                 update producers set folded = true
                 where shard = $1 and producer = any($2) and closed and not folded
                 returning producer, appended
             ), counted as (
                 update shards set folded = folded + (select sum(appended) from folded)
                 where shard = $1 and exists (select from folded)
             )
             select producer from folded",
            shard as ShardId,
            producers,
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(folded)
    }

    /// Adds to the sum of the folded producers the records of producers that no server holds any more, so that the sum of
    /// all is `counted` again. `folded` is the sum that was read.
    ///
    /// # Errors
    /// When Postgres refuses the write.
    pub async fn add_folded(&self, shard: ShardId, folded: i64, records: i64) -> Result<(), Error> {
        sqlx::query!(
            "update shards set folded = folded + $3 where shard = $1 and folded = $2",
            shard as ShardId,
            folded,
            records,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// The counts of a shard.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn account_of(&self, shard: ShardId) -> Result<ShardAccount, Error> {
        let row = sqlx::query!(
            r#"select coalesce(accounted, 0) as "accounted!: Offset", folded, clock_timestamp() as "now!"
               from shards where shard = $1"#,
            shard as ShardId,
        )
        .fetch_one(&self.pool)
        .await?;
        let producers = sqlx::query!(
            r#"select producer, appended, closed, died, noted_at, extract(epoch from clock_timestamp() - noted_at)::float8 as "age!"
               from producers where shard = $1 and not folded order by producer"#,
            shard as ShardId,
        )
        .fetch_all(&self.pool)
        .await?;
        let oldest_note = producers.iter().filter(|row| !row.closed).map(|row| row.noted_at).min();
        let producers = producers.into_iter().map(|row| Producer {
            name: row.producer,
            appended: row.appended,
            closed: row.closed,
            is_over: row.closed && (!row.died || row.age > OVER_SECONDS),
            dead_for: (!row.closed && row.age > DEAD_SECONDS).then_some(row.age),
        });
        Ok(ShardAccount {
            accounted: row.accounted,
            folded: row.folded,
            producers: producers.collect(),
            now: row.now,
            oldest_note,
        })
    }

    /// Closes a producer that died. `count`: the number of records that Redis holds of it. `uncertain`: it can have appended
    /// more, which Redis has lost.
    ///
    /// # Errors
    /// When Postgres refuses the write.
    pub async fn close_dead_producer(&self, producer: &str, count: AppendCount, uncertain: bool) -> Result<(), Error> {
        sqlx::query!(
            "with closed as (
                 update producers set appended = greatest(appended, $3), closed = true, died = true
                 where producer = $1 and shard = $2 and not closed returning 1
             )
             update shards set loss_uncertain_since = coalesce(loss_uncertain_since, clock_timestamp())
             where shard = $2 and $4 and exists (select from closed)",
            producer,
            count.shard as ShardId,
            count.appended,
            uncertain,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Notes that all records above `accounted`, up to `appended`, are lost: the stream is at its end, and nothing is in
    /// flight. Returns their number.
    ///
    /// # Errors
    /// [`Error::Fenced`] when another worker owns the shard by now.
    pub async fn note_lost(
        &self,
        shard: ShardId,
        lease: &Lease,
        accounted: Offset,
        appended: Offset,
    ) -> Result<i64, Error> {
        let step = protocol_trace::begin(shard.get(), "lose", || {
            format!("{},\"accounted\":{accounted},\"appended\":{appended}", lease.facts())
        });
        let lost = sqlx::query_scalar!(
            r#"update shards set lost = lost + ($5::bigint - $4::bigint), accounted = $5
               where shard = $1 and epoch = $2 and token = $3 and owner is not null and coalesce(accounted, 0) = $4
               returning $5::bigint - $4::bigint as "lost!""#,
            shard as ShardId,
            lease.epoch,
            lease.token,
            accounted as Offset,
            appended as Offset,
        )
        .fetch_optional(&self.pool)
        .await?
        .ok_or(Error::Fenced)?;
        step.is("done");
        Ok(lost)
    }

    /// Acknowledges that records can be lost whose number no server holds. Returns the shards for which that was noted.
    ///
    /// # Errors
    /// When Postgres refuses the write.
    pub async fn acknowledge_losses(&self, actor: &Actor, reason: &str) -> Result<Vec<ShardId>, Error> {
        let shards = sqlx::query_scalar!(
            r#"with acknowledged as (
                   update shards set loss_uncertain_since = null where loss_uncertain_since is not null returning shard
               ), noted as (
                   insert into admin_actions (actor, actor_id, address, action, reason)
                   select $1, $3, $4, 'losses.acknowledge',
                          concat_ws(': ', 'shards ' || string_agg(shard::text, ', ' order by shard), nullif($2, ''))
                   from acknowledged having count(*) > 0
               )
               select shard as "shard!: ShardId" from acknowledged order by shard"#,
            &actor.name,
            reason,
            actor.key_id.as_deref(),
            actor.address_column(),
        )
        .fetch_all(&self.pool)
        .await?;
        Ok(shards)
    }
}

/// Takes a producer out of the sums that it was folded into, on all shards.
async fn unfold(connection: &mut PgConnection, producer: &str) -> Result<(), Error> {
    sqlx::query!(
        "with unfolded as (
             update producers set folded = false where producer = $1 and folded returning shard, appended
         )
         update shards set folded = shards.folded - unfolded.appended
         from unfolded where shards.shard = unfolded.shard",
        producer,
    )
    .execute(connection)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use sqlx::PgPool;

    use super::*;

    fn count(shard: u16, appended: i64) -> AppendCount {
        AppendCount { shard: ShardId::new(shard), appended }
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn a_noted_count_never_falls_and_the_last_note_closes(pool: PgPool) {
        let store = Store::of_test(pool.clone());
        // Notes may overtake each other on their way.
        for (noted, closed) in [(5, false), (9, false), (7, false), (9, true)] {
            store.note_appends("p", || vec![count(3, noted)], closed).await.expect("noted");
        }
        let rows: Vec<(String, i32, i64, bool)> =
            sqlx::query_as("select producer, shard, appended, closed from producers")
                .fetch_all(&pool)
                .await
                .expect("rows");
        assert_eq!(rows, [("p".to_owned(), 3, 9, true)]);
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn folded_producers_are_one_sum_until_they_note_again(pool: PgPool) {
        let store = Store::of_test(pool.clone());
        sqlx::query("insert into shards (shard) values (3), (4) on conflict do nothing")
            .execute(&pool)
            .await
            .expect("shards");
        for producer in ["p", "q"] {
            store.note_appends(producer, || vec![count(3, 5), count(4, 7)], true).await.expect("noted");
        }
        store.note_appends("lives", || vec![count(3, 2)], false).await.expect("noted");
        let account = async || {
            let account = store.account_of(ShardId::new(3)).await.expect("an account");
            (account.folded, account.producers.into_iter().map(|by| by.name).collect::<Vec<_>>())
        };
        let all = ["lives", "p", "q"].map(str::to_owned);
        assert_eq!(account().await, (0, all.to_vec()));
        assert_eq!(store.fold_producers(ShardId::new(3), &all).await.expect("folded"), ["p", "q"]);
        assert!(store.fold_producers(ShardId::new(3), &all).await.expect("folded").is_empty(), "once");
        assert_eq!(account().await, (10, vec!["lives".to_owned()]));
        assert!(!store.note_unknown_producer("p", count(3, 5)).await.expect("noted"), "a Redis that has it again");
        assert!(store.note_unknown_producer("r", count(3, 5)).await.expect("noted"));
        // It was taken for dead.
        store.note_appends("q", || vec![count(3, 6), count(4, 7)], false).await.expect("noted");
        assert_eq!(account().await, (5, ["lives", "q", "r"].map(str::to_owned).to_vec()));
        store.add_folded(ShardId::new(3), 5, 4).await.expect("added");
        store.add_folded(ShardId::new(3), 5, 4).await.expect("the sum was changed by another");
        assert_eq!(account().await.0, 9);
    }

    #[sqlx::test(migrations = "../migrations")]
    async fn an_uncertain_loss_stays_until_it_is_acknowledged(pool: PgPool) {
        let store = Store::of_test(pool.clone());
        sqlx::query("insert into shards (shard) values (3), (4) on conflict do nothing")
            .execute(&pool)
            .await
            .expect("shards");
        let ops = Actor::command(Some("ops"));
        for (shard, uncertain) in [(3, false), (4, true)] {
            store.note_appends("p", || vec![count(shard, 5)], false).await.expect("noted");
            store.close_dead_producer("p", count(shard, 6), uncertain).await.expect("closed");
        }
        assert_eq!(store.acknowledge_losses(&ops, "checked").await.expect("acknowledged"), [ShardId::new(4)]);
        assert!(store.acknowledge_losses(&ops, "checked").await.expect("acknowledged").is_empty());
        let actions: Vec<(String, String, String)> =
            sqlx::query_as("select actor, action, reason from admin_actions").fetch_all(&pool).await.expect("actions");
        let expected = ["command:ops", "losses.acknowledge", "shards 4: checked"].map(str::to_owned);
        assert_eq!(actions, [expected.into()]);
    }
}
