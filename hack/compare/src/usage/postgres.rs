//! Counters of Postgres: position of the WAL, and its fsyncs where perf cannot count them.

use sqlx::PgConnection;

/// Bytes of WAL written since the cluster was created.
pub(crate) async fn wal_bytes(postgres: &mut PgConnection) -> sqlx::Result<u64> {
    let query = "select pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint";
    sqlx::query_scalar::<_, i64>(query).fetch_one(postgres).await.map(i64::cast_unsigned)
}

/// Fsyncs of the WAL that ended sessions have reported. A session that lives may hold its latest ones back for seconds.
pub(crate) async fn wal_fsyncs(postgres: &mut PgConnection) -> sqlx::Result<u64> {
    let version: i32 =
        sqlx::query_scalar("select current_setting('server_version_num')::int").fetch_one(&mut *postgres).await?;
    let query = if version < 180_000 {
        "select wal_sync from pg_stat_wal"
    } else {
        "select sum(fsyncs)::bigint from pg_stat_io where object = 'wal'"
    };
    sqlx::query_scalar::<_, i64>(query).fetch_one(postgres).await.map(i64::cast_unsigned)
}
