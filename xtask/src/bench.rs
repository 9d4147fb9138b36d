//! `bench`: how fast the gateway is, beside what users run today and beside the limits of the hooks.
//!
//! This verb builds, installs the competitors and starts; the bench itself is the binary
//! `gateway-bench` of the crate `gateway-tests`, which runs as root, gets every argument, and cleans
//! up after itself.

use std::ffi::OsString;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::console::Steps;
use crate::workspace::Workspace;
use crate::{Exit, build, build_ebpf, interrupt, kube_assets, privilege, process, setup};

const STEPS: Steps = Steps::of("bench");

/// Measures the gateway beside iptables, nftables, plain forwarding and bare redirects.
#[derive(Args, Clone, Debug)]
#[command(disable_help_flag = true)]
pub(crate) struct Options {
    /// What to measure and how; all arguments go to the bench: see `cargo xtask bench --help`
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the verb; ends with the exit code of the bench.
///
/// # Errors
///
/// This machine lacks something, something does not compile, or the bench cannot run.
pub(crate) fn run(options: Options) -> Result<()> {
    let workspace = Workspace::locate()?;
    if options.arguments.iter().any(|word| ["--help", "-h", "--list"].contains(&word.as_str())) {
        return process::run(compile(&workspace, "run").arg("--").args(&options.arguments));
    }
    let privilege = privilege::require_kernel(STEPS)?;
    setup::ensure_programs()?;
    setup::ensure("competitors", &setup::packages::COMPETITORS)?;
    let products = build::products(&workspace)?;
    let object = build_ebpf::bench_object(&workspace)?;
    process::run(&mut compile(&workspace, "build")).context("failed to build the bench")?;
    let mut variables = products.variables();
    variables.push(("VPC_GATEWAY_BENCH_OBJECT", OsString::from(object)));
    if options.arguments.iter().any(|word| word == "kube") {
        variables.push((kube_assets::VARIABLE, kube_assets::ensure()?.into()));
    }
    let mut bench = privilege.command(workspace.target().join("release/gateway-bench"), &variables);
    bench.args(&options.arguments).current_dir(workspace.root());
    interrupt::leave_to_children();
    let mut child =
        bench.spawn().with_context(|| format!("failed to start `{}`", process::line(&bench)))?;
    interrupt::pass_on_to(&child);
    let status = child.wait().context("failed to wait for the bench")?;
    Exit::from_status(status)
}

/// The cargo command that builds the bench, or builds and runs it.
fn compile(workspace: &Workspace, subcommand: &str) -> std::process::Command {
    let mut command = workspace.cargo();
    command.arg(subcommand).args(["--quiet", "--release", "--package", "gateway-tests"]);
    command.args(["--bin", "gateway-bench"]);
    command
}
