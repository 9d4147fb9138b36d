//! `vpc-gateway run`: brings a gateway up and keeps it as the manifests say.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use caps::Capability;
use clap::ValueEnum;
use gateway_common::records::{HostLimits, Unmatched};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::getppid;

use super::{GatewayOptions, MetricsOptions};
use crate::daemon::{self, Settings};
use crate::dataplane::kernel::KernelOptions;
use crate::dataplane::mode::ModeArgument;
use crate::dataplane::object::object;
use crate::dataplane::pins::{Pins, ensure_bpffs};
use crate::dataplane::probe;
use crate::desired::ReplicaName;
use crate::encode::MssClamp;
use crate::exec::client::{INIT, Initialised};
use crate::metrics::{self, Listener};
use crate::netns;
use crate::privilege;
use crate::source::feed::Feed;
use crate::source::kube::{Cluster, Reporter};
use crate::state_dir::StateDir;
use crate::timeouts::{self, Asked};

/// Options of `vpc-gateway run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Signals: SIGHUP reads the objects again; SIGTERM and SIGINT end the process and leave the data \
plane attached, so that traffic goes on and the next start takes it over.

Exit codes: 0 ended by a signal, 2 could not start (what ran before goes on).")]
pub struct Options {
    /// Name of the VpcNatGateway, or [NAMESPACE/]NAME of the VpcEgressGateway that this is a replica of;
    /// the namespace is `default` if absent.
    #[arg(long, value_name = "NAME")]
    gateway: String,
    /// Which replica this is: its position in internalIPs and externalIPs, from 0, or one of its
    /// addresses. Without it, the addresses of the interfaces tell.
    #[arg(long, value_name = "N|ADDRESS")]
    replica: Option<ReplicaName>,
    /// Name under which the other verbs find it, where several replicas run on one machine: that of the
    /// gateway if absent, with a dot between namespace and name.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    #[command(flatten)]
    source: SourceOptions,
    /// Interface towards the VPC.
    #[arg(long, value_name = "IF", default_value = "eth0")]
    internal: String,
    /// Interface towards the outside.
    #[arg(long, value_name = "IF", default_value = "net1")]
    external: String,
    /// Network namespace of the interfaces: a path, or a name as in `ip netns`.
    #[arg(long, value_name = "PATH|NAME")]
    netns: Option<PathBuf>,
    /// Hook for both interfaces, or IF=MODE for one: auto, tc, xdp, xdp-generic.
    #[arg(long, value_name = "[IF=]MODE")]
    mode: Vec<ModeArgument>,
    /// What becomes of a packet that no rule covers.
    #[arg(long, value_name = "POLICY", default_value = "drop")]
    unmatched: UnmatchedPolicy,
    /// After how long without a packet sessions end: tcp-opening=240,tcp-established=7440,
    /// tcp-closing=240,udp-new=120,udp-stream=300,icmp=60,other=300. Seconds, or with a unit: 4m, 2h, 1d.
    /// @FILE takes them from the lines of a file. Open sessions live by the new ones after a restart.
    #[arg(long, value_name = "KEY=DURATION,..|@FILE", value_delimiter = ',')]
    timeouts: Vec<Asked>,
    /// External ports for sources from port 1024 on. Gateways that share an EIP own disjoint ranges.
    #[arg(long, value_name = "LOW-HIGH", default_value = "1024-65535", alias = "port-range")]
    ports: PortRange,
    /// How many open sessions an inside host may have; 0 for no limit. Further flows of it are dropped,
    /// open ones and other hosts go on.
    #[arg(long, value_name = "N", default_value_t = 0)]
    host_sessions: u32,
    /// How many sessions an inside host may open per second, after a burst of as many or of BURST at
    /// once; 0 for no limit.
    #[arg(long, value_name = "N[/BURST]", default_value = "0")]
    host_rate: HostRate,
    /// Lets new TCP connections announce no larger segments than fit: auto for the smaller MTU of both
    /// interfaces, or a number of bytes for IPv4 (over IPv6 20 fewer). For paths that swallow the ICMP
    /// messages by which ends find out by themselves.
    #[arg(long, value_name = "off|auto|BYTES", default_value = "off")]
    mss_clamp: MssClampOption,
    /// How many sessions there can be. Takes effect when the maps are made.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64 << 20))]
    max_sessions: Option<u32>,
    /// Takes the memory of all sessions at the start, in place of one allocation for each entry: new sessions
    /// cost less, for 256 bytes a flow over IPv4 and 384 over IPv6, open or not: 168 MB with the default of
    /// --max-sessions. Takes effect when the maps are made.
    #[arg(long)]
    preallocate: bool,
    /// Leaves addresses and routes to somebody else, such as the script in a gateway pod.
    #[arg(long)]
    leave_host: bool,
    /// Ends as with SIGTERM when this process, which has started it, ends.
    #[arg(long, value_name = "PID", hide = true)]
    end_with_parent: Option<i32>,
    /// Starts with empty maps, even if there are some: open sessions are lost.
    #[arg(long)]
    reset_maps: bool,
    /// Attaches by clsact even where the kernel has TCX.
    #[arg(long, hide = true)]
    no_tcx: bool,
    /// The eBPF object, where it is not part of the binary.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    #[command(flatten)]
    metrics: MetricsOptions,
    #[command(flatten)]
    state: GatewayOptions,
}

/// Where the objects come from: one of the three.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = true)]
struct SourceOptions {
    /// Manifest files, or directories of them. They are read again when they change.
    #[arg(long, value_name = "PATH", num_args = 1.., conflicts_with_all = ["kube", "kubeconfig", "exec"])]
    config: Vec<PathBuf>,
    /// Does what `vpc-gateway exec` tells it, which starts it so; `init` names the interfaces.
    #[arg(long, conflicts_with = "kube")]
    exec: bool,
    /// Watches the objects of Kube-OVN on the API server of the cluster.
    #[arg(long)]
    kube: bool,
    /// How to reach the API server; otherwise KUBECONFIG, ~/.kube/config, or the ServiceAccount of
    /// the pod.
    #[arg(long, value_name = "FILE", requires = "kube")]
    kubeconfig: Option<PathBuf>,
}

impl SourceOptions {
    /// Starts watching. Comes before any network namespace is entered.
    fn feed(self, gateway: &str) -> Result<Feed> {
        if !self.kube {
            return Ok(Feed::files(self.config));
        }
        let host = nix::unistd::gethostname().unwrap_or_default();
        let reporter =
            Reporter { gateway: gateway.to_owned(), host: host.to_string_lossy().into_owned() };
        Ok(Feed::cluster(Cluster::start(self.kubeconfig.as_deref(), reporter)?))
    }
}

/// What becomes of a packet that no rule covers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum UnmatchedPolicy {
    /// Dropped, with a reason.
    Drop,
    /// Routed as it is.
    Forward,
    /// Left to the kernel and its iptables rules.
    Kernel,
}

impl From<UnmatchedPolicy> for Unmatched {
    fn from(policy: UnmatchedPolicy) -> Self {
        match policy {
            UnmatchedPolicy::Drop => Self::Drop,
            UnmatchedPolicy::Forward => Self::Forward,
            UnmatchedPolicy::Kernel => Self::Kernel,
        }
    }
}

/// A range of ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct PortRange(u16, u16);

impl FromStr for PortRange {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (low, high) = text.split_once('-').context("expected two ports, LOW-HIGH")?;
        let port = |end: &str, text: &str| -> Result<u16> {
            text.parse().with_context(|| format!("{end} {text:?} is not a port, 1024 to 65535"))
        };
        let (low, high) = (port("LOW", low)?, port("HIGH", high)?);
        if low < 1024 {
            bail!("LOW {low} is below 1024: ports below are for sources below");
        }
        if high < low {
            bail!("LOW {low} is above HIGH {high}");
        }
        Ok(Self(low, high))
    }
}

/// A value of `--mss-clamp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct MssClampOption(MssClamp);

/// What every host must be able to receive (RFC 9293 section 3.7.1), less than which only costs.
const SMALLEST_MSS: u16 = 536;

impl FromStr for MssClampOption {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(Self(match text {
            "off" => MssClamp::Off,
            "auto" => MssClamp::Auto,
            _ => match text.parse() {
                Ok(bytes) if bytes >= SMALLEST_MSS => MssClamp::Bytes(bytes),
                _ => bail!("{text:?} is not off, auto or a number of bytes from {SMALLEST_MSS}"),
            },
        }))
    }
}

/// A rate of new sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct HostRate {
    per_second: u32,
    burst: u32,
}

/// The highest rate that can be kept: a session every microsecond.
const MAX_RATE: u32 = 1_000_000;

impl FromStr for HostRate {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (rate, burst) = match text.split_once('/') {
            Some((rate, burst)) => (rate, Some(burst)),
            None => (text, None),
        };
        let number = |name: &str, text: &str, least: u32| -> Result<u32> {
            match text.parse() {
                Ok(number) if (least..=MAX_RATE).contains(&number) => Ok(number),
                _ => bail!("{name} {text:?} is not a number from {least} to {MAX_RATE}"),
            }
        };
        let per_second = number("N", rate, 0)?;
        let burst = burst.map_or(Ok(per_second), |burst| number("BURST", burst, 1))?;
        Ok(Self { per_second, burst })
    }
}

impl HostRate {
    /// The limits of a host, with the number of its sessions.
    fn limits(self, sessions: u32) -> HostLimits {
        let interval_ns = 1_000_000_000_u32.checked_div(self.per_second).unwrap_or(0);
        HostLimits { sessions, interval_ns, burst: self.burst }
    }
}

/// Exit code 0: ended by a signal.
pub(super) fn run(options: Options) -> Result<ExitCode> {
    probe::check()?;
    if let Some(parent) = options.end_with_parent {
        end_with(parent)?;
    }
    let name = options.name.unwrap_or_else(|| options.gateway.replace('/', "."));
    let state = options.state.directory(&name)?;
    let initialised = options.source.exec.then(|| initialised(&state)).transpose()?;
    let _lock = state.lock()?;
    let object = object(options.object.as_deref())?;
    let needed = needed(&options.source);
    let listener = options.metrics.listen()?;
    let feed = options.source.feed(&options.gateway)?;
    let namespace = options.netns.as_deref().map(netns::path);
    if let Some(namespace) = &namespace {
        // Threads that are there already (the client of the API server) stay where they are.
        netns::enter(namespace)?;
    }
    ensure_bpffs()?;
    let capabilities = privilege::keep(&needed)?.names();
    let asked: Vec<_> = options.timeouts.into_iter().flat_map(|asked| asked.0).collect();
    let timeouts = timeouts::chosen(&asked);
    for line in timeouts::too_short(timeouts) {
        eprintln!("warning: {line}");
    }
    let (mut internal, mut external) = (options.internal, options.external);
    if let Some(said) = &initialised {
        (internal, external) = (said.internal.clone(), said.external.clone());
    }
    let serve = |listener: Listener| {
        listener.serve(|limit| metrics::gateway::Gateway::new(Pins::new(&name), limit))
    };
    let metrics = listener.map(serve).transpose()?;
    let settings = Settings {
        gateway: options.gateway,
        name,
        replica: options.replica,
        internal,
        external,
        netns: namespace,
        modes: options.mode,
        unmatched: options.unmatched.into(),
        timeouts,
        host_limits: options.host_rate.limits(options.host_sessions),
        mss_clamp: options.mss_clamp.0,
        port_range: (options.ports.0, options.ports.1),
        kernel: KernelOptions {
            max_sessions: options.max_sessions,
            preallocate: options.preallocate,
            reset_maps: options.reset_maps,
            no_tcx: options.no_tcx,
        },
        leave_host: options.leave_host,
        metrics,
        capabilities,
        state,
        object,
    };
    let runtime = super::runtime()?;
    match (initialised, feed) {
        (Some(said), _) => runtime.block_on(daemon::exec::run(settings, said.routers))?,
        (None, feed) => runtime.block_on(daemon::run(settings, feed))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Asks for a signal when the parent ends, and looks whether it still is there.
fn end_with(parent: i32) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGTERM).context("failed to follow the end of the parent")?;
    ensure!(getppid().as_raw() == parent, "process {parent}, which has started this one, is gone");
    Ok(())
}

/// What it takes to go on once everything is open.
fn needed(source: &SourceOptions) -> Vec<Capability> {
    let files = (!source.config.is_empty()).then_some(privilege::READ_FILES);
    privilege::RUN.iter().copied().chain(files).collect()
}

/// What `exec init` has decided. From here on the process has a session of its own, so that nothing
/// that happens to whoever started it reaches it.
fn initialised(state: &StateDir) -> Result<Initialised> {
    // A process that leads its group has a session of its own, or a terminal that it shall keep.
    let _ = nix::unistd::setsid();
    state.load(INIT)?.context("not initialized: run `vpc-gateway exec init` first")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_has_a_burst() {
        let limits = |text: &str| text.parse::<HostRate>().unwrap().limits(7);
        assert_eq!(limits("0"), HostLimits { sessions: 7, interval_ns: 0, burst: 0 });
        assert_eq!(limits("50").burst, 50);
        let limited = HostLimits { sessions: 7, interval_ns: 20_000_000, burst: 200 };
        assert_eq!(limits("50/200"), limited);
        for bad in ["", "-1", "50/0", "50/", "1000001", "a/5"] {
            assert!(bad.parse::<HostRate>().is_err(), "{bad}");
        }
        let why = "50/0".parse::<HostRate>().unwrap_err().to_string();
        assert_eq!(why, "BURST \"0\" is not a number from 1 to 1000000");
    }

    #[test]
    fn segments_are_clamped_by_word_or_number() {
        let mtu = |text: &str| text.parse::<MssClampOption>().unwrap().0.mtu(1400, 1500);
        assert_eq!((mtu("off"), mtu("auto"), mtu("1200")), (0, 1400, 1240));
        for bad in ["", "on", "535", "70000", "-1"] {
            assert!(bad.parse::<MssClampOption>().is_err(), "{bad}");
        }
    }

    #[test]
    fn ranges_are_checked() {
        assert_eq!("20000-29999".parse::<PortRange>().unwrap(), PortRange(20_000, 29_999));
        for bad in ["80-90", "3000", "5000-4000", "1024-65536", "a-b"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
        let low = "80-90".parse::<PortRange>().unwrap_err().to_string();
        assert!(low.starts_with("LOW 80 is below 1024"), "{low}");
    }
}
