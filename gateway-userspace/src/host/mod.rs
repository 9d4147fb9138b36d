//! What the network namespace needs around the maps: addresses, routes and sysctls.
//!
//! `DesiredState + what is there + what we added -> HostPlan`, pure; [`apply`] does it. Only what
//! this program added is ever removed: a file in the state directory remembers it, written before
//! the kernel is asked, so that a crash in between leaves nothing behind that nobody owns.

pub mod sysctl;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::dataplane::kernel::Side;
use crate::desired::{DesiredState, Network};
use crate::netlink::{Netlink, NetlinkError, Route};

/// The file of the state directory that remembers what we added.
pub const FILE: &str = "owned.json";

/// An address of one of the two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostAddress {
    /// Which interface.
    pub side: Side,
    /// The address with its prefix length.
    pub address: IpNet,
}

/// A route by one of the two interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostRoute {
    /// Which interface.
    pub side: Side,
    /// Destination.
    pub destination: IpNet,
    /// Next hop.
    pub via: IpAddr,
}

impl HostRoute {
    fn on(&self, ifindex: u32) -> Route {
        Route { destination: self.destination, via: Some(self.via), ifindex }
    }
}

/// Addresses and routes: those that shall be there, or those that we added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// The addresses.
    pub addresses: BTreeSet<HostAddress>,
    /// The routes.
    pub routes: BTreeSet<HostRoute>,
}

impl HostState {
    /// The part of it that is on these interfaces.
    #[must_use]
    pub fn only(mut self, side: impl Fn(Side) -> bool) -> Self {
        self.addresses.retain(|address| side(address.side));
        self.routes.retain(|route| side(route.side));
        self
    }
}

/// What the kernel has.
#[derive(Clone, Debug, Default)]
pub struct Present {
    /// The addresses of both interfaces.
    pub addresses: BTreeSet<HostAddress>,
    /// The destinations that have a route, by whatever interface.
    pub routes: Vec<Route>,
}

/// What shall change.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPlan {
    /// Addresses to add.
    pub add_addresses: Vec<HostAddress>,
    /// Routes to add.
    pub add_routes: Vec<HostRoute>,
    /// Routes to remove.
    pub remove_routes: Vec<HostRoute>,
    /// Addresses to remove.
    pub remove_addresses: Vec<HostAddress>,
    /// Routes that somebody else leads elsewhere.
    pub contested: Vec<Contested>,
    /// What is ours afterwards.
    pub owned: HostState,
}

/// A route that stands in the way of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contested {
    /// What we want.
    pub wanted: HostRoute,
    /// What is there.
    pub found: Route,
}

impl fmt::Display for Contested {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { wanted, found } = self;
        write!(f, "route {} via {} is left as it is: {found}", wanted.destination, wanted.via)
    }
}

impl HostPlan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.add_addresses.is_empty()
            && self.add_routes.is_empty()
            && self.remove_routes.is_empty()
            && self.remove_addresses.is_empty()
    }
}

/// What a gateway needs.
#[must_use]
pub fn wanted(desired: &DesiredState) -> HostState {
    let gateway = &desired.gateway;
    let lan = gateway.lan_ips.iter().map(|address| HostAddress {
        side: Side::Internal,
        address: in_network(*address, gateway.subnet.as_ref()),
    });
    let eips =
        desired.eips.values().map(|eip| HostAddress { side: Side::External, address: eip.address });
    let routes = gateway.routes.iter().map(|(destination, via)| HostRoute {
        side: Side::Internal,
        destination: *destination,
        via: *via,
    });
    HostState {
        addresses: lan.chain(eips).collect(),
        routes: routes.chain(default_routes(desired)).collect(),
    }
}

/// The routers of the outside: those of the gateway's subnets, else those of its EIPs.
fn default_routes(desired: &DesiredState) -> impl Iterator<Item = HostRoute> {
    let anywhere =
        [(IpAddr::V4(Ipv4Addr::UNSPECIFIED), true), (IpAddr::V6(Ipv6Addr::UNSPECIFIED), false)];
    anywhere.into_iter().filter_map(|(any, v4)| {
        let subnets = desired.gateway.external_subnets.iter().flat_map(|subnet| &subnet.gateways);
        let eips = desired.eips.values().filter_map(|eip| eip.gateway.as_ref());
        let via = *subnets.chain(eips).find(|via| via.is_ipv4() == v4)?;
        let destination = IpNet::new(any, 0).ok()?;
        Some(HostRoute { side: Side::External, destination, via })
    })
}

/// The address with the prefix length of the network that it is in.
fn in_network(address: IpAddr, network: Option<&Network>) -> IpNet {
    let length = network
        .into_iter()
        .flat_map(|network| &network.cidrs)
        .find(|cidr| cidr.contains(&address))
        .map(IpNet::prefix_len);
    length
        .and_then(|length| IpNet::new(address, length).ok())
        .unwrap_or_else(|| IpNet::from(address))
}

/// Compares what shall be there with what is there and what we added.
#[must_use]
pub fn plan(wanted: &HostState, present: &Present, owned: &HostState) -> HostPlan {
    let mut plan = HostPlan::default();
    // The same address with another prefix length does the same for us, unless it is our own.
    let foreign: BTreeSet<_> = present
        .addresses
        .difference(&owned.addresses)
        .map(|there| (there.side, there.address.addr()))
        .collect();
    for address in &wanted.addresses {
        if foreign.contains(&(address.side, address.address.addr())) {
            continue;
        }
        plan.owned.addresses.insert(*address);
        if !present.addresses.contains(address) {
            plan.add_addresses.push(*address);
        }
    }
    let superfluous = owned.addresses.difference(&wanted.addresses);
    plan.remove_addresses =
        superfluous.filter(|address| present.addresses.contains(address)).copied().collect();
    plan_routes(&mut plan, wanted, present, owned);
    plan
}

fn plan_routes(plan: &mut HostPlan, wanted: &HostState, present: &Present, owned: &HostState) {
    let find =
        |destination: &IpNet| present.routes.iter().find(|route| route.destination == *destination);
    let superfluous = owned.routes.difference(&wanted.routes);
    plan.remove_routes =
        superfluous.filter(|route| find(&route.destination).is_some()).copied().collect();
    for route in &wanted.routes {
        let ours = owned.routes.contains(route);
        let makes_room =
            plan.remove_routes.iter().any(|gone| gone.destination == route.destination);
        match find(&route.destination) {
            Some(found) if found.via == Some(route.via) => {
                if ours {
                    plan.owned.routes.insert(*route);
                }
            }
            Some(found) if !makes_room => {
                // A default route that is there is as good as ours.
                if route.destination.prefix_len() > 0 {
                    plan.contested.push(Contested { wanted: *route, found: found.clone() });
                }
            }
            Some(_) | None => {
                plan.owned.routes.insert(*route);
                plan.add_routes.push(*route);
            }
        }
    }
}

/// Does what the plan says, and says it. `index_of` knows the interfaces that are there.
///
/// Returns what was refused; the rest is done.
pub async fn apply(
    netlink: &Netlink,
    plan: &HostPlan,
    index_of: impl Fn(Side) -> Option<u32>,
) -> Vec<NetlinkError> {
    let mut errors = Vec::new();
    for address in &plan.add_addresses {
        let Some(ifindex) = index_of(address.side) else { continue };
        errors.extend(netlink.add_address(ifindex, address.address).await.err());
    }
    for route in &plan.remove_routes {
        let Some(ifindex) = index_of(route.side) else { continue };
        errors.extend(netlink.remove_route(&route.on(ifindex)).await.err());
    }
    for route in &plan.add_routes {
        let Some(ifindex) = index_of(route.side) else { continue };
        errors.extend(netlink.add_route(&route.on(ifindex)).await.err());
    }
    for address in &plan.remove_addresses {
        let Some(ifindex) = index_of(address.side) else { continue };
        errors.extend(netlink.remove_address(ifindex, address.address).await.err());
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(side: Side, text: &str) -> HostAddress {
        HostAddress { side, address: text.parse().unwrap() }
    }

    fn route(destination: &str, via: &str) -> HostRoute {
        HostRoute {
            side: Side::Internal,
            destination: destination.parse().unwrap(),
            via: via.parse().unwrap(),
        }
    }

    fn found(destination: &str, via: &str) -> Route {
        Route {
            destination: destination.parse().unwrap(),
            via: Some(via.parse().unwrap()),
            ifindex: 7,
        }
    }

    fn state(addresses: &[HostAddress], routes: &[HostRoute]) -> HostState {
        HostState {
            addresses: addresses.iter().copied().collect(),
            routes: routes.iter().copied().collect(),
        }
    }

    #[test]
    fn an_address_of_somebody_else_is_never_ours() {
        let wanted = state(&[address(Side::External, "203.0.113.2/24")], &[]);
        let present = Present {
            addresses: [address(Side::External, "203.0.113.2/32")].into(),
            routes: vec![],
        };
        let plan = plan(&wanted, &present, &HostState::default());
        assert!(plan.is_empty());
        assert_eq!(plan.owned, HostState::default());
    }

    #[test]
    fn what_we_added_goes_when_it_is_no_longer_wanted() {
        let mine = address(Side::External, "203.0.113.9/24");
        let other = address(Side::External, "203.0.113.2/24");
        let owned = state(&[mine], &[route("10.0.9.0/24", "10.0.1.1")]);
        let present = Present {
            addresses: [mine, other].into(),
            routes: vec![found("10.0.9.0/24", "10.0.1.1")],
        };
        let plan = plan(&HostState::default(), &present, &owned);
        assert_eq!(plan.remove_addresses, [mine]);
        assert_eq!(plan.remove_routes, [route("10.0.9.0/24", "10.0.1.1")]);
        assert_eq!(plan.owned, HostState::default());
    }

    #[test]
    fn another_prefix_length_is_added_before_the_old_one_goes() {
        let (old, new) =
            (address(Side::External, "203.0.113.9/32"), address(Side::External, "203.0.113.9/24"));
        let present = Present { addresses: [old].into(), routes: vec![] };
        let plan = plan(&state(&[new], &[]), &present, &state(&[old], &[]));
        assert_eq!(plan.add_addresses, [new]);
        assert_eq!(plan.remove_addresses, [old]);
        assert_eq!(plan.owned.addresses, [new].into());
    }

    #[test]
    fn a_default_route_that_is_there_stays() {
        let default = HostRoute {
            side: Side::External,
            destination: "0.0.0.0/0".parse().unwrap(),
            via: "203.0.113.1".parse().unwrap(),
        };
        let present =
            Present { routes: vec![found("0.0.0.0/0", "10.0.1.1")], ..Present::default() };
        let there = plan(&state(&[], &[default]), &present, &HostState::default());
        assert_eq!(there, HostPlan::default());
        let absent = plan(&state(&[], &[default]), &Present::default(), &HostState::default());
        assert_eq!(absent.add_routes, [default]);
    }

    #[test]
    fn a_route_of_somebody_else_is_reported() {
        let wanted = route("10.0.9.0/24", "10.0.1.1");
        let present =
            Present { routes: vec![found("10.0.9.0/24", "10.0.1.2")], ..Present::default() };
        let plan = plan(&state(&[], &[wanted]), &present, &HostState::default());
        assert!(plan.is_empty());
        assert_eq!(
            plan.contested[0].to_string(),
            "route 10.0.9.0/24 via 10.0.1.1 is left as it is: 10.0.9.0/24 via 10.0.1.2"
        );
    }

    #[test]
    fn a_route_whose_next_hop_changed_is_replaced() {
        let (old, new) = (route("10.0.9.0/24", "10.0.1.1"), route("10.0.9.0/24", "10.0.1.3"));
        let present =
            Present { routes: vec![found("10.0.9.0/24", "10.0.1.1")], ..Present::default() };
        let plan = plan(&state(&[], &[new]), &present, &state(&[], &[old]));
        assert_eq!(plan.remove_routes, [old]);
        assert_eq!(plan.add_routes, [new]);
    }
}
