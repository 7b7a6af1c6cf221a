//! The metrics of one publisher of a webhook.

use metrics::{Counter, Gauge};

use crate::{domain::ShardId, publish::state::lag, telemetry::metrics as names};

/// Metrics of one publisher. To look a metric up costs more than to set it.
pub(super) struct Measures {
    pub(super) published: Counter,
    pub(super) delivered: Counter,
    pub(super) failed: Counter,
    pub(super) lag: Gauge,
    pub(super) waiting: Gauge,
}

impl Measures {
    pub(super) fn new(sink: &str, shard: ShardId) -> Self {
        let lag = lag(sink, shard);
        let (sink, shard) = (sink.to_owned(), shard.to_string());
        Self {
            published: metrics::counter!(names::PUBLISHED, "sink" => sink.clone()),
            delivered: metrics::counter!(names::DELIVERIES, "sink" => sink.clone(), "result" => "delivered"),
            failed: metrics::counter!(names::DELIVERIES, "sink" => sink.clone(), "result" => "failed"),
            lag,
            waiting: metrics::gauge!(names::DELIVERIES_WAITING, "sink" => sink, "shard" => shard),
        }
    }
}
