//! Sweeps: rounds with one setting varied, each beside a round of the default.
//!
//! Must never compare a point with rounds of the default from another time: the machine changes over an hour.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use clap::{Args, ValueEnum};
use serde::Serialize;
use tokio::time::Instant;

use crate::{
    Names,
    build::Build,
    figures::{Figure, Figures},
    machine::Machine,
    report::{Row, aligned, write_json},
    round::{self, Mode},
    servers::Servers,
    settings::{Beside, Settings},
};

/// Records of the round that finds out how many a point needs.
const TRIAL_RECORDS: usize = 20_000;
/// A round's time beside its load: migration, checkpoint, waiting for an idle machine.
const AROUND_ROUND: Duration = Duration::from_secs(8);
/// Time to insert a row by SQL.
const ROW_TIME: Duration = Duration::from_micros(40);

/// The sweeps of a run.
#[derive(Debug, Args)]
pub(crate) struct Sweeps {
    /// Vary one setting at a time, with commas, instead of measuring modes
    #[arg(long, value_delimiter = ',')]
    sweeps: Vec<Sweep>,
    /// All of them
    #[arg(long)]
    all_sweeps: bool,
    /// Rounds of a point, each beside one of the default; of an even number each begins half
    #[arg(long, default_value_t = 4)]
    pairs: u16,
    /// Seconds that the load of a sweep's round takes, about
    #[arg(long, default_value_t = 10.0)]
    point_seconds: f64,
    /// Points that would end later than after so many minutes are left out
    #[arg(long, default_value_t = 90.0)]
    minutes: f64,
    /// Only the first so many points of each sweep
    #[arg(long)]
    points: Option<usize>,
}

impl Sweeps {
    /// The wanted ones.
    pub(crate) fn wanted(&self) -> &[Sweep] {
        if self.all_sweeps { Sweep::value_variants() } else { &self.sweeps }
    }
}

/// A setting that is varied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Sweep {
    /// Destinations: one, a thousand by Zipf's law, a million
    Keys,
    /// Percentage of duplicates
    Duplicates,
    /// Records of a request
    Batch,
    /// Most records of a transaction, which ends at the end of an entry: 1 is one entry
    Commit,
    Shards,
    /// Processes that work
    Workers,
    /// Sinks of all processed records, beside the two that are read
    Sinks,
    /// Characters of attributes
    Attributes,
    /// Declared rollups per hour and destination
    Rollups,
    /// Partitions of earlier periods, without rows
    Partitions,
    /// A client that sends records of one id to two destinations at once, beside one whose records have two
    Collisions,
    /// Rows in the tables before; ids are random, or only one end of an index is used
    Rows,
    /// The same with ids in order
    RowsInOrder,
}

impl fmt::Display for Sweep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().ok_or(fmt::Error)?.get_name())
    }
}

impl Sweep {
    /// The default beside its points.
    fn default_of(self, default: Settings) -> Settings {
        match self {
            Self::Rows => Settings { random_ids: true, ..default },
            Self::Collisions => Settings { beside: Beside::TwoIds, ..default },
            _ => default,
        }
    }

    /// The settings of its points.
    fn points(self, default: Settings) -> Vec<Settings> {
        let it = self.default_of(default);
        match self {
            Self::Keys => {
                vec![Settings { keys: 1, ..it }, Settings { zipf: true, ..it }, Settings { keys: 1_000_000, ..it }]
            }
            Self::Duplicates => [10, 50, 90].map(|duplicates| Settings { duplicates, ..it }).to_vec(),
            Self::Batch => [1, 10, 100, 1_000].map(|batch| Settings { batch, ..it }).to_vec(),
            Self::Commit => [1, 100, 300].map(|commit| Settings { commit, ..it }).to_vec(),
            Self::Shards => [1, 4, 64].map(|shards| Settings { shards, ..it }).to_vec(),
            Self::Workers => [2, 4].map(|workers| Settings { workers, ..it }).to_vec(),
            Self::Sinks => [1, 3, 7].map(|more_sinks| Settings { more_sinks, ..it }).to_vec(),
            Self::Attributes => [256, 1_024, 4_096].map(|attributes| Settings { attributes, ..it }).to_vec(),
            Self::Rollups => [1, 4].map(|rollups| Settings { rollups, ..it }).to_vec(),
            Self::Partitions => vec![Settings { partitions: 399, ..it }],
            Self::Collisions => vec![Settings { beside: Beside::OneId, ..it }],
            Self::Rows => [1_000_000, 5_000_000, 20_000_000].map(|rows| Settings { rows, ..it }).to_vec(),
            Self::RowsInOrder => vec![Settings { rows: 20_000_000, ..it }],
        }
    }
}

/// The result of a run, as JSON.
#[derive(Debug, Serialize)]
struct Report {
    /// Seconds since 1970.
    ended_at: u64,
    machine: Machine,
    servers: String,
    perf: bool,
    build: String,
    mode: Mode,
    pairs: u16,
    point_seconds: f64,
    points: Vec<Point>,
    /// Points for which no time was left, as sweep and settings.
    left_out: Vec<LeftOut>,
}

/// A point: its rounds, and those of the default that were measured next to them.
#[derive(Debug, Serialize)]
struct Point {
    sweep: Sweep,
    default: Settings,
    settings: Settings,
    default_rounds: Vec<Figures>,
    rounds: Vec<Figures>,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    sweep: Sweep,
    settings: Settings,
}

/// Runs the sweeps, and writes the file after each point.
pub(crate) async fn run(
    args: &Sweeps,
    default: Settings,
    build: &Build,
    machine: Machine,
    servers: &mut Servers,
    json: Option<&Path>,
) -> anyhow::Result<()> {
    let report = Report {
        ended_at: 0,
        machine,
        servers: servers.versions.clone(),
        perf: servers.has_perf,
        build: build.name.clone(),
        mode: Mode::Batches,
        pairs: args.pairs,
        point_seconds: args.point_seconds,
        points: Vec::new(),
        left_out: Vec::new(),
    };
    let began = Instant::now();
    let json = json.map(Path::to_owned);
    let mut run = Run { args, build, servers, names: Names::default(), began, json, report, trials: Vec::new() };
    for &sweep in args.wanted() {
        for settings in sweep.points(default).into_iter().take(args.points.unwrap_or(usize::MAX)) {
            if run.has_time_for(settings) {
                run.point(sweep, sweep.default_of(default), settings).await?;
            } else {
                println!("{sweep}: no time is left for {}", difference(sweep.default_of(default), settings)?);
                run.report.left_out.push(LeftOut { sweep, settings });
            }
            run.write()?;
        }
    }
    println!("{} points in {:.0} minutes", run.report.points.len(), began.elapsed().as_secs_f64() / 60.0);
    Ok(())
}

/// A run of sweeps.
struct Run<'a> {
    args: &'a Sweeps,
    build: &'a Build,
    servers: &'a mut Servers,
    names: Names,
    began: Instant,
    json: Option<PathBuf>,
    report: Report,
    /// Settings that have had a trial round.
    trials: Vec<Trial>,
}

/// Settings before a trial round, and with the number of records that it found.
struct Trial {
    before: Settings,
    after: Settings,
}

impl Run<'_> {
    fn has_time_for(&self, settings: Settings) -> bool {
        let pairs = u32::from(self.args.pairs);
        let pair = 2 * (AROUND_ROUND + Duration::from_secs_f64(self.args.point_seconds));
        let rows = ROW_TIME * u32::try_from(settings.rows).unwrap_or(u32::MAX);
        let limit = Duration::from_secs_f64(self.args.minutes * 60.0);
        // Two trial rounds come first.
        self.began.elapsed() + pairs * (pair + rows) + 2 * AROUND_ROUND <= limit
    }

    /// Measures A B, B A, and so on, where A is the default.
    async fn point(&mut self, sweep: Sweep, default: Settings, settings: Settings) -> anyhow::Result<()> {
        let (default, settings) = (self.sized(default).await?, self.sized(settings).await?);
        let mut rounds = [Vec::new(), Vec::new()];
        for n in 0..self.args.pairs {
            let mut order = [(0, default), (1, settings)];
            if n % 2 == 1 {
                order.reverse();
            }
            for (at, settings) in order {
                rounds[at].push(self.round(settings).await?);
            }
        }
        let rows: Vec<Vec<String>> =
            Figure::ALL.into_iter().filter_map(|figure| Row::of(figure, &rounds)).map(|row| row.cells()).collect();
        let head = [difference(default, settings)?, "default".to_owned(), "point".to_owned(), "ratio".to_owned()];
        println!("\n{}", aligned(&head, &rows));
        let [default_rounds, rounds] = rounds;
        self.report.points.push(Point { sweep, default, settings, default_rounds, rounds });
        Ok(())
    }

    /// The settings with as many records as take the wanted time, by a trial round, which also warms the servers up.
    async fn sized(&mut self, before: Settings) -> anyhow::Result<Settings> {
        if let Some(trial) = self.trials.iter().find(|trial| trial.before == before) {
            return Ok(trial.after);
        }
        let figures = self.round(Settings { records: TRIAL_RECORDS, rows: 0, ..before }).await?;
        let rate = figures.get(Figure::RecordsPerSecond).unwrap_or(0.0);
        let thousands = (rate * self.args.point_seconds / 1_000.0).round().clamp(2.0, 2_000.0);
        let after = Settings { records: thousands as usize * 1_000, ..before };
        self.trials.push(Trial { before, after });
        Ok(after)
    }

    async fn round(&mut self, settings: Settings) -> anyhow::Result<Figures> {
        let name = self.names.next();
        round::run(self.servers, self.build, Mode::Batches, &settings, &name).await
    }

    fn write(&mut self) -> anyhow::Result<()> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
        self.report.ended_at = now.as_secs();
        self.json.as_deref().map_or(Ok(()), |file| write_json(file, &self.report))
    }
}

/// The settings of a point that the default has otherwise, without the number of records.
fn difference(default: Settings, settings: Settings) -> anyhow::Result<String> {
    let (default, settings) = (serde_json::to_value(default)?, serde_json::to_value(settings)?);
    let all = settings.as_object().into_iter().flatten();
    let different = all.filter(|(name, value)| *name != "records" && default[name.as_str()] != **value);
    Ok(different.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use clap::{Parser, ValueEnum as _};

    use super::{Settings, Sweep, difference};

    #[derive(Parser)]
    struct Args {
        #[command(flatten)]
        settings: Settings,
    }

    #[test]
    fn each_point_differs_from_the_default_beside_it_in_one_setting() {
        let default = Args::parse_from(["test"]).settings;
        for sweep in Sweep::value_variants() {
            let beside = sweep.default_of(default);
            for point in sweep.points(default) {
                let difference = difference(beside, point).unwrap();
                assert!(!difference.is_empty() && !difference.contains(','), "{sweep}: {difference}");
            }
        }
    }
}
