//! `vpc-gateway plan`: what `run` would change in the maps.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::GatewayOptions;
use crate::dataplane::maps::Maps;
use crate::dataplane::pins::Pins;
use crate::desired::{self, Allocations};
use crate::encode::encode;
use crate::image::MapImage;
use crate::plan::{Plan, diff};
use crate::source::yaml;

/// Options of `vpc-gateway plan`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Compares with the live maps of the gateway, or with empty ones if it does not run. Nothing is \
changed. Interfaces and settings of the configuration are not part of the comparison.

Exit codes: 0 the plan was made, 1 something in the manifests was rejected, 2 error.")]
pub struct Options {
    /// Manifest files, or directories of them.
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Name of the VpcNatGateway.
    #[arg(long, value_name = "NAME")]
    gateway: String,
    /// Prints one JSON document instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: GatewayOptions,
}

/// Exit code 0: the plan was made, 1: something was rejected.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let state = options.state.directory(&options.gateway)?;
    let allocations: Allocations = state.load("allocations.json")?.unwrap_or_default();
    let snapshot = yaml::read(&options.paths)?;
    let resolution = desired::resolve(&snapshot, &options.gateway, &allocations);
    let pins = Pins::new(&options.gateway);
    let live = if pins.exist() { Maps::open(&pins)?.read()? } else { MapImage::default() };
    let mut problems: Vec<_> = resolution.rejections.iter().map(ToString::to_string).collect();
    let plan = match &resolution.state {
        Some(state) => {
            let encoded = encode(state, None, &live, &BTreeSet::new());
            problems.extend(encoded.overflows.iter().map(ToString::to_string));
            diff(&live, &encoded.image)
        }
        None => {
            problems.push(format!("VpcNatGateway/{} is not in the input", options.gateway));
            Plan::default()
        }
    };
    problems.iter().for_each(|problem| eprintln!("{problem}"));
    if options.json {
        super::print_json(&plan)?;
    } else {
        super::print(format_args!("{plan}{} changes\n", plan.len()))?;
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}
