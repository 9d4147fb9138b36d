//! `vpc-gateway run`: brings a gateway up and keeps it as the manifests say.

use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;
use gateway_common::records::{Timeouts, Unmatched, ticks_from_secs};

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
    /// External ports for sources from port 1024 on.
    #[arg(long, value_name = "LOW-HIGH", default_value = "1024-65535")]
    port_range: PortRange,
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
        let expected = "expected LOW-HIGH with 1024 <= LOW <= HIGH <= 65535";
        let (low, high) = text.split_once('-').context(expected)?;
        let (low, high) = (low.parse().context(expected)?, high.parse().context(expected)?);
        if low < 1024 || high < low {
            bail!(expected);
        }
        Ok(Self(low, high))
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
        port_range: (options.port_range.0, options.port_range.1),
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
    fn ranges_and_timeouts_are_checked() {
        assert_eq!("20000-29999".parse::<PortRange>().unwrap(), PortRange(20_000, 29_999));
        for bad in ["80-90", "3000", "5000-4000", "1024-65536", "a-b"] {
            assert!(bad.parse::<PortRange>().is_err(), "{bad}");
        }
        assert!("udp-new=30".parse::<Timeout>().is_ok());
        for bad in ["udp-new=0", "udp=30", "udp-new", "udp-new=9999999"] {
            assert!(bad.parse::<Timeout>().is_err(), "{bad}");
        }
    }
}
