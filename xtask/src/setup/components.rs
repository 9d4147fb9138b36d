//! `rustfmt` and `clippy`: parts of most toolchains, but not of the minimal ones of CI images.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::STEPS;
use crate::process;
use crate::workspace::Workspace;

/// How long rustup may take.
const LIMIT: Duration = Duration::from_secs(180);

/// The subcommands of cargo that `check` runs, each with the component of rustup that has it.
const COMPONENTS: [(&str, &str); 2] = [("fmt", "rustfmt"), ("clippy", "clippy")];

/// The components that are not there.
pub(super) fn missing(workspace: &Workspace) -> Vec<&'static str> {
    let runs = |subcommand: &str| {
        let mut command = workspace.cargo();
        command.args([subcommand, "--version"]).stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let absent = COMPONENTS.into_iter().filter(|(subcommand, _)| !runs(subcommand));
    absent.map(|(_, component)| component).collect()
}

/// Installs them with rustup.
///
/// # Errors
///
/// There is no rustup, or it cannot reach its server.
pub(super) fn install(components: &[&str]) -> Result<()> {
    let names = components.join(" and ");
    if process::find("rustup").is_none() {
        bail!(
            "failed to install {names}: there is no rustup; take them from where rustc came from"
        );
    }
    STEPS.say(format_args!("{names}: installing with rustup ..."));
    let mut command = Command::new("rustup");
    process::run_within(LIMIT, command.args(["component", "add"]).args(components))
        .with_context(|| format!("failed to install {names}"))
}
