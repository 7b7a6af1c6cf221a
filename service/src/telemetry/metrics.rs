//! The metrics of this process: all names, what they mean, and their text for Prometheus.
//!
//! A metric that is not named here is not described there: add its constant and its line in [`describe`].

use std::time::Duration;

use anyhow::Context as _;
use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// Counter: records that were accepted (202), redeliveries by clients counted too.
pub const ACCEPTED: &str = "millrace_accepted_records_total";
/// Counter by `code`: records that were not accepted.
pub const REJECTED: &str = "millrace_rejected_records_total";
/// Counter by `limit` (`key-requests`, `pipeline-bytes` and so on): refusals by a limit of `spec.limits` or of a key.
pub const LIMITED: &str = "millrace_limited_requests_total";
/// Counter: records refused because their source holds more than its share of a shard's backlog.
pub const OVER_SHARE: &str = "millrace_over_share_records_total";
/// Histogram: from asking Redis to append until it has the entries on disk.
pub const APPEND_SECONDS: &str = "millrace_append_seconds";
/// Histogram: from a request's arrival until its answer begins, by `method`, `route`, `status`; its count is the
/// number of requests.
pub const HTTP_SECONDS: &str = "millrace_http_request_seconds";
/// Counter: connections that were refused because as many as there may be were open.
pub const REFUSED_CONNECTIONS: &str = "millrace_http_refused_connections_total";
/// Gauge: when the keys of the issuer in `spec.oidc` were last read, in seconds since 1970; absent without an issuer.
pub const ISSUER_KEYS_READ: &str = "millrace_issuer_keys_read_timestamp_seconds";
/// Gauge by `shard`: records that are not applied yet. Each process exports all shards, as Redis has them.
pub const BACKLOG: &str = "millrace_backlog_records";
/// Histogram: entries in a micro-batch.
pub const BATCH_RECORDS: &str = "millrace_batch_records";
/// Histogram: a micro-batch's transaction, from begin to commit.
pub const COMMIT_SECONDS: &str = "millrace_commit_seconds";
/// Histogram: from accepting a record until it is committed.
pub const PROCESS_SECONDS: &str = "millrace_accept_to_commit_seconds";
/// Counter: records processed.
pub const PROCESSED: &str = "millrace_processed_total";
/// Counter: entries whose id was taken by the same content.
pub const DUPLICATES: &str = "millrace_duplicates_total";
/// Counter: entries whose id was taken by other content.
pub const CONFLICTS: &str = "millrace_conflicts_total";
/// Counter by `reason`: dead letters opened.
pub const DEAD_LETTERS: &str = "millrace_dead_letters_total";
/// Counter: records above their threshold.
pub const ALERTS: &str = "millrace_alerts_total";
/// Counter: thresholds on totals that records took a total over.
pub const TOTAL_ALERTS: &str = "millrace_total_alerts_total";
/// Counter: entries delivered again after they were applied; they change nothing.
pub const REDELIVERED: &str = "millrace_redelivered_total";
/// Counter by `shard`: records that were lost before they were applied. Above zero is an alarm.
pub const LOST: &str = "millrace_lost_records_total";
/// Counter by `shard`: producers that died while Redis was rewound. Above zero, records can be lost whose number no server
/// holds.
pub const UNCERTAIN_LOSSES: &str = "millrace_uncertain_losses_total";
/// Counter by `shard`: how often a stream or its group was gone. Above zero is an alarm.
pub const RECREATED: &str = "millrace_streams_recreated_total";
/// Counter by `shard`: how often Postgres was found behind what was acknowledged or published. Above zero is an alarm.
pub const REWINDS: &str = "millrace_postgres_rewinds_total";
/// Counter by `change` (taken, lost, released): shards that changed owner.
pub const LEASE_CHANGES: &str = "millrace_lease_changes_total";
/// Counter by `rollup`: stored records that the background build added to a declared rollup.
pub const ROLLUP_RECORDS: &str = "millrace_rollup_built_records_total";
/// Gauge: the first day of the oldest partition that is due to be dropped, in seconds since 1970; 0 while none is.
pub const RETENTION_DUE: &str = "millrace_retention_due_partition_timestamp_seconds";
/// Gauge: since when that partition is due, in seconds since 1970; 0 while none is.
pub const RETENTION_DUE_SINCE: &str = "millrace_retention_due_since_timestamp_seconds";
/// Counter: partitions that this worker dropped.
pub const RETENTION_PARTITIONS: &str = "millrace_retention_dropped_partitions_total";
/// Counter: records that this worker wrote to the archive.
pub const ARCHIVED_RECORDS: &str = "millrace_archived_records_total";
/// Counter: bytes of objects that this worker wrote to the archive.
pub const ARCHIVED_BYTES: &str = "millrace_archived_bytes_total";
/// Counter by `kind` (ids, duplicates, conflicts, dead_letters, rollup_rows): rows that retention deleted.
pub const RETENTION_ROWS: &str = "millrace_retention_deleted_rows_total";
/// Gauge: shards that this worker owns.
pub const SHARDS_OWNED: &str = "millrace_shards_owned";
/// Gauge by `shard` and `sink`: outcomes that are committed and not published yet.
pub const SINK_LAG: &str = "millrace_sink_lag_outcomes";
/// Counter by `sink`: outcomes published.
pub const PUBLISHED: &str = "millrace_published_total";
/// Histogram by `sink`: from accepting a record until its outcome is in the sink's stream. A sink that is rewound or begins in
/// the past counts the age of what it publishes.
pub const PUBLISH_SECONDS: &str = "millrace_accept_to_publish_seconds";
/// Counter by `sink`: reads of the log by publishers that were too far behind for memory.
pub const POSTGRES_READS: &str = "millrace_publisher_postgres_reads_total";
/// Counter by `sink`: entries trimmed by `overflow: Trim` before every group had acknowledged them.
pub const TRIMMED_UNREAD: &str = "millrace_sink_trimmed_unread_total";
/// Gauge by `sink` and `shard`: 1 while it is halted until someone resumes it.
pub const SINK_HALTED: &str = "millrace_sink_halted";
/// Counter by `sink` and `result` (delivered, failed): requests to the endpoints of webhooks.
pub const DELIVERIES: &str = "millrace_delivery_attempts_total";
/// Gauge by `sink` and `shard`: deliveries of webhooks that wait for a retry.
pub const DELIVERIES_WAITING: &str = "millrace_deliveries_waiting";
/// Gauge: the version of the manifest that is active.
pub const POLICY_VERSION: &str = "millrace_policy_version";
/// Gauge: the age of the newest state of the primary that the standby for queries is known to have; absent without a standby.
pub const STANDBY_STALENESS: &str = "millrace_standby_staleness_seconds";
/// Counter by `outcome` (answered, stale, failed): requests that asked for the standby; all but `answered` read from the primary.
pub const STANDBY_QUERIES: &str = "millrace_standby_queries_total";
/// Gauge: 1 while this process's manifest file is not what is active.
pub const MANIFEST_REFUSED: &str = "millrace_manifest_refused";
/// Gauge: when the last `millrace verify` without differences ended, in seconds since 1970; absent without one.
pub const VERIFY_LAST_SUCCESS: &str = "millrace_verify_last_success_timestamp_seconds";
/// Gauge: differences that the last `millrace verify` found; absent without one.
pub const VERIFY_DIFFERENCES: &str = "millrace_verify_differences";
/// Gauge: 1 while the last `millrace verify` could not compare; absent without one.
pub const VERIFY_FAILED: &str = "millrace_verify_failed";
/// Gauge by `reason`: 1 while `/status` of this process has the problem, 0 once it is over.
pub const PROBLEM: &str = "millrace_process_problem";
/// Gauge by `pool` (queries, commits): connections to Postgres that are in use.
pub const CONNECTIONS_USED: &str = "millrace_postgres_connections_used";
/// Gauge by `pool`: most connections to Postgres.
pub const CONNECTIONS_MOST: &str = "millrace_postgres_connections_max";

/// Half a millisecond to ten seconds.
const SECONDS: [f64; 14] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const RECORDS: [f64; 11] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0, 2_000.0];
const BYTES: [f64; 8] = [256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 16_777_216.0];

/// Between two passes over the histograms; what was observed is kept one by one until then.
const UPKEEP: Duration = Duration::from_secs(5);

/// The metrics of this process, for reading.
#[derive(Debug, Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// The text that Prometheus reads.
    #[must_use]
    pub fn render(&self) -> String {
        self.0.render()
    }

    /// Makes the process's recorder.
    pub(super) fn install() -> anyhow::Result<Self> {
        let recorder = recorder()?;
        let handle = recorder.handle();
        metrics::set_global_recorder(recorder).context("metrics were started already")?;
        describe();
        Ok(Self(handle))
    }

    /// Keeps the memory of histograms bounded, for ever.
    pub(super) async fn upkeep(self) {
        let mut passes = tokio::time::interval(UPKEEP);
        loop {
            passes.tick().await;
            self.0.run_upkeep();
        }
    }

    /// Metrics that nothing else in the test's process writes.
    #[cfg(test)]
    pub(crate) fn local() -> (PrometheusRecorder, Self) {
        let recorder = recorder().unwrap();
        let handle = recorder.handle();
        (recorder, Self(handle))
    }
}

fn recorder() -> anyhow::Result<PrometheusRecorder> {
    let builder = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_records".to_owned()), &RECORDS)?
        .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES)?;
    Ok(builder.build_recorder())
}

/// Says what each metric means.
fn describe() {
    describe_counter!(ACCEPTED, "Records that were accepted");
    describe_counter!(REJECTED, "Records that were not accepted, by code");
    describe_counter!(LIMITED, "Refusals by a limit, by limit");
    describe_counter!(OVER_SHARE, "Records refused because their source holds its share of a shard's backlog");
    describe_histogram!(APPEND_SECONDS, Unit::Seconds, "From asking Redis to append until it has the entries on disk");
    describe_histogram!(
        HTTP_SECONDS,
        Unit::Seconds,
        "From a request's arrival until its answer begins, by method, route and status"
    );
    describe_counter!(REFUSED_CONNECTIONS, "Connections refused because as many as there may be were open");
    describe_gauge!(
        ISSUER_KEYS_READ,
        "When the keys of the issuer of access tokens were last read, in seconds since 1970"
    );
    describe_gauge!(BACKLOG, "Records that are not applied yet, by shard; each process exports all shards");
    describe_histogram!(BATCH_RECORDS, "Records of a batch");
    describe_histogram!(COMMIT_SECONDS, Unit::Seconds, "The transaction of a batch, from begin to commit");
    describe_histogram!(PROCESS_SECONDS, Unit::Seconds, "From accepting a record until it is committed");
    describe_counter!(PROCESSED, "Records processed");
    describe_counter!(DUPLICATES, "Entries whose id was taken by the same content");
    describe_counter!(CONFLICTS, "Entries whose id was taken by other content");
    describe_counter!(DEAD_LETTERS, "Dead letters opened, by reason");
    describe_counter!(ALERTS, "Records above their threshold");
    describe_counter!(TOTAL_ALERTS, "Thresholds on totals that records took a total over");
    describe_counter!(REDELIVERED, "Entries delivered again after they were applied; they change nothing");
    describe_counter!(LOST, "Records that were lost before they were applied, by shard; above zero is an alarm");
    describe_counter!(
        UNCERTAIN_LOSSES,
        "Producers that died while Redis was rewound, by shard; above zero, an unknown number of records can be lost"
    );
    describe_counter!(LEASE_CHANGES, "Shards that changed owner, by change");
    describe_counter!(ROLLUP_RECORDS, "Stored records that the background build added to a declared rollup, by rollup");
    describe_gauge!(SHARDS_OWNED, "Shards that this worker owns");
    describe_gauge!(SINK_LAG, "Outcomes that are committed and not published yet, by shard and sink");
    describe_counter!(RECREATED, "Recreations of a missing stream or group, by shard; above zero is an alarm");
    describe_counter!(REWINDS, "Rewinds of Postgres, by shard; above zero is an alarm");
    describe_counter!(POSTGRES_READS, "Reads from Postgres by publishers too far behind for memory, by sink");
    describe_counter!(TRIMMED_UNREAD, "Entries trimmed before every group had acknowledged them, by sink");
    describe_counter!(PUBLISHED, "Outcomes published, by sink");
    describe_histogram!(
        PUBLISH_SECONDS,
        Unit::Seconds,
        "From accepting a record until its outcome is in the sink's stream, by sink"
    );
    describe_counter!(DELIVERIES, "requests to the endpoints of webhooks, by result");
    describe_gauge!(DELIVERIES_WAITING, "deliveries of webhooks that wait for a retry");
    describe_gauge!(SINK_HALTED, "1 while the sink is halted until someone resumes it");
    describe_gauge!(POLICY_VERSION, "The active version of the manifest");
    describe_gauge!(
        VERIFY_LAST_SUCCESS,
        "When the last millrace verify without differences ended, in seconds since 1970"
    );
    describe_gauge!(VERIFY_DIFFERENCES, "Differences that the last millrace verify found");
    describe_gauge!(VERIFY_FAILED, "1 while the last millrace verify could not compare");
    describe_gauge!(PROBLEM, "1 while /status of this process has the problem, by reason");
    describe_gauge!(CONNECTIONS_USED, "Connections to Postgres that are in use, by pool");
    describe_gauge!(CONNECTIONS_MOST, "Most connections to Postgres, by pool");
    describe_standby();
    describe_gauge!(MANIFEST_REFUSED, "1 while this process's manifest file differs from the active one");
    describe_retention();
}

fn describe_standby() {
    describe_gauge!(
        STANDBY_STALENESS,
        Unit::Seconds,
        "Age of the newest state of the primary that the standby for queries is known to have"
    );
    describe_counter!(STANDBY_QUERIES, "Requests that asked for the standby, by outcome");
}

/// The metrics of retention and of the archive.
fn describe_retention() {
    describe_gauge!(
        RETENTION_DUE,
        Unit::Seconds,
        "First day of the oldest partition that is due to be dropped, as a Unix time; 0 while none is"
    );
    describe_gauge!(
        RETENTION_DUE_SINCE,
        Unit::Seconds,
        "Since when that partition is due, as a Unix time; 0 while none is"
    );
    describe_counter!(RETENTION_PARTITIONS, "Partitions that this worker dropped");
    describe_counter!(ARCHIVED_RECORDS, "Records that this worker wrote to the archive");
    describe_counter!(ARCHIVED_BYTES, Unit::Bytes, "Bytes of objects that this worker wrote to the archive");
    describe_counter!(RETENTION_ROWS, "Rows that retention deleted, by kind");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_have_buckets_and_metrics_have_help() {
        let (recorder, metrics) = Metrics::local();
        metrics::with_local_recorder(&recorder, || {
            describe();
            metrics::histogram!(COMMIT_SECONDS).record(0.0007);
            metrics::histogram!(BATCH_RECORDS).record(7.0);
            metrics::counter!(LOST, "shard" => "3").increment(2);
        });
        let text = metrics.render();
        for line in [
            "millrace_commit_seconds_bucket{le=\"0.0005\"} 0",
            "millrace_commit_seconds_bucket{le=\"0.001\"} 1",
            "millrace_batch_records_bucket{le=\"5\"} 0",
            "millrace_batch_records_bucket{le=\"10\"} 1",
            "millrace_lost_records_total{shard=\"3\"} 2",
            "# HELP millrace_lost_records_total Records that were lost",
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
    }
}
