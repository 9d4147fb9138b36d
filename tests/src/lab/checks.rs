//! Many checks in one topology: each has a name, what was sent, what was seen; failures are collected.

use std::fmt;
use std::panic::{self, AssertUnwindSafe};

use anyhow::Result;
use serde_json::{Value, json};

/// What a check did and saw, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observation {
    /// What was sent.
    pub sent: String,
    /// What the other side saw.
    pub seen: String,
}

impl Observation {
    /// An observation from two displayable parts.
    pub fn new(sent: impl fmt::Display, seen: impl fmt::Display) -> Self {
        Self { sent: sent.to_string(), seen: seen.to_string() }
    }
}

/// A check that was run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Its name.
    pub name: String,
    /// What it observed, or why it failed.
    pub result: Result<Observation, String>,
}

/// The checks of one topology.
#[derive(Debug, Default)]
pub struct Checks {
    outcomes: Vec<Outcome>,
}

impl Checks {
    /// Runs a check; an error or a panic is a failure of this check only.
    pub fn check(&mut self, name: &str, body: impl FnOnce() -> Result<Observation>) -> &Outcome {
        let result = match panic::catch_unwind(AssertUnwindSafe(body)) {
            Ok(result) => result.map_err(|error| format!("{error:#}")),
            Err(_) => Err("panicked".to_owned()),
        };
        self.outcomes.push(Outcome { name: name.to_owned(), result });
        &self.outcomes[self.outcomes.len() - 1]
    }

    /// All outcomes in order.
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// How many passed and how many failed.
    pub fn counts(&self) -> (usize, usize) {
        let failed = self.outcomes.iter().filter(|outcome| outcome.result.is_err()).count();
        (self.outcomes.len() - failed, failed)
    }

    /// Prints every outcome and panics if one failed, with what helps to understand it.
    ///
    /// # Panics
    /// A check failed.
    pub fn conclude(&self, diagnostics: impl FnOnce() -> String) {
        for outcome in &self.outcomes {
            println!("{outcome}");
        }
        let (passed, failed) = self.counts();
        if failed > 0 {
            let failures = self.outcomes.iter().filter(|outcome| outcome.result.is_err());
            let list: Vec<String> = failures.map(ToString::to_string).collect();
            let list = list.join("\n");
            panic!("{failed} of {} checks failed:\n{list}\n{}", passed + failed, diagnostics());
        }
    }

    /// All outcomes as JSON.
    pub fn to_json(&self) -> Value {
        let outcome = |outcome: &Outcome| match &outcome.result {
            Ok(Observation { sent, seen }) => {
                json!({"case": outcome.name, "sent": sent, "seen": seen, "passed": true})
            }
            Err(error) => json!({"case": outcome.name, "error": error, "passed": false}),
        };
        self.outcomes.iter().map(outcome).collect()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.result {
            Ok(Observation { sent, seen }) => {
                write!(formatter, "ok    {}: {sent}; seen: {seen}", self.name)
            }
            Err(error) => write!(formatter, "FAIL  {}: {error}", self.name),
        }
    }
}
