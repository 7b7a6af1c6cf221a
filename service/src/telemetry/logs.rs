//! The form of log lines. They go to standard error: standard output is a command's answer.
//!
//! Must never let a value begin a second line or control a terminal: errors of servers may contain text from outside.

use std::{
    borrow::Cow,
    fmt,
    io::{self, IsTerminal as _, Write},
};

use tracing_subscriber::{
    Layer,
    fmt::{
        MakeWriter,
        format::{DefaultFields, Format},
    },
    registry::LookupSpan,
};

/// A form of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Human => "human",
            Self::Json => "json",
        })
    }
}

pub(super) fn layer<S>(format: Option<LogFormat>) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
{
    let terminal = io::stderr().is_terminal();
    let format = format.unwrap_or(if terminal { LogFormat::Human } else { LogFormat::Json });
    let lines = tracing_subscriber::fmt::layer().with_writer(move || OneLine { to: io::stderr(), colours: terminal });
    form(lines, format, terminal)
}

fn form<S, W>(
    lines: tracing_subscriber::fmt::Layer<S, DefaultFields, Format, W>,
    format: LogFormat,
    colours: bool,
) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    match format {
        LogFormat::Human => lines.compact().with_target(false).with_ansi(colours).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_current_span(false).with_span_list(false).boxed(),
    }
}

/// Writes each event, which comes in one piece, as one line of visible characters.
struct OneLine<W> {
    to: W,
    /// Whether escapes are let pass, for they are the layer's own: it escapes those in values.
    colours: bool,
}

impl<W: Write> Write for OneLine<W> {
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(event) {
            Ok(text) => self.to.write_all(one_line(text, self.colours).as_bytes())?,
            Err(_) => self.to.write_all(event)?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// Escapes, as JSON does, what ends a line, controls a terminal, or turns the direction of text.
fn one_line(event: &str, colours: bool) -> Cow<'_, str> {
    let loud = |c: char| {
        let turns = matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        (c.is_control() && !(colours && c == '\u{1b}')) || turns
    };
    let (line, end) = event.strip_suffix('\n').map_or((event, ""), |line| (line, "\n"));
    if !line.contains(loud) {
        return Cow::Borrowed(event);
    }
    let mut text = String::with_capacity(event.len() + 64);
    for c in line.chars() {
        match c {
            '\n' => text.push_str("\\n"),
            c if loud(c) => {
                let _ = fmt::Write::write_fmt(&mut text, format_args!("\\u{:04x}", u32::from(c)));
            }
            c => text.push(c),
        }
    }
    text.push_str(end);
    Cow::Owned(text)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const FORGED: &str = "x\n2026-01-31T12:00:00Z  INFO forged\r\u{1b}[2J\u{9b}1m\u{202e}\u{2028}\t\u{7f}";

    #[test]
    fn a_value_makes_no_second_line_in_any_form() {
        for format in [LogFormat::Human, LogFormat::Json] {
            let kept = Kept::default();
            let to = kept.clone();
            let lines =
                tracing_subscriber::fmt::layer().with_writer(move || OneLine { to: to.clone(), colours: false });
            let layer = form(lines, format, false);
            tracing::subscriber::with_default(tracing_subscriber::Registry::default().with(layer), || {
                tracing::warn!(event = "http.postgres.unavailable", error = %FORGED, text = FORGED, "a request failed because Postgres is unavailable");
            });
            let said = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
            assert_eq!(said.matches("forged").count(), 2, "{said}");
            let line = said.strip_suffix('\n').unwrap();
            assert!(!line.contains(|c: char| c.is_control() || ('\u{2028}'..='\u{202e}').contains(&c)), "{said:?}");
            if format == LogFormat::Json {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                assert_eq!((&line["error"], &line["text"]), (&FORGED.into(), &FORGED.into()), "nothing is lost");
            }
        }
    }

    #[test]
    fn lines_that_are_quiet_stay_as_they_are() {
        let coloured = "\u{1b}[32m INFO\u{1b}[0m serve.http.listening é\n";
        assert!(matches!(one_line(coloured, true), Cow::Borrowed(line) if line == coloured));
        assert_eq!(one_line("a\u{1b}b\n", false), "a\\u001bb\n");
        assert_eq!(one_line("a\nb\n", true), "a\\nb\n");
    }
}
