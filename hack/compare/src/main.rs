//! The benchmark: measures builds of Millrace side by side, as black boxes, through HTTP and Redis.
//!
//! Uses no crate of the product, so that every build is measured by the same code. Must never measure two rounds at
//! once, nor give figures of a round that lost or repeated a notification.

mod build;
mod figures;
#[path = "../../free_port.rs"]
mod free_port;
mod load;
mod machine;
mod pipeline;
mod read;
mod report;
mod round;
mod servers;
mod settings;
mod stats;
mod sweep;
mod usage;

use std::{path::PathBuf, process::ExitCode};

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use build::{Build, Place, With};
use figures::{Figure, Figures};
use machine::Machine;
use report::{Report, Results};
use round::Mode;
use servers::Servers;
use settings::Settings;
use sweep::Sweeps;

/// Measures builds of Millrace beside each other, in alternate rounds.
#[derive(Debug, Parser)]
// The last one counts, so that a script's own options can be overridden.
#[command(args_override_self = true)]
struct Args {
    /// The binary to measure
    #[arg(long)]
    checkout: PathBuf,
    /// The name of that build in the report
    #[arg(long, default_value = "checkout")]
    checkout_name: String,
    /// The binary to compare it with
    #[arg(long)]
    base: Option<PathBuf>,
    /// The name of that build in the report
    #[arg(long, default_value = "base")]
    base_name: String,
    /// Redis, with `appendfsync always`, on this machine
    #[arg(long, env = "MILLRACE_TEST_REDIS_URL")]
    redis_url: String,
    /// Postgres, with its usual durability, on this machine, as a superuser
    #[arg(long, env = "MILLRACE_TEST_POSTGRES_URL")]
    postgres_url: String,
    /// What the checkout has, while the same build without it is the base
    #[arg(long, value_enum, conflicts_with = "base")]
    with: Option<With>,
    /// What to measure, with commas
    #[arg(long, value_delimiter = ',', default_values_t = Mode::USUAL)]
    modes: Vec<Mode>,
    /// Rounds of each build in each mode, five at least; of an even number each build begins half
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u16).range(5..))]
    rounds: u16,
    #[command(flatten)]
    settings: Settings,
    #[command(flatten)]
    sweeps: Sweeps,
    /// Writes all figures to a file, as JSON
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    // Processes are bound to the thread that started them: this one, which blocks until the end.
    let ran = tokio::runtime::Runtime::new().map_err(Into::into).and_then(|runtime| runtime.block_on(until_end(args)));
    match ran {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the benchmark failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs to the end or to a signal; the processes end with this.
async fn until_end(args: Args) -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate())?;
    tokio::select! {
        ran = run(args) => ran,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
        _ = terminated.recv() => Err(anyhow!("asked to end")),
    }
}

async fn run(args: Args) -> anyhow::Result<()> {
    let settings = args.settings;
    ensure!(settings.records > 0 && settings.singles > 0, "there have to be records");
    ensure!(settings.keys > 0 && settings.batch > 0, "there have to be keys, and records in a batch");
    ensure!(settings.rate * settings.seconds >= 1.0, "there have to be records in the time of latency");
    let mut servers = Servers::connect(&args.redis_url, &args.postgres_url).await?;
    let machine = Machine::read()?;
    println!("{} cores, {}, {} shards, {} keys", machine.cores, servers.versions, settings.shards, settings.keys);
    let builds = builds(&args, &mut servers).await?;
    if !args.sweeps.wanted().is_empty() {
        let [build] = builds.as_slice() else { bail!("sweeps measure one build") };
        return sweep::run(&args.sweeps, settings, build, machine, &mut servers, args.json.as_deref()).await;
    }
    let mut report = Report {
        machine,
        servers: servers.versions.clone(),
        perf: servers.has_perf,
        settings,
        rounds: usize::from(args.rounds),
        builds,
        modes: Vec::new(),
    };
    let mut names = Names::default();
    // Files of the WAL are made, binaries are read from disk: not in a round that counts.
    for build in &report.builds {
        let figures = round::run(&mut servers, build, args.modes[0], &settings, &names.next()).await?;
        show(args.modes[0], "warm-up", build, &figures);
    }
    for &mode in &args.modes {
        let mut rounds = vec![Vec::new(); report.builds.len()];
        for n in 0..report.rounds {
            // A B, B A, and so on: what grows over time meets both alike.
            let mut order: Vec<usize> = (0..report.builds.len()).collect();
            if n % 2 == 1 {
                order.reverse();
            }
            for at in order {
                let build = &report.builds[at];
                let figures = round::run(&mut servers, build, mode, &settings, &names.next()).await?;
                show(mode, &format!("{}/{}", n + 1, report.rounds), build, &figures);
                rounds[at].push(figures);
            }
        }
        report.modes.push(Results::of(mode, rounds));
    }
    println!("{}", report.table());
    if let Some(file) = &args.json {
        report.write(file)?;
    }
    Ok(())
}

/// Names of pipelines, each only once.
#[derive(Debug, Default)]
struct Names(u32);

impl Names {
    fn next(&mut self) -> String {
        self.0 += 1;
        format!("compare-{}-{:04}", std::process::id(), self.0)
    }
}

/// The builds, each with its spelling of the manifest: the base first.
async fn builds(args: &Args, servers: &mut Servers) -> anyhow::Result<Vec<Build>> {
    let other = args.base.as_ref().or(args.with.is_some().then_some(&args.checkout));
    let base = other.map(|binary| (&args.base_name, binary, None));
    let mut builds = Vec::new();
    for (name, binary, with) in base.into_iter().chain([(&args.checkout_name, &args.checkout, args.with)]) {
        let dir = tempfile::tempdir()?;
        let pipeline = format!("compare-{}-spelling-{}", std::process::id(), builds.len());
        let place = Place {
            postgres_url: servers.create_database(&pipeline).await?,
            redis_url: servers.redis_url.clone(),
            settings: args.settings,
            dir: dir.path().to_owned(),
            pipeline,
        };
        builds.push(Build::find(name, binary, with, &place).context("a first migration")?);
        servers.remove(&place.pipeline).await?;
    }
    Ok(builds)
}

/// A line of progress.
fn show(mode: Mode, round: &str, build: &Build, figures: &Figures) {
    let shown = [
        Figure::RecordsPerSecond,
        Figure::LatencyP50Ms,
        Figure::LatencyP99Ms,
        Figure::MachineCpuMicros,
        Figure::OtherCpuMicros,
    ];
    let shown = shown
        .into_iter()
        .filter_map(|figure| Some(format!("{} {}", figure.label(), figure.format(figures.get(figure)?))));
    println!("{mode} {round} {}: {}", build.name, shown.collect::<Vec<_>>().join("; "));
}
