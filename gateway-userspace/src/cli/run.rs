//! `vpc-gateway run`: brings a gateway up and keeps it as the manifests say.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use gateway_common::records::{HostLimits, Timeouts, Unmatched, ticks_from_secs};

use super::GatewayOptions;
use crate::daemon::{self, Settings};
use crate::dataplane::kernel::KernelOptions;
use crate::dataplane::mode::ModeArgument;
use crate::dataplane::object::object;
use crate::dataplane::probe;
use crate::netns;

/// Options of `vpc-gateway run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Signals: SIGHUP reads the manifests again; SIGTERM and SIGINT end the process and leave the data \
plane attached, so that traffic goes on and the next start takes it over.

Exit codes: 0 ended by a signal, 2 could not start (what ran before goes on).")]
pub struct Options {
    /// Name of the VpcNatGateway.
    #[arg(long, value_name = "NAME")]
    gateway: String,
    /// Manifest files, or directories of them. They are read again when they change.
    #[arg(long, value_name = "PATH", required = true, num_args = 1..)]
    config: Vec<PathBuf>,
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
    /// Idle times in seconds: tcp-opening=240,tcp-established=7440,tcp-closing=240,udp-new=120,
    /// udp-stream=300,icmp=60,other=300.
    #[arg(long, value_name = "KEY=SECONDS,..", value_delimiter = ',')]
    timeouts: Vec<Timeout>,
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
    /// How many sessions there can be. Takes effect when the maps are made.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=64 << 20))]
    max_sessions: Option<u32>,
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
    state: GatewayOptions,
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

/// One idle time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Timeout {
    key: String,
    seconds: u32,
}

/// The longest idle time: ticks wrap after 52 days.
const MAX_TIMEOUT: u32 = 14 * 86_400;

impl FromStr for Timeout {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (key, seconds) = text.split_once('=').context("expected KEY=SECONDS")?;
        let seconds = seconds.parse().context("expected a number of seconds")?;
        if !(1..=MAX_TIMEOUT).contains(&seconds) {
            bail!("expected 1 to {MAX_TIMEOUT} seconds");
        }
        let timeout = Self { key: key.to_owned(), seconds };
        timeout.apply(&mut Timeouts::default())?;
        Ok(timeout)
    }
}

impl Timeout {
    fn apply(&self, timeouts: &mut Timeouts) -> Result<()> {
        let field = match self.key.as_str() {
            "tcp-opening" => &mut timeouts.tcp_opening,
            "tcp-established" => &mut timeouts.tcp_established,
            "tcp-closing" => &mut timeouts.tcp_closing,
            "udp-new" => &mut timeouts.udp_new,
            "udp-stream" => &mut timeouts.udp_stream,
            "icmp" => &mut timeouts.icmp,
            "other" => &mut timeouts.other,
            other => bail!(
                "{other} is not a timeout, expected tcp-opening, tcp-established, tcp-closing, \
                 udp-new, udp-stream, icmp or other"
            ),
        };
        *field = ticks_from_secs(self.seconds);
        Ok(())
    }
}

/// Exit code 0: ended by a signal.
pub(super) fn run(options: Options) -> Result<ExitCode> {
    probe::check()?;
    let state = options.state.directory(&options.gateway)?;
    let _lock = state.lock()?;
    let object = object(options.object.as_deref())?;
    let namespace = options.netns.as_deref().map(netns::path);
    if let Some(namespace) = &namespace {
        // Before there is any other thread: each would have its own namespace.
        netns::enter(namespace)?;
    }
    let mut timeouts = Timeouts::default();
    for timeout in &options.timeouts {
        timeout.apply(&mut timeouts)?;
    }
    let settings = Settings {
        gateway: options.gateway,
        paths: options.config,
        internal: options.internal,
        external: options.external,
        netns: namespace,
        modes: options.mode,
        unmatched: options.unmatched.into(),
        timeouts,
        host_limits: options.host_rate.limits(options.host_sessions),
        port_range: (options.ports.0, options.ports.1),
        kernel: KernelOptions {
            max_sessions: options.max_sessions,
            reset_maps: options.reset_maps,
            no_tcx: options.no_tcx,
        },
        state,
        object,
    };
    super::runtime()?.block_on(daemon::run(settings))?;
    Ok(ExitCode::SUCCESS)
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
    fn ranges_and_timeouts_are_checked() {
        assert_eq!("20000-29999".parse::<PortRange>().unwrap(), PortRange(20_000, 29_999));
        for bad in ["80-90", "3000", "5000-4000", "1024-65536", "a-b"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
        let low = "80-90".parse::<PortRange>().unwrap_err().to_string();
        assert!(low.starts_with("LOW 80 is below 1024"), "{low}");
        assert!("udp-new=30".parse::<Timeout>().is_ok());
        for bad in ["udp-new=0", "udp=30", "udp-new", "udp-new=9999999"] {
            assert!(bad.parse::<Timeout>().is_err(), "{bad}");
        }
    }
}
