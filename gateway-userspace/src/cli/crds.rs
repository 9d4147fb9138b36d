//! `vpc-gateway crds`: the CustomResourceDefinitions of the kinds that `run --kube` watches.

use std::process::ExitCode;

use super::print_json;
use crate::source::kube::definitions;

/// Options of `vpc-gateway crds`.
#[derive(Clone, Copy, Debug, clap::Args)]
#[command(after_help = "\
A cluster with Kube-OVN has them already, with schemas of its own: do not apply these there.

Exit code: 0.")]
pub struct Options {}

/// Exit code 0.
pub(super) fn run(_: Options) -> anyhow::Result<ExitCode> {
    print_json(&definitions())?;
    Ok(ExitCode::SUCCESS)
}
