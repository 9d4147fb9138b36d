//! Which group a packet takes, by the networks of both its ends: policies first, then routes, as OVN's
//! router does it.
//!
//! Two networks that rules name either contain one another or have nothing in common. So the longest
//! one that contains an address says of every other one whether it does, and all rules can be followed
//! beforehand, for each pair of networks. A packet costs three look-ups, however many rules there are.
//!
//! Pods that leave by selectors are networks of one address each. All those of one gateway that lie in the
//! same network fare alike, so they have one id together: ten thousand of them add one row.
//!
//! | priority | rule |
//! |---|---|
//! | 31000 | to a Subnet of the VPC: not by a gateway |
//! | 29100 | from a source of an egress gateway: to one of its replicas |
//! | as it says | policy routes |
//! | last | static routes: the longest prefix, then by destination before by source |

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gateway_common::nexthop::DENIED;
use ipnet::IpNet;

use crate::desired::{Action, EgressGateway, End, Match, RouteKey, Router};

/// Priority of what Kube-OVN makes of Subnets.
const INSIDE: i32 = 31_000;
/// Priority of what it makes of egress gateways.
const EGRESS: i32 = 29_100;

/// Most pairs of networks.
pub const MOST: usize = 1 << 16;

/// The group of each pair of networks, by their ids: of the source, then of the destination. 0 stands for
/// all that is in none, as the group for [`DENIED`].
pub type Choices = BTreeMap<u32, BTreeMap<u32, u32>>;

/// Where packets come from, as far as rules tell it apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Source<'r> {
    /// The longest network that rules name.
    pub network: Option<IpNet>,
    /// The egress gateway whose selectors take the source, and whether the source is IPv4.
    pub pod: Option<(&'r str, bool)>,
}

impl Source<'_> {
    /// Whatever is in none of the networks.
    pub const ANY: Self = Self { network: None, pod: None };

    /// Whether it is IPv4, if that can be told.
    #[must_use]
    pub fn is_ipv4(&self) -> Option<bool> {
        self.network.map(|cidr| cidr.addr().is_ipv4()).or(self.pod.map(|(_, ipv4)| ipv4))
    }
}

impl std::fmt::Display for Source<'_> {
    /// What it is found by in the next image.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some((gateway, ipv4)) = self.pod {
            write!(f, "pods of {} in ", of_gateway(gateway, ipv4))?;
        }
        match self.network {
            Some(network) => network.fmt(f),
            None => f.write_str("no network"),
        }
    }
}

/// The rules, and the ids of the groups that they lead to.
pub struct Rules<'r> {
    /// The egress gateways.
    pub gateways: &'r BTreeMap<String, EgressGateway>,
    /// The routers.
    pub routers: &'r BTreeMap<String, Router>,
    /// The ids of the groups, by their names.
    pub groups: &'r BTreeMap<String, u32>,
    /// The names of the routes that are not followed for the moment.
    pub out: &'r BTreeSet<String>,
}

/// The name of the group of an egress gateway.
#[must_use]
pub fn of_gateway(gateway: &str, ipv4: bool) -> String {
    format!("{gateway}/{}", if ipv4 { "IPv4" } else { "IPv6" })
}

/// The name of the group of a static route.
#[must_use]
pub fn of_route(router: &str, route: &RouteKey) -> String {
    format!("Vpc/{router} {route}")
}

/// The name of the group of a policy route.
#[must_use]
pub fn of_policy(router: &str, priority: i32, matches: &Match) -> String {
    format!("Vpc/{router} {priority} {matches}")
}

/// What becomes of packets between two networks.
enum Step {
    /// The static routes decide.
    Allow,
    /// It is dropped.
    Drop,
    /// It goes to a group; dropped if there is no room for that.
    Group(Option<u32>),
}

impl<'r> Rules<'r> {
    fn sources(&self) -> BTreeSet<IpNet> {
        let gateways = self.gateways.values().flat_map(|gateway| gateway.sources.keys());
        let mut networks: BTreeSet<IpNet> = gateways.copied().collect();
        for router in self.routers.values() {
            networks.extend(self.needs_inside(router));
            networks.extend(router.policies.iter().filter_map(|policy| policy.matches.source));
            networks.extend(routes_by(router, End::Source));
        }
        networks
    }

    /// What sources are told apart by: networks and pods, and what each of them is.
    #[must_use]
    pub fn origins(&self) -> BTreeMap<IpNet, Source<'r>> {
        let networks = self.sources();
        let lengths: BTreeSet<u8> = networks.iter().map(IpNet::prefix_len).collect();
        let covering = |pod: IpAddr| {
            let prefixes = lengths.iter().rev().filter_map(|length| IpNet::new(pod, *length).ok());
            prefixes.map(|prefix| prefix.trunc()).find(|prefix| networks.contains(prefix))
        };
        let network = |cidr: &IpNet| (*cidr, Source { network: Some(*cidr), pod: None });
        let mut origins: BTreeMap<_, _> = networks.iter().map(network).collect();
        for gateway in self.gateways.values() {
            for address in gateway.pods.keys() {
                let pod = Some((gateway.name.as_str(), address.is_ipv4()));
                origins.insert((*address).into(), Source { network: covering(*address), pod });
            }
        }
        origins
    }

    /// The networks that destinations are told apart by.
    #[must_use]
    pub fn destinations(&self) -> BTreeSet<IpNet> {
        let gateways = self.gateways.values().flat_map(|gateway| &gateway.inside);
        let mut networks: BTreeSet<IpNet> = gateways.copied().collect();
        for router in self.routers.values() {
            networks.extend(self.needs_inside(router));
            networks.extend(router.policies.iter().filter_map(|policy| policy.matches.destination));
            networks.extend(routes_by(router, End::Destination));
        }
        networks
    }

    /// The networks of a VPC, if it has any rule.
    fn needs_inside(&self, router: &'r Router) -> impl Iterator<Item = IpNet> {
        let needed = !router.policies.is_empty() || !router.routes.is_empty();
        router.inside.iter().copied().filter(move |_| needed)
    }

    /// The group of a pair of networks; `None` leaves it to the kernel.
    #[must_use]
    pub fn decide(&self, from: &Source<'_>, destination: Option<&IpNet>) -> Option<u32> {
        let ipv4 = from.is_ipv4().or(destination.map(|cidr| cidr.addr().is_ipv4()))?;
        let source = from.network.as_ref();
        let gateway = match from.pod {
            Some((name, _)) => self.gateways.get(name),
            None => source.and_then(|source| self.gateway_of(source)),
        };
        let routers = || self.routers.values().filter(move |router| serves(router, source));
        let inside = routers().flat_map(|router| &router.inside);
        let inside = inside.chain(gateway.iter().flat_map(|gateway| &gateway.inside));
        let connected =
            destination.and_then(|to| inside.filter(|cidr| cidr.contains(to)).max_by_key(length));

        let mut steps: Vec<(i32, Step)> = Vec::new();
        for router in routers() {
            let of_family = router.policies.iter().filter(|one| one.matches.is_ipv4() == ipv4);
            for policy in of_family.filter(|one| one.matches.covers(source, destination)) {
                let step = match &policy.action {
                    Action::Allow => Step::Allow,
                    Action::Drop => Step::Drop,
                    Action::Reroute(_) => {
                        let name = of_policy(&router.name, policy.priority, &policy.matches);
                        Step::Group(self.groups.get(&name).copied())
                    }
                };
                steps.push((policy.priority, step));
            }
        }
        steps.extend(connected.map(|_| (INSIDE, Step::Allow)));
        steps.extend(gateway.map(|gateway| {
            let name = of_gateway(&gateway.name, ipv4);
            (EGRESS, Step::Group(self.groups.get(&name).copied()))
        }));
        // The sort is stable: of equal ones the first.
        steps.sort_by_key(|(priority, _)| -priority);
        match steps.into_iter().next() {
            Some((_, Step::Drop)) => Some(DENIED),
            Some((_, Step::Group(group))) => Some(group.unwrap_or(DENIED)),
            Some((_, Step::Allow)) | None => self.route(routers(), source, destination, connected),
        }
    }

    fn route(
        &self,
        routers: impl Iterator<Item = &'r Router>,
        source: Option<&IpNet>,
        destination: Option<&IpNet>,
        connected: Option<&IpNet>,
    ) -> Option<u32> {
        let mut best = connected.map(|cidr| ((cidr.prefix_len(), true), None));
        for router in routers {
            let table = table_of(router, source);
            for key in router.routes.keys().filter(|key| key.table == table) {
                let by_destination = key.by == End::Destination;
                let end = if by_destination { destination } else { source };
                let rank = (key.cidr.prefix_len(), by_destination);
                let name = of_route(&router.name, key);
                let better = best.as_ref().is_none_or(|(there, _)| rank > *there);
                if better
                    && end.is_some_and(|end| key.cidr.contains(end))
                    && !self.out.contains(&name)
                {
                    best = Some((rank, Some(self.groups.get(&name).copied().unwrap_or(DENIED))));
                }
            }
        }
        best.and_then(|(_, group)| group)
    }

    /// The egress gateway of a source: the longest prefix.
    fn gateway_of(&self, source: &IpNet) -> Option<&'r EgressGateway> {
        let covering = self.gateways.values().flat_map(|gateway| {
            let covering = gateway.sources.keys().filter(|cidr| cidr.contains(source));
            covering.map(move |cidr| (cidr.prefix_len(), gateway))
        });
        covering.max_by_key(|(length, _)| *length).map(|(_, gateway)| gateway)
    }
}

fn length(cidr: &&IpNet) -> u8 {
    cidr.prefix_len()
}

/// Whether a router has a source. One whose Subnets nobody knows has all.
fn serves(router: &Router, source: Option<&IpNet>) -> bool {
    router.inside.is_empty()
        || source.is_some_and(|source| router.inside.iter().any(|cidr| cidr.contains(source)))
}

/// The route table that a source follows.
fn table_of<'r>(router: &'r Router, source: Option<&IpNet>) -> &'r str {
    let mut tables = router.tables.iter();
    let own = source.and_then(|source| tables.find(|(cidr, _)| cidr.contains(source)));
    own.map_or("", |(_, table)| table)
}

fn routes_by(router: &Router, end: End) -> impl Iterator<Item = IpNet> {
    router.routes.keys().filter(move |key| key.by == end).map(|key| key.cidr)
}
