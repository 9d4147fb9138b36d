//! The ratchet: how many instructions the verifier went through, per kernel and program, as accepted
//! last. A rise is a decision that somebody takes, not something that happens.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use super::report::Report;
use crate::workspace::Workspace;

/// The committed file.
const FILE: &str = "tests/ratchet/instructions.txt";

/// What a count may differ by without anybody being asked, in percent: compilers and the patch
/// releases of a kernel move it a little.
const TOLERANCE_PERCENT: u64 = 3;

const HEAD: &str = "\
# Instructions that the verifier goes through: kernel, program, count (of 1 000 000 allowed).
# `cargo xtask verify` fails if one rises by more than 3 %; `--accept` writes the new counts here.
";

/// Kernel series (`6.1`) and program.
type Key = (Vec<u32>, String);

/// The accepted counts.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Ratchet {
    counts: BTreeMap<Key, u64>,
}

/// What a kernel's counts are beside the accepted ones.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Comparison {
    /// Counts that rose too far: a failure.
    pub(super) risen: Vec<String>,
    /// Counts that fell, or that nobody has accepted yet.
    pub(super) offers: Vec<String>,
}

impl Ratchet {
    /// Reads the committed file; one that is not there holds nothing.
    ///
    /// # Errors
    ///
    /// It cannot be read, or a line is not as it should be.
    pub(super) fn read(workspace: &Workspace) -> Result<Self> {
        let file = path(workspace);
        if !file.exists() {
            return Ok(Self::default());
        }
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("failed to read {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("failed to read {}", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut counts = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let words: Vec<_> = line.split_whitespace().collect();
            let entry = match words[..] {
                [kernel, program, count] => series(kernel)
                    .zip(count.parse().ok())
                    .map(|(kernel, count): (_, u64)| ((kernel, program.to_owned()), count)),
                _ => None,
            };
            let (key, count) = entry.with_context(|| format!("failed to understand `{line}`"))?;
            counts.insert(key, count);
        }
        Ok(Self { counts })
    }

    /// Compares what a kernel reported.
    pub(super) fn compare(&self, report: &Report) -> Comparison {
        let mut comparison = Comparison::default();
        for (key, now) in counted(report) {
            let (name, accepted) = (title(&key), self.counts.get(&key).copied());
            match accepted {
                None => {
                    comparison.offers.push(format!("{name} has no accepted count, it is {now}"));
                }
                Some(accepted) if now * 100 > accepted * (100 + TOLERANCE_PERCENT) => {
                    comparison.risen.push(format!(
                        "{name}: the verifier goes through {now} instructions, {accepted} are \
                         accepted; if that is worth it: `cargo xtask verify --accept`"
                    ));
                }
                Some(accepted) if now * (100 + TOLERANCE_PERCENT) < accepted * 100 => {
                    comparison.offers.push(format!("{name} fell from {accepted} to {now}"));
                }
                Some(_) => {}
            }
        }
        comparison
    }

    /// Takes over what a kernel reported.
    pub(super) fn accept(&mut self, report: &Report) {
        if let Some(kernel) = series(&report.release) {
            self.counts.retain(|(known, _), _| *known != kernel);
        }
        self.counts.extend(counted(report));
    }

    /// Writes the committed file.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub(super) fn write(&self, workspace: &Workspace) -> Result<PathBuf> {
        let file = path(workspace);
        std::fs::create_dir_all(file.parent().unwrap_or(Path::new("/")))
            .and_then(|()| std::fs::write(&file, self.text()))
            .with_context(|| format!("failed to write {}", file.display()))?;
        Ok(file)
    }

    fn text(&self) -> String {
        let mut text = HEAD.to_owned();
        for ((kernel, program), count) in &self.counts {
            let _ = writeln!(text, "{:<6} {program:<16} {count:>7}", dotted(kernel));
        }
        text
    }
}

fn path(workspace: &Workspace) -> PathBuf {
    workspace.root().join(FILE)
}

/// The counts of a report; kernels before 5.16 count nothing.
fn counted(report: &Report) -> Vec<(Key, u64)> {
    let Some(kernel) = series(&report.release) else { return Vec::new() };
    let counts = report.programs.iter().filter_map(|(name, count)| {
        let count = count.filter(|count| *count > 0)?;
        Some(((kernel.clone(), name.clone()), count))
    });
    counts.collect()
}

/// `6.1.0-50-cloud-amd64` is of the series 6.1.
fn series(release: &str) -> Option<Vec<u32>> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some(vec![numbers.next()?.ok()?, numbers.next()?.ok()?])
}

fn dotted(kernel: &[u32]) -> String {
    kernel.iter().map(u32::to_string).collect::<Vec<_>>().join(".")
}

fn title((kernel, program): &Key) -> String {
    format!("{program} on {}", dotted(kernel))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(count: u64) -> Report {
        Report {
            release: "6.1.0-50-cloud-amd64".to_owned(),
            programs: vec![("tc_internal".to_owned(), Some(count)), ("sweep".to_owned(), None)],
            ..Report::default()
        }
    }

    fn ratchet() -> Ratchet {
        Ratchet::parse("# head\n\n6.1 tc_internal 1000\n6.12 tc_internal 7\n").unwrap()
    }

    #[test]
    fn a_rise_names_both_numbers_and_the_way_out() {
        let [text] = &ratchet().compare(&report(1031)).risen[..] else { panic!("one rise") };
        assert!(text.contains("1031") && text.contains("1000") && text.contains("--accept"));
        assert_eq!(ratchet().compare(&report(1030)), Comparison::default());
    }

    #[test]
    fn a_fall_and_a_new_program_are_offered() {
        let compared = |count| ratchet().compare(&report(count));
        assert_eq!(compared(960).offers, ["tc_internal on 6.1 fell from 1000 to 960"]);
        let offers = Ratchet::default().compare(&report(5)).offers;
        assert_eq!(offers, ["tc_internal on 6.1 has no accepted count, it is 5"]);
    }

    #[test]
    fn what_is_accepted_is_written_and_read_back() {
        let mut ratchet = ratchet();
        ratchet.accept(&report(2000));
        assert_eq!(ratchet.compare(&report(2000)), Comparison::default());
        assert_eq!(Ratchet::parse(&ratchet.text()).unwrap(), ratchet);
        // 6.12 is after 6.1, and untouched.
        assert!(
            ratchet.text().ends_with("6.12   tc_internal            7\n"),
            "{}",
            ratchet.text()
        );
    }

    #[test]
    fn a_line_that_is_none_is_an_error() {
        assert!(Ratchet::parse("6.1 tc_internal many").is_err());
        assert!(Ratchet::parse("six tc_internal 1").is_err());
    }
}
