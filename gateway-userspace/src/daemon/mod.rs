//! The running gateway: one loop over signals, files, the network and the clock.
//!
//! ```text
//! start:  objects complete -> interfaces -> maps -> rules -> programs attached -> addresses and routes
//! loop:   objects changed -> rules -> addresses and routes
//!         network changed -> interfaces -> CONFIG -> programs -> addresses and routes
//!         BFD             -> next hops
//!         every 5 s       -> sessions that are over end, a slice at a time between the others
//! ```
//!
//! Whatever goes wrong after the start is a problem in the status and a line in the log; what runs
//! keeps running. When the process ends, however it ends, programs and maps stay.

mod accelerate;
mod around;
pub mod exec;
mod publish;
mod rounds;
mod routers;
mod waiting;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use gateway_common::records::{HostLimits, Timeouts, Unmatched};
use ipnet::IpNet;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use crate::announce::Announcer;
use crate::clock;
use crate::dataplane::census::PortsInUse;
use crate::dataplane::kernel::{Attachment, Kernel, KernelError, KernelOptions, Side};
use crate::dataplane::mode::{self, Choice, Mode, ModeArgument, Unsupported};
use crate::desired::{DesiredState, Identity, NotAReplica, ReplicaName, Resolver};
use crate::encode::MssClamp;
use crate::exec::journal::JournalError;
use crate::exec::server::ServerError;
use crate::host::{HostState, Present};
use crate::metrics::Publisher;
use crate::metrics::gateway::{Counts, Heard, Published};
use crate::neighbors::Interfaces;
use crate::netlink::{self, Interface, Netlink, NetlinkError};
use crate::reconcile::{Reconciler, Sweep};
use crate::source::SourceError;
use crate::source::feed::Feed;
use crate::state_dir::{StateDir, StateError};
use crate::status::{
    self, ApplyStatus, EipStatus, InterfaceStatus, SourceStatus, Status, SweepStatus,
};

use self::rounds::ports;
use self::routers::Routers;

/// How long the network must be quiet before it is looked at.
const DEBOUNCE: Duration = Duration::from_millis(100);
/// How often sessions are swept, and files are compared without being told.
const SWEEP: Duration = Duration::from_secs(5);
/// How often the loop says that it turns.
const BEAT: Duration = Duration::from_secs(5);
/// How long after a small change the status may be written.
const REPORT: Duration = Duration::from_millis(250);
/// A sweep that is worth a line in the status even if it ends nothing.
const LONG_SWEEP: Duration = Duration::from_millis(50);

/// Everything that the command line decides.
pub struct Settings {
    /// The name of the `VpcNatGateway` or `VpcEgressGateway`.
    pub gateway: String,
    /// The name under which pins and state are found.
    pub name: String,
    /// Which replica of an egress gateway this is, if it was said.
    pub replica: Option<ReplicaName>,
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
    /// What the segments of new TCP connections are made to fit.
    pub mss_clamp: MssClamp,
    /// Lowest and highest external port.
    pub port_range: (u16, u16),
    /// Whether addresses and routes are somebody else's business.
    pub leave_host: bool,
    /// How the kernel side is opened.
    pub kernel: KernelOptions,
    /// Whom the metrics are published to.
    pub metrics: Option<Publisher<Published>>,
    /// The capabilities that the process has kept.
    pub capabilities: Vec<String>,
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
    #[error(
        "failed to find VpcNatGateway/{gateway} or VpcEgressGateway/{gateway} in {place}{}",
        because(reasons)
    )]
    NoGateway {
        /// The gateway.
        gateway: String,
        /// Where it was looked for.
        place: String,
        /// What is wrong with what is there.
        reasons: Vec<String>,
    },
    /// It is not known which replica this is.
    #[error("failed to tell which replica this is")]
    Replica(#[from] NotAReplica),
    /// The network.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The mode.
    #[error(transparent)]
    Mode(#[from] Unsupported),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The ledger of `exec`.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The socket of `exec`.
    #[error(transparent)]
    Server(#[from] ServerError),
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
    Source,
    Manifests,
    Orders,
    Interfaces,
    Xdp,
    Maps,
    Host,
    Answers,
    NextHops,
}

impl Problems {
    /// Replaces the findings of a step; those that are new go to the log.
    fn set(&mut self, step: Step, found: Vec<String>) {
        let before = self.0.insert(step, found).unwrap_or_default();
        let known: BTreeSet<_> = before.iter().collect();
        let found = self.0.get(&step).into_iter().flatten();
        log_some(found.filter(|problem| !known.contains(problem)), "problems");
    }

    /// Whether a step has found something.
    fn has(&self, step: Step) -> bool {
        self.0.get(&step).is_some_and(|found| !found.is_empty())
    }

    /// How much a step has found.
    fn count(&self, step: Step) -> usize {
        self.0.get(&step).map_or(0, Vec::len)
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
    identity: Identity,
    resolver: Resolver,
    desired: DesiredState,
    ports: BTreeMap<Side, Port>,
    /// What XDP is told of, once there is XDP.
    xdp: Option<watch::Sender<Interfaces>>,
    present: Present,
    owned: HostState,
    /// The gateway's own addresses in the VPC, for those who answer.
    lan: watch::Sender<Vec<IpNet>>,
    announcer: Announcer,
    announced: BTreeSet<IpAddr>,
    routing: u16,
    problems: Problems,
    notes: BTreeSet<String>,
    source: SourceStatus,
    last_apply: Option<ApplyStatus>,
    last_sweep: Option<SweepStatus>,
    started_at: u64,
    sweep_took: Duration,
    ports_in_use: Arc<PortsInUse>,
    ready: bool,
    counts: Counts,
    /// How many rejections there are of each kind.
    rejected: BTreeMap<&'static str, usize>,
    /// Changes with the rules in the maps.
    edition: u64,
    /// Whether the maps were there before.
    adopted: bool,
    heard: Option<Heard>,
    /// When the status is to be written, if it is.
    report_at: Option<Instant>,
    routers: Routers,
}

/// Runs a gateway until a signal ends it. The caller holds the lock of the state directory.
///
/// # Errors
///
/// When it cannot start. Nothing that runs already is changed then.
pub async fn run(settings: Settings, mut feed: Feed) -> Result<(), DaemonError> {
    let mut signals = Signals::new().map_err(DaemonError::Signal)?;
    let mut network = netlink::changes()?;
    if !waiting::until_complete(&settings, &mut feed, &mut signals).await? {
        return Ok(());
    }
    let mut daemon = Daemon::start(settings, &mut feed).await?;
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beats = interval(BEAT);
    let mut events = daemon.routers.events();
    let mut looks = interval(routers::LOOK);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            wish = signals.next() => match wish {
                Wish::Stop => break,
                Wish::Reload => daemon.reload(&mut feed).await,
            },
            Some(event) = events.recv() => daemon.hear_of_router(&event, &mut events),
            _ = looks.tick(), if daemon.routers.are_wanted() => daemon.look_at_routers().await,
            _ = beats.tick() => daemon.beat(),
            () = feed.woken() => {
                feed.settle().await;
                daemon.follow(&mut feed).await;
            }
            () = at(daemon.report_at) => {
                daemon.look_at_source(&feed);
                daemon.report();
            }
            Some(()) = network.recv() => {
                settle_network(&mut network).await;
                daemon.refresh().await;
            }
            () = yield_now(), if daemon.maps.is_sweeping() => {
                if daemon.sweep_on() {
                    ticks.reset_after(daemon.rest());
                }
            }
            _ = ticks.tick(), if !daemon.maps.is_sweeping() => {
                daemon.begin_sweep();
                daemon.follow(&mut feed).await;
            }
        }
    }
    daemon.say_goodbye();
    Ok(())
}

async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
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
    fn say_goodbye(&mut self) {
        log(format_args!(
            "{}: stopped; the data plane stays attached ({})",
            self.settings.name,
            self.maps.dataplane().directory().display()
        ));
    }

    /// What `vpc-gateway status` shows.
    fn status(&mut self) -> Status {
        let live = self.maps.live();
        let generation = live.config.map_or(0, |config| config.generation);
        let rules = crate::encode::rule_counts(live);
        Status {
            gateway: self.settings.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: self.started_at,
            netns: self.settings.netns.clone(),
            capabilities: self.settings.capabilities.clone(),
            ready: self.ready,
            generation,
            interfaces: self.ports.iter().filter_map(|(side, port)| port.status(*side)).collect(),
            eips: self.eips(),
            rules: rules.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect(),
            source: self.source.clone(),
            last_apply: self.last_apply,
            last_sweep: self.last_sweep,
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
        self.report_at = None;
        self.publish();
        let status = self.status();
        if let Err(error) = self.settings.state.save(status::FILE, &status) {
            log(format_args!("{error}"));
        }
    }

    /// Writes the status before long: after a change that cost less than that.
    fn report_soon(&mut self) {
        self.report_at = self.report_at.or(Some(Instant::now() + REPORT));
    }

    fn begin_sweep(&mut self) {
        if let Err(error) = self.maps.begin_sweep() {
            self.sweep_failed(&error);
        }
    }

    /// Does the next slice of a sweep; `true` if it is over.
    fn sweep_on(&mut self) -> bool {
        match self.maps.sweep_on() {
            Ok(None) => return false,
            Ok(Some(sweep)) => {
                rounds::log_plan(&sweep.plan);
                self.sweep_took = sweep.took;
                self.note_sweep(&sweep);
                self.retry_for_room(&sweep);
            }
            Err(error) => self.sweep_failed(&error),
        }
        true
    }

    /// Rules that found no room, because those before them had only just gone, get what is free now.
    fn retry_for_room(&mut self, sweep: &Sweep) {
        if sweep.freed > 0 && self.problems.has(Step::Maps) {
            self.try_round();
            self.report();
        }
    }

    fn note_sweep(&mut self, sweep: &Sweep) {
        self.counts.sweep.record(sweep.took);
        self.counts.swept += sweep.ended;
        if let Some(ports) = sweep.ports.as_ref().filter(|ports| **ports != *self.ports_in_use) {
            self.ports_in_use = Arc::new(ports.clone());
        }
        self.edition += u64::from(!sweep.plan.is_empty());
        self.publish();
        if sweep.ended == 0 && sweep.took < LONG_SWEEP {
            return;
        }
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.last_sweep = Some(SweepStatus {
            at: clock::unix_seconds(),
            duration_us: micros(sweep.took),
            ended: sweep.ended,
            longest_run_us: micros(sweep.longest),
        });
        self.report();
    }

    /// How long to wait before the next sweep: one with a million sessions takes a while, and must not
    /// take more than a tenth of a CPU.
    fn rest(&self) -> Duration {
        SWEEP.max(9 * self.sweep_took)
    }

    fn sweep_failed(&mut self, error: &KernelError) {
        self.problems.set(Step::Maps, vec![chain(error)]);
        self.report();
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
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    line
}
