//! `Vpc` -> [`Router`]: its static and policy routes, as OVN's router would follow them.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::Serialize;

use super::findings::{Findings, Site};
use super::subnet::Subnets;
use super::{Bfd, Owner, annotation, next_hops, value};
use crate::crd::{PolicyRoute, StaticRoute, Vpc};
use crate::rejection::{Problem, Remark};

/// The highest priority of a policy route, as OVN has it.
const MAX_PRIORITY: i32 = 32_767;

/// The only `ecmpMode` that there is.
const SYMMETRIC: &str = "ecmp_symmetric_reply";

/// The routes of a VPC.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Router {
    /// The name of the VPC.
    pub name: String,
    /// What is inside it: CIDRs of its Subnets.
    pub inside: Vec<IpNet>,
    /// Those of them that do not follow the main route table, with the one that they follow.
    pub tables: BTreeMap<IpNet, String>,
    /// The static routes: equal ones share their traffic.
    pub routes: BTreeMap<RouteKey, Vec<NextHop>>,
    /// The policy routes, the first one that matches decides.
    pub policies: Vec<Policy>,
    /// How guarded next hops are watched: our own intervals.
    pub bfd: Bfd,
    /// The object.
    pub owner: Owner,
}

/// What a static route matches. Ordered as they are written, not as they are followed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct RouteKey {
    /// Its table; the main one when empty.
    pub table: String,
    /// The address that is looked at.
    pub by: End,
    /// Its network.
    pub cidr: IpNet,
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let by = match self.by {
            End::Destination => "policyDst",
            End::Source => "policySrc",
        };
        write!(f, "{by} {}", self.cidr)?;
        if self.table.is_empty() { Ok(()) } else { write!(f, " table {}", self.table) }
    }
}

/// An end of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum End {
    /// Where it goes.
    Destination,
    /// Where it comes from.
    Source,
}

/// A next hop of a static route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NextHop {
    /// Its address.
    pub address: IpAddr,
    /// Whether a BFD session guards it.
    pub guarded: bool,
}

/// A policy route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    /// The larger is looked at first.
    pub priority: i32,
    /// What it matches.
    pub matches: Match,
    /// What becomes of the packet.
    pub action: Action,
}

/// What a policy route matches, of one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Match {
    /// The source, if it matters.
    pub source: Option<IpNet>,
    /// The destination, if it matters.
    pub destination: Option<IpNet>,
}

impl Match {
    /// Whether it is about IPv4.
    #[must_use]
    pub fn is_ipv4(&self) -> bool {
        self.source.or(self.destination).is_none_or(|cidr| cidr.addr().is_ipv4())
    }

    /// Whether it holds for all packets between two networks, of which `None` is all that is in none
    /// that matters.
    #[must_use]
    pub fn covers(&self, source: Option<&IpNet>, destination: Option<&IpNet>) -> bool {
        let covers = |want: Option<IpNet>, of: Option<&IpNet>| {
            want.is_none_or(|want| of.is_some_and(|of| want.contains(of)))
        };
        covers(self.source, source) && covers(self.destination, destination)
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = if self.is_ipv4() { "ip4" } else { "ip6" };
        let terms = [("src", self.source), ("dst", self.destination)];
        let terms = terms.iter().filter_map(|(end, cidr)| Some((end, (*cidr)?)));
        for (index, (end, cidr)) in terms.enumerate() {
            let and = if index > 0 { " && " } else { "" };
            write!(f, "{and}{family}.{end} == {cidr}")?;
        }
        Ok(())
    }
}

/// What a policy route does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum Action {
    /// Nothing: the static routes decide.
    Allow,
    /// It drops the packet.
    Drop,
    /// It sends it to one of these.
    Reroute(Vec<IpAddr>),
}

/// Reads all VPCs. A route that cannot be followed is rejected by name; the others go on.
pub(super) fn read_all(
    objects: &[(Site, &Vpc)],
    subnets: &Subnets,
    findings: &mut Findings,
) -> BTreeMap<String, Router> {
    let mut routers = BTreeMap::new();
    for (site, object) in objects {
        annotation::check(site, &object.metadata, findings);
        let name = site.object.name.clone();
        let bfd = next_hops::watch(site, &object.metadata, findings);
        let mut router = Router {
            inside: subnets.of_vpc(&name),
            tables: subnets.tables_of_vpc(&name),
            name: name.clone(),
            routes: BTreeMap::new(),
            policies: Vec::new(),
            bfd: bfd.flatten().unwrap_or(Bfd::DEFAULT),
            owner: site.owner(),
        };
        for (index, route) in object.spec.static_routes.iter().enumerate() {
            static_route(&site.entry("staticRoutes", index), route, &mut router.routes, findings);
        }
        for (index, policy) in object.spec.policy_routes.iter().enumerate() {
            let site = site.entry("policyRoutes", index);
            router.policies.extend(policy_route(&site, policy, findings));
        }
        if bfd == Some(None) {
            router.routes.values_mut().flatten().for_each(|hop| hop.guarded = false);
        }
        // Equal ones stay in their order.
        router.policies.sort_by_key(|policy| -policy.priority);
        routers.insert(name, router);
    }
    routers
}

fn static_route(
    site: &Site,
    route: &StaticRoute,
    routes: &mut BTreeMap<RouteKey, Vec<NextHop>>,
    findings: &mut Findings,
) {
    let invalid =
        |value: &str, not, expected| Problem::Invalid { value: value.to_owned(), not, expected };
    let by = match route.policy.as_str() {
        "" | "policyDst" => Ok(End::Destination),
        "policySrc" => Ok(End::Source),
        other => Err(invalid(other, "a policy of static routes", "policyDst or policySrc")),
    };
    let by = findings.accept(site, "policy", by);
    let cidr = findings.accept_cidr(site, "cidr", &route.cidr);
    let mode = match route.ecmp_mode.as_str() {
        "" => Ok(false),
        SYMMETRIC => Ok(true),
        other => Err(invalid(other, "an ECMP mode", "ecmp_symmetric_reply or nothing")),
    };
    let mode = findings.accept(site, "ecmpMode", mode);
    let address = findings.accept(site, "nextHopIP", value::address(&route.next_hop_ip));
    let (Some(by), Some(cidr), Some(symmetric), Some(address)) = (by, cidr, mode, address) else {
        return;
    };
    if let Err(problem) = of_family(address, cidr.addr().is_ipv4()) {
        findings.reject(site, "nextHopIP", problem);
        return;
    }
    if symmetric {
        findings.note(site, "ecmpMode", Remark::NotSymmetric);
    }
    let hops = routes.entry(RouteKey { table: route.route_table.clone(), by, cidr }).or_default();
    if hops.iter().any(|hop| hop.address == address) {
        findings.reject(site, "nextHopIP", Problem::RepeatedMember { address });
        return;
    }
    hops.push(NextHop { address, guarded: !route.bfd_id.is_empty() });
}

fn policy_route(site: &Site, policy: &PolicyRoute, findings: &mut Findings) -> Option<Policy> {
    let priority = if (0..=MAX_PRIORITY).contains(&policy.priority) {
        Ok(policy.priority)
    } else {
        let value = policy.priority.to_string();
        Err(Problem::Invalid { value, not: "a priority", expected: "0 to 32767" })
    };
    let priority = findings.accept(site, "priority", priority);
    let matches = findings.accept(site, "match", expression(&policy.expression));
    let ipv4 = matches.as_ref().map(Match::is_ipv4);
    let action = match policy.action.as_str() {
        "allow" => Ok(Action::Allow),
        "drop" => Ok(Action::Drop),
        "reroute" => {
            let hops = next_hops(&policy.next_hop_ip, ipv4);
            Ok(Action::Reroute(findings.accept(site, "nextHopIP", hops)?))
        }
        other => Err(Problem::Invalid {
            value: other.to_owned(),
            not: "an action",
            expected: "allow, drop or reroute",
        }),
    };
    let action = findings.accept(site, "action", action);
    Some(Policy { priority: priority?, matches: matches?, action: action? })
}

fn next_hops(text: &str, ipv4: Option<bool>) -> Result<Vec<IpAddr>, Problem> {
    let text = value::required(text, "one next hop, or several with commas between")?;
    let mut hops: Vec<IpAddr> = Vec::new();
    for part in text.split(',') {
        let address = value::address(part.trim())?;
        of_family(address, ipv4.unwrap_or(address.is_ipv4()))?;
        if hops.contains(&address) {
            return Err(Problem::RepeatedMember { address });
        }
        hops.push(address);
    }
    Ok(hops)
}

fn of_family(address: IpAddr, ipv4: bool) -> Result<(), Problem> {
    if address.is_ipv4() == ipv4 {
        return Ok(());
    }
    Err(Problem::Invalid {
        value: address.to_string(),
        not: "a next hop for these packets",
        expected: "an address of their family",
    })
}

/// `ip4.src == 10.0.1.0/24 && ip4.dst == 192.0.2.1`: what is followed of OVN's expressions.
fn expression(text: &str) -> Result<Match, Problem> {
    let text = value::required(text, SUBSET)?;
    let outside = || Problem::Invalid {
        value: text.to_owned(),
        not: "a match that is followed here",
        expected: SUBSET,
    };
    let mut matches = Match::default();
    for term in text.split("&&") {
        let (field, value) = term.split_once("==").ok_or_else(outside)?;
        let (family, end) = field.trim().split_once('.').ok_or_else(outside)?;
        let cidr = value::cidr(value.trim()).map_err(|_| outside())?.trunc();
        let place = match end {
            "src" => &mut matches.source,
            "dst" => &mut matches.destination,
            _ => return Err(outside()),
        };
        let ipv4 = match family {
            "ip4" => true,
            "ip6" => false,
            _ => return Err(outside()),
        };
        if place.is_some() || cidr.addr().is_ipv4() != ipv4 {
            return Err(outside());
        }
        *place = Some(cidr);
    }
    match (matches.source, matches.destination) {
        (Some(one), Some(other)) if one.addr().is_ipv4() != other.addr().is_ipv4() => {
            Err(outside())
        }
        _ => Ok(matches),
    }
}

const SUBSET: &str =
    "ip4.src, ip4.dst, ip6.src or ip6.dst == a CIDR, each at most once, with && between";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_read_however_it_is_spaced() {
        for text in [
            "ip4.src==10.0.1.0/24 && ip4.dst==10.0.1.250",
            " ip4.dst == 10.0.1.250/32&&ip4.src == 10.0.1.7/24 ",
        ] {
            let matches = expression(text).unwrap();
            assert_eq!(matches.to_string(), "ip4.src == 10.0.1.0/24 && ip4.dst == 10.0.1.250/32");
        }
        let matches = expression("ip6.dst == ::/0").unwrap();
        assert_eq!((matches.is_ipv4(), matches.source), (false, None));
    }

    #[test]
    fn what_is_outside_the_subset_is_refused() {
        for text in [
            "",
            "ip4",
            "ip4.src != 10.0.1.0/24",
            "ip4.src == 10.0.1.0/24 || ip4.dst == 10.0.2.0/24",
            "ip4.src == $addresses",
            "ip4.src == {10.0.1.1, 10.0.1.2}",
            "(ip4.src == 10.0.1.0/24)",
            "tcp.dst == 80",
            "ip4.src == fd00::/64",
            "ip4.src == 10.0.1.0/24 && ip4.src == 10.0.2.0/24",
            "ip4.src == 10.0.1.0/24 && ip6.dst == fd00::/64",
            "ip4.src == 10.0.1.0/24 &&",
        ] {
            assert!(expression(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_match_covers_what_is_inside_both_of_its_networks() {
        let matches = expression("ip4.src == 10.0.0.0/16 && ip4.dst == 192.0.2.0/24").unwrap();
        let net = |text: &str| text.parse::<IpNet>().unwrap();
        let (inside, outside) = (net("10.0.1.0/24"), net("10.1.0.0/24"));
        assert!(matches.covers(Some(&inside), Some(&net("192.0.2.1/32"))));
        assert!(!matches.covers(Some(&outside), Some(&net("192.0.2.1/32"))));
        assert!(!matches.covers(Some(&inside), Some(&net("192.0.0.0/16"))));
        assert!(!matches.covers(Some(&inside), None));
    }
}
