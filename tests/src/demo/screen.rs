//! What the demo prints: progress, the table row by row, sections, the last line.

use std::io::{IsTerminal as _, Write as _};
use std::time::Instant;

use crate::lab::checks::{Observation, Outcome};

const CASE: usize = 36;
const SENT: usize = 46;
const SEEN: usize = 42;

/// The terminal or file that the demo writes to.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    started: Instant,
    colours: bool,
    silent: bool,
}

impl Screen {
    /// A screen; a silent one shows nothing but sections and last lines are not shown either.
    pub fn new(silent: bool) -> Self {
        let colours = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        Self { started: Instant::now(), colours, silent }
    }

    /// One step of progress.
    pub fn step(&self, what: &str) {
        let seconds = self.started.elapsed().as_secs_f32();
        self.line(&self.paint("2", &format!("[{seconds:5.1} s] {what}")));
    }

    /// The head of the table.
    pub fn head(&self) {
        let line = row("CASE", "WHAT WAS SENT", "WHAT THE OTHER SIDE SAW", "VERDICT");
        self.line(&format!("\n{}", self.paint("1", &line)));
    }

    /// One row of the table.
    pub fn outcome(&self, outcome: &Outcome) {
        match &outcome.result {
            Ok(Observation { sent, seen }) => {
                self.line(&row(&outcome.name, sent, seen, &self.paint("32", "ok")));
            }
            Err(error) => {
                self.line(&row(&outcome.name, "", "", &self.paint("31", "FAILED")));
                self.line(&format!("    {}", error.replace('\n', "\n    ")));
            }
        }
    }

    /// A section with a title that is the command that shows it.
    pub fn section(&self, title: &str, text: &str) {
        self.line(&format!("\n{}\n{}", self.paint("1", &format!("$ {title}")), text.trim_end()));
    }

    /// A line as it is.
    pub fn line(&self, text: &str) {
        if !self.silent {
            let mut out = std::io::stdout().lock();
            // A reader that went away is no reason to stop before cleaning up.
            let _ = writeln!(out, "{text}").and_then(|()| out.flush());
        }
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

fn row(case: &str, sent: &str, seen: &str, verdict: &str) -> String {
    format!("{case:CASE$} {sent:SENT$} {seen:SEEN$} {verdict}")
}
