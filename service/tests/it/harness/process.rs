//! A process of the binary: its start, its signals, its end, its log and its health port.

use std::{
    fs,
    net::TcpListener,
    os::unix::process::ExitStatusExt as _,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::atomic::{AtomicU16, Ordering},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{Answer, answer, eventually, obtain};

/// Sends a child a signal.
pub(super) fn send(child: &Child, signal: Signal) -> nix::Result<()> {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal)
}

/// A running `serve` or `work`. Dropping it kills it, and prints the end of its log when the test fails.
#[derive(Debug)]
pub(crate) struct Process {
    role: &'static str,
    child: Child,
    log: PathBuf,
    health: String,
}

impl Process {
    /// Starts `command`, with a health port, and writes its output to `log`.
    pub(super) fn start(role: &'static str, mut command: Command, log: PathBuf) -> Self {
        let health = format!("127.0.0.1:{}", free_port());
        let output = fs::File::create(&log).unwrap();
        command.args(["--health-listen", &health]);
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        Self { role, child: command.spawn().unwrap(), log, health: format!("http://{health}") }
    }

    /// The file of its log.
    pub(crate) fn log(&self) -> &std::path::Path {
        &self.log
    }

    /// Its process id; `setpriv` executes the binary in place.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(&self.child, signal).unwrap();
    }

    /// Kills it and waits for its end.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Suspends it, as a long pause of the machine does.
    pub(crate) fn pause(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// Continues it after [`Process::pause`].
    pub(crate) fn resume(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// Whether it ended.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits until it ends.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let what = format!("the end of {}", self.role);
        obtain(&what, async || self.child.try_wait().unwrap()).await
    }

    /// Waits until its fault point kills it with signal 9.
    pub(crate) async fn died_at_its_fault(&mut self) {
        let status = self.ended().await;
        assert_eq!(status.signal(), Some(9), "{} ended with {status}, not by its fault", self.role);
    }

    /// Stops it by SIGTERM; it must end with success.
    pub(crate) async fn stop(&mut self) {
        self.signal(Signal::SIGTERM);
        let status = self.ended().await;
        assert!(status.success(), "{} ended with {status}", self.role);
    }

    /// Stops it while it waits for its configuration; it must end with success.
    pub(crate) async fn stopped_while_it_waits(mut self) {
        self.logs("config.pipeline.waiting").await;
        self.stop().await;
    }

    /// Lines of its log with this event.
    pub(crate) fn logged(&self, event: &str) -> Vec<Value> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        log.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .filter(|line| line["event"] == event)
            .collect()
    }

    /// Waits until its log has a line with this event; returns the newest.
    pub(crate) async fn logs(&self, event: &str) -> Value {
        obtain(event, async || self.logged(event).pop()).await
    }

    /// The body of a path of its health port, of any status.
    pub(crate) async fn text(&self, path: &str) -> String {
        reqwest::get(format!("{}{path}", self.health)).await.unwrap().text().await.unwrap()
    }

    /// The answer to a HEAD of a path of its health port.
    pub(crate) async fn head(&self, path: &str) -> Answer {
        answer(reqwest::Client::new().head(format!("{}{path}", self.health))).await
    }

    /// The body of `/status` of its health port; null while the port refuses connections.
    pub(crate) async fn status(&self) -> Value {
        match reqwest::get(format!("{}/status", self.health)).await {
            Ok(answer) => answer.json().await.unwrap(),
            Err(_) => Value::Null,
        }
    }

    /// Waits until `so` holds for the body of `/status`; returns that body.
    pub(crate) async fn reports(&self, what: &str, so: impl Fn(&Value) -> bool) -> Value {
        obtain(&format!("{} reports: {what}", self.role), async || {
            Some(self.status().await).filter(|status| so(status))
        })
        .await
    }

    /// Waits until `/status` has problems with exactly these reasons, the worst first.
    pub(crate) async fn has_problems(&self, reasons: &[&str]) -> Value {
        self.reports(&format!("{reasons:?}"), |status| {
            let problems = status["problems"].as_array();
            problems.is_some_and(|problems| problems.iter().map(|problem| &problem["reason"]).eq(reasons))
        })
        .await
    }

    /// The sum of a metric over its labels; 0 when it is absent.
    pub(crate) async fn metric(&self, name: &str) -> f64 {
        let text = reqwest::get(format!("{}/metrics", self.health)).await.unwrap().text().await.unwrap();
        text.lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{'])))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Whether `/ready` of its health port answers 200.
    pub(crate) async fn is_ready(&self) -> bool {
        reqwest::get(format!("{}/ready", self.health)).await.is_ok_and(|answer| answer.status().is_success())
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&self) {
        eventually(&format!("{} is ready", self.role), async || self.is_ready().await).await;
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(40)..];
            eprintln!("---- {} ({})\n{}", self.role, self.log.display(), tail.join("\n"));
        }
    }
}

/// A free port on loopback. It is below the ephemeral ports of the system, and no port is returned twice.
pub(crate) fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let start = u16::try_from(std::process::id() % 1_500).unwrap() * 10;
        let port = 12_000 + (start + n) % 18_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
