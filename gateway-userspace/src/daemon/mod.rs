//! The running gateway: one loop over signals, files, the network and the clock.
//!
//! ```text
//! start:  interfaces -> manifests -> maps -> rules -> programs attached -> addresses and routes
//! loop:   files changed   -> manifests -> rules -> addresses and routes
//!         network changed -> interfaces -> CONFIG -> programs -> addresses and routes
//!         every 5 s       -> sessions that are over end
//! ```
//!
//! Whatever goes wrong after the start is a problem in the status and a line in the log; what runs
//! keeps running. When the process ends, however it ends, programs and maps stay.

mod accelerate;
mod around;
mod rounds;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use gateway_common::records::{HostLimits, Timeouts, Unmatched};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::announce::Announcer;
use crate::dataplane::kernel::{Attachment, Kernel, KernelError, KernelOptions, Side};
use crate::dataplane::mode::{self, Choice, Mode, ModeArgument, Unsupported};
use crate::desired::{DesiredState, Previous};
use crate::host::{HostState, Present};
use crate::neighbors::Interfaces;
use crate::netlink::{self, Interface, Netlink, NetlinkError};
use crate::reconcile::Reconciler;
use crate::source::SourceError;
use crate::state_dir::{StateDir, StateError};
use crate::status::{self, ApplyStatus, EipStatus, InterfaceStatus, Status};
use crate::watch::Watch;

/// How long things must be quiet before they are looked at.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How often that is waited for at most.
const DEBOUNCE_ROUNDS: u32 = 10;
/// How often sessions are swept, and files are compared without being told.
const SWEEP: Duration = Duration::from_secs(5);

/// Everything that the command line decides.
pub struct Settings {
    /// The name of the `VpcNatGateway`.
    pub gateway: String,
    /// The manifests.
    pub paths: Vec<PathBuf>,
    /// The interface towards the VPC.
    pub internal: String,
    /// The interface towards the outside.
    pub external: String,
    /// The network namespace that the process is in, if it was given.
    pub netns: Option<PathBuf>,
    /// The hooks that were asked for.
    pub modes: Vec<ModeArgument>,
    /// What becomes of packets that no rule covers.
    pub unmatched: Unmatched,
    /// When sessions end.
    pub timeouts: Timeouts,
    /// What one inside host may have.
    pub host_limits: HostLimits,
    /// Lowest and highest external port.
    pub port_range: (u16, u16),
    /// How the kernel side is opened.
    pub kernel: KernelOptions,
    /// The state directory.
    pub state: StateDir,
    /// The eBPF object.
    pub object: Cow<'static, [u8]>,
}

impl Settings {
    fn mode(&self, interface: &str) -> Mode {
        mode::requested(&self.modes, interface)
    }

    fn interface(&self, side: Side) -> &str {
        match side {
            Side::Internal => &self.internal,
            Side::External => &self.external,
        }
    }
}

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The manifests.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The gateway is not in the manifests.
    #[error("failed to find VpcNatGateway/{gateway} in {paths}{}", because(reasons))]
    NoGateway {
        /// The gateway.
        gateway: String,
        /// Where it was looked for.
        paths: String,
        /// What is wrong with what is there.
        reasons: Vec<String>,
    },
    /// The network.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The mode.
    #[error(transparent)]
    Mode(#[from] Unsupported),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The signals.
    #[error("failed to wait for signals")]
    Signal(#[source] std::io::Error),
}

fn because(reasons: &[String]) -> String {
    reasons.iter().map(|reason| format!("\n  {reason}")).collect()
}

/// An interface with a program on it.
struct Port {
    interface: Interface,
    choice: Choice,
    attachment: Option<Attachment>,
}

/// What is wrong, by the step that found it, so that each step replaces only its own findings.
#[derive(Default)]
struct Problems(BTreeMap<Step, Vec<String>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Manifests,
    Interfaces,
    Xdp,
    Maps,
    Host,
}

impl Problems {
    /// Replaces the findings of a step; those that are new go to the log.
    fn set(&mut self, step: Step, found: Vec<String>) {
        let before = self.0.insert(step, found).unwrap_or_default();
        let known: BTreeSet<_> = before.iter().collect();
        let found = self.0.get(&step).into_iter().flatten();
        log_some(found.filter(|problem| !known.contains(problem)), "problems");
    }

    fn all(&self) -> Vec<String> {
        let count = self.0.values().map(Vec::len).sum::<usize>();
        let mut all: Vec<_> = self.0.values().flatten().take(MOST).cloned().collect();
        if count > MOST {
            all.push(format!("... and {} more; see vpc-gateway check", count - MOST));
        }
        all
    }
}

/// How many lines about one matter are worth reading in a log.
const SOME: usize = 20;

/// How many problems are kept in the status.
const MOST: usize = 200;

/// A line of the log.
fn log(line: impl std::fmt::Display) {
    eprintln!("{line}");
}

/// The first few of many lines, and how many more there are of `what`.
fn log_some<T: std::fmt::Display>(lines: impl Iterator<Item = T>, what: &str) {
    let mut more = 0;
    for (index, line) in lines.enumerate() {
        if index < SOME {
            log(line);
        } else {
            more += 1;
        }
    }
    if more > 0 {
        log(format_args!("... and {more} more {what}"));
    }
}

/// A running gateway.
pub struct Daemon {
    settings: Settings,
    maps: Reconciler<Kernel>,
    netlink: Netlink,
    previous: Previous,
    desired: DesiredState,
    ports: BTreeMap<Side, Port>,
    /// What XDP is told of, once there is XDP.
    xdp: Option<watch::Sender<Interfaces>>,
    present: Present,
    owned: HostState,
    announcer: Announcer,
    announced: BTreeSet<IpAddr>,
    routing: u16,
    problems: Problems,
    notes: BTreeSet<String>,
    last_apply: Option<ApplyStatus>,
    started_at: u64,
    ready: bool,
}

/// Runs a gateway until a signal ends it. The caller holds the lock of the state directory.
///
/// # Errors
///
/// When it cannot start. Nothing that runs already is changed then.
pub async fn run(settings: Settings) -> Result<(), DaemonError> {
    let mut signals = Signals::new().map_err(DaemonError::Signal)?;
    let mut network = netlink::changes()?;
    let mut watch = Watch::new(&settings.paths);
    let mut daemon = Daemon::start(settings).await?;
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            wish = signals.next() => match wish {
                Wish::Stop => break,
                Wish::Reload => daemon.reload().await,
            },
            () = watch.woken() => {
                settle(async || watch.woken().await).await;
                if watch.changed() {
                    daemon.reload().await;
                }
            }
            Some(()) = network.recv() => {
                settle_network(&mut network).await;
                daemon.refresh().await;
            }
            _ = ticks.tick() => {
                daemon.sweep();
                if watch.changed() {
                    daemon.reload().await;
                }
            }
        }
    }
    log(format_args!(
        "{}: stopped; the data plane stays attached ({})",
        daemon.settings.gateway,
        daemon.maps.dataplane().directory().display()
    ));
    Ok(())
}

/// Waits until nothing has happened for [`DEBOUNCE`], but not for ever.
async fn settle(mut next: impl AsyncFnMut()) {
    for _ in 0..DEBOUNCE_ROUNDS {
        if timeout(DEBOUNCE, next()).await.is_err() {
            return;
        }
    }
}

async fn settle_network(network: &mut mpsc::Receiver<()>) {
    sleep(DEBOUNCE).await;
    while network.try_recv().is_ok() {}
}

/// What a signal asks for.
enum Wish {
    Stop,
    Reload,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Wish {
        tokio::select! {
            _ = self.terminate.recv() => Wish::Stop,
            _ = self.interrupt.recv() => Wish::Stop,
            _ = self.hangup.recv() => Wish::Reload,
        }
    }
}

impl Daemon {
    /// What `vpc-gateway status` shows.
    fn status(&mut self) -> Status {
        let live = self.maps.live();
        let generation = live.config.map_or(0, |config| config.generation);
        let rules = crate::encode::rule_counts(live);
        Status {
            gateway: self.settings.gateway.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: self.started_at,
            netns: self.settings.netns.clone(),
            ready: self.ready,
            generation,
            interfaces: self.ports.iter().filter_map(|(side, port)| port.status(*side)).collect(),
            eips: self.eips(),
            rules: rules.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect(),
            last_apply: self.last_apply,
            problems: self.problems.all(),
            pins: self.maps.dataplane().directory().to_owned(),
        }
    }

    fn eips(&self) -> Vec<EipStatus> {
        self.desired
            .eips
            .iter()
            .map(|(address, eip)| EipStatus {
                address: *address,
                name: eip.owner.object.name.clone(),
                subnet: eip.subnet.clone(),
            })
            .collect()
    }

    /// Writes the status; a disk that is full must not stop the gateway.
    fn report(&mut self) {
        let status = self.status();
        if let Err(error) = self.settings.state.save(status::FILE, &status) {
            log(format_args!("{error}"));
        }
    }

    fn sweep(&mut self) {
        match self.maps.sweep() {
            Ok(drained) => rounds::log_plan(&drained),
            Err(error) => {
                self.problems.set(Step::Maps, vec![chain(&error)]);
                self.report();
            }
        }
    }
}

impl Port {
    fn status(&self, side: Side) -> Option<InterfaceStatus> {
        let attachment = self.attachment?;
        Some(InterfaceStatus {
            side,
            name: self.interface.name.clone(),
            ifindex: self.interface.index,
            mtu: self.interface.mtu,
            mode: self.choice.mode,
            reason: self.choice.reason.clone(),
            attach: attachment.kind,
            program_id: attachment.program_id,
            xdp_program_id: attachment.xdp_program_id,
        })
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    line
}
