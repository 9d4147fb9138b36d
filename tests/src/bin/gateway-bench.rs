//! How fast the gateway is, beside what users run today.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use gateway_tests::bench;
use gateway_tests::lab::cleanup;

/// Measures the gateway in network namespaces of its own, beside the iptables chains that Kube-OVN
/// programs, the same rules in nftables, plain forwarding, and bare redirects.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask bench", version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    options: bench::Options,
}

#[derive(Debug, Subcommand)]
enum Verb {}

fn main() -> ExitCode {
    cleanup::on_panic();
    let cli = Cli::parse();
    let outcome = match cli.verb {
        None => bench::run(&cli.options),
        Some(verb) => match verb {},
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("gateway-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}
