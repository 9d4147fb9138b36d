//! `vpc-gateway detach`: takes a gateway down completely.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};

use super::GatewayOptions;
use crate::dataplane::attach::detach_clsact;
use crate::dataplane::kernel::Side;
use crate::dataplane::pins::Pins;
use crate::dataplane::probe;
use crate::host::{self, HostPlan, HostState, sysctl};
use crate::netlink::{Netlink, NetlinkError};
use crate::netns;
use crate::state_dir::StateDir;
use crate::status::{self, Status};

/// Options of `vpc-gateway detach`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Removes programs, maps with all sessions, the addresses and routes that `run` added, and the state \
directory; forwarding is as it was before. Doing it again does nothing.

Exit codes: 0 nothing is left, 2 error.")]
pub struct Options {
    /// Name of the VpcNatGateway.
    #[arg(long, value_name = "NAME")]
    gateway: String,
    /// Network namespace of the interfaces, if not the one that `run` was given.
    #[arg(long, value_name = "PATH|NAME")]
    netns: Option<PathBuf>,
    /// The namespace is gone, with all that was in it.
    #[arg(long, hide = true, conflicts_with = "netns")]
    namespace_gone: bool,
    #[command(flatten)]
    state: GatewayOptions,
}

/// Exit code 0: nothing is left.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    probe::check()?;
    let state = options.state.directory(&options.gateway)?;
    if let Some(pid) = state.holder() {
        bail!("gateway {} is run by process {pid}, end it first", options.gateway);
    }
    let status: Option<Status> = state.load(status::FILE)?;
    let owned: HostState = state.load(host::FILE)?.unwrap_or_default();
    let given = options.netns.as_deref().map(netns::path);
    let namespace = given.or_else(|| status.as_ref()?.netns.clone());
    // A namespace that is gone took its addresses and filters with it.
    let reachable = match &namespace {
        _ if options.namespace_gone => false,
        Some(path) if !path.exists() && options.netns.is_none() => false,
        Some(path) => {
            netns::enter(path)?;
            true
        }
        None => true,
    };
    Pins::new(&options.gateway).remove()?;
    if reachable {
        super::runtime()?.block_on(clean(status.as_ref(), owned))?;
        let settings: Vec<sysctl::Found> = state.load(sysctl::FILE)?.unwrap_or_default();
        sysctl::restore(&settings).iter().for_each(|error| eprintln!("{error}"));
    }
    remove(&state)?;
    Ok(ExitCode::SUCCESS)
}

fn remove(state: &StateDir) -> Result<()> {
    Ok(state.remove()?)
}

/// Removes filters, addresses and routes from interfaces that are still there.
async fn clean(status: Option<&Status>, owned: HostState) -> Result<()> {
    let netlink = Netlink::connect()?;
    let mut indices = Vec::new();
    for interface in status.into_iter().flat_map(|status| &status.interfaces) {
        match netlink.interface(&interface.name).await {
            Ok(found) => {
                detach_clsact(&interface.name)?;
                indices.push((interface.side, found.index));
            }
            Err(NetlinkError::NoInterface(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let index_of =
        |side: Side| indices.iter().find(|(one, _)| *one == side).map(|(_, index)| *index);
    let plan = HostPlan {
        remove_addresses: owned.addresses.into_iter().collect(),
        remove_routes: owned.routes.into_iter().collect(),
        ..HostPlan::default()
    };
    let errors: BTreeSet<_> =
        host::apply(&netlink, &plan, index_of).await.iter().map(ToString::to_string).collect();
    errors.iter().for_each(|error| eprintln!("{error}"));
    Ok(())
}
