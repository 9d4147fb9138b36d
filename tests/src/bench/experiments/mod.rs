//! What is measured, one module each.

pub mod bulk;
pub mod capacity;
pub mod established;
pub mod latency;
pub mod memory;
pub mod opening;
pub mod outage;
pub mod programs;
pub mod rule_load;

use std::time::Duration;

use anyhow::Result;

use super::plan::Kind;
use super::report::{Report, Unit};
use super::screen::progress;
use super::subject::{Setup, Subject, Way};
use super::traffic::Burst;

/// An experiment by name.
#[derive(Clone, Copy, Debug)]
pub struct Experiment {
    /// Its name, for `--only` and in every result.
    pub name: &'static str,
    /// What it measures.
    pub about: &'static str,
    /// Measures.
    pub run: fn(&mut Bench) -> Result<()>,
}

/// All of them, in the order in which they run.
pub const ALL: [Experiment; 9] = [
    Experiment {
        name: programs::NAME,
        about: "nanoseconds in the programs alone, on the hit path and on the open path",
        run: programs::run,
    },
    Experiment {
        name: established::NAME,
        about: "packets per second of open flows, all on one core with generator and sink",
        run: established::run,
    },
    Experiment {
        name: opening::NAME,
        about: "new sessions per second with 0 to 100 000 port forwards, and their end",
        run: opening::run,
    },
    Experiment {
        name: bulk::NAME,
        about: "TCP bulk, one and eight streams, over veth and macvlan",
        run: bulk::run,
    },
    Experiment {
        name: latency::NAME,
        about: "round trips of small UDP requests: p50, p99, p99.9",
        run: latency::run,
    },
    Experiment {
        name: rule_load::NAME,
        about: "rules from YAML to active: 100 to 100 000, and one change among them",
        run: rule_load::run,
    },
    Experiment { name: memory::NAME, about: "memory of open sessions", run: memory::run },
    Experiment {
        name: capacity::NAME,
        about: "RFC 9693: filling tables of 64 k to 4 M sessions, and throughput then",
        run: capacity::run,
    },
    Experiment {
        name: outage::NAME,
        about: "packets lost while the daemon is killed and started under load",
        run: outage::run,
    },
];

/// A run: what it may take, and what it has found.
#[derive(Debug)]
pub struct Bench {
    /// Whether it is to take less than three minutes.
    pub quick: bool,
    /// The results.
    pub report: Report,
}

impl Bench {
    /// How often each measurement is repeated.
    pub fn repeats(&self) -> usize {
        if self.quick { 3 } else { 9 }
    }

    /// How long a burst of generated frames should take.
    pub fn burst(&self) -> Duration {
        Duration::from_millis(if self.quick { 120 } else { 400 })
    }

    /// The first of two values in a quick run, else the second.
    pub fn pick<T>(&self, quick: T, full: T) -> T {
        if self.quick { quick } else { full }
    }

    /// Sets up the ways that can be had, and says why of the others.
    pub fn subjects(&self, ways: &[Way], setup: &Setup) -> Subjects {
        let mut subjects = Subjects { ready: Vec::new(), absent: Vec::new() };
        for way in ways {
            match Subject::build(*way, setup) {
                Ok(subject) => subjects.ready.push(subject),
                Err(error) => {
                    let why = brief(&format!("{error:#}"));
                    progress(&format!("{}: {why}", way.name()));
                    subjects.absent.push((*way, why));
                }
            }
        }
        subjects
    }
}

/// What is measured side by side.
pub struct Subjects {
    /// Those that work.
    pub ready: Vec<Subject>,
    /// The others, and why they do not.
    pub absent: Vec<(Way, String)>,
}

impl Subjects {
    /// Notes that those which do not work have no value in this case.
    pub fn note_absent(&self, report: &mut Report, experiment: &str, case: &str, unit: Unit) {
        for (way, why) in &self.absent {
            report.miss(experiment, case, way.name(), unit, why);
        }
    }
}

/// The last line of an error that says something.
fn brief(error: &str) -> String {
    let lines: Vec<&str> = error.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let line = lines.iter().rev().find(|line| line.starts_with("error:")).or(lines.first());
    line.map_or("it failed without a word", |line| line.trim_start_matches("error: ")).to_owned()
}

/// A count as people write it: 1 000 000.
pub fn spaced(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(digit);
    }
    out
}

/// Opens every flow once. `None` if more than one in a hundred did not get through.
///
/// # Errors
/// The kernel refuses.
pub fn open_all(subject: &mut Subject, kind: Kind, count: u32, frame_bytes: u32) -> Result<Burst> {
    let flows = kind.flows(count, frame_bytes);
    subject.rig.send(kind, &flows, count)
}

/// Sends frames of these flows for about `time`.
///
/// # Errors
/// The kernel refuses.
pub fn burst(
    subject: &mut Subject,
    kind: Kind,
    count: u32,
    frame_bytes: u32,
    time: Duration,
) -> Result<Burst> {
    let flows = kind.flows(count, frame_bytes);
    let probe = subject.rig.send(kind, &flows, 20_000)?;
    let rate = probe.sent as f64 / probe.elapsed.as_secs_f64();
    let frames = (rate * time.as_secs_f64()).clamp(20_000.0, 40e6);
    subject.rig.send(kind, &flows, frames as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_read_well() {
        assert_eq!(
            ["1", "1 000", "65 536", "1 000 000"],
            [1, 1000, 65_536, 1_000_000].map(spaced)[..]
        );
    }

    #[test]
    fn an_error_is_cut_to_the_line_that_says_it() {
        let text = "the daemon ended: exit status: 2; its log:\nerror: --mode xdp: not there";
        assert_eq!(brief(text), "--mode xdp: not there");
        assert_eq!(brief("no object\nmore"), "no object");
    }
}
