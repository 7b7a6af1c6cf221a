//! Counts fsyncs of a server's processes in the kernel, by `perf stat`: exact, for fsync and fdatasync alike.
//!
//! Needs perf and the right to count system calls (root, or CAP_PERFMON). Must never slow a server down measurably: the
//! kernel only raises a counter.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use nix::{
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::unix::pipe,
    process::{Child, Command},
    time::timeout,
};

/// Longest wait for an answer of perf.
const TIMEOUT: Duration = Duration::from_secs(20);
/// The system calls, as perf names them.
const EVENTS: &str = "syscalls:sys_enter_fsync,syscalls:sys_enter_fdatasync";

/// A counter on processes and on those that they start later.
#[derive(Debug)]
pub(crate) struct Counter {
    child: Child,
    control: pipe::Sender,
    answers: pipe::Receiver,
    output: PathBuf,
}

impl Counter {
    /// Counts from now on. `dir` is empty, and of this counter alone.
    pub(crate) async fn start(pids: &[u32], dir: &Path) -> anyhow::Result<Self> {
        let (control, answers, output) = (dir.join("control"), dir.join("answers"), dir.join("counts"));
        for fifo in [&control, &answers] {
            mkfifo(fifo, Mode::S_IRWXU)?;
        }
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        let child = Command::new("perf")
            // Begins without counting, and takes its orders by the first pipe.
            .args(["stat", "--delay=-1", "--field-separator=,", "--event", EVENTS, "--pid", &pids.join(",")])
            .arg("--control")
            .arg(format!("fifo:{},{}", control.display(), answers.display()))
            .arg("--output")
            .arg(&output)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(dir.join("errors"))?)
            .kill_on_drop(true)
            .spawn()
            .context("perf")?;
        // For both: opening waits for no other end then.
        let control = pipe::OpenOptions::new().read_write(true).open_sender(control)?;
        let answers = pipe::OpenOptions::new().read_write(true).open_receiver(answers)?;
        let mut counter = Self { child, control, answers, output };
        if let Err(error) = counter.order("enable").await {
            let errors = fs::read_to_string(dir.join("errors")).unwrap_or_default();
            bail!("{error:#}: {}", errors.trim());
        }
        Ok(counter)
    }

    /// The count since the start. It ends with this.
    pub(crate) async fn stop(mut self) -> anyhow::Result<u64> {
        self.order("disable").await?;
        let pid = self.child.id().context("perf ended")?;
        kill(Pid::from_raw(pid.cast_signed()), Signal::SIGINT)?;
        timeout(TIMEOUT, self.child.wait()).await.context("perf does not end")??;
        parse(&fs::read_to_string(&self.output)?)
    }

    /// Sends an order and waits until perf has executed it.
    async fn order(&mut self, order: &str) -> anyhow::Result<()> {
        self.control.write_all(format!("{order}\n").as_bytes()).await?;
        tokio::select! {
            answered = timeout(TIMEOUT, answer(&mut self.answers)) => {
                let answer = answered.with_context(|| format!("perf does not {order}"))??;
                ensure!(answer == "ack", "perf answers {answer} to {order}");
            }
            ended = self.child.wait() => bail!("perf ended with {}", ended?),
        }
        Ok(())
    }
}

/// A line of perf's answers. Each ends with a zero byte, behind the end of the line.
async fn answer(answers: &mut pipe::Receiver) -> anyhow::Result<String> {
    let mut line = String::new();
    loop {
        match answers.read_u8().await? {
            b'\n' => return Ok(line),
            0 => {}
            byte => line.push(char::from(byte)),
        }
    }
}

/// Adds up the counts in the output of perf.
fn parse(output: &str) -> anyhow::Result<u64> {
    let lines: Vec<&str> = output.lines().filter(|line| line.contains("syscalls:")).collect();
    ensure!(lines.len() == EVENTS.split(',').count(), "perf did not count every call: {output}");
    let count = |line: &&str| line.split(',').next().and_then(|count| count.parse::<u64>().ok());
    lines.iter().map(|line| count(line).with_context(|| format!("perf did not count: {line}"))).sum()
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn the_counts_of_both_calls_are_added() {
        let output =
            "# started on Sat\n\n3,,syscalls:sys_enter_fsync,9,100.00,,\n40,,syscalls:sys_enter_fdatasync,9,1,,\n";
        assert_eq!(parse(output).unwrap(), 43);
    }

    #[test]
    fn a_call_that_was_not_counted_is_an_error() {
        let output = "3,,syscalls:sys_enter_fsync,9,100.00,,\n<not counted>,,syscalls:sys_enter_fdatasync,0,1,,\n";
        assert!(parse(output).is_err());
        assert!(parse("").is_err());
    }
}
