//! The fault campaign: drives load through Millrace, injects faults into its processes, servers and network, and
//! counts the violations.
//!
//! Checks the product from outside, by answers, published entries and stored rows; shares no code with it.

mod campaign;
mod check;
mod decimal;
mod endpoint;
mod faults;
#[path = "../../free_port.rs"]
mod free_port;
mod load;
mod phases;
mod plan;
mod read;
mod report;
mod traces;
mod world;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, anyhow, bail, ensure};
use clap::Parser;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::Instant,
};

use campaign::Orders;
use plan::{KINDS, Kind};
use report::Report;
use world::Setup;

/// Injects faults into a pipeline under load, and counts violations.
#[derive(Debug, Parser)]
// The last one counts, so that a script's own options can be overridden.
#[command(args_override_self = true)]
struct Args {
    /// The product's binary; fault points need one with the feature `fault-points`
    #[arg(long)]
    binary: PathBuf,
    /// Another build of it, for rolling upgrades between the two
    #[arg(long)]
    other_binary: Option<PathBuf>,
    /// toxiproxy-server, for faults of the network
    #[arg(long)]
    toxiproxy: Option<PathBuf>,
    /// Repeats the plan of a run; random unless given
    #[arg(long)]
    seed: Option<u64>,
    /// How long new rounds begin
    #[arg(long, default_value_t = 30.0)]
    minutes: f64,
    /// Most rounds
    #[arg(long, default_value_t = u64::MAX)]
    rounds: u64,
    /// Rounds after which a fresh pipeline takes over
    #[arg(long, default_value_t = 20)]
    rounds_each: u64,
    /// Seconds of load in a round
    #[arg(long, default_value_t = 12.0)]
    round_seconds: f64,
    /// Records a second, over all clients
    #[arg(long, default_value_t = 2_000.0)]
    rate: f64,
    /// Power losses that have to take effect; more rounds begin until they have, at most half as many minutes
    #[arg(long, default_value_t = 0)]
    power_losses: u64,
    /// Kinds of faults by name or by the beginning of one, with commas; all of them without this
    #[arg(long, value_delimiter = ',')]
    kinds: Vec<String>,
    /// Where report.json and report.md go
    #[arg(long)]
    report: Option<PathBuf>,
    /// Ends with the first round that has a violation
    #[arg(long)]
    until_wrong: bool,
    /// Prints the victim of each fault
    #[arg(long)]
    verbose: bool,
    /// Keeps data, logs and traces, also of a run without violations
    #[arg(long)]
    keep: bool,
    /// Only counts protocol traces that the model rejects
    #[arg(long)]
    tolerate_rejected: bool,
    /// Lists the kinds
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.list {
        KINDS.iter().for_each(|(_, name)| println!("{name}"));
        return ExitCode::SUCCESS;
    }
    // One thread: processes are bound to the thread that started them, and must not end before this program does.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let local = tokio::task::LocalSet::new();
    let outcome = runtime.map_err(Into::into).and_then(|runtime| local.block_on(&runtime, run(args)));
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("the campaign failed: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs the campaign. False: there was a violation.
async fn run(args: Args) -> anyhow::Result<bool> {
    let began = Instant::now();
    let seed = args.seed.unwrap_or_else(|| rand::random::<u64>() >> 16);
    let binary = args.binary.canonicalize().with_context(|| args.binary.display().to_string())?;
    let other_binary = args.other_binary.as_ref().map(|path| path.canonicalize()).transpose()?;
    let mut report = Report { seed, ..Report::default() };
    let mut kinds = chosen(&args.kinds)?;
    kinds.retain(|kind| match missing(*kind, &args, &binary) {
        Some(why) => {
            println!("skipped: {}: {why}", kind.name());
            report.skip(*kind, why);
            false
        }
        None => true,
    });
    ensure!(!kinds.is_empty(), "no kind of fault is left");
    println!("seed {seed}; {} kinds of faults", kinds.len());
    let mut power_losses = args.power_losses;
    if power_losses > 0 && !world::disk::can_lose_power() {
        println!("skipped: {power_losses} power losses: {NO_POWER_LOSS}");
        power_losses = 0;
    }
    let dir = tempfile::Builder::new().prefix("millrace-faults.").tempdir_in("/var/tmp")?;
    let orders = Orders {
        setup: Setup {
            binary,
            other_binary,
            toxiproxy: args.toxiproxy,
            disks: power_losses > 0 || kinds.iter().any(|kind| *kind == Kind::PostgresFull || kind.loses_power()),
            dir: dir.path().to_owned(),
        },
        seed,
        until: began + Duration::from_secs_f64(args.minutes * 60.0),
        minutes: args.minutes,
        power_losses,
        rounds: args.rounds,
        rounds_each: args.rounds_each,
        round: Duration::from_secs_f64(args.round_seconds),
        rate: args.rate,
        kinds,
        until_wrong: args.until_wrong,
        verbose: args.verbose,
        tolerates_rejected: args.tolerate_rejected,
        keeps: args.keep,
    };
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o711))?;
    let mut terminated = signal(SignalKind::terminate())?;
    // The pipeline is removed in order, also after a signal.
    let ran = tokio::select! {
        ran = campaign::run(&orders, &mut report) => ran,
        _ = tokio::signal::ctrl_c() => Err(anyhow!("interrupted")),
        _ = terminated.recv() => Err(anyhow!("asked to end")),
    };
    report.seconds = began.elapsed().as_secs();
    println!("\n{}", report.markdown());
    if let Some(dir) = &args.report {
        report.write(dir)?;
    }
    let well = report.violations.is_empty() && report.power_losses() >= power_losses;
    if report.power_losses() < power_losses {
        println!("{} power losses took effect, of {power_losses}", report.power_losses());
    }
    if !well || args.keep {
        println!("kept: {}", dir.keep().display());
    }
    ran?;
    Ok(well)
}

/// The kinds with these names, in the order of the list; all of them without names.
fn chosen(names: &[String]) -> anyhow::Result<Vec<Kind>> {
    for name in names {
        if !KINDS.iter().any(|(_, known)| known.starts_with(name.as_str())) {
            bail!("no kind of fault is called {name}; --list lists them");
        }
    }
    let named = |kind: &Kind| names.is_empty() || names.iter().any(|name| kind.name().starts_with(name.as_str()));
    Ok(KINDS.iter().map(|(kind, _)| *kind).filter(named).collect())
}

/// The reason why no disk can lose power here.
const NO_POWER_LOSS: &str = "no disk of its own can lose power: root, loop devices, mkfs.ext4 or python3 is missing";

/// The reason why a kind cannot run here, if any.
fn missing(kind: Kind, args: &Args, binary: &Path) -> Option<&'static str> {
    let is_built_with = |text: &str| {
        fs::read(binary).is_ok_and(|bytes| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
    };
    match kind {
        Kind::NetCut | Kind::NetDelay | Kind::NetHalfOpen | Kind::NetCutAnswer | Kind::NetCutCommit
            if args.toxiproxy.is_none() =>
        {
            Some("no toxiproxy was given")
        }
        Kind::ClockAhead | Kind::ClockBehind | Kind::PostgresClock if world::clock_library().is_none() => {
            Some("libfaketime is not installed")
        }
        Kind::Upgrade if args.other_binary.is_none() => Some("no other build was given"),
        Kind::Point(..) | Kind::SinkStart(_) | Kind::PoisonedRecord | Kind::PoisonedBatch | Kind::NetCutCommit
            if !is_built_with("MILLRACE_FAULT_POISON") =>
        {
            Some("the binary has no fault points")
        }
        _ if kind.loses_power() && !world::disk::can_lose_power() => Some(NO_POWER_LOSS),
        Kind::PostgresFull if !world::disk::can_mount() => Some("a disk of its own could not be mounted"),
        Kind::PostgresSyncStandby | Kind::PostgresAsyncStandby if args.toxiproxy.is_none() => {
            Some("without toxiproxy no process can reach the standby")
        }
        _ => None,
    }
}
