//! The command line: one module per verb, each with its `Options` and a `run`.
//!
//! `anyhow` is used here and nowhere else; below this module every error is an enum.

pub mod check;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The data plane of a VPC NAT gateway, from Kube-OVN manifests to BPF maps.
#[derive(Debug, Parser)]
#[command(name = "vpc-gateway", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs of `vpc-gateway`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Reads manifests and reports every problem in them. Needs no privilege.
    Check(check::Options),
}

impl Command {
    /// Runs the verb and returns the exit code of the process.
    ///
    /// # Errors
    ///
    /// Whatever made the verb impossible; the caller prints it with its causes and exits with 2.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Check(options) => check::run(&options),
        }
    }
}
