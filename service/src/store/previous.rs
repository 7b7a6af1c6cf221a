//! The outcomes of a destination around another one, for webhooks. Each is one step in the index of destinations.

use rust_decimal::Decimal;

use super::{Error, Store, periods::Periods, slow::Watch};
use crate::domain::{Kind, OutcomeFilter, OutcomeKind, Seq, SeqRange, ShardId};

/// A query over the records that a filter admits: the statement up to the filter, the statement behind it, the kind of the
/// outcomes, the filter, the periods, and the three arguments `$1` to `$3`. Its own predicates are `$4` to `$10`.
macro_rules! admitted_records {
    ($head:literal, $tail:literal, $kind:expr, $filter:expr, $periods:expr, $($argument:expr),+ $(,)?) => {{
        let Columns { units, positive, sources, minimum } = Columns::of($filter);
        sqlx::query_scalar!(
            $head
                + " and period >= coalesce($9::date, '-infinity') and period <= coalesce($10::date, 'infinity')
                    and ($4::text = 'Processed' or $4 = 'Alert' and threshold is not null
                         or $4 = 'TotalAlert' and total_alerts is not null)
                    and ($5::text[] is null or unit = any($5))
                    and ($6::boolean is null or positive = $6)
                    and ($7::text[] is null or exists (select from unnest($7) s where starts_with(source_id, s)))
                    and ($8::text is null or value >= $8::numeric) "
                + $tail,
            $($argument,)+
            $kind as OutcomeKind,
            units,
            positive,
            sources,
            minimum,
            $periods.first,
            $periods.last,
        )
    }};
}

/// The arguments of the filter in SQL; [`OutcomeFilter::admits`] has the same predicates.
struct Columns<'a> {
    units: Option<&'a [String]>,
    positive: Option<bool>,
    sources: Option<&'a [String]>,
    minimum: Option<String>,
}

impl<'a> Columns<'a> {
    fn of(filter: &'a OutcomeFilter) -> Self {
        let kinds = filter.kinds.as_deref().unwrap_or_default();
        let (positive, negative) = (kinds.contains(&Kind::Positive), kinds.contains(&Kind::Negative));
        Self {
            units: filter.units.as_deref(),
            positive: (positive != negative).then_some(positive),
            sources: filter.sources.as_deref(),
            minimum: filter.minimum.map(|minimum: Decimal| minimum.to_string()),
        }
    }
}

impl Store {
    /// For each destination, its last outcome of a kind that the filter admits, above `after` and below the number beside
    /// it; `None`: there is none.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn outcomes_before(
        &self,
        shard: ShardId,
        kind: OutcomeKind,
        filter: &OutcomeFilter,
        after: Seq,
        places: &[(&str, Seq)],
    ) -> Result<Vec<Option<Seq>>, Error> {
        let _watch = Watch::start("webhook.outcomes_before");
        let (destinations, below): (Vec<&str>, Vec<Seq>) = places.iter().copied().unzip();
        let rows = match kind {
            OutcomeKind::Processed | OutcomeKind::Alert | OutcomeKind::TotalAlert => {
                let upto = below.iter().copied().max().unwrap_or(after);
                let periods = Periods::of(&self.pool, shard, SeqRange { after, upto }).await?;
                // Without the shard: the destination has one, and the primary key would be the wrong index.
                let rows = admitted_records!(
                    "select (select seq from records
                             where destination_id = p.destination_id and seq < p.below and seq > $3",
                    r#"order by seq desc limit 1) as "seq: Seq"
                       from unnest($1::text[], $2::bigint[]) with ordinality as p (destination_id, below, at) order by at"#,
                    kind,
                    filter,
                    periods,
                    &destinations as &[&str],
                    &below as &[Seq],
                    after as Seq,
                );
                rows.fetch_all(&self.pool).await?
            }
            OutcomeKind::DeadLettered => {
                sqlx::query_scalar!(
                    r#"select (select n from dead_letters
                               where coalesce(destination_id, '') = p.destination_id and shard = $4 and n < p.below and n > $3
                               order by n desc limit 1) as "seq: Seq"
                       from unnest($1::text[], $2::bigint[]) with ordinality as p (destination_id, below, at) order by at"#,
                    &destinations as &[&str],
                    &below as &[Seq],
                    after as Seq,
                    shard as ShardId,
                )
                .fetch_all(&self.pool)
                .await?
            }
            OutcomeKind::Conflicted => {
                sqlx::query_scalar!(
                    r#"select (select n from conflicts
                               where destination_id = p.destination_id and shard = $4 and n < p.below and n > $3
                               order by n desc limit 1) as "seq: Seq"
                       from unnest($1::text[], $2::bigint[]) with ordinality as p (destination_id, below, at) order by at"#,
                    &destinations as &[&str],
                    &below as &[Seq],
                    after as Seq,
                    shard as ShardId,
                )
                .fetch_all(&self.pool)
                .await?
            }
        };
        Ok(rows)
    }

    /// The first outcome of a destination in a range that the filter admits.
    ///
    /// # Errors
    /// When Postgres does not answer.
    pub async fn first_outcome(
        &self,
        shard: ShardId,
        kind: OutcomeKind,
        filter: &OutcomeFilter,
        destination: &str,
        range: SeqRange,
    ) -> Result<Option<Seq>, Error> {
        let SeqRange { after, upto } = range;
        if !filter.admits_destination(destination) {
            return Ok(None);
        }
        let found = match kind {
            OutcomeKind::Processed | OutcomeKind::Alert | OutcomeKind::TotalAlert => {
                let periods = Periods::of(&self.pool, shard, range).await?;
                let found = admitted_records!(
                    r#"select seq as "seq: Seq" from records where destination_id = $1 and seq > $2 and seq <= $3"#,
                    "order by seq limit 1",
                    kind,
                    filter,
                    periods,
                    destination,
                    after as Seq,
                    upto as Seq,
                );
                found.fetch_optional(&self.pool).await?
            }
            OutcomeKind::DeadLettered => {
                sqlx::query_scalar!(
                    r#"select n as "seq: Seq" from dead_letters
                       where coalesce(destination_id, '') = $1 and shard = $2 and n > $3 and n <= $4 order by n limit 1"#,
                    destination,
                    shard as ShardId,
                    after as Seq,
                    upto as Seq,
                )
                .fetch_optional(&self.pool)
                .await?
            }
            OutcomeKind::Conflicted => {
                sqlx::query_scalar!(
                    r#"select n as "seq: Seq" from conflicts
                       where destination_id = $1 and shard = $2 and n > $3 and n <= $4 order by n limit 1"#,
                    destination,
                    shard as ShardId,
                    after as Seq,
                    upto as Seq,
                )
                .fetch_optional(&self.pool)
                .await?
            }
        };
        Ok(found)
    }
}
