//! Several routers on a side: who of them is alive, and the groups in the maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use tokio::sync::mpsc;

use super::{Daemon, Step, chain, log};
use crate::bfd::engine::{Ends, Engine, Event, Wanted as WantedSession};
use crate::bfd::packet::State;
use crate::bfd::report::{FILE as BFD_FILE, Sessions};
use crate::bfd::session::{Parameters, Role};
use crate::clock;
use crate::dataplane::kernel::Side;
use crate::desired::{Bfd, NextHops};
use crate::host;
use crate::netlink::Neighbor;
use crate::routers::maps::NextHopMaps;
use crate::routers::plan::{Around, Group, GroupKey, plan};
use crate::routers::report::{FILE, Report};
use crate::state_dir::{Lock, StateDir};

/// How often routers are looked at without being told.
pub(super) const LOOK: Duration = Duration::from_secs(1);

/// Neighbours on the link only (RFC 5881 section 5).
const MIN_TTL: u8 = 255;

/// How long a session may take to come up before the router counts as dead: the slow start (RFC 5880
/// section 6.8.3), and the time of detection.
const SLOW_START: Duration = Duration::from_secs(3);

/// What is known of the routers.
pub(super) struct Routers {
    maps: NextHopMaps,
    /// What the maps hold.
    groups: BTreeMap<GroupKey, Group>,
    /// Whether any are wanted.
    wanted: bool,
    around: BTreeMap<Side, Surrounding>,
    bfd: Option<Watchers>,
    watched: BTreeMap<Ends, Watched>,
    sender: mpsc::UnboundedSender<Event>,
    receiver: Option<mpsc::UnboundedReceiver<Event>>,
    /// Why nobody is watched who shall be.
    unwatched: Option<String>,
    reported: Option<Report>,
}

/// What is known around one interface.
#[derive(Default)]
struct Surrounding {
    ifindex: u32,
    links: Vec<IpNet>,
    represented: BTreeSet<IpAddr>,
    macs: BTreeMap<IpAddr, [u8; 6]>,
    /// Those that do not answer.
    failed: BTreeSet<IpAddr>,
}

/// The BFD sessions, and where they are written down.
struct Watchers {
    engine: Engine,
    state: StateDir,
    _lock: Lock,
}

/// A BFD session with a router.
#[derive(Clone, Copy)]
struct Watched {
    since: Instant,
    patience: Duration,
    alive: Option<bool>,
}

impl Watched {
    fn alive(&self) -> Option<bool> {
        self.alive.or_else(|| (self.since.elapsed() > self.patience).then_some(false))
    }
}

impl Routers {
    /// Takes over what the maps hold.
    pub(super) fn adopt(maps: NextHopMaps) -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            groups: maps.read(),
            maps,
            wanted: false,
            around: BTreeMap::new(),
            bfd: None,
            watched: BTreeMap::new(),
            sender,
            receiver: Some(receiver),
            unwatched: None,
            reported: None,
        }
    }

    /// Whether there is any group in the maps.
    pub(super) fn has_groups(&self) -> bool {
        self.wanted && !self.groups.is_empty()
    }

    /// Whether there is anything to look at: routers that are wanted, or that were until now.
    pub(super) fn are_wanted(&self) -> bool {
        self.wanted || self.reported.is_some()
    }

    /// What there is to say about them.
    pub(super) fn report(&self) -> Report {
        self.reported.clone().unwrap_or_default()
    }

    /// What BFD has to say.
    pub(super) fn events(&mut self) -> mpsc::UnboundedReceiver<Event> {
        self.receiver.take().unwrap_or_else(|| mpsc::unbounded_channel().1)
    }

    /// Our address towards a router: rather the gateway's own than an EIP.
    fn local(&self, side: Side, remote: IpAddr) -> Option<IpAddr> {
        let links = &self.around.get(&side)?.links;
        links.iter().find(|link| link.contains(&remote)).map(IpNet::addr)
    }

    /// Whether a router is alive; `None` if that is not known yet.
    fn alive(&self, side: Side, router: IpAddr) -> Option<bool> {
        if self.bfd.is_none() {
            let failed = self.around.get(&side).is_some_and(|it| it.failed.contains(&router));
            return Some(!failed);
        }
        let ends = Ends { local: self.local(side, router)?, remote: router };
        self.watched.get(&ends)?.alive()
    }

    /// The routers of a side that are members, or were.
    fn all(&self, wanted: &NextHops, side: Side) -> BTreeSet<IpAddr> {
        let keys = GroupKey::ALL.into_iter().filter(|key| key.side == side);
        let members = keys.clone().flat_map(|key| key.wanted(wanted).map(|router| router.address));
        let draining = keys.filter_map(|key| self.groups.get(&key)).flat_map(Group::draining);
        members.chain(draining).collect()
    }
}

impl Daemon {
    /// Finds out about routers before anything is attached, so that no packet goes by one that is dead.
    pub(super) async fn find_routers(&mut self) {
        self.routers.wanted = !self.desired.gateway.next_hops.is_empty();
        if self.routers.wanted {
            self.read_routers().await;
            self.watch_routers();
            self.settle_routers();
        }
    }

    /// Looks at everything that groups depend on, and makes the maps what follows.
    pub(super) async fn look_at_routers(&mut self) {
        self.routers.wanted = !self.desired.gateway.next_hops.is_empty();
        if !self.routers.are_wanted() && self.routers.groups.is_empty() {
            return;
        }
        self.read_routers().await;
        self.watch_routers();
        self.follow_routers();
        self.report_sessions().await;
    }

    /// Takes over what BFD says.
    pub(super) fn hear_of_router(
        &mut self,
        event: &Event,
        more: &mut mpsc::UnboundedReceiver<Event>,
    ) {
        self.note_router(event);
        while let Ok(event) = more.try_recv() {
            self.note_router(&event);
        }
        self.follow_routers();
    }

    fn note_router(&mut self, event: &Event) {
        let Event { ends, change } = event;
        log(format_args!(
            "bfd {} -> {}: {} -> {} ({})",
            ends.local, ends.remote, change.from, change.to, change.diagnostic
        ));
        if (change.to == State::Up || change.from == State::Up)
            && let Some(watched) = self.routers.watched.get_mut(ends)
        {
            watched.alive = Some(change.to == State::Up);
        }
    }

    /// Reads addresses, routes and neighbours of both interfaces. What cannot be read stays as it was.
    async fn read_routers(&mut self) {
        let wanted = self.desired.gateway.next_hops.clone();
        let defaults = self.netlink.default_routers().await;
        for side in Side::ALL {
            let Some(port) = self.ports.get(&side) else { continue };
            let ifindex = port.interface.index;
            let routers = self.routers.all(&wanted, side);
            if routers.is_empty() {
                self.routers.around.remove(&side);
                continue;
            }
            let links = self.netlink.addresses(ifindex).await;
            let neighbours = self.netlink.neighbors(ifindex).await.unwrap_or_default();
            for router in &routers {
                let known = neighbours.iter().find(|one| one.address == *router);
                if known.is_none_or(|neighbour| !neighbour.permanent) {
                    self.netlink.look_for(ifindex, *router).await;
                }
            }
            let eips: BTreeSet<IpAddr> = self.desired.eips.keys().copied().collect();
            let represented = self.represented(side, ifindex, defaults.as_deref().ok());
            let around = self.routers.around.entry(side).or_default();
            if let Ok(mut links) = links {
                links.sort_by_key(|link| eips.contains(&link.addr()));
                around.links = links;
            }
            if let Some(represented) = represented {
                around.represented = represented;
            }
            if around.ifindex != ifindex {
                (around.ifindex, around.macs, around.failed) = (ifindex, [].into(), [].into());
            }
            around.meet(&routers, &neighbours);
        }
    }

    /// The routers of a side whose routes a group takes over: of default routes, and of the gateway's own.
    fn represented(
        &self,
        side: Side,
        ifindex: u32,
        defaults: Option<&[(u32, IpAddr)]>,
    ) -> Option<BTreeSet<IpAddr>> {
        let there = defaults?.iter().filter(|(index, _)| *index == ifindex).map(|(_, via)| *via);
        let own = host::wanted(&self.desired).routes;
        let own = own.iter().filter(|route| route.side == side).map(|route| route.via);
        Some(there.chain(own).collect())
    }

    /// Has a BFD session with each router, if that is wanted.
    fn watch_routers(&mut self) {
        let Some(bfd) = self.desired.gateway.next_hops.bfd else {
            self.routers.bfd = None;
            self.routers.unwatched = None;
            return self.routers.watched.clear();
        };
        let mut sessions = BTreeMap::new();
        for side in Side::ALL {
            for remote in self.routers.all(&self.desired.gateway.next_hops, side) {
                let Some(local) = self.routers.local(side, remote) else { continue };
                sessions.insert(Ends { local, remote }, session(bfd));
            }
        }
        let watched = &mut self.routers.watched;
        watched.retain(|ends, _| sessions.contains_key(ends));
        let patience = bfd.detection() + SLOW_START;
        for ends in sessions.keys() {
            let fresh = Watched { since: clock::now(), patience, alive: None };
            watched.entry(*ends).or_insert(fresh);
        }
        if self.routers.bfd.is_none() && !sessions.is_empty() {
            match self.start_watching() {
                Ok(watchers) => {
                    self.routers.bfd = Some(watchers);
                    self.routers.unwatched = None;
                }
                Err(problem) => self.routers.unwatched = Some(problem),
            }
        }
        if let Some(watchers) = &self.routers.bfd {
            watchers.engine.want(sessions);
        }
    }

    fn start_watching(&self) -> Result<Watchers, String> {
        let state = StateDir::new(&self.settings.state.file(""), "bfd");
        let state = state.map_err(|error| chain(&error))?;
        let lock = state.lock().map_err(|error| chain(&error))?;
        let engine = Engine::start(self.routers.sender.clone());
        let engine = engine.map_err(|error| {
            format!(
                "next hops are not watched by BFD, only by the neighbour table: {}",
                chain(&error)
            )
        })?;
        Ok(Watchers { engine, state, _lock: lock })
    }

    /// Makes the maps what they shall be, and has sessions look at their routes again if that matters.
    fn follow_routers(&mut self) {
        let flag = self.maps.live().config.is_some_and(|config| config.next_hops != 0);
        let elsewhere = self.settle_routers();
        if elsewhere || flag != self.routers.has_groups() {
            self.routing = self.routing.wrapping_add(1);
            self.try_round_of_surroundings();
        }
        self.drop_groups();
    }

    /// Writes the groups that differ; `true` if packets go other ways than before. Those that are to go
    /// stay until nobody is told to look for them.
    fn settle_routers(&mut self) -> bool {
        let wanted = &self.desired.gateway.next_hops;
        let (mut report, mut elsewhere) = (Report::default(), false);
        let mut groups = BTreeMap::new();
        for key in GroupKey::ALL {
            let routers = &self.routers;
            let nothing = Surrounding::default();
            let around = routers.around.get(&key.side).unwrap_or(&nothing);
            let around = Around {
                links: &around.links,
                represented: &around.represented,
                macs: &around.macs,
                alive: &|router| routers.alive(key.side, router),
            };
            let Some(planned) = plan(key, wanted, &around, routers.groups.get(&key)) else {
                continue;
            };
            report.groups.push(planned.status);
            report.problems.extend(planned.problems);
            groups.extend(planned.group.map(|group| (key, group)));
        }
        report.problems.extend(self.routers.unwatched.clone());
        let mut problems = report.problems.clone();
        for (key, group) in &groups {
            let before = self.routers.groups.get(key);
            if before == Some(group) {
                continue;
            }
            elsewhere |= before.is_none_or(|before| before.leads_elsewhere(group));
            match self.routers.maps.set(*key, Some(group)) {
                Ok(()) => drop(self.routers.groups.insert(*key, group.clone())),
                Err(error) => problems.push(chain(&error)),
            }
        }
        let gone: Vec<_> =
            self.routers.groups.keys().filter(|key| !groups.contains_key(key)).copied().collect();
        elsewhere |= !gone.is_empty();
        self.routers.groups.retain(|key, _| groups.contains_key(key));
        self.report_routers(report, problems);
        elsewhere
    }

    /// Removes what nobody looks for any more.
    fn drop_groups(&mut self) {
        for key in self.routers.maps.read().into_keys() {
            if !self.routers.groups.contains_key(&key)
                && let Err(error) = self.routers.maps.set(key, None)
            {
                log(chain(&error));
            }
        }
    }

    fn report_routers(&mut self, report: Report, problems: Vec<String>) {
        let nothing = report == Report::default();
        self.problems.set(Step::NextHops, problems);
        if self.routers.reported.as_ref() == Some(&report)
            || nothing && self.routers.reported.is_none()
        {
            return;
        }
        if let Err(error) = self.settings.state.save(FILE, &report) {
            log(chain(&error));
        }
        self.routers.reported = (!nothing).then_some(report);
        self.publish();
    }

    /// Writes the BFD sessions down.
    async fn report_sessions(&self) {
        let Some(watchers) = &self.routers.bfd else { return };
        let sessions = Sessions { sessions: watchers.engine.report().await };
        if let Err(error) = watchers.state.save(BFD_FILE, &sessions) {
            log(chain(&error));
        }
    }
}

impl Surrounding {
    /// Takes over what the kernel knows of the routers among its neighbours.
    fn meet(&mut self, routers: &BTreeSet<IpAddr>, neighbours: &[Neighbor]) {
        for neighbour in neighbours.iter().filter(|one| routers.contains(&one.address)) {
            match neighbour.answers {
                Some(true) => drop(self.failed.remove(&neighbour.address)),
                Some(false) => drop(self.failed.insert(neighbour.address)),
                // One that did not answer counts as dead until it does.
                None => {}
            }
            if let Some(mac) = neighbour.mac.filter(|_| neighbour.answers == Some(true)) {
                self.macs.insert(neighbour.address, mac);
            }
        }
    }
}

/// We speak first, with our own intervals.
const fn session(bfd: Bfd) -> WantedSession {
    let Bfd { min_rx, min_tx, multiplier } = bfd;
    let parameters = Parameters { min_tx, min_rx, multiplier, role: Role::Active };
    WantedSession { parameters, min_ttl: MIN_TTL, admin_down: false }
}
