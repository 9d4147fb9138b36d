//! Real traffic through a gateway, in network namespaces of its own.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gateway_tests::demo::{egress, leftovers, nat};
use gateway_tests::lab::{cleanup, echo};

/// Shows a gateway at work: real connections between network namespaces, as a table.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    nat: NatOptions,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// NAT by the rules of ordinary Kube-OVN manifests (the default)
    Nat(NatOptions),
    /// An egress gateway of three replicas: spread, weights, a replica that dies and comes back
    Egress {
        /// Print one JSON document instead of the table
        #[arg(long)]
        json: bool,
    },
    /// Remove what earlier demos left, on purpose or because they were killed
    Clean {
        /// Only the demo that had this process id
        #[arg(long, value_name = "PID")]
        only: Option<u32>,
    },
    /// An echo server for the namespaces of the demo
    #[command(hide = true)]
    ServeEcho {
        /// UDP and TCP port
        port: u16,
    },
}

#[derive(Debug, clap::Args)]
struct NatOptions {
    /// Leave everything running, and say how to enter it
    #[arg(long)]
    keep: bool,
    /// Print one JSON document instead of the table
    #[arg(long)]
    json: bool,
    /// The manifests to apply
    #[arg(long, value_name = "DIR", default_value_os_t = nat::example())]
    config: PathBuf,
    /// The gateway among them
    #[arg(long, value_name = "NAME", default_value = "gw1")]
    gateway: String,
}

fn main() -> ExitCode {
    cleanup::on_panic();
    match run(Cli::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gateway-demo: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    match cli.verb.unwrap_or(Verb::Nat(cli.nat)) {
        Verb::Nat(NatOptions { keep, json, config, gateway }) => {
            nat::run(&nat::Options { keep, json, config, gateway })
        }
        Verb::Egress { json } => egress::run(&egress::Options { json }),
        Verb::Clean { only } => {
            for name in leftovers::remove(true, only)? {
                println!("removed {name}");
            }
            Ok(ExitCode::SUCCESS)
        }
        Verb::ServeEcho { port } => {
            echo::serve_forever(port)?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
