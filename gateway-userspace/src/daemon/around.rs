//! What a running gateway does about addresses, routes and sysctls.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;

use aya::maps::{MapData, RingBuf};
use ipnet::IpNet;

use super::{Daemon, Settings, Step, chain, log, log_some};
use crate::answers;
use crate::dataplane::kernel::Side;
use crate::host::{self, HostAddress, HostRoute, HostState, Present, sysctl};

impl Daemon {
    /// The interfaces that are there, with their indices.
    fn attached(&self) -> BTreeMap<Side, u32> {
        let attached = self.ports.iter().filter(|(_, port)| port.attachment.is_some());
        attached.map(|(side, port)| (*side, port.interface.index)).collect()
    }

    /// Reads addresses and routes.
    pub(super) async fn look_around(&mut self) {
        let mut present = Present::default();
        for (side, ifindex) in self.attached() {
            match self.netlink.addresses(ifindex).await {
                Ok(addresses) => present
                    .addresses
                    .extend(addresses.into_iter().map(|address| HostAddress { side, address })),
                Err(error) => log(chain(&error)),
            }
        }
        match self.netlink.routes().await {
            Ok(routes) => present.routes = routes,
            Err(error) => log(chain(&error)),
        }
        let own = present.addresses.iter().filter(|one| one.side == Side::Internal);
        let lan = own.map(|one| one.address).filter(|address| !is_link_local(*address)).collect();
        self.lan.send_replace(lan);
        self.present = present;
    }

    /// Starts to tell senders of packets that are dropped. Without it they are dropped all the same.
    pub(super) fn answer(&mut self) {
        let lan = self.lan.subscribe();
        let answered = self.serve(answers::RING, |ring| answers::serve(ring, lan));
        let fragmented = self.serve(answers::OVERSIZE_RING, answers::fragment);
        self.problems.set(Step::Answers, answered.into_iter().chain(fragmented).collect());
    }

    /// Starts to serve a ring buffer. Returns why that failed.
    fn serve(
        &mut self,
        name: &str,
        serve: impl FnOnce(RingBuf<MapData>) -> io::Result<()>,
    ) -> Option<String> {
        match self.maps.dataplane().ring(name) {
            Ok(Some(ring)) => serve(ring)
                .err()
                .map(|error| format!("failed to serve {name}: {error}; is CAP_NET_RAW missing?")),
            Ok(None) => None,
            Err(error) => Some(chain(&error)),
        }
    }

    /// Makes addresses, routes and sysctls what the gateway needs.
    pub(super) async fn settle_host(&mut self) {
        let Settings { state, internal, external, .. } = &self.settings;
        let remembered = sysctl::remember(state, internal, external);
        let mut problems: Vec<_> = remembered.err().iter().map(|error| chain(error)).collect();
        let (changed, errors) = sysctl::ensure(internal, external);
        changed.iter().for_each(|change| log(format_args!("set {change}")));
        problems.extend(errors.iter().map(|error| chain(error)));
        if self.settings.leave_host {
            self.problems.set(Step::Host, problems);
            return self.announce();
        }
        // An interface that is gone took what was on it along.
        let there = self.attached();
        let wanted = host::wanted(&self.desired).only(|side| there.contains_key(&side));
        let plan = host::plan(&wanted, &self.present, &self.owned);
        problems.extend(plan.contested.iter().map(ToString::to_string));
        if plan.owned != self.owned {
            // What goes is still ours until it is gone.
            let mut both = plan.owned.clone();
            both.addresses.extend(&plan.remove_addresses);
            both.routes.extend(&plan.remove_routes);
            problems.extend(self.save_owned(&both));
        }
        if !plan.is_empty() {
            log_host(&plan);
            let index_of = |side| there.get(&side).copied();
            let errors = host::apply(&self.netlink, &plan, index_of).await;
            problems.extend(errors.iter().map(|error| chain(error)));
            self.look_around().await;
        }
        if plan.owned != self.owned {
            problems.extend(self.save_owned(&plan.owned));
            self.owned = plan.owned;
        }
        self.problems.set(Step::Host, problems);
        self.announce();
    }

    pub(super) fn save_owned(&self, owned: &HostState) -> Option<String> {
        self.settings.state.save(host::FILE, owned).err().map(|error| chain(&error))
    }

    /// Announces the EIPs that were not announced yet.
    fn announce(&mut self) {
        let eips: BTreeSet<_> = self.desired.eips.keys().copied().collect();
        let there = self.present.addresses.iter().filter(|one| one.side == Side::External);
        let there: BTreeSet<_> = there.map(|one| one.address.addr()).collect();
        let announceable: BTreeSet<_> = eips.intersection(&there).copied().collect();
        let fresh: Vec<_> = announceable.difference(&self.announced).copied().collect();
        self.announcer.keep(announceable.clone());
        if let Some(port) = self.ports.get(&Side::External)
            && let Some(mac) = port.interface.mac
        {
            self.announcer.announce(port.interface.index, mac, fresh);
        }
        self.announced = announceable;
    }
}

fn is_link_local(address: IpNet) -> bool {
    match address.addr() {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn log_host(plan: &host::HostPlan) {
    for (sign, list) in [("+", &plan.add_addresses), ("-", &plan.remove_addresses)] {
        let line =
            |one: &HostAddress| format!("{sign} address {} ({})", one.address, one.side.as_str());
        log_some(list.iter().map(line), "addresses");
    }
    for (sign, list) in [("+", &plan.add_routes), ("-", &plan.remove_routes)] {
        let line = |one: &HostRoute| format!("{sign} route {} via {}", one.destination, one.via);
        log_some(list.iter().map(line), "routes");
    }
}
