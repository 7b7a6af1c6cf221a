//! The subcommands of `millrace-operator`, one file each.

mod check;
mod check_uninstall;
mod run;

/// Brings what runs on a cluster to what each RecordPipeline says.
#[derive(Debug, clap::Parser)]
#[command(name = "millrace-operator", version, max_term_width = 110)]
pub(crate) struct Command {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Reconcile until told to stop
    Run(Box<run::Args>),
    /// Fail while pipelines of this release exist: without their operator they could never be deleted in order
    CheckUninstall(check_uninstall::Args),
    /// Ask a running operator whether it is ready
    Check(check::Args),
}

impl Command {
    /// Runs the subcommand.
    ///
    /// # Errors
    /// What stopped it, in words for a person.
    pub(crate) async fn run(self) -> anyhow::Result<()> {
        match self.what {
            What::Run(args) => run::run(*args).await,
            What::CheckUninstall(args) => check_uninstall::run(args).await,
            What::Check(args) => check::run(args).await,
        }
    }
}
