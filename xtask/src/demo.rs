//! `demo`: real traffic through a gateway in network namespaces.
//!
//! This verb builds and starts; the demonstration itself is the binary `gateway-demo` of the crate
//! `gateway-tests`, which runs as root, gets every argument, and cleans up after itself.

use anyhow::{Context as _, Result};
use clap::Args;

use crate::console::Steps;
use crate::workspace::Workspace;
use crate::{Exit, build, interrupt, privilege, process, setup};

const STEPS: Steps = Steps::of("demo");

/// Builds everything and runs the demonstration as root.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// What to show and how, for example `egress`, `nat`, `--keep`; all arguments go to the demo
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Runs the verb; ends with the exit code of the demonstration.
///
/// # Errors
///
/// This machine lacks something, something does not compile, or the demonstration fails.
pub(crate) fn run(options: Options) -> Result<()> {
    let workspace = Workspace::locate()?;
    let privilege = privilege::require_kernel(STEPS)?;
    setup::ensure_programs()?;
    let products = build::products(&workspace)?;
    process::run(workspace.cargo().args([
        "build",
        "--release",
        "--package",
        "gateway-tests",
        "--bin",
        "gateway-demo",
    ]))
    .context("failed to build the demo")?;
    let mut demo =
        privilege.command(workspace.target().join("release/gateway-demo"), &products.variables());
    demo.args(&options.arguments).current_dir(workspace.root());
    interrupt::leave_to_children();
    let mut child =
        demo.spawn().with_context(|| format!("failed to start `{}`", process::line(&demo)))?;
    interrupt::pass_on_to(&child);
    let status = child.wait().context("failed to wait for the demo")?;
    Exit::from_status(status)
}
