//! The counts of producers beside a shard's stream, for its owner.
//!
//! Must never lower a count: a number that was given once would be given again.

use std::sync::LazyLock;

use redis::{FromRedisValue as _, Script, Value};

use super::{
    Error,
    input::{Input, Step, fenced_script, integer, is},
};
use crate::domain::{Lease, Offset};

static RECONCILE: LazyLock<Script> = fenced_script!("reconcile");
static DROP: LazyLock<Script> = fenced_script!("drop");

/// A producer, with the number of records that it has appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProducerCount {
    /// Its name.
    pub producer: String,
    /// Number of records.
    pub count: i64,
}

/// The counts of Redis, raised to those of Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconciled {
    /// The offset of the last appended record.
    pub appended: Offset,
    /// That offset as the producers count it.
    pub counted: Offset,
    /// Number of records by which counts were raised: Redis was rewound.
    pub raised: i64,
    /// Number of seconds for which the owners have seen this server: before that it can have been another one.
    pub seen_for: i64,
    /// The count that Redis held for each producer that was given, in their order.
    pub held: Vec<i64>,
    /// Producers that were not given. While there are any, no count is raised.
    pub unknown_producers: Vec<ProducerCount>,
}

impl Input {
    /// Raises the counts of Redis to those of Postgres: `folded`, the number of records of producers that [`Self::drop_producers`]
    /// removed, and the count of each other producer.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lease beside the stream is higher.
    pub async fn reconcile(
        &self,
        lease: &Lease,
        folded: i64,
        producers: &[ProducerCount],
    ) -> Result<Step<Reconciled>, Error> {
        let mut args = vec![folded.to_string()];
        args.extend(producers.iter().flat_map(|by| [by.producer.clone(), by.count.to_string()]));
        let (reply, step) = self.traced(&RECONCILE, "reconcile", lease, &args, String::new).await?;
        if is(&reply, b"raised") {
            step.is("raised");
            return Ok(Step::Raised);
        }
        step.end("done", || format!("\"appended\":{},\"raised\":{}", integer(&reply, 1), integer(&reply, 3)));
        let held = Vec::<i64>::from_redis_value(reply.get(5).cloned().unwrap_or(Value::Nil));
        let unknown_producers = Vec::<(String, i64)>::from_redis_value(reply.get(6).cloned().unwrap_or(Value::Nil));
        let unknown_producers = unknown_producers.map_err(redis::RedisError::from)?.into_iter();
        Ok(Step::Done(Reconciled {
            appended: Offset::new(integer(&reply, 1)),
            counted: Offset::new(integer(&reply, 2)),
            raised: integer(&reply, 3),
            seen_for: integer(&reply, 4),
            held: held.map_err(redis::RedisError::from)?,
            unknown_producers: unknown_producers.map(|(producer, count)| ProducerCount { producer, count }).collect(),
        }))
    }

    /// Removes the counts of producers that Postgres has folded into one sum.
    ///
    /// # Errors
    /// [`Error::Fenced`] when the lease beside the stream is higher.
    pub async fn drop_producers(&self, lease: &Lease, producers: &[String]) -> Result<(), Error> {
        self.run(&DROP, lease, producers).await.map(|_| ())
    }
}
