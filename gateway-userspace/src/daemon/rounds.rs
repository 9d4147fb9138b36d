//! What a running gateway does when something changed. Each step is one method.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::{Daemon, DaemonError, Port, Problems, Settings, Step, chain, log, log_some};
use crate::announce::Announcer;
use crate::clock;
use crate::dataplane::kernel::{Kernel, Side};
use crate::dataplane::mode::{self, Candidate};
use crate::dataplane::{features, recount};
use crate::desired::{self, Allocations, Previous, Resolution};
use crate::encode::{self, Surroundings};
use crate::host::{self, Present};
use crate::netlink::Netlink;
use crate::plan::{Change, Plan};
use crate::reconcile::{Reconciler, Round};
use crate::source::{SourceError, yaml};
use crate::status::ApplyStatus;

/// The file of the state directory that keeps chosen addresses.
const ALLOCATIONS: &str = "allocations.json";

impl Daemon {
    /// Brings the gateway up, or takes it over from the process that ran before.
    pub(super) async fn start(settings: Settings) -> Result<Self, DaemonError> {
        let netlink = Netlink::connect()?;
        let ports = ports(&settings, &netlink).await?;
        let allocations = settings.state.load(ALLOCATIONS)?.unwrap_or_default();
        let previous = Previous { allocations, active: BTreeMap::new() };
        let resolution = resolve(&settings, &previous)?;
        let Some(desired) = resolution.state.clone() else {
            return Err(no_gateway(&settings, &resolution));
        };
        let owned = settings.state.load(host::FILE)?.unwrap_or_default();
        let kernel = Kernel::open(&settings.gateway, &settings.object, &settings.kernel)?;
        let maps = Reconciler::adopt(kernel)?;
        // Routes may have changed while nobody was looking.
        let routing = maps.live().config.map_or(0, |config| config.routing).wrapping_add(1);
        let mut daemon = Self {
            settings,
            maps,
            netlink,
            previous,
            desired,
            ports,
            xdp: None,
            present: Present::default(),
            owned,
            announcer: Announcer::default(),
            announced: BTreeSet::new(),
            routing,
            problems: Problems::default(),
            notes: BTreeSet::new(),
            last_apply: None,
            started_at: clock::unix_seconds(),
            ready: false,
        };
        daemon.adopt_state(resolution);
        daemon.first_round()?;
        daemon.accelerate()?;
        daemon.look_around().await;
        daemon.settle_host().await;
        daemon.ready = true;
        daemon.report();
        log(format_args!("{}: ready", daemon.settings.gateway));
        daemon.recount();
        Ok(daemon)
    }

    /// Rules first, programs last: no packet meets half a configuration.
    fn first_round(&mut self) -> Result<(), DaemonError> {
        let adopted = self.maps.live().config.is_some();
        if adopted {
            log(format_args!(
                "{}: adopted {} rules and their sessions from {}",
                self.settings.gateway,
                self.maps.live().rules.len(),
                self.maps.dataplane().directory().display()
            ));
        }
        let entries = self.maps.dataplane().maps().session_capacity();
        if let Some(flows) = self.settings.kernel.max_sessions
            && entries != flows as usize * 2
        {
            log(format_args!(
                "--max-sessions {flows} has no effect on the maps that are there, which take {}; \
                 --reset-maps would lose their sessions",
                entries / 2
            ));
        }
        self.round()?;
        for side in Side::ALL {
            self.attach(side)?;
        }
        Ok(())
    }

    /// Checks what is counted against the sessions that are there.
    fn recount(&mut self) {
        match recount::recount(self.maps.dataplane().maps_mut()) {
            Ok(0) => {}
            Ok(corrected) => log(format_args!(
                "{}: corrected the session counts of {corrected} EIPs and hosts",
                self.settings.gateway
            )),
            Err(error) => self.problems.set(Step::Maps, vec![chain(&error)]),
        }
    }

    /// Reads the manifests again. If they cannot be read, everything stays as it is.
    pub(super) async fn reload(&mut self) {
        match resolve(&self.settings, &self.previous) {
            Ok(resolution) => {
                if resolution.state.is_none() {
                    let missing = no_gateway(&self.settings, &resolution);
                    let kept = format!("{missing}; it stays as it was");
                    self.problems.set(Step::Manifests, vec![kept]);
                } else {
                    self.adopt_state(resolution);
                    self.try_round();
                    self.settle_host().await;
                }
            }
            Err(error) => {
                let kept = format!("{}; everything stays as it was", chain(&error));
                self.problems.set(Step::Manifests, vec![kept]);
            }
        }
        self.report();
    }

    /// Looks at interfaces, addresses and routes again after the kernel said that they changed.
    pub(super) async fn refresh(&mut self) {
        let (mut problems, mut gone) = (Vec::new(), BTreeSet::new());
        for side in Side::ALL {
            match self.netlink.interface(self.settings.interface(side)).await {
                Ok(interface) => {
                    let Some(port) = self.ports.get_mut(&side) else { continue };
                    if port.interface.index != interface.index {
                        log(format_args!("{} is a new interface now", interface.name));
                        port.attachment = None;
                        self.announced.clear();
                    }
                    port.interface = interface;
                }
                Err(error) => {
                    if let Some(port) = self.ports.get_mut(&side) {
                        port.attachment = None;
                    }
                    problems.push(chain(&error));
                    gone.insert(side);
                }
            }
        }
        self.routing = self.routing.wrapping_add(1);
        self.try_round();
        for side in Side::ALL {
            let missing = self.ports.get(&side).is_none_or(|port| port.attachment.is_none());
            if missing && !gone.contains(&side) {
                problems.extend(self.attach(side).err().map(|error| chain(&error)));
            }
        }
        self.ready = problems.is_empty();
        self.problems.set(Step::Interfaces, problems);
        if let Err(error) = self.accelerate() {
            self.problems.set(Step::Xdp, vec![chain(&error)]);
        }
        self.look_around().await;
        self.settle_host().await;
        self.report();
    }

    /// Takes over what the manifests say now.
    fn adopt_state(&mut self, resolution: Resolution) {
        let rejections = resolution.rejections.iter().map(ToString::to_string).collect();
        self.problems.set(Step::Manifests, rejections);
        let notes: BTreeSet<_> = resolution.notes.iter().map(ToString::to_string).collect();
        log_some(notes.difference(&self.notes), "notes");
        self.notes = notes;
        self.keep_allocations(&resolution.allocations);
        self.previous = Previous { allocations: resolution.allocations, active: resolution.active };
        if let Some(state) = resolution.state {
            self.desired = state;
        }
    }

    fn keep_allocations(&self, allocations: &Allocations) {
        let path = self.settings.state.file(ALLOCATIONS);
        if (*allocations != self.previous.allocations || !path.exists())
            && let Err(error) = self.settings.state.save(ALLOCATIONS, allocations)
        {
            log(chain(&error));
        }
    }

    /// Makes the maps say what is desired.
    fn round(&mut self) -> Result<(), DaemonError> {
        let Some(surroundings) = self.surroundings() else { return Ok(()) };
        let round = self.maps.round(&self.desired, &surroundings)?;
        self.problems.set(Step::Maps, round.overflows.iter().map(ToString::to_string).collect());
        if round.plan.is_empty() {
            return Ok(());
        }
        self.log_round(&round);
        self.last_apply = Some(ApplyStatus {
            at: clock::unix_seconds(),
            duration_us: u64::try_from(round.duration.as_micros()).unwrap_or(u64::MAX),
            inserted: round.applied.inserted,
            updated: round.applied.updated,
            deleted: round.applied.deleted,
            sessions_cut: round.sessions_cut,
        });
        Ok(())
    }

    fn log_round(&self, round: &Round) {
        let name = &self.settings.gateway;
        let generation = self.maps.live().config.map_or(0, |config| config.generation);
        if let [Change::Config(_)] = &round.plan.changes[..] {
            log(format_args!("{name}: generation {generation}, no rule changed"));
            return;
        }
        log_plan(&round.plan);
        log(format_args!(
            "{name}: generation {generation} applied in {:.1} ms: {} inserted, {} updated, \
             {} deleted, {} sessions ended",
            round.duration.as_secs_f64() * 1e3,
            round.applied.inserted,
            round.applied.updated,
            round.applied.deleted,
            round.sessions_cut,
        ));
    }

    fn try_round(&mut self) {
        if let Err(error) = self.round() {
            self.problems.set(Step::Maps, vec![chain(&error)]);
        }
    }

    fn surroundings(&self) -> Option<Surroundings> {
        let port = |side| {
            let interface = &self.ports.get(&side)?.interface;
            Some(encode::Port { ifindex: interface.index, mtu: interface.mtu })
        };
        Some(Surroundings {
            internal: port(Side::Internal)?,
            external: port(Side::External)?,
            routing: self.routing,
            port_range: self.settings.port_range,
            unmatched: self.settings.unmatched,
            timeouts: self.settings.timeouts,
            host_limits: self.settings.host_limits,
        })
    }

    /// Puts the program of a side on its interface.
    fn attach(&mut self, side: Side) -> Result<(), DaemonError> {
        let Some(port) = self.ports.get_mut(&side) else { return Ok(()) };
        let attachment = self.maps.dataplane().attach(side, &port.interface.name)?;
        log(format_args!(
            "{}: {} interface, tc by {}, program {}",
            port.interface.name,
            side.as_str(),
            attachment.kind,
            attachment.program_id
        ));
        port.attachment = Some(attachment);
        Ok(())
    }
}

/// Finds both interfaces and chooses their hooks, before anything is touched.
async fn ports(
    settings: &Settings,
    netlink: &Netlink,
) -> Result<BTreeMap<Side, Port>, DaemonError> {
    let mut ports = BTreeMap::new();
    for side in Side::ALL {
        let interface = netlink.interface(settings.interface(side)).await?;
        let requested = mode::requested(&settings.modes, &interface.name);
        let features = features::query(interface.index);
        let kind = interface.kind.as_deref();
        let candidate = Candidate { name: &interface.name, kind, features };
        let choice = mode::choose(&candidate, requested)?;
        ports.insert(side, Port { interface, choice, attachment: None });
    }
    Ok(ports)
}

fn resolve(settings: &Settings, previous: &Previous) -> Result<Resolution, SourceError> {
    let snapshot = yaml::read(&settings.paths)?;
    Ok(desired::resolve_after(&snapshot, &settings.gateway, previous))
}

fn no_gateway(settings: &Settings, resolution: &Resolution) -> DaemonError {
    let paths: Vec<_> = settings.paths.iter().map(|path| path.display().to_string()).collect();
    DaemonError::NoGateway {
        gateway: settings.gateway.clone(),
        paths: paths.join(", "),
        reasons: resolution.rejections.iter().map(ToString::to_string).collect(),
    }
}

pub(super) fn log_plan(plan: &Plan) {
    // The configuration changes with every round; alone it is not worth a line.
    let worth = |change: &&Change| !matches!(change, Change::Config(_));
    let lines = plan.changes.iter().filter(worth);
    log_some(lines.map(|change| Lazy(|| plan.describe(change))), "changes");
}

/// Made into text only if it is shown.
struct Lazy<F>(F);

impl<T: fmt::Display, F: Fn() -> T> fmt::Display for Lazy<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (self.0)().fmt(f)
    }
}
