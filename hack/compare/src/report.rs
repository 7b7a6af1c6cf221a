//! The results of a run: a table for people, JSON for programs.
//!
//! Pure but for writing a file.

use std::{fmt::Write as _, fs, path::Path};

use anyhow::Context as _;
use serde::Serialize;

use crate::{
    build::Build,
    figures::{Figure, Figures},
    machine::Machine,
    round::{Mode, SINGLE_CONNECTIONS},
    settings::Settings,
    stats::Summary,
};

/// The share of the machine above which other processes are named in the report. In `latency` about 6 % is the kernel's
/// time for interrupts and changes of process, which it charges to no process.
const OTHERS: f64 = 0.10;

/// A run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) servers: String,
    /// Whether fsyncs were counted by perf.
    pub(crate) perf: bool,
    pub(crate) settings: Settings,
    pub(crate) rounds: usize,
    /// The measured builds: the base first, where there is one, and the checkout.
    pub(crate) builds: Vec<Build>,
    pub(crate) modes: Vec<Results>,
}

/// The rounds of a mode.
#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) mode: Mode,
    /// Of each build, in the order of `Report::builds`, its rounds.
    pub(crate) builds: Vec<Vec<Figures>>,
    /// Medians, spread and ratios.
    pub(crate) summary: Vec<Row>,
}

/// A figure over all rounds.
#[derive(Debug, Serialize)]
pub(crate) struct Row {
    pub(crate) figure: Figure,
    /// In the order of `Report::builds`.
    pub(crate) builds: Vec<Summary>,
    /// Of the checkout to the base, round by round.
    pub(crate) ratio: Option<Summary>,
}

impl Results {
    /// Of all rounds of each build.
    pub(crate) fn of(mode: Mode, builds: Vec<Vec<Figures>>) -> Self {
        let summary = Figure::ALL.into_iter().filter_map(|figure| Row::of(figure, &builds)).collect();
        Self { mode, builds, summary }
    }

    /// Rounds in which other processes used much of the machine.
    fn disturbed(&self) -> usize {
        let is_disturbed = |figures: &&Figures| {
            let of = |figure| figures.get(figure).unwrap_or(0.0);
            of(Figure::OtherCpuMicros) > OTHERS * of(Figure::MachineCpuMicros)
        };
        self.builds.iter().flatten().filter(is_disturbed).count()
    }
}

impl Report {
    /// Writes all figures as JSON.
    pub(crate) fn write(&self, file: &Path) -> anyhow::Result<()> {
        write_json(file, self)
    }

    /// A table of each mode.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        for results in &self.modes {
            let mut head = vec![self.title(results.mode)];
            head.extend(self.builds.iter().map(|build| build.name.clone()));
            head.extend((self.builds.len() == 2).then(|| "ratio".to_owned()));
            let rows: Vec<Vec<String>> = results.summary.iter().map(Row::cells).collect();
            text.push('\n');
            text.push_str(&aligned(&head, &rows));
        }
        let _ = writeln!(text, "\nmedian [least..most] of {} rounds", self.rounds);
        if self.builds.len() == 2 {
            text.push_str("ratio: the checkout's figure to the base's, round by round\n");
        }
        if !self.perf {
            text.push_str(
                "perf cannot count system calls here: fsyncs of Postgres are those of the WAL, Redis has none\n",
            );
        }
        let disturbed: usize = self.modes.iter().map(Results::disturbed).sum();
        if disturbed > 0 {
            let percent = OTHERS * 100.0;
            let _ = writeln!(
                text,
                "in {disturbed} rounds other processes used more than {percent} % of the processor time"
            );
        }
        text
    }

    fn title(&self, mode: Mode) -> String {
        let Settings { records, singles, rate, seconds, batch, .. } = self.settings;
        match mode {
            Mode::Batches => format!("batches: {records} records, batches of {batch}"),
            Mode::Singles => format!("singles: {singles} records, {SINGLE_CONNECTIONS} connections"),
            Mode::Preloaded => format!("preloaded: {records} records, then work"),
            Mode::Latency => format!("latency: {rate} records/s for {seconds} s"),
            Mode::Wait => format!("wait: {rate} records/s for {seconds} s, each answer an outcome"),
            Mode::Answers => format!("answers: {rate} records/s for {seconds} s, to the answer"),
            Mode::AcceptBatches => format!("accept-batches: {records} records, batches of {batch}, no worker"),
            Mode::AcceptSingles => {
                format!("accept-singles: {singles} records, {SINGLE_CONNECTIONS} connections, no worker")
            }
        }
    }
}

impl Row {
    /// `None`: a build does not have this figure.
    pub(crate) fn of(figure: Figure, builds: &[Vec<Figures>]) -> Option<Self> {
        let values = |rounds: &Vec<Figures>| rounds.iter().filter_map(|it| it.get(figure)).collect::<Vec<f64>>();
        let values: Vec<Vec<f64>> = builds.iter().map(values).collect();
        let builds = values.iter().map(|values| Summary::of(values)).collect::<Option<Vec<Summary>>>()?;
        let ratio = match values.as_slice() {
            // Other programs are of no build.
            [base, checkout] if figure != Figure::OtherCpuMicros => Summary::of_ratios(checkout, base),
            _ => None,
        };
        Some(Self { figure, builds, ratio })
    }

    pub(crate) fn cells(&self) -> Vec<String> {
        let spread = |of: &Summary, format: &dyn Fn(f64) -> String| {
            format!("{} [{}..{}]", format(of.median), format(of.min), format(of.max))
        };
        let mut cells = vec![self.figure.label().to_owned()];
        cells.extend(self.builds.iter().map(|of| spread(of, &|value| self.figure.format(value))));
        cells.extend(self.ratio.iter().map(|of| spread(of, &|value| format!("{value:.3}"))));
        cells
    }
}

/// Writes JSON.
pub(crate) fn write_json(file: &Path, content: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(content)?;
    fs::write(file, text + "\n").with_context(|| file.display().to_string())
}

/// Columns as wide as their widest cell; the first one to the left, the others to the right.
pub(crate) fn aligned(head: &[String], rows: &[Vec<String>]) -> String {
    let all = || std::iter::once(head).chain(rows.iter().map(Vec::as_slice));
    let width = |column: usize| all().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in all() {
        for (column, cell) in row.iter().enumerate() {
            let width = widths.get(column).copied().unwrap_or(0);
            let _ = if column == 0 { write!(text, "{cell:<width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Results, aligned};
    use crate::{
        figures::{Figure, Figures},
        round::Mode,
        stats::Summary,
    };

    fn rounds(figure: Figure, values: &[f64]) -> Vec<Figures> {
        let of = |value: &f64| {
            let mut figures = Figures::default();
            figures.set(figure, *value);
            figures
        };
        values.iter().map(of).collect()
    }

    #[test]
    fn a_row_has_both_builds_and_the_ratio_to_the_base() {
        let builds = vec![
            rounds(Figure::RecordsPerSecond, &[10_000.0, 20_000.0, 5_000.0]),
            rounds(Figure::RecordsPerSecond, &[11_000.0, 24_000.0, 5_000.0]),
        ];
        let results = Results::of(Mode::Batches, builds);
        assert_eq!(results.summary.len(), 1);
        assert_eq!(results.summary[0].ratio, Some(Summary { median: 1.1, min: 1.0, max: 1.2 }));
        let cells = results.summary[0].cells();
        assert_eq!(cells[0], "records/s");
        assert_eq!(cells[1], "10,000 [5,000..20,000]");
        assert_eq!(cells[3], "1.100 [1.000..1.200]");
    }

    #[test]
    fn a_single_build_has_no_ratio() {
        let results = Results::of(Mode::Latency, vec![rounds(Figure::LatencyP50Ms, &[4.0, 5.0, 6.0])]);
        assert_eq!(results.summary[0].cells(), ["latency p50, ms", "5.0 [4.0..6.0]"]);
    }

    #[test]
    fn columns_are_aligned_by_characters() {
        let text = aligned(&["a".into(), "µs".into()], &[vec!["bcd".into(), "1".into()]]);
        assert_eq!(text, "a    µs\nbcd   1\n");
    }
}
