//! Reasons of problems, of the ends of jobs, and of conditions and Events of the resource: one word for one cause.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident,)+) => {
        /// A stable word in CamelCase. The causes of `/status` come first, the worst at the top: causes that keep a
        /// process from its pipeline, then causes of its servers, then those of its manifest.
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)+
            /// A word of another version.
            Other(String),
        }

        impl Reason {
            /// The word.
            #[must_use]
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$name => stringify!($name),)+
                    Self::Other(word) => word,
                }
            }
        }

        impl From<String> for Reason {
            fn from(word: String) -> Self {
                match word.as_str() {
                    $(stringify!($name) => Self::$name,)+
                    _ => Self::Other(word),
                }
            }
        }
    };
}

reasons! {
    /// The schema or a stream belongs to another pipeline.
    OtherPipeline,
    /// The schema needs a newer version of Millrace.
    SchemaTooNew,
    /// The content of a Secret cannot be used.
    SecretInvalid,
    /// A Secret, or a key of it, is missing.
    SecretNotFound,
    /// A pooler before Postgres gives statements of one connection to several sessions.
    PoolerInTransactionMode,
    /// A file of a TLS connection is no certificate or no key, or the two do not belong together.
    TlsFilesInvalid,
    /// A certificate of a TLS connection expired: the server's, the client's, or all of the trusted authorities.
    TlsExpired,
    /// No trusted authority signed the server's certificate.
    TlsUntrusted,
    /// The server's certificate is of another name than the URL has.
    TlsNameMismatch,
    /// The server does not accept the client's certificate, or requires one.
    TlsClientRefused,
    /// The server answers without TLS, which the URL asks for.
    TlsNotOffered,
    /// The schema is missing, or older than this version.
    NotMigrated,
    /// Postgres does not answer.
    PostgresUnreachable,
    /// Postgres does not admit the user, or its password.
    PostgresAccessDenied,
    /// Postgres has no database of that name.
    PostgresDatabaseNotFound,
    /// The role lacks a right to the schema or to a table.
    PostgresPermissionDenied,
    /// Postgres is a standby.
    PostgresStandby,
    /// Postgres answers and takes no writes.
    PostgresReadOnlyOrFull,
    /// Another session holds a lock that a write waits for.
    PostgresLocked,
    /// A table partition for records to come is missing, and cannot be created.
    PartitionMissing,
    /// A table partition whose records are no longer to be kept cannot be dropped.
    PartitionOverdue,
    /// A table partition that is due cannot be written to the archive, and stays.
    ArchiveFailing,
    /// Redis does not answer.
    RedisUnreachable,
    /// Redis does not admit the user, or refuses it a command or key.
    RedisAccessDenied,
    /// The user lacks commands or keys that Millrace needs.
    RedisAclMissing,
    /// Redis takes no entries.
    RedisReadOnlyOrFull,
    /// The eviction policy of Redis may remove records.
    RedisEvicts,
    /// Redis may lose records that it acknowledged when it crashes.
    RedisNotDurable,
    /// The clocks of this host and of a server differ.
    ClockDifference,
    /// The issuer of access tokens does not return its keys.
    IssuerUnreachable,
    /// The standby for queries does not answer, or cannot be used as one.
    StandbyUnavailable,
    /// The standby for queries is further behind than queries may be.
    StandbyBehind,
    /// A newer version appended an entry in a format that this one does not support.
    StreamFormatUnknown,
    /// The schema is not claimed for the manifest's uid.
    UidNotClaimed,
    /// The manifest cannot be read or breaks rules.
    ManifestInvalid,
    /// The manifest may not become active.
    ManifestRefused,
    /// A job: the schema has the version of the image, and is claimed.
    Migrated,
    /// A job: no data of the pipeline is left.
    Purged,
    /// Workers of an earlier resource of this name hold leases.
    PreviousWorkersActive,
    /// Another session holds a lock that a migration needs.
    LockNotAvailable,
    /// A job failed for another cause.
    Failed,
    /// The job of a migration failed without a message.
    MigrationFailed,
    /// All shards run the generation that the condition names.
    ManifestActive,
    /// Nothing is left to do.
    Complete,
    /// Nothing is wrong.
    AsExpected,
    /// A job migrates the schema.
    Migrating,
    /// Pods are replaced, or shards do not run the new generation yet.
    RollingOut,
    /// Another pipeline takes the new default image first.
    WaitingForRollout,
    /// No workers are wanted.
    Stopped,
    /// `spec.paused` is true.
    Paused,
    /// A change by hand is needed.
    Stalled,
    /// The pipeline is being deleted and applies its backlog.
    Draining,
    /// The pipeline is being deleted and has no backlog.
    Drained,
    /// A job removes the data of the pipeline.
    Purging,
    /// The pipeline was deleted with a backlog.
    NotDrained,
    /// The pipeline was deleted and its data stays.
    NotPurged,
    /// The finalizer was removed.
    Deleted,
    /// Shards have no owner for longer than a lease.
    ShardsWithoutOwner,
    /// No pod answers on its health port.
    StatusUnknown,
    /// Redis does not show the settings that decide what it keeps.
    DurabilityUnknown,
    /// The spec breaks a rule that only the operator checks.
    InvalidSpec,
    /// A sink is halted.
    SinkHalted,
    /// The endpoint of a webhook answered that it is gone.
    SinkDisabled,
    /// The stream of a sink is full, or too many of its deliveries wait.
    SinkWaiting,
    /// A sink cannot publish.
    SinkFailing,
    /// The node cannot pull the image.
    ImagePullBackOff,
    /// A pod ends again and again.
    CrashLoopBackOff,
    /// No node takes the pod.
    Unschedulable,
    /// The quota of the namespace refuses an object.
    QuotaExceeded,
    /// A LimitRange refuses an object.
    LimitRangeViolated,
    /// An admission policy refuses an object.
    PolicyDenied,
    /// The Pod Security Standard of the namespace refuses a pod.
    PodSecurityViolated,
    /// An admission webhook refuses an object.
    WebhookDenied,
    /// An admission webhook does not answer.
    WebhookFailed,
    /// Pods are not created for another cause.
    PodsNotCreated,
    /// New pods are not ready in time.
    RolloutFailed,
    /// An object of that name belongs to another owner.
    NameClash,
    /// Objects of an earlier resource of this name are still being removed.
    PreviousObjectsTerminating,
    /// The API server refuses an object.
    Refused,
    /// The operator lacks a permission.
    Forbidden,
    /// `serve.httpRoute` is set and the cluster has no Gateway API.
    GatewayApiMissing,
    /// The namespace is being removed.
    NamespaceTerminating,
}

impl Reason {
    /// Whether a TLS connection cannot be made: its files, or one of the two certificates, have to change.
    #[must_use]
    pub fn is_of_tls(&self) -> bool {
        matches!(
            self,
            Self::TlsFilesInvalid
                | Self::TlsExpired
                | Self::TlsUntrusted
                | Self::TlsNameMismatch
                | Self::TlsClientRefused
                | Self::TlsNotOffered
        )
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for Reason {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::from)
    }
}
