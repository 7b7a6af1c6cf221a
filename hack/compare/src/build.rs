//! A build of Millrace, and the manifest in its spelling.
//!
//! Must never decide by a revision: the binary's own answers show what it takes.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::settings::Settings;

/// The API key of each pipeline.
pub(crate) const KEY: &str = "mk_compare_0123456789abcdef0123456789abcdef";
/// The threshold of alerts.
pub(crate) const THRESHOLD: u64 = 1_000;

/// A build under measurement.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Build {
    /// What the report calls it.
    pub(crate) name: String,
    #[serde(skip)]
    pub(crate) binary: PathBuf,
    pub(crate) spelling: Spelling,
    /// What its rounds have beside those of the base.
    pub(crate) with: Option<With>,
}

/// What the rounds of a build have, and those of the base have not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum With {
    /// Limits of requests, records and bytes in the manifest, far above the load
    Limits,
    /// Two thresholds on totals, of keys and of destinations, with steps that one record in some two hundred passes, and a sink
    TotalThresholds,
    /// In `answers`: a source beside the load that sends ten times its rate, refused or not
    LoudSource,
    /// In `batches` and `singles`: an open console, which shows the overview
    Console,
}

impl With {
    /// Lines of the manifest.
    fn lines(self) -> &'static str {
        match self {
            Self::Limits => {
                "  limits:\n    \
                 perKey: { requestsPerSecond: 100000000, recordsPerSecond: 100000000, bytesInFlight: 100000000000 }\n    \
                 pipeline: { requestsPerSecond: 100000000, recordsPerSecond: 100000000, bytesInFlight: 100000000000 }\n"
            }
            Self::TotalThresholds => {
                "  totalThresholds:\n    \
                 - { name: key, unit: EUR, above: \"100000\", every: \"100000\", per: Key }\n    \
                 - { name: destination, unit: EUR, above: \"100000\", every: \"100000\", per: Destination }\n"
            }
            Self::LoudSource | Self::Console => "",
        }
    }

    /// The event of a sink that it adds, which nobody reads.
    fn sink(self) -> Option<&'static str> {
        (self == Self::TotalThresholds).then_some("TotalAlert")
    }
}

/// How a build's manifest names the outcomes of a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Spelling {
    Event,
    On,
}

impl Spelling {
    /// The newest first.
    const ALL: [Self; 2] = [Self::Event, Self::On];

    fn field(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::On => "on",
        }
    }
}

/// Where a pipeline runs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) pipeline: String,
    pub(crate) settings: Settings,
    pub(crate) redis_url: String,
    pub(crate) postgres_url: String,
    /// The folder of manifest and logs.
    pub(crate) dir: PathBuf,
}

impl Place {
    /// The stream of a sink: its name is the manifest's, so that no build's default counts.
    pub(crate) fn stream(&self, sink: &str) -> String {
        format!("{}.{sink}", self.pipeline)
    }

    /// Names of the sinks that nobody reads.
    pub(crate) fn more_sinks(&self) -> impl Iterator<Item = String> {
        (1..=self.settings.more_sinks).map(|n| format!("copy-{n}"))
    }

    fn manifest(&self) -> PathBuf {
        self.dir.join("pipeline.yaml")
    }

    /// The declared rollups; nothing where there are none, which every build accepts.
    fn rollups(&self) -> String {
        let all = (1..=self.settings.rollups)
            .map(|n| format!("  - {{ name: rollup-{n}, window: 1h, groupBy: [destinationId] }}\n"));
        all.fold(
            String::new(),
            |text, rollup| if text.is_empty() { format!("  rollups:\n{rollup}") } else { text + &rollup },
        )
    }

    fn write_manifest(&self, build: &Build) -> anyhow::Result<()> {
        let spelling = build.spelling;
        let sink = |name: &str, event: &str| {
            let (field, stream) = (spelling.field(), self.stream(name));
            format!("  - {{ name: {name}, {field}: {event}, redisStream: {{ stream: {stream}, maxLength: 0 }} }}\n")
        };
        let text = format!(
            "apiVersion: millrace.dev/v1alpha1\nkind: RecordPipeline\nmetadata: {{ name: {} }}\nspec:\n  \
             threshold: \"{THRESHOLD}\"\n  shards: {}\n  backlogLimit: {}\n{}{}  sinks:\n{}{}{}{}",
            self.pipeline,
            self.settings.shards,
            self.settings.backlog_limit,
            build.with.map(With::lines).unwrap_or_default(),
            self.rollups(),
            sink("notifications", "Processed"),
            sink("alerts", "Alert"),
            build.with.and_then(With::sink).map(|event| sink("total-alerts", event)).unwrap_or_default(),
            self.more_sinks().map(|name| sink(&name, "Processed")).collect::<String>(),
        );
        fs::write(self.manifest(), text).context("the manifest")
    }
}

impl Build {
    /// Finds out the spelling by a migration with each, in a database that is thrown away.
    pub(crate) fn find(name: &str, binary: &Path, with: Option<With>, place: &Place) -> anyhow::Result<Self> {
        let binary = binary.canonicalize().with_context(|| binary.display().to_string())?;
        let mut refusals = Vec::new();
        for spelling in Spelling::ALL {
            let build = Self { name: name.to_owned(), binary: binary.clone(), spelling, with };
            match build.migrate(place) {
                Ok(()) => return Ok(build),
                Err(refusal) => refusals.push(format!("{}: {refusal:#}", spelling.field())),
            }
        }
        bail!("{name} takes no known spelling of the manifest: {}", refusals.join("; "))
    }

    /// Writes the manifest and migrates.
    pub(crate) fn migrate(&self, place: &Place) -> anyhow::Result<()> {
        place.write_manifest(self)?;
        let Output { status, stderr, .. } = self.command("migrate", place).output()?;
        if status.success() {
            return Ok(());
        }
        bail!("migrate ended with {status}: {}", String::from_utf8_lossy(&stderr).trim())
    }

    /// A subcommand. By variables, not by flags: a variable that a build has not is ignored.
    pub(crate) fn command(&self, subcommand: &str, place: &Place) -> Command {
        // It ends with this program, however that ends.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig=KILL", "--"]).arg(&self.binary).arg(subcommand);
        command.env_clear().stdin(Stdio::null());
        command
            .env("MILLRACE_PIPELINE", place.manifest())
            .env("MILLRACE_REDIS_URL", &place.redis_url)
            .env("MILLRACE_POSTGRES_URL", &place.postgres_url)
            .env("MILLRACE_LOG", "warn");
        command
    }
}
