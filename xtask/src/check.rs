//! `check`: everything about the source that needs no run of the program.
//!
//! All steps run, whatever fails, and a table at the end names each with its result.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::console::{self, Colour, Steps};
use crate::workspace::Workspace;
use crate::{build_ebpf, process, setup};

const STEPS: Steps = Steps::of("check");

/// A longer file is two files.
const MOST_LINES: usize = 600;

/// Checks formatting, lints, documentation, licences and sizes.
#[derive(Args, Clone, Copy, Debug, Default)]
pub(crate) struct Options {}

/// How a step ended.
enum Outcome {
    Passed,
    Skipped(&'static str),
    Failed(String),
}

type Step = fn(&Workspace) -> Result<Outcome>;

struct Row {
    name: &'static str,
    outcome: Outcome,
    elapsed: Duration,
}

/// Runs the verb.
///
/// # Errors
///
/// A step fails; the others have run nevertheless.
pub(crate) fn run(_: Options) -> Result<()> {
    let workspace = Workspace::locate()?;
    if let Err(error) = setup::ensure_components(&workspace) {
        console::error(&error);
    }
    let steps: [(&'static str, Step); 7] = [
        ("lock file", lock_file),
        ("format", format),
        ("clippy, host", clippy_host),
        ("clippy, BPF", clippy_bpf),
        ("rustdoc", rustdoc),
        ("cargo-deny", deny),
        ("file sizes", file_sizes),
    ];
    let rows: Vec<Row> = steps
        .into_iter()
        .map(|(name, step)| {
            STEPS.say(format_args!("{name} ..."));
            let started = Instant::now();
            let outcome = step(&workspace).unwrap_or_else(|error| {
                console::error(&error);
                Outcome::Failed(error.to_string())
            });
            Row { name, outcome, elapsed: started.elapsed() }
        })
        .collect();
    summarise(&rows)
}

fn summarise(rows: &[Row]) -> Result<()> {
    for row in rows {
        let state = match &row.outcome {
            Outcome::Passed => console::paint(Colour::Green, "passed"),
            Outcome::Skipped(why) => console::paint(Colour::Yellow, &format!("skipped: {why}")),
            Outcome::Failed(why) => console::paint(Colour::Red, &format!("FAILED: {why}")),
        };
        STEPS.say(format_args!("{:<14} {:>12}  {state}", row.name, console::seconds(row.elapsed)));
    }
    let failed = rows.iter().filter(|row| matches!(row.outcome, Outcome::Failed(_))).count();
    if failed > 0 {
        bail!("{failed} of {} checks failed", rows.len());
    }
    Ok(())
}

fn passed(command: &mut Command) -> Result<Outcome> {
    process::run(command).map(|()| Outcome::Passed)
}

fn lock_file(workspace: &Workspace) -> Result<Outcome> {
    process::read(workspace.cargo().args(["metadata", "--locked", "--format-version=1"])).context(
        "Cargo.lock does not fit the manifests; commit the one that `cargo build` writes",
    )?;
    Ok(Outcome::Passed)
}

fn format(workspace: &Workspace) -> Result<Outcome> {
    passed(workspace.cargo().args(["fmt", "--all", "--", "--check"]))
        .context("`cargo fmt --all` changes something")
}

fn clippy_host(workspace: &Workspace) -> Result<Outcome> {
    passed(workspace.cargo().args([
        "clippy",
        "--all-targets",
        "--keep-going",
        "--",
        "-D",
        "warnings",
    ]))
    .context("clippy has warnings")
}

fn clippy_bpf(workspace: &Workspace) -> Result<Outcome> {
    let tools = setup::ensure_compilers(workspace)?;
    passed(build_ebpf::cargo(workspace, &tools, "clippy").args([
        "--keep-going",
        "--",
        "-D",
        "warnings",
    ]))
    .context("clippy has warnings for the BPF target")
}

fn rustdoc(workspace: &Workspace) -> Result<Outcome> {
    passed(
        workspace
            .cargo()
            .args(["doc", "--no-deps", "--keep-going"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
    .context("rustdoc has warnings")
}

fn deny(workspace: &Workspace) -> Result<Outcome> {
    if process::find("cargo-deny").is_none() {
        return Ok(Outcome::Skipped("cargo-deny is not there; `cargo install cargo-deny`"));
    }
    // Advisories need a database from the network and change from day to day: not a matter of a build.
    passed(workspace.cargo().args([
        "deny",
        "--config",
        ".deny.toml",
        "check",
        "bans",
        "licenses",
        "sources",
    ]))
    .context("cargo-deny objects")
}

/// No committed Rust file is longer than [`MOST_LINES`].
fn file_sizes(workspace: &Workspace) -> Result<Outcome> {
    let mut git = Command::new("git");
    git.current_dir(workspace.root());
    let Ok(files) = process::read(git.args(["ls-files", "-z", "*.rs"])) else {
        return Ok(Outcome::Skipped("this is not a git repository"));
    };
    let mut text = String::new();
    for file in files.split_terminator('\0') {
        let lines = count_lines(&workspace.root().join(file));
        if lines > MOST_LINES {
            let _ = write!(text, "{file} ({lines}) ");
        }
    }
    if text.is_empty() {
        return Ok(Outcome::Passed);
    }
    bail!("longer than {MOST_LINES} lines: {}", text.trim_end())
}

/// A file that is listed but deleted has no lines.
fn count_lines(file: &Path) -> usize {
    std::fs::read(file).map_or(0, |bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_step_fails_the_verb() {
        let row = |outcome| Row { name: "step", outcome, elapsed: Duration::ZERO };
        assert!(summarise(&[row(Outcome::Passed), row(Outcome::Skipped("no tool"))]).is_ok());
        let error = summarise(&[row(Outcome::Failed("why".into())), row(Outcome::Passed)]);
        assert_eq!(error.unwrap_err().to_string(), "1 of 2 checks failed");
    }
}
