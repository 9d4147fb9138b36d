//! `vpc-gateway plan`: what `run` would change in the maps.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::GatewayOptions;
use crate::dataplane::maps::Maps;
use crate::dataplane::pins::Pins;
use crate::desired::{self, Allocations, Identity, ReplicaName};
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
    /// Name of the VpcNatGateway, or [NAMESPACE/]NAME of the VpcEgressGateway.
    #[arg(long, value_name = "NAME")]
    gateway: String,
    /// Which replica of the VpcEgressGateway: its position in the lists of addresses, from 0, or one of
    /// its addresses.
    #[arg(long, value_name = "N|ADDRESS")]
    replica: Option<ReplicaName>,
    /// Name under which the gateway runs, if it was given one.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Prints one JSON document instead of text.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    state: GatewayOptions,
}

/// Exit code 0: the plan was made, 1: something was rejected.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    let name = options.name.clone().unwrap_or_else(|| options.gateway.replace('/', "."));
    let name = &name;
    let state = options.state.directory(name)?;
    let allocations: Allocations = state.load("allocations.json")?.unwrap_or_default();
    let snapshot = yaml::read(&options.paths)?;
    let identity = Identity { name: options.replica, ..Identity::default() };
    let resolution = desired::resolve(&snapshot, &options.gateway, &allocations);
    let resolution = resolution.as_replica(&identity)?;
    let pins = Pins::new(name);
    let live = if pins.exist() { Maps::open(&pins)?.read()? } else { MapImage::default() };
    let mut problems: Vec<_> = resolution.rejections.iter().map(ToString::to_string).collect();
    let plan = match &resolution.state {
        Some(state) => {
            let encoded = encode(state, None, &live, &BTreeSet::new());
            problems.extend(encoded.overflows.iter().map(ToString::to_string));
            diff(&live, &encoded.image)
        }
        None => {
            let gateway = &options.gateway;
            problems.push(format!(
                "neither VpcNatGateway/{gateway} nor VpcEgressGateway/{gateway} is in the input"
            ));
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
