//! `millrace sinks rewind`: a sink publishes again from an earlier point.

use std::collections::BTreeMap;

use anyhow::{anyhow, bail, ensure};
use chrono::{DateTime, Utc};

use super::{actor, failure, snapshot};
use crate::{
    domain::{Seq, ShardId, ShardSeq, TimeText, parse_time},
    publish::{find_sink, has_cursor, is_halted},
    store::{Kept, SinkRow, Store},
    streams::Streams,
};

/// Flags of `millrace sinks rewind`.
#[derive(Debug, clap::Args)]
pub(super) struct Rewind {
    /// Its name
    name: String,
    #[command(flatten)]
    to: To,
    /// Rewind a Redis stream that still has entries: readers see their ids again
    #[arg(long)]
    repeat: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct To {
    /// Publish again, in each shard, from the first outcome that was committed at or after this time
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    to_time: Option<DateTime<Utc>>,
    /// Publish again, in this shard, from this number on; other shards continue
    #[arg(long, value_name = "SHARD:NUMBER", value_parser = parse_place)]
    to_seq: Option<ShardSeq>,
}

fn parse_place(text: &str) -> Result<ShardSeq, &'static str> {
    let place = text.split_once(':').and_then(|(shard, seq)| {
        Some(ShardSeq { shard: ShardId::new(shard.parse().ok()?), seq: Seq::new(seq.parse().ok()?) })
    });
    place.filter(|place| place.seq.get() > 0).ok_or("must be a shard and a number of at least 1, such as 3:17")
}

/// Runs the command.
///
/// # Errors
/// A failure, described for a person.
pub(super) async fn run(store: &Store, streams: &Streams, args: Rewind) -> anyhow::Result<()> {
    let Rewind { name, to, repeat } = args;
    let row = find_sink(store, &name).await.map_err(|error| failure(streams, error))?;
    check_state(store, streams, &row).await?;
    let (points, text) = match (to.to_time, to.to_seq) {
        (Some(time), _) => {
            let points = points_of_time(store, &row, time).await?;
            (points, format!("time {}", TimeText::of(time).as_str()))
        }
        (None, Some(place)) => {
            let point = point_of_number(store, &row, place).await?;
            (vec![point], format!("seq {}:{}", place.shard, place.seq))
        }
        (None, None) => bail!("--to-time or --to-seq is needed"),
    };
    let cursors = cursors(store, streams, &row).await?;
    let above = points.iter().filter(|point| cursors.get(&point.shard).is_some_and(|cursor| *cursor > point.seq));
    let above: Vec<String> = above.map(|point| format!("shard {} from {}", point.shard, point.seq.next())).collect();
    ensure!(!above.is_empty(), "{name} has published nothing from there on: it is not above {text} in any shard");
    if let Some(stream) = row.stream.as_ref().filter(|_| !repeat)
        && snapshot(streams, stream).await?.newest.is_some()
    {
        bail!(
            "{stream} still has entries, and the ids from there on come again behind them: empty it first \
             (XTRIM {stream} MAXLEN 0), or say --repeat if its readers leave out ids that they have seen"
        );
    }
    let fresh = store.cursor_generation().await?;
    if !store.rewind_sink(&row, &points, &fresh, &actor(), &format!("sink {name} to {text}")).await? {
        bail!("{name} was changed at this moment; `millrace sinks list` shows it; then try again");
    }
    say!("{name}: publishes again, as soon as a worker has read the change: {}", above.join(", "));
    Ok(())
}

/// Refuses a sink without a position to rewind from.
async fn check_state(store: &Store, streams: &Streams, row: &SinkRow) -> anyhow::Result<()> {
    let name = &row.name;
    ensure!(!row.removed, "{name} is being removed");
    ensure!(!row.disabled, "{name} is disabled: `millrace sinks resume {name}` first");
    ensure!(
        row.started && row.old_stream.is_none(),
        "{name} starts or moves at this moment; once `millrace sinks list` shows it as started, try again"
    );
    ensure!(
        !is_halted(store, &row.name).await?
            && has_cursor(streams, row).await.map_err(|error| failure(streams, error.into()))?,
        "{name} is halted: `millrace sinks resume {name} --from now|beginning` first"
    );
    Ok(())
}

async fn points_of_time(store: &Store, row: &SinkRow, time: DateTime<Utc>) -> anyhow::Result<Vec<ShardSeq>> {
    let now = DateTime::<Utc>::from(store.clock().await?);
    ensure!(time <= now, "--to-time is in the future: Postgres's clock is at {}", TimeText::of(now).as_str());
    let lost: Vec<Kept> =
        store.kept(row.kind).await?.into_iter().filter(|kept| kept.since.is_none_or(|since| time < since)).collect();
    if !lost.is_empty() {
        let earliest =
            lost.iter().map(|kept| kept.since).max().flatten().filter(|_| lost.iter().all(|kept| kept.since.is_some()));
        return Err(match earliest {
            Some(since) => anyhow!(
                "outcomes from before {0} were dropped; the earliest point is --to-time {0}",
                TimeText::of(since).as_str()
            ),
            None => anyhow!(
                "all outcomes of shard {} were dropped: rewind the other shards by --to-seq",
                lost.iter().find(|kept| kept.since.is_none()).map_or(ShardId::new(0), |kept| kept.shard)
            ),
        });
    }
    Ok(store.before_time(row.kind, time).await?)
}

async fn point_of_number(store: &Store, row: &SinkRow, place: ShardSeq) -> anyhow::Result<ShardSeq> {
    let ShardSeq { shard, seq } = place;
    let heads = store.heads(row.kind).await?;
    let Some(head) = heads.iter().find(|head| head.shard == shard) else {
        let last = heads.last().map_or(ShardId::new(0), |head| head.shard);
        bail!("--to-seq: there is no shard {shard}; shards are 0 to {last}");
    };
    ensure!(
        seq <= head.seq,
        "--to-seq: {seq} is above {}, the highest number of shard {shard} for {}",
        head.seq,
        row.kind.as_str()
    );
    let kept = store.kept(row.kind).await?;
    if let Some(kept) = kept.iter().find(|kept| kept.shard == shard && seq <= kept.after) {
        match kept.since {
            Some(_) => bail!(
                "{seq} of shard {shard} was dropped; the earliest point is --to-seq {shard}:{}",
                kept.after.next()
            ),
            None => bail!("all outcomes of shard {shard} were dropped"),
        }
    }
    Ok(ShardSeq { shard, seq: Seq::new(seq.get() - 1) })
}

/// The highest published number of each shard.
async fn cursors(store: &Store, streams: &Streams, row: &SinkRow) -> anyhow::Result<BTreeMap<ShardId, Seq>> {
    match &row.stream {
        Some(stream) => Ok(snapshot(streams, stream).await?.cursor),
        None => Ok(store.webhook_highest(&row.name).await?.into_iter().map(|at| (at.shard, at.seq)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_a_shard_and_a_number() {
        let place = ShardSeq { shard: ShardId::new(3), seq: Seq::new(17) };
        assert_eq!(parse_place("3:17"), Ok(place));
        for text in ["", "3", "3:", ":17", "3:0", "3:-1", "x:1", "70000:1", "3:17:1"] {
            assert!(parse_place(text).is_err(), "{text}");
        }
    }
}
