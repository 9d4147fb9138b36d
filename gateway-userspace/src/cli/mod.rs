//! The command line: one module per verb, each with its `Options` and a `run`.
//!
//! `anyhow` is used here and nowhere else; below this module every error is an enum.

pub mod agent;
pub mod bfdd;
pub mod check;
pub mod crds;
pub mod detach;
pub mod exec;
pub mod plan;
pub mod run;
pub mod select;
pub mod show;
mod table;

use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use serde::Serialize;

use crate::metrics::{Address, Listener, MetricsError, Settings};
use crate::state_dir::{self, StateDir, StateError};

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
    /// Shows what `run` would change in the maps. Changes nothing.
    Plan(plan::Options),
    /// Brings a gateway up and keeps it as the manifests say.
    Run(Box<run::Options>),
    /// Serves each gateway pod of a node: what the DaemonSet runs.
    Agent(Box<agent::Options>),
    /// Carries out a verb of kube-ovn-controller, as the script in a gateway pod does.
    Exec(exec::Options),
    /// Shows whether a gateway works, what is attached where, and what is wrong.
    Status(show::status::Options),
    /// Shows the active rules with their packets and bytes.
    Rules(show::rules::Options),
    /// Shows the open sessions.
    Sessions(show::sessions::Options),
    /// Shows what each EIP carries: sessions, ports, refusals.
    Eips(show::eips::Options),
    /// Shows the inside hosts with open sessions, those with the most first.
    Hosts(show::hosts::Options),
    /// Shows why packets were dropped, or left to the kernel.
    Drops(show::drops::Options),
    /// Sends tenants' flows to the replicas of their egress gateways.
    Select(select::Options),
    /// Shows the next hops of a selector.
    Nexthops(show::nexthops::Options),
    /// Shows BFD sessions: whether neighbours are alive.
    Bfd(show::bfd::Options),
    /// Runs BFD sessions and nothing else.
    Bfdd(bfdd::Options),
    /// Prints the CRDs of the kinds that `run --kube` watches, for a cluster without Kube-OVN.
    Crds(crds::Options),
    /// Takes a gateway down: programs, maps, sessions, addresses.
    Detach(detach::Options),
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
            Self::Plan(options) => plan::run(&options),
            Self::Run(options) => run::run(*options),
            Self::Agent(options) => agent::run(*options),
            Self::Exec(options) => exec::run(&options),
            Self::Status(options) => or_nothing(show::status::run(&options)),
            Self::Rules(options) => or_nothing(show::rules::run(&options)),
            Self::Sessions(options) => or_nothing(show::sessions::run(&options)),
            Self::Eips(options) => or_nothing(show::eips::run(&options)),
            Self::Hosts(options) => or_nothing(show::hosts::run(&options)),
            Self::Drops(options) => or_nothing(show::drops::run(&options)),
            Self::Select(options) => select::run(options),
            Self::Nexthops(options) => or_nothing(show::nexthops::run(&options)),
            Self::Bfd(options) => or_nothing(show::bfd::run(&options)),
            Self::Bfdd(options) => bfdd::run(&options),
            Self::Crds(options) => crds::run(options),
            Self::Detach(options) => detach::run(&options),
        }
    }
}

/// That there is no gateway to show is an answer of its own: exit code 1.
fn or_nothing(result: anyhow::Result<ExitCode>) -> anyhow::Result<ExitCode> {
    match result {
        Err(error) if error.is::<show::Nothing>() => {
            eprintln!("{error}");
            Ok(ExitCode::from(1))
        }
        other => other,
    }
}

/// Where the state of gateways is kept.
#[derive(Debug, clap::Args)]
pub struct GatewayOptions {
    /// Directory for lock, status and allocations, with one directory for each gateway in it.
    #[arg(long, value_name = "DIR", default_value = state_dir::DEFAULT)]
    state_dir: PathBuf,
}

impl GatewayOptions {
    fn directory(&self, gateway: &str) -> Result<StateDir, StateError> {
        StateDir::new(&self.state_dir, gateway)
    }
}

/// Where metrics are served.
#[derive(Debug, clap::Args)]
pub struct MetricsOptions {
    /// Serves /metrics for Prometheus, /healthz and /readyz there, in the network namespace that the command
    /// was started in.
    #[arg(long, value_name = "ADDRESS:PORT|unix:PATH")]
    metrics: Option<Address>,
    /// How many rules, and how many EIPs, the metrics show one by one; the others are summed.
    #[arg(long, value_name = "N", default_value_t = 1000, requires = "metrics")]
    metrics_limit: usize,
}

impl MetricsOptions {
    /// Opens the port. Comes before any network namespace is entered.
    fn listen(&self) -> Result<Option<Listener>, MetricsError> {
        let settings =
            |address: &Address| Settings { address: address.clone(), limit: self.metrics_limit };
        self.metrics.as_ref().map(|address| Listener::open(settings(address))).transpose()
    }
}

/// One thread, so that everything stays in the network namespace that was entered.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("failed to start the event loop")
}

/// Prints to standard output. That nobody reads on is no error.
fn print(what: impl Display) -> anyhow::Result<()> {
    match write!(io::stdout().lock(), "{what}") {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("failed to write to standard output")
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn print_json(what: &impl Serialize) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(what).context("failed to write JSON")?;
    print(format_args!("{text}\n"))
}
