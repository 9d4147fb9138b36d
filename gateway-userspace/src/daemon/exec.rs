//! A gateway whose rules come from `vpc-gateway exec`: see [`crate::exec`].

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use tokio::task::yield_now;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::{
    BEAT, DEBOUNCE, Daemon, DaemonError, SWEEP, Settings, Signals, Step, Wish, at, chain, log,
    ports,
};
use crate::dataplane::kernel::Side;
use crate::desired::{self, Resolver};
use crate::exec::desired::{Identity, touched, update};
use crate::exec::journal::{self, Journal};
use crate::exec::ledger::{Ledger, Note, Slot};
use crate::exec::protocol::{Answer, NO_SUCH_ROUTE, Request, SOCKET};
use crate::exec::server::Server;
use crate::exec::verb::{self, Call, Init, Order};
use crate::host::{HostAddress, HostRoute};
use crate::netlink::{self, Netlink, Route};

/// How long changes of the network may follow each other before they are looked at.
const MOST_DEBOUNCE: Duration = Duration::from_secs(1);

/// Runs a gateway that does what it is told, until a signal ends it. The caller holds the lock of the
/// state directory.
///
/// # Errors
///
/// When it cannot start. Nothing that runs already is changed then.
pub async fn run(settings: Settings, routers: Vec<IpAddr>) -> Result<(), DaemonError> {
    let mut signals = Signals::new().map_err(DaemonError::Signal)?;
    let mut network = netlink::changes()?;
    let socket = settings.state.file(SOCKET);
    let mut executor = Executor::start(settings, routers).await?;
    // Whoever can connect finds everything in place.
    let mut server = Server::listen(&socket)?;
    let mut ticks = interval(SWEEP);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut refresh = None::<Soon>;
    let mut beats = interval(BEAT);
    loop {
        tokio::select! {
            wish = signals.next() => match wish {
                Wish::Stop => break,
                // Nobody but the verbs changes the ledger.
                Wish::Reload => {}
            },
            _ = beats.tick() => executor.daemon.beat(),
            asked = server.next() => {
                let answer = executor.answer(&asked.request).await;
                // Whoever asked may be gone.
                let _ = asked.answer.send(answer);
                executor.daemon.report_soon();
            }
            Some(()) = network.recv() => refresh = Some(Soon::after(refresh)),
            () = at(refresh.map(|soon| soon.at)) => {
                refresh = None;
                executor.daemon.refresh().await;
            }
            () = at(executor.daemon.report_at) => executor.daemon.report(),
            () = yield_now(), if executor.daemon.maps.is_sweeping() => {
                if executor.daemon.sweep_on() {
                    ticks.reset_after(executor.daemon.rest());
                }
            }
            _ = ticks.tick(), if !executor.daemon.maps.is_sweeping() => {
                executor.daemon.begin_sweep();
            }
        }
    }
    executor.daemon.report();
    executor.daemon.say_goodbye();
    Ok(())
}

/// When the network is looked at: once it is quiet, but not never.
#[derive(Clone, Copy)]
struct Soon {
    at: Instant,
    latest: Instant,
}

impl Soon {
    fn after(before: Option<Self>) -> Self {
        let now = Instant::now();
        let latest = before.map_or(now + MOST_DEBOUNCE, |soon| soon.latest);
        Self { at: latest.min(now + DEBOUNCE), latest }
    }
}

/// A daemon and what it was told.
struct Executor {
    daemon: Daemon,
    routers: Vec<IpAddr>,
    ledger: Ledger,
    journal: Journal,
    damaged: Vec<String>,
}

impl Executor {
    /// Brings up what the journal asks for.
    async fn start(settings: Settings, routers: Vec<IpAddr>) -> Result<Self, DaemonError> {
        let path = settings.state.file(journal::FILE);
        let recovered = journal::read(&path)?;
        let journal = Journal::create(&path, &recovered.ledger)?;
        let identity = Identity { name: settings.gateway.clone(), routers: routers.clone() };
        let netlink = Netlink::connect()?;
        let ports = ports(&settings, &netlink).await?;
        let wanted = identity.desired(&recovered.ledger);
        let nobody = (desired::Identity::default(), Resolver::default());
        let mut daemon = Daemon::assemble(settings, netlink, ports, nobody, wanted)?;
        daemon.bring_up().await?;
        let (ledger, damaged) = (recovered.ledger, recovered.damaged);
        let mut executor = Self { daemon, routers, ledger, journal, damaged };
        executor.remark();
        executor.daemon.report();
        Ok(executor)
    }

    async fn answer(&mut self, request: &Request) -> Answer {
        let orders = match verb::parse(&request.words) {
            Err(error) => return Answer::failed(error),
            Ok(Call::Version) => return Answer::done(String::new()),
            Ok(Call::Init(init)) => {
                self.announce_all();
                match init {
                    Init::Route(order) => vec![order],
                    Init::Plain | Init::Interfaces { .. } => Vec::new(),
                }
            }
            Ok(Call::Orders(orders)) => orders,
            Ok(Call::Sync(rules)) => self.ledger.sync(&rules),
        };
        self.carry_out(orders, request.again).await
    }

    /// One order after the other, up to the first that fails; those before it stay.
    async fn carry_out(&mut self, orders: Vec<Order>, again: bool) -> Answer {
        let (mut done, mut notes): (Vec<Order>, Vec<Note>) = (Vec::new(), Vec::new());
        let mut answer = Answer::default();
        for order in orders {
            let slot = order.slot();
            let before = self.ledger.take_note(slot.clone());
            if let Err(conflict) = self.ledger.execute(&order) {
                answer = Answer::failed(conflict);
                break;
            }
            if let Err(failure) = self.kernel(&order, &before, again).await {
                self.ledger.put_back(before);
                answer = failure;
                break;
            }
            if matches!(slot, Slot::Qos(_)) {
                answer.stdout += &format!("not enforced: {order}\n");
            }
            if self.ledger.take_note(slot.clone()) != before {
                update(&mut self.daemon.desired, &self.ledger, &slot);
                notes.push(before);
                done.push(order);
            }
        }
        if let Err(why) = self.enact(&done) {
            self.take_back(&done, notes);
            return Answer::failed(why);
        }
        self.remark();
        answer
    }

    /// Puts orders into the maps, and then into the journal.
    fn enact(&mut self, orders: &[Order]) -> Result<(), String> {
        if orders.is_empty() {
            return Ok(());
        }
        self.apply(orders)?;
        self.journal.append(orders, &self.ledger).map_err(|error| chain(&error))
    }

    fn apply(&mut self, orders: &[Order]) -> Result<(), String> {
        let slots: Vec<_> = orders.iter().map(Order::slot).collect();
        let touched = touched(&slots);
        if touched.is_empty() {
            return Ok(());
        }
        let daemon = &mut self.daemon;
        let Some(surroundings) = daemon.surroundings() else {
            return Err("an interface of the gateway is gone".into());
        };
        let round = daemon.maps.round_of(&daemon.desired, &touched, &surroundings);
        let round = round.map_err(|error| {
            daemon.counts.failed_rounds += 1;
            chain(&error)
        })?;
        daemon.count(&round);
        daemon.last_apply = Some(super::rounds::applied(&round));
        round.overflows.first().map_or(Ok(()), |overflow| Err(overflow.to_string()))
    }

    /// Makes everything as it was before orders that failed.
    fn take_back(&mut self, orders: &[Order], notes: Vec<Note>) {
        for (order, note) in orders.iter().zip(notes).rev() {
            self.ledger.put_back(note);
            update(&mut self.daemon.desired, &self.ledger, &order.slot());
        }
        if let Err(error) = self.apply(orders) {
            log(format_args!("failed to take back what failed: {error}"));
        }
    }

    /// What `status` says beyond the rules.
    fn remark(&mut self) {
        let mut remarks = self.damaged.clone();
        if !self.ledger.qos.is_empty() {
            let first: Vec<_> = self.ledger.qos.keys().take(3).map(ToString::to_string).collect();
            let (count, first) = (self.ledger.qos.len(), first.join("; "));
            remarks.push(format!("QoS is not enforced: {count} limits were accepted ({first})"));
        }
        self.daemon.problems.set(Step::Orders, remarks);
    }

    /// Announces the addresses that the external interface has, once.
    fn announce_all(&mut self) {
        let there = &self.daemon.present.addresses;
        let external = there.iter().filter(|one| one.side == Side::External);
        let all: Vec<_> = external.map(|one| one.address.addr()).filter(routed).collect();
        let fresh = all.into_iter().filter(|address| !self.daemon.announced.contains(address));
        let fresh: Vec<_> = fresh.collect();
        self.announce(fresh);
    }

    fn announce(&mut self, addresses: Vec<IpAddr>) {
        let daemon = &mut self.daemon;
        daemon.announced.extend(&addresses);
        daemon.announcer.keep(daemon.announced.clone());
        if let Some(port) = daemon.ports.get(&Side::External)
            && let Some(mac) = port.interface.mac
        {
            daemon.announcer.announce(port.interface.index, mac, addresses);
        }
    }

    /// Does what an order means for addresses and routes.
    async fn kernel(&mut self, order: &Order, before: &Note, again: bool) -> Result<(), Answer> {
        match order {
            Order::EipAdd(address, router) => self.add_eip(*address, *router, before).await,
            Order::EipDel(eip) => self.remove_eip(*eip).await,
            Order::RouteAdd(cidr, via) => self.add_route(Side::Internal, *cidr, Some(*via)).await,
            Order::RouteDel(cidr) => {
                if self.remove_route(Side::Internal, *cidr).await? || again {
                    return Ok(());
                }
                let stderr = format!("{order}: there is no such route");
                Err(Answer { code: NO_SUCH_ROUTE, stdout: String::new(), stderr })
            }
            Order::ExternalRouteAdd(cidr, router) => {
                self.add_route(Side::External, *cidr, None).await?;
                self.lead_out(router.iter().copied().collect()).await
            }
            Order::ExternalRouteDel(cidr) => {
                self.remove_route(Side::External, *cidr).await.map(drop)
            }
            _ => Ok(()),
        }
    }

    async fn add_eip(
        &mut self,
        address: IpNet,
        router: Option<IpAddr>,
        before: &Note,
    ) -> Result<(), Answer> {
        let index = self.index(Side::External)?;
        self.daemon.netlink.add_address(index, address).await.map_err(failed)?;
        self.own(HostAddress { side: Side::External, address });
        if let Note::Eip(_, Some((old, _))) = before
            && *old != address
        {
            self.remove_address(*old).await?;
        }
        let routers = router.map_or_else(|| self.routers.clone(), |router| vec![router]);
        self.lead_out(routers).await?;
        self.announce(vec![address.addr()]);
        Ok(())
    }

    /// Removes the address, whatever the length of its prefix and whoever has added it.
    async fn remove_eip(&mut self, eip: IpAddr) -> Result<(), Answer> {
        let there = self.daemon.present.addresses.iter();
        let there = there.filter(|one| one.side == Side::External && one.address.addr() == eip);
        let there: Vec<_> = there.map(|one| one.address).collect();
        self.daemon.announced.remove(&eip);
        self.daemon.announcer.keep(self.daemon.announced.clone());
        for address in there {
            self.remove_address(address).await?;
        }
        Ok(())
    }

    async fn remove_address(&mut self, address: IpNet) -> Result<(), Answer> {
        let index = self.index(Side::External)?;
        self.daemon.netlink.remove_address(index, address).await.map_err(failed)?;
        let gone = HostAddress { side: Side::External, address };
        self.daemon.present.addresses.remove(&gone);
        if self.daemon.owned.addresses.remove(&gone) {
            self.keep_owned();
        }
        Ok(())
    }

    /// Remembers an address as one that we have added, if it was not there before.
    fn own(&mut self, address: HostAddress) {
        if self.daemon.present.addresses.insert(address)
            && self.daemon.owned.addresses.insert(address)
        {
            self.keep_owned();
        }
    }

    fn keep_owned(&self) {
        if let Some(problem) = self.daemon.save_owned(&self.daemon.owned) {
            log(problem);
        }
    }

    /// Default routes by these routers, on link.
    async fn lead_out(&mut self, routers: Vec<IpAddr>) -> Result<(), Answer> {
        for router in routers {
            let any = if router.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
            let Ok(any) = any.parse() else { continue };
            self.add_route(Side::External, any, Some(router)).await?;
        }
        Ok(())
    }

    /// Adds a route, in place of another one to the same destination.
    async fn add_route(
        &mut self,
        side: Side,
        destination: IpNet,
        via: Option<IpAddr>,
    ) -> Result<(), Answer> {
        let ifindex = self.index(side)?;
        let route = Route { destination, via, ifindex };
        if self.daemon.present.routes.contains(&route) {
            return Ok(());
        }
        self.daemon.netlink.replace_route(&route).await.map_err(failed)?;
        let routes = &mut self.daemon.present.routes;
        routes.retain(|there| there.destination != destination);
        routes.push(route);
        if let Some(via) = via {
            self.daemon.owned.routes.insert(HostRoute { side, destination, via });
            self.keep_owned();
        }
        Ok(())
    }

    /// Removes the route of a side. Returns whether there was one.
    async fn remove_route(&mut self, side: Side, destination: IpNet) -> Result<bool, Answer> {
        let ifindex = self.index(side)?;
        let routes = self.daemon.netlink.routes().await.map_err(failed)?;
        let mut ours =
            routes.iter().filter(|one| one.destination == destination && one.ifindex == ifindex);
        let Some(route) = ours.next() else { return Ok(false) };
        self.daemon.netlink.remove_route(route).await.map_err(failed)?;
        self.daemon.present.routes.retain(|one| one != route);
        let gone = |one: &HostRoute| one.side == side && one.destination == destination;
        self.daemon.owned.routes.retain(|one| !gone(one));
        self.keep_owned();
        Ok(true)
    }

    fn index(&self, side: Side) -> Result<u32, Answer> {
        let port = self.daemon.ports.get(&side).filter(|port| port.attachment.is_some());
        port.map(|port| port.interface.index).ok_or_else(|| {
            let name = self.daemon.settings.interface(side);
            Answer::failed(format_args!("interface {name} is gone"))
        })
    }
}

fn routed(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => !address.is_link_local(),
        IpAddr::V6(address) => !address.is_unicast_link_local(),
    }
}

fn failed(error: netlink::NetlinkError) -> Answer {
    Answer::failed(chain(&error))
}
