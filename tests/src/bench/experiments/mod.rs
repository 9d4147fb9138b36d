//! What is measured, one module each.

pub mod bulk;
pub mod capacity;
pub mod cluster;
pub mod established;
pub mod exec;
pub mod latency;
pub mod memory;
pub mod next_hops;
pub mod opening;
pub mod outage;
pub mod ports;
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
    /// Whether it only runs when it is named.
    pub on_demand: bool,
}

impl Experiment {
    const fn new(
        name: &'static str,
        about: &'static str,
        run: fn(&mut Bench) -> Result<()>,
    ) -> Self {
        Self { name, about, run, on_demand: false }
    }
}

/// All of them, in the order in which they run.
pub const ALL: [Experiment; 13] = [
    Experiment::new(
        programs::NAME,
        "nanoseconds in the programs alone, on the hit path and on the open path",
        programs::run,
    ),
    Experiment::new(
        established::NAME,
        "packets per second of open flows, all on one core with generator and sink",
        established::run,
    ),
    Experiment::new(
        opening::NAME,
        "new sessions per second with 0 to 100 000 port forwards, and their end",
        opening::run,
    ),
    Experiment::new(
        bulk::NAME,
        "TCP bulk, one and eight streams, over veth and macvlan",
        bulk::run,
    ),
    Experiment::new(
        latency::NAME,
        "round trips of small UDP requests: p50, p99, p99.9",
        latency::run,
    ),
    Experiment::new(
        rule_load::NAME,
        "rules from YAML to active: 100 to 100 000, and one change among them",
        rule_load::run,
    ),
    Experiment::new(
        exec::NAME,
        "a verb in a gateway pod: dnat-add with 10 000 rules present, eip-add",
        exec::run,
    ),
    Experiment::new(
        ports::NAME,
        "filling a range of ports towards one remote: who gets one, after how many tries",
        ports::run,
    ),
    Experiment::new(memory::NAME, "memory of open sessions", memory::run),
    Experiment::new(
        capacity::NAME,
        "RFC 9693: filling tables of 64 k to 4 M sessions, and throughput then",
        capacity::run,
    ),
    Experiment::new(
        outage::NAME,
        "packets lost while the daemon is killed and started under load",
        outage::run,
    ),
    Experiment::new(
        next_hops::NAME,
        "how long the flows of a router that dies are silent, with BFD 3 x 100 ms",
        next_hops::run,
    ),
    Experiment {
        name: cluster::NAME,
        about: "1 000 EIPs and 10 000 rules by a real API server, and one change among them",
        run: cluster::run,
        on_demand: true,
    },
];

/// How often packets per second and latency are measured for each way. A full run takes longer bursts instead
/// of more of them.
pub const REPEATS: usize = 3;

/// A run: what it may take, and what it has found.
#[derive(Debug)]
pub struct Bench {
    /// Whether it is to take less than three minutes.
    pub quick: bool,
    /// The results.
    pub report: Report,
}

impl Bench {
    /// How long a burst of generated frames should take.
    pub fn burst(&self) -> Duration {
        Duration::from_millis(if self.quick { 80 } else { 400 })
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
