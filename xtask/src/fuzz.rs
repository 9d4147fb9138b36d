//! `fuzz`: libFuzzer on one of the targets of `tests/src/fuzz`.
//!
//! The fuzzer is a crate of its own, `tests/fuzz`, because all that is in it is built with coverage
//! counters. The pinned compiler can do that, and a C++ compiler makes libFuzzer: neither a nightly
//! nor `cargo-fuzz` is needed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::console::{self, Steps};
use crate::setup::packages::{self, Program};
use crate::workspace::Workspace;
use crate::{Exit, interrupt, process};

const STEPS: Steps = Steps::of("fuzz");

const MANIFEST: &str = "tests/fuzz/Cargo.toml";
const CORPUS: &str = "tests/fuzz/corpus";
const HOST: &str = "x86_64-unknown-linux-gnu";

/// Counters at every edge, and a look at what is compared with what.
const INSTRUMENTATION: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// What only this verb needs.
const COMPILER: Program =
    Program { command: "c++", packages: &["g++"], purpose: "compiling libFuzzer", optional: false };

/// Looks for inputs that break a target, from the committed corpus on.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// What takes the inputs
    #[arg(value_enum)]
    target: Target,
    /// How long
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u32,
    /// Adds inputs that reach something new to the committed corpus
    #[arg(long)]
    keep: bool,
    /// Runs only this input, to see what it does
    #[arg(value_name = "FILE")]
    input: Option<PathBuf>,
}

/// What takes the inputs.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub(crate) enum Target {
    /// Frames, read
    Parse,
    /// Packets, rules, time and routes, through the pipeline
    Pipeline,
    /// Manifests, resolved, encoded and planned
    Yaml,
}

impl Target {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::Parse, Self::Pipeline, Self::Yaml];

    fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::Pipeline => "pipeline",
            Self::Yaml => "yaml",
        }
    }

    /// The longest input in bytes that may reach something new.
    fn longest(self) -> u32 {
        match self {
            Self::Parse => 512,
            Self::Pipeline => 4096,
            Self::Yaml => 8192,
        }
    }
}

/// Runs the verb; ends with the exit code of the fuzzer.
///
/// # Errors
///
/// The fuzzer cannot be built, or an input breaks the target.
pub(crate) fn run(options: Options) -> Result<()> {
    let workspace = Workspace::locate()?;
    let fuzzer = build(&workspace)?;
    let Options { target, seconds, keep, input } = options;
    match input {
        Some(input) => execute(Command::new(fuzzer).env("FUZZ_TARGET", target.name()).arg(input)),
        None => hunt(&workspace, &fuzzer, target, seconds, keep),
    }
}

/// Builds the fuzzer and returns its program.
///
/// # Errors
///
/// There is no C++ compiler, or something does not compile.
pub(crate) fn build(workspace: &Workspace) -> Result<PathBuf> {
    if process::find(COMPILER.command).is_none() {
        packages::install(&[&COMPILER])?;
    }
    let started = Instant::now();
    STEPS.say("building the fuzzer, all of it with counters ...");
    let folder = workspace.target().join("fuzz");
    let mut cargo = workspace.cargo();
    // Naming the target keeps the counters out of build scripts.
    cargo.args(["build", "--release", "--target", HOST, "--manifest-path", MANIFEST]);
    cargo.arg("--target-dir").arg(&folder).env("RUSTFLAGS", INSTRUMENTATION.join(" "));
    process::run(&mut cargo).context("failed to build the fuzzer")?;
    STEPS.say(format_args!("built: {}", console::seconds(started.elapsed())));
    Ok(folder.join(HOST).join("release/fuzz"))
}

/// Looks for `seconds` for inputs that break the target.
///
/// # Errors
///
/// One does; it is kept, and named.
pub(crate) fn hunt(
    workspace: &Workspace,
    fuzzer: &Path,
    target: Target,
    seconds: u32,
    keep: bool,
) -> Result<()> {
    let name = target.name();
    let committed = workspace.root().join(CORPUS).join(name);
    let scratch = workspace.scratch("fuzz").join(name);
    let found = scratch.join("found");
    for folder in [&committed, &found] {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("failed to create {}", folder.display()))?;
    }
    STEPS.say(format_args!("{name}: {seconds} s; what it finds is in {}", scratch.display()));
    let mut command = Command::new(fuzzer);
    command.env("FUZZ_TARGET", name).arg(&found).arg(&committed);
    if target == Target::Yaml {
        command.arg(workspace.root().join("tests/fixtures"));
    }
    command.arg(format!("-max_total_time={seconds}"));
    command.arg(format!("-max_len={}", target.longest()));
    command.arg(format!("-artifact_prefix={}/", scratch.display()));
    command.args(["-timeout=20", "-print_final_stats=1", "-verbosity=0"]);
    let broken = execute(&mut command);
    if broken.is_err() {
        STEPS.say(format_args!(
            "{name}: an input breaks it, see `Test unit written to` above. Look at it by `cargo \
             xtask fuzz {name} FILE`, then put it into {CORPUS}/{name}, with a case for what it shows"
        ));
    }
    if keep {
        let mut merge = Command::new(fuzzer);
        merge.env("FUZZ_TARGET", name).args(["-set_cover_merge=1", "-verbosity=0"]);
        // Edges only: how often one is passed would keep five times as many inputs.
        merge.arg("-use_counters=0");
        execute(merge.arg(&committed).arg(&found))?;
        let count = std::fs::read_dir(&committed).map_or(0, Iterator::count);
        STEPS.say(format_args!("{name}: {count} inputs in {CORPUS}/{name}"));
    }
    broken
}

fn execute(command: &mut Command) -> Result<()> {
    interrupt::leave_to_children();
    let mut child =
        command.spawn().with_context(|| format!("failed to start `{}`", process::line(command)))?;
    interrupt::pass_on_to(&child);
    Exit::from_status(child.wait().context("failed to wait for the fuzzer")?)
}
