//! The running selector: one loop over files, network, BFD and the clock.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::maps::Selector;
use super::plan::{self, Image, Link, Planned, Surroundings};
use super::report::{FILE, IMAGE, Report};
use crate::bfd::engine::{Ends, Engine, Event};
use crate::bfd::packet::State;
use crate::bfd::report::{FILE as BFD_FILE, Sessions};
use crate::bfd::socket::SocketError;
use crate::clock;
use crate::dataplane::kernel::KernelError;
use crate::desired::{EgressGateway, Previous, Router, resolve_all};
use crate::metrics::Publisher;
use crate::metrics::selector::Published;
use crate::netlink::{self, Netlink, NetlinkError};
use crate::source::SourceError;
use crate::source::yaml;
use crate::state_dir::{StateDir, StateError};
use crate::watch::Watch;

/// How often files are compared without being told, and sessions written down.
const TICK: Duration = Duration::from_secs(1);

/// Everything that the command line decides.
pub struct Settings {
    /// The name under which pins and state are found.
    pub name: String,
    /// The manifests.
    pub paths: Vec<PathBuf>,
    /// The interfaces that tenants' packets come in by.
    pub interfaces: Vec<String>,
    /// The name of this node.
    pub node: Option<String>,
    /// The state directory.
    pub state: StateDir,
    /// The state directory of the BFD sessions.
    pub bfd_state: StateDir,
    /// Whom the metrics are published to.
    pub metrics: Option<Publisher<Published>>,
    /// The eBPF object.
    pub object: Cow<'static, [u8]>,
}

/// Why a selector cannot start, or go on.
#[derive(Debug, thiserror::Error)]
pub enum SelectError {
    /// The state directory.
    #[error(transparent)]
    State(#[from] StateError),
    /// The manifests.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The network.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// BFD.
    #[error(transparent)]
    Bfd(#[from] SocketError),
    /// The signals.
    #[error("failed to wait for signals")]
    Signal(#[source] std::io::Error),
}

struct Daemon {
    settings: Settings,
    selector: Selector,
    netlink: Netlink,
    engine: Option<Engine>,
    events: mpsc::UnboundedSender<Event>,
    gateways: BTreeMap<String, EgressGateway>,
    routers: BTreeMap<String, Router>,
    previous: Previous,
    rejected: Vec<String>,
    links: Vec<Link>,
    alive: BTreeMap<Ends, bool>,
    started: Instant,
    started_at: u64,
    image: Image,
    reported: Option<Report>,
}

/// Runs a selector until a signal ends it. The program stays attached, with the slots as they are.
///
/// # Errors
///
/// When it cannot start. Nothing that runs already is changed then.
pub async fn run(settings: Settings) -> Result<(), SelectError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(SelectError::Signal)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(SelectError::Signal)?;
    let mut network = netlink::changes()?;
    let mut watch = Watch::new(&settings.paths);
    let (sender, mut events) = mpsc::unbounded_channel();
    let mut daemon = Daemon::start(settings, sender).await?;
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            biased;
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            Some(event) = events.recv() => {
                daemon.heard(&event);
                while let Ok(event) = events.try_recv() {
                    daemon.heard(&event);
                }
                daemon.settle()?;
            }
            Some(()) = network.recv() => daemon.look_around().await?,
            _ = ticks.tick() => {
                if watch.changed() {
                    daemon.reload()?;
                }
                daemon.settle()?;
                daemon.report().await;
            }
        }
    }
}

impl Daemon {
    async fn start(
        settings: Settings,
        events: mpsc::UnboundedSender<Event>,
    ) -> Result<Self, SelectError> {
        let netlink = Netlink::connect()?;
        for name in &settings.interfaces {
            netlink.interface(name).await?;
        }
        let selector = Selector::open(&settings.name, &settings.object)?;
        // What the maps hold; without the file they may hold anything, but nothing leads there.
        let image = settings.state.load(IMAGE)?.unwrap_or_default();
        let mut daemon = Self {
            selector,
            netlink,
            engine: None,
            events,
            gateways: BTreeMap::new(),
            routers: BTreeMap::new(),
            previous: Previous::default(),
            rejected: Vec::new(),
            links: Vec::new(),
            alive: BTreeMap::new(),
            started: clock::now(),
            started_at: clock::unix_seconds(),
            image,
            reported: None,
            settings,
        };
        daemon.links = daemon.read_links().await?;
        daemon.reload()?;
        for name in daemon.settings.interfaces.clone() {
            let kind = daemon.selector.attach(&name)?;
            log(format_args!("{name}: attached by {kind}"));
        }
        Ok(daemon)
    }

    /// Reads the manifests. What cannot be read leaves everything as it is.
    fn reload(&mut self) -> Result<(), SelectError> {
        let snapshot = match yaml::read(&self.settings.paths) {
            Ok(snapshot) => snapshot,
            Err(error) if self.reported.is_some() => {
                log(format_args!("{error}"));
                return Ok(());
            }
            Err(error) => return Err(error.into()),
        };
        let all = resolve_all(&snapshot, &self.previous);
        self.rejected = all.rejections.iter().map(ToString::to_string).collect();
        self.previous = Previous { allocations: all.allocations, active: all.active };
        self.gateways = all.egress;
        self.routers = all.routers;
        self.watch_replicas()?;
        self.settle()
    }

    async fn look_around(&mut self) -> Result<(), SelectError> {
        let links = self.read_links().await?;
        if links != self.links {
            self.links = links;
            self.watch_replicas()?;
            self.settle()?;
        }
        Ok(())
    }

    async fn read_links(&self) -> Result<Vec<Link>, SelectError> {
        let mut links = Vec::new();
        for interface in self.netlink.interfaces().await? {
            if interface.up {
                let addresses = self.netlink.addresses(interface.index).await?;
                let (ifindex, mtu) = (interface.index, interface.mtu);
                links.extend(addresses.into_iter().map(|address| Link { address, ifindex, mtu }));
            }
        }
        Ok(links)
    }

    fn watch_replicas(&mut self) -> Result<(), SelectError> {
        let sessions = plan::bfd_sessions(&self.gateways, &self.routers, &self.links);
        self.alive.retain(|ends, _| sessions.contains_key(ends));
        if self.engine.is_none() && !sessions.is_empty() {
            self.engine = Some(Engine::start(self.events.clone())?);
        }
        if let Some(engine) = &self.engine {
            engine.want(sessions);
        }
        Ok(())
    }

    fn heard(&mut self, event: &Event) {
        let Event { ends, change } = event;
        log(format_args!(
            "bfd {} -> {}: {} -> {} ({})",
            ends.local, ends.remote, change.from, change.to, change.diagnostic
        ));
        if change.to == State::Up || change.from == State::Up {
            self.alive.insert(*ends, change.to == State::Up);
        }
    }

    /// Makes the maps what they shall be.
    fn settle(&mut self) -> Result<(), SelectError> {
        let waiting = self.started.elapsed() < plan::patience(&self.gateways, &self.routers);
        let alive = |ends: &Ends| match self.alive.get(ends) {
            Some(alive) => Some(*alive),
            None if waiting => None,
            None => Some(false),
        };
        let node = self.settings.node.as_deref();
        let around = Surroundings { links: &self.links, node, alive: &alive };
        let planned = plan::plan(&self.gateways, &self.routers, &around, &self.image);
        let Planned { image, groups, problems } = planned;
        if image != self.image {
            self.selector.maps.apply(&self.image, &image).map_err(KernelError::from)?;
            self.save(IMAGE, &image);
            self.image = image;
        }
        let problems: Vec<_> = self.rejected.iter().cloned().chain(problems).collect();
        let report = Report { interfaces: self.settings.interfaces.clone(), groups, problems };
        if self.reported.as_ref() != Some(&report) {
            let known = self.reported.iter().flat_map(|report| &report.problems);
            let known: Vec<_> = known.cloned().collect();
            report.problems.iter().filter(|line| !known.contains(line)).for_each(log);
            self.save(FILE, &report);
            self.reported = Some(report);
        }
        Ok(())
    }

    /// Writes a file of the state; a disk that is full must not stop the selector.
    fn save<T: serde::Serialize>(&self, name: &str, value: &T) {
        if let Err(error) = self.settings.state.save(name, value) {
            log(error);
        }
    }

    /// Writes the BFD sessions down and publishes what there is.
    async fn report(&self) {
        let mut sessions = Sessions::default();
        if let Some(engine) = &self.engine {
            sessions.sessions = engine.report().await;
            if let Err(error) = self.settings.bfd_state.save(BFD_FILE, &sessions) {
                log(error);
            }
        }
        let Some(publisher) = &self.settings.metrics else { return };
        publisher.beat();
        let (started_at, report) = (self.started_at, self.reported.clone());
        publisher.publish(Published { started_at, report, bfd: sessions });
    }
}

fn log(line: impl std::fmt::Display) {
    eprintln!("{line}");
}
