//! `vpc-gateway select`: sends tenants' flows to the replicas of their egress gateways.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use super::MetricsOptions;
use super::bfdd::directory;
use crate::dataplane::attach::detach_clsact;
use crate::dataplane::object::object;
use crate::dataplane::pins::{Pins, ensure_bpffs};
use crate::dataplane::probe;
use crate::egress::daemon::{self, Settings};
use crate::metrics::{self, Listener};
use crate::netns;
use crate::privilege;
use crate::state_dir::{self, StateDir};

/// Options of `vpc-gateway select`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Reads the VpcEgressGateways of the manifests with their Subnets, the Pods and Namespaces that their \
selectors take, and the Vpcs with their static and policy routes. A packet whose source is in one of the \
gateways' policies, or a selected pod, and whose destination is outside the VPC goes to one of the replicas; what a route covers goes to one of its next hops; all other packets \
are left to the kernel. The same flow always takes the same next hop while that is alive; if none is, its \
packets are dropped.

Annotations of a VpcEgressGateway:
  vpc-gateway.io/hash: 5-tuple | source    what chooses the replica of a flow
  vpc-gateway.io/weights: 2,1,1            in the order of the replicas; 0 takes a replica out
Annotation of a Vpc:
  vpc-gateway.io/next-hop-bfd: 300/300/3   minRX/minTX/multiplier of routes with a bfdId; or on, off

SIGTERM and SIGINT end the process and leave the program attached with the replicas as they are.

Exit codes: 0 ended by a signal, 2 could not start.")]
pub struct Options {
    /// Manifest files, or directories of them. They are read again when they change.
    #[arg(long, value_name = "PATH", required_unless_present = "detach", num_args = 1..)]
    config: Vec<PathBuf>,
    /// Interface that tenants' packets come in by. May be given several times.
    #[arg(long, value_name = "IF", required = true)]
    interface: Vec<String>,
    /// Name of this node: gateways with trafficPolicy Local prefer replicas on it.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node: Option<String>,
    /// Name of this selector, where there are several on one machine.
    #[arg(long, value_name = "NAME", default_value = "select")]
    name: String,
    /// Network namespace of the interfaces: a path, or a name as in `ip netns`.
    #[arg(long, value_name = "PATH|NAME")]
    netns: Option<PathBuf>,
    /// The eBPF object, where it is not part of the binary.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    /// Takes the program off the interfaces and removes maps and state, and ends.
    #[arg(long)]
    detach: bool,
    #[command(flatten)]
    metrics: MetricsOptions,
    /// Directory for the state, with one directory for each selector in it.
    #[arg(long, value_name = "DIR", default_value = state_dir::DEFAULT)]
    state_dir: PathBuf,
}

/// Exit code 0: ended by a signal.
pub(super) fn run(options: Options) -> Result<ExitCode> {
    probe::check()?;
    let state = StateDir::new(&options.state_dir, &options.name)?;
    let _lock = state.lock()?;
    let bfd_state = directory(&options.state_dir, &options.name)?;
    let _bfd_lock = bfd_state.lock()?;
    if options.detach {
        return detach(&options, &state);
    }
    let object = object(options.object.as_deref())?;
    let listener = options.metrics.listen()?;
    if let Some(namespace) = &options.netns {
        netns::enter(&netns::path(namespace))?;
    }
    ensure_bpffs()?;
    let needed = [privilege::SELECT, &[privilege::READ_FILES]].concat();
    let kept = privilege::keep(&needed)?;
    eprintln!("capabilities: {kept}");
    let pins = Pins::of_selector(&options.name);
    let serve = |listener: Listener| listener.serve(|_| metrics::selector::Selector::new(pins));
    let metrics = listener.map(serve).transpose()?;
    let settings = Settings {
        name: options.name,
        paths: options.config,
        interfaces: options.interface,
        node: options.node,
        state,
        bfd_state,
        metrics,
        object,
    };
    super::runtime()?.block_on(daemon::run(settings))?;
    Ok(ExitCode::SUCCESS)
}

/// Exit code 0: nothing is left.
fn detach(options: &Options, state: &StateDir) -> Result<ExitCode> {
    Pins::of_selector(&options.name).remove()?;
    if let Some(namespace) = &options.netns {
        netns::enter(&netns::path(namespace))?;
    }
    for interface in &options.interface {
        detach_clsact(interface)?;
    }
    state.remove()?;
    Ok(ExitCode::SUCCESS)
}
