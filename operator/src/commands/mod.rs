//! The subcommands of `millrace-operator`, one file each.

mod check;
mod check_uninstall;
mod run;

/// Runs on a cluster the pods and objects that each RecordPipeline describes.
#[derive(Debug, clap::Parser)]
#[command(name = "millrace-operator", version, max_term_width = 110)]
pub(crate) struct Command {
    #[command(subcommand)]
    subcommand: Subcommand,
}

#[derive(Debug, clap::Subcommand)]
enum Subcommand {
    /// Reconcile until a signal stops the process
    Run(Box<run::RunArgs>),
    /// Fail while pipelines of this release exist: without their operator they could never be deleted in order
    CheckUninstall(check_uninstall::CheckUninstallArgs),
    /// Check that a running operator is ready
    Check(check::CheckArgs),
}

impl Command {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// The cause of its end, for a person.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self.subcommand {
            Subcommand::Run(args) => run::run(*args).await,
            Subcommand::CheckUninstall(args) => check_uninstall::run(args).await,
            Subcommand::Check(args) => check::run(args).await,
        }
    }
}
