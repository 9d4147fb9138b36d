//! What a running gateway does when something changed. Each step is one method.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Instant;

use tokio::sync::watch;

use super::routers::Routers;
use super::{Daemon, DaemonError, Port, Problems, Settings, Step, chain, log, log_some, publish};
use crate::announce::Announcer;
use crate::clock::{self, Stopwatch};
use crate::dataplane::kernel::{Kernel, Side};
use crate::dataplane::mode::{self, Candidate};
use crate::dataplane::{features, recount};
use crate::desired::{self, Allocations, DesiredState, Identity, Resolution, Resolver};
use crate::encode::part::Touched;
use crate::encode::{self, Surroundings};
use crate::host::{self, Present};
use crate::metrics::gateway::Counts;
use crate::netlink::Netlink;
use crate::plan::{Change, Plan};
use crate::reconcile::{Reconciler, Round};
use crate::source::feed::Feed;
use crate::source::{Changes, Snapshot};
use crate::status::{ApplyStatus, SourceStatus};

/// The file of the state directory that keeps chosen addresses.
const ALLOCATIONS: &str = "allocations.json";

/// Up to so many changed rules are worth being planned one by one.
const FEW: usize = 256;

impl Daemon {
    /// Brings the gateway up, or takes it over from the process that ran before.
    pub(super) async fn start(settings: Settings, feed: &mut Feed) -> Result<Self, DaemonError> {
        let netlink = Netlink::connect()?;
        let ports = ports(&settings, &netlink).await?;
        let allocations = settings.state.load(ALLOCATIONS)?.unwrap_or_default();
        let resolver = Resolver::new(&settings.gateway, allocations);
        let identity = identity(&settings, &netlink, &ports).await?;
        let snapshot = feed.snapshot()?;
        let resolution = resolver.resolve(&snapshot).as_replica(&identity)?;
        let Some(desired) = resolution.state.clone() else {
            return Err(no_gateway(&settings, feed, &resolution));
        };
        let mut daemon = Self::assemble(settings, netlink, ports, (identity, resolver), desired)?;
        daemon.heard = feed.heard();
        daemon.adopt_state(resolution, &snapshot, feed);
        daemon.bring_up().await?;
        Ok(daemon)
    }

    /// Opens the data plane. Changes nothing that runs.
    pub(super) fn assemble(
        settings: Settings,
        netlink: Netlink,
        ports: BTreeMap<Side, Port>,
        (identity, resolver): (Identity, Resolver),
        desired: DesiredState,
    ) -> Result<Self, DaemonError> {
        let owned = settings.state.load(host::FILE)?.unwrap_or_default();
        let kernel = Kernel::open(&settings.name, &settings.object, &settings.kernel)?;
        let routers = Routers::adopt(kernel.next_hops()?);
        let maps = Reconciler::adopt(kernel)?;
        // Routes may have changed while nobody was looking.
        let adopted = maps.live().config.is_some();
        let routing = maps.live().config.map_or(0, |config| config.routing).wrapping_add(1);
        Ok(Self {
            settings,
            maps,
            netlink,
            identity,
            resolver,
            desired,
            ports,
            xdp: None,
            present: Present::default(),
            owned,
            lan: watch::Sender::default(),
            announcer: Announcer::default(),
            announced: BTreeSet::new(),
            routing,
            problems: Problems::default(),
            notes: BTreeSet::new(),
            source: SourceStatus::default(),
            last_apply: None,
            last_sweep: None,
            sweep_took: std::time::Duration::ZERO,
            ports_in_use: std::sync::Arc::default(),
            started_at: clock::unix_seconds(),
            ready: false,
            counts: Counts::default(),
            rejected: BTreeMap::new(),
            edition: 0,
            adopted,
            heard: None,
            report_at: None,
            routers,
        })
    }

    /// Puts everything in place.
    pub(super) async fn bring_up(&mut self) -> Result<(), DaemonError> {
        self.find_routers().await;
        self.first_round()?;
        self.accelerate()?;
        self.answer();
        self.look_around().await;
        self.settle_host().await;
        self.look_at_routers().await;
        self.ready = true;
        self.report();
        log(format_args!("{}: ready", self.settings.name));
        self.recount();
        Ok(())
    }

    /// Rules first, programs last: no packet meets half a configuration.
    fn first_round(&mut self) -> Result<(), DaemonError> {
        let adopted = self.maps.live().config.is_some();
        if adopted {
            log(format_args!(
                "{}: adopted {} rules and their sessions from {}",
                self.settings.name,
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
        let wanted = self.settings.kernel.preallocate;
        if wanted != self.maps.dataplane().maps().is_preallocated() {
            let whose =
                if wanted { "--preallocate has" } else { "doing without --preallocate has" };
            log(format_args!(
                "{whose} no effect on the maps that are there; --reset-maps would lose their sessions"
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
                self.settings.name
            )),
            Err(error) => self.problems.set(Step::Maps, vec![chain(&error)]),
        }
    }

    /// Acts upon what the source has to say.
    pub(super) async fn follow(&mut self, feed: &mut Feed) {
        if feed.changed() {
            self.reload(feed).await;
        } else if feed.health_changed() {
            self.look_at_source(feed);
            self.report();
        }
    }

    /// Acts upon what changed: upon a few EIPs and rules by themselves, else upon all objects again. If they cannot be
    /// read, everything stays as it is.
    pub(super) async fn reload(&mut self, feed: &mut Feed) {
        let (watch, heard_at) = (Stopwatch::start(), feed.take_arrival());
        let mut step = match feed.take_changes() {
            Changes::Few(few) => self.resolver.change(&few, &mut self.desired),
            Changes::Any => {
                self.resolver.forget();
                None
            }
        };
        if let (Some(pods), Some(done)) = (feed.take_pods(), &mut step) {
            match self.resolver.select(&pods, &self.identity, &mut self.desired) {
                Some(more) => done.extend(more),
                None => {
                    // What differs from the maps so far would not be found later.
                    let touched = std::mem::take(&mut done.touched);
                    step = None;
                    if !touched.is_empty() {
                        self.try_round_of(&touched);
                    }
                }
            }
        }
        match step {
            Some(step) => self.follow_step(&step, heard_at, feed).await,
            None => self.reload_all(heard_at, feed).await,
        }
        feed.acted(watch.elapsed());
    }

    /// Acts upon a few changed objects.
    async fn follow_step(&mut self, step: &desired::Step, heard_at: Option<Instant>, feed: &Feed) {
        let before = self.edition;
        match self.problems.has(Step::Maps) {
            true => self.try_round(),
            false => self.try_round_of(&step.touched),
        }
        if before != self.edition {
            self.note_delay(heard_at);
        }
        if step.told {
            self.tell(feed);
        }
        if step.eips || self.problems.has(Step::Host) {
            self.settle_host().await;
        }
        if step.eips {
            self.look_at_routers().await;
        }
        self.publish();
        self.report_soon();
    }

    async fn reload_all(&mut self, heard_at: Option<Instant>, feed: &mut Feed) {
        match self.resolve_all(feed) {
            Ok((resolution, snapshot)) => {
                if resolution.state.is_none() {
                    let missing = no_gateway(&self.settings, feed, &resolution);
                    let kept = format!("{missing}; it stays as it was");
                    self.problems.set(Step::Manifests, vec![kept]);
                } else {
                    let before = self.edition;
                    let old = self.adopt_state(resolution, &snapshot, feed);
                    self.try_round_after(old);
                    if before != self.edition {
                        self.note_delay(heard_at);
                    }
                    self.settle_host().await;
                    self.look_at_routers().await;
                }
            }
            Err(error) => {
                let kept = format!("{}; everything stays as it was", chain(&error));
                self.problems.set(Step::Manifests, vec![kept]);
            }
        }
        self.report();
    }

    fn resolve_all(&self, feed: &mut Feed) -> Result<(Resolution, Snapshot), DaemonError> {
        let snapshot = feed.snapshot()?;
        let resolution = self.resolver.resolve(&snapshot).as_replica(&self.identity)?;
        Ok((resolution, snapshot))
    }

    /// Notes how long a change took from when it was heard of.
    fn note_delay(&mut self, heard_at: Option<Instant>) {
        let Some(delay) = heard_at.map(|at| at.elapsed()) else { return };
        self.counts.delay.record(delay);
        if let Some(apply) = &mut self.last_apply {
            apply.event_to_map_us = Some(u64::try_from(delay.as_micros()).unwrap_or(u64::MAX));
        }
    }

    pub(super) fn look_at_source(&mut self, feed: &Feed) {
        self.source = feed.status();
        self.problems.set(Step::Source, feed.problems());
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
        self.try_round_of_surroundings();
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
        self.look_at_routers().await;
        self.report();
    }

    /// Takes over what the manifests say now.
    /// Returns what they said before.
    fn adopt_state(
        &mut self,
        mut resolution: Resolution,
        snapshot: &Snapshot,
        feed: &Feed,
    ) -> Option<DesiredState> {
        self.look_at_source(feed);
        self.keep_allocations(&resolution.allocations);
        let state = resolution.state.take();
        self.resolver.adopt(resolution, snapshot);
        self.tell(feed);
        state.map(|state| std::mem::replace(&mut self.desired, state))
    }

    /// Tells what is not acted upon, and what may be worth knowing.
    fn tell(&mut self, feed: &Feed) {
        let rejections = self.resolver.rejections();
        feed.complain(rejections);
        self.rejected = publish::by_kind(rejections);
        self.problems.set(Step::Manifests, rejections.iter().map(ToString::to_string).collect());
        let notes: BTreeSet<_> = self.resolver.notes().iter().map(ToString::to_string).collect();
        log_some(notes.difference(&self.notes), "notes");
        self.notes = notes;
    }

    fn keep_allocations(&self, allocations: &Allocations) {
        let path = self.settings.state.file(ALLOCATIONS);
        if (*allocations != self.resolver.previous().allocations || !path.exists())
            && let Err(error) = self.settings.state.save(ALLOCATIONS, allocations)
        {
            log(chain(&error));
        }
    }

    /// Makes the maps say what is desired.
    fn round(&mut self) -> Result<(), DaemonError> {
        let Some(surroundings) = self.surroundings() else { return Ok(()) };
        let round = self.maps.round(&self.desired, &surroundings)?;
        self.take_note(&round);
        Ok(())
    }

    fn take_note(&mut self, round: &Round) {
        self.count(round);
        self.problems.set(Step::Maps, round.overflows.iter().map(ToString::to_string).collect());
        if round.plan.is_empty() {
            return;
        }
        self.log_round(round);
        // An address that a change brought makes a round of its own, which would hide the change.
        let of_rules = !matches!(&round.plan.changes[..], [Change::Config(_)]);
        if of_rules || self.last_apply.is_none() {
            self.last_apply = Some(applied(round));
        }
    }

    fn log_round(&self, round: &Round) {
        let name = &self.settings.name;
        let generation = self.maps.live().config.map_or(0, |config| config.generation);
        if let [Change::Config(_)] = &round.plan.changes[..] {
            log(format_args!("{name}: generation {generation}, no rule changed"));
            return;
        }
        log_plan(&round.plan);
        log_plan(&round.drained);
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

    pub(super) fn try_round(&mut self) {
        if let Err(error) = self.round() {
            self.counts.failed_rounds += 1;
            self.problems.set(Step::Maps, vec![chain(&error)]);
        }
    }

    /// Makes the maps say what is desired, where they say what was desired before.
    fn try_round_after(&mut self, before: Option<DesiredState>) {
        let before = before.filter(|_| !self.problems.has(Step::Maps));
        let touched = before.map(|before| Touched::between(&before, &self.desired));
        match touched {
            Some(touched) if touched.len() <= FEW => self.try_round_of(&touched),
            Some(_) | None => self.try_round(),
        }
    }

    /// Makes the maps say what is around, where no rule has changed.
    pub(super) fn try_round_of_surroundings(&mut self) {
        if self.problems.has(Step::Maps) {
            return self.try_round();
        }
        self.try_round_of(&Touched::default());
    }

    /// Makes the maps say what is desired and around, where nothing but the touched rules has changed.
    fn try_round_of(&mut self, touched: &Touched) {
        let Some(surroundings) = self.surroundings() else { return };
        match self.maps.round_of(&self.desired, touched, &surroundings) {
            Ok(round) => self.take_note(&round),
            Err(error) => {
                self.counts.failed_rounds += 1;
                self.problems.set(Step::Maps, vec![chain(&error)]);
            }
        }
    }

    pub(super) fn surroundings(&self) -> Option<Surroundings> {
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
            mss_clamp: self.settings.mss_clamp,
            next_hops: self.routers.has_groups(),
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

/// A round as the status shows it.
pub(super) fn applied(round: &Round) -> ApplyStatus {
    ApplyStatus {
        at: clock::unix_seconds(),
        duration_us: u64::try_from(round.duration.as_micros()).unwrap_or(u64::MAX),
        inserted: round.applied.inserted,
        updated: round.applied.updated,
        deleted: round.applied.deleted,
        sessions_cut: round.sessions_cut,
        event_to_map_us: None,
    }
}

/// Finds both interfaces and chooses their hooks, before anything is touched.
pub(super) async fn ports(
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

/// What tells which replica of an egress gateway this is. It does not change while the process runs.
async fn identity(
    settings: &Settings,
    netlink: &Netlink,
    ports: &BTreeMap<Side, Port>,
) -> Result<Identity, DaemonError> {
    let mut identity = Identity { name: settings.replica, ..Identity::default() };
    for (side, port) in ports {
        let mut addresses = netlink.addresses(port.interface.index).await?;
        addresses.retain(|address| !is_link_local(address.addr()));
        match side {
            Side::Internal => identity.internal = addresses,
            Side::External => identity.external = addresses,
        }
    }
    Ok(identity)
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn no_gateway(settings: &Settings, feed: &Feed, resolution: &Resolution) -> DaemonError {
    DaemonError::NoGateway {
        gateway: settings.gateway.clone(),
        place: feed.place(),
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
