//! `cargo xtask VERB`: everything a developer does, one file per verb.
//!
//! | verb | what it does |
//! |---|---|
//! | `setup` | installs what builds and tests need, or says what is missing |
//! | `build-ebpf` | builds the eBPF object and lists its programs |
//! | `build` | builds the object and the `vpc-gateway` binary that embeds it |
//! | `check` | formatting, lints, documentation, licences, file sizes |
//! | `test` | all tests, by tier, with a summary |
//! | `demo` | real traffic through a gateway in network namespaces |
//! | `ci` | what CI runs |
//!
//! The verbs print plain steps, inherit the output of what they run, and end with an exit code that
//! a script can rely on.

mod build;
mod build_ebpf;
mod console;
mod privilege;
mod process;
mod programs;
mod setup;
mod toolchain;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, checks, tests and demonstrates vpc-gateway.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Setup(setup::Options),
    BuildEbpf(build_ebpf::Options),
    Build(build::Options),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup(options) => setup::run(options),
        Verb::BuildEbpf(options) => build_ebpf::run(options),
        Verb::Build(options) => build::run(options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            console::error(&error);
            ExitCode::FAILURE
        }
    }
}
