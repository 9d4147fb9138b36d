//! The Subnets of the input: what they contain, and how the others name them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use ipnet::IpNet;

use super::Network;
use super::findings::{Findings, Site};
use super::value;
use crate::crd::{self, Kind, ObjectRef};
use crate::rejection::{Problem, Role};

/// The outside Subnet that is used when nothing else is said.
pub(super) const DEFAULT_EXTERNAL_SUBNET: &str = "ovn-vpc-external-network";
/// The VPC of a Subnet or gateway that names none.
const DEFAULT_VPC: &str = "ovn-cluster";

/// A Subnet of the input.
#[derive(Clone, Debug)]
pub(super) struct Subnet {
    pub(super) network: Network,
    pub(super) provider: String,
    pub(super) vpc: String,
    route_table: String,
    excluded: Vec<RangeInclusive<IpAddr>>,
}

impl Subnet {
    pub(super) fn object(&self) -> ObjectRef {
        ObjectRef::new(Kind::Subnet, self.network.name.clone())
    }

    /// Whether it is one of a VPC, and not an outside one that only names it.
    fn is_inside(&self, vpc: &str) -> bool {
        let provider = &self.provider;
        let inside = provider.is_empty() || provider == "ovn" || provider.ends_with(".ovn");
        inside && self.vpc == vpc
    }

    /// The CIDR that contains the address.
    pub(super) fn cidr_of(&self, address: IpAddr) -> Result<IpNet, Problem> {
        let found = self.network.cidrs.iter().copied().find(|cidr| cidr.contains(&address));
        found.ok_or_else(|| Problem::OutsideSubnet {
            address,
            subnet: self.object(),
            cidrs: self.network.cidrs.clone(),
        })
    }

    /// Whether a host of this Subnet can have the address.
    pub(super) fn check_host(&self, address: IpAddr) -> Result<IpNet, Problem> {
        let cidr = self.cidr_of(address)?;
        let role = if self.network.gateways.contains(&address) {
            Role::SubnetGateway(self.object())
        } else if hosts(cidr).contains(&address) {
            return Ok(cidr);
        } else {
            Role::NetworkOrBroadcast(self.object())
        };
        Err(Problem::Reserved { address, role })
    }

    /// The lowest address from `from` on that is neither excluded nor `taken`.
    pub(super) fn free_address(
        &self,
        cidr: IpNet,
        from: Option<IpAddr>,
        taken: impl Fn(IpAddr) -> bool,
    ) -> Option<IpAddr> {
        let hosts = hosts(cidr);
        let mut candidate = from.map_or(*hosts.start(), |from| from.max(*hosts.start()));
        loop {
            if !hosts.contains(&candidate) {
                return None;
            }
            let excluded = self.excluded.iter().find(|range| range.contains(&candidate));
            candidate = match excluded {
                Some(range) => successor(*range.end())?,
                None if taken(candidate) || self.network.gateways.contains(&candidate) => {
                    successor(candidate)?
                }
                None => return Some(candidate),
            };
        }
    }

    fn read(site: &Site, spec: &crd::SubnetSpec, findings: &mut Findings) -> Option<Self> {
        let is_ipv4 = |cidr: &IpNet| cidr.addr().is_ipv4();
        let cidrs = value::required(&spec.cidr_block, "a CIDR such as 10.0.1.0/24")
            .and_then(|text| value::per_family(text, value::cidr, is_ipv4));
        let cidrs = findings.accept(site, "cidrBlock", cidrs)?;
        let cidrs: Vec<IpNet> = cidrs.iter().map(IpNet::trunc).collect();
        let mut subnet = Self {
            network: Network { name: site.object.name.clone(), cidrs, gateways: Vec::new() },
            provider: spec.provider.clone(),
            vpc: vpc_name(&spec.vpc).to_owned(),
            route_table: spec.route_table.clone(),
            excluded: Vec::new(),
        };
        subnet.network.gateways = subnet.gateways(site, &spec.gateway, findings)?;
        for (index, text) in spec.exclude_ips.iter().enumerate() {
            let field = format!("excludeIps[{index}]");
            subnet.excluded.push(findings.accept(site, &field, value::range(text))?);
        }
        Some(subnet)
    }

    /// The gateway of each CIDR; the first host, as Kube-OVN has it, where none is given.
    fn gateways(&self, site: &Site, text: &str, findings: &mut Findings) -> Option<Vec<IpAddr>> {
        if text.is_empty() {
            return Some(self.network.cidrs.iter().map(|cidr| *hosts(*cidr).start()).collect());
        }
        let gateways = value::per_family(text, value::address, IpAddr::is_ipv4);
        let gateways = findings.accept(site, "gateway", gateways)?;
        for gateway in &gateways {
            findings.accept(site, "gateway", self.cidr_of(*gateway))?;
        }
        Some(gateways)
    }
}

/// All Subnets of the input.
#[derive(Clone, Debug, Default)]
pub(super) struct Subnets {
    /// `None` for a Subnet that was rejected.
    by_name: BTreeMap<String, Option<Subnet>>,
}

/// What a name means.
#[derive(Debug)]
pub(super) enum Lookup<'s> {
    /// The Subnet of that name.
    Found(&'s Subnet),
    /// A Subnet with another name, whose provider begins with this one.
    ByProvider(&'s Subnet),
    /// The Subnet of that name was rejected.
    Rejected,
    /// There is no such Subnet in the input.
    Missing,
}

impl Subnets {
    pub(super) fn add(&mut self, site: &Site, spec: &crd::SubnetSpec, findings: &mut Findings) {
        let subnet = Subnet::read(site, spec, findings);
        self.by_name.insert(site.object.name.clone(), subnet);
    }

    pub(super) fn add_rejected(&mut self, name: &str) {
        self.by_name.entry(name.to_owned()).or_insert(None);
    }

    /// Whether there is any Subnet of the outside, so that a name can be wrong.
    pub(super) fn has_external(&self) -> bool {
        let inside =
            |provider: &str| provider.is_empty() || provider == "ovn" || provider.ends_with(".ovn");
        self.by_name.values().flatten().any(|subnet| !inside(&subnet.provider))
    }

    /// The CIDRs of all Subnets of a VPC.
    pub(super) fn of_vpc(&self, vpc: &str) -> Vec<IpNet> {
        let of_vpc = self.by_name.values().flatten().filter(|subnet| subnet.is_inside(vpc));
        of_vpc.flat_map(|subnet| subnet.network.cidrs.iter().copied()).collect()
    }

    /// The VPC of each Subnet inside one.
    pub(super) fn vpcs(&self) -> BTreeMap<String, String> {
        let inside =
            self.by_name.iter().filter_map(|(name, subnet)| Some((name, subnet.as_ref()?)));
        let inside = inside.filter(|(_, subnet)| subnet.is_inside(&subnet.vpc));
        inside.map(|(name, subnet)| (name.clone(), subnet.vpc.clone())).collect()
    }

    /// The CIDRs of all Subnets of a VPC that have a route table of their own, with its name.
    pub(super) fn tables_of_vpc(&self, vpc: &str) -> BTreeMap<IpNet, String> {
        let of_vpc = self.by_name.values().flatten().filter(|subnet| subnet.is_inside(vpc));
        let own = of_vpc.filter(|subnet| !subnet.route_table.is_empty());
        own.flat_map(|subnet| {
            let cidrs = subnet.network.cidrs.iter().copied();
            cidrs.map(|cidr| (cidr, subnet.route_table.clone()))
        })
        .collect()
    }

    pub(super) fn lookup(&self, name: &str) -> Lookup<'_> {
        match self.by_name.get(name) {
            Some(Some(subnet)) => Lookup::Found(subnet),
            Some(None) => Lookup::Rejected,
            None => self
                .by_name
                .values()
                .flatten()
                .find(|subnet| subnet.provider.split('.').next() == Some(name))
                .map_or(Lookup::Missing, Lookup::ByProvider),
        }
    }
}

pub(super) fn vpc_name(name: &str) -> &str {
    if name.is_empty() { DEFAULT_VPC } else { name }
}

/// The addresses of a CIDR that a host can have: without network and broadcast address.
fn hosts(cidr: IpNet) -> RangeInclusive<IpAddr> {
    let (first, last) = (cidr.network(), cidr.broadcast());
    let single = cidr.prefix_len() + 1 >= cidr.max_prefix_len();
    match (single, cidr) {
        (true, _) => first..=last,
        (false, IpNet::V4(_)) => {
            successor(first).unwrap_or(first)..=predecessor(last).unwrap_or(last)
        }
        (false, IpNet::V6(_)) => successor(first).unwrap_or(first)..=last,
    }
}

fn successor(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => IpAddr::V4(u32::from(address).checked_add(1)?.into()),
        IpAddr::V6(address) => IpAddr::V6(u128::from(address).checked_add(1)?.into()),
    })
}

fn predecessor(address: IpAddr) -> Option<IpAddr> {
    Some(match address {
        IpAddr::V4(address) => IpAddr::V4(u32::from(address).checked_sub(1)?.into()),
        IpAddr::V6(address) => IpAddr::V6(u128::from(address).checked_sub(1)?.into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(cidr: &str, excluded: &[&str]) -> (Subnet, IpNet) {
        let cidr: IpNet = cidr.parse().unwrap();
        let network =
            Network { name: "s".into(), cidrs: vec![cidr], gateways: vec![*hosts(cidr).start()] };
        let excluded = excluded.iter().map(|text| value::range(text).unwrap()).collect();
        let [provider, vpc, route_table] = [const { String::new() }; 3];
        (Subnet { network, provider, vpc, route_table, excluded }, cidr)
    }

    fn free(cidr: &str, excluded: &[&str], taken: &[&str]) -> Option<String> {
        let (subnet, cidr) = subnet(cidr, excluded);
        let taken = |address: IpAddr| taken.contains(&&*address.to_string());
        subnet.free_address(cidr, None, taken).map(|address| address.to_string())
    }

    #[test]
    fn the_lowest_free_address_is_chosen() {
        let some = |address: &str| Some(address.to_owned());
        assert_eq!(free("192.0.2.0/24", &[], &[]), some("192.0.2.2"));
        assert_eq!(free("192.0.2.0/24", &["192.0.2.1..192.0.2.10"], &[]), some("192.0.2.11"));
        assert_eq!(free("192.0.2.0/24", &["192.0.2.3"], &["192.0.2.2"]), some("192.0.2.4"));
        assert_eq!(free("192.0.2.0/30", &[], &["192.0.2.2"]), None);
        assert_eq!(free("10.0.0.0/8", &["10.0.0.0..10.255.255.253"], &[]), some("10.255.255.254"));
        assert_eq!(free("10.0.0.0/8", &["10.0.0.0..10.255.255.255"], &[]), None);
        assert_eq!(free("2001:db8::/64", &[], &[]), some("2001:db8::2"));
        assert_eq!(free("255.255.255.254/31", &[], &["255.255.255.255"]), None);
    }

    #[test]
    fn no_host_has_the_network_broadcast_or_gateway_address() {
        let (subnet, _) = subnet("192.0.2.0/24", &[]);
        for (address, message) in [
            ("192.0.2.0", "192.0.2.0 is the network or broadcast address of Subnet/s"),
            ("192.0.2.255", "192.0.2.255 is the network or broadcast address of Subnet/s"),
            ("192.0.2.1", "192.0.2.1 is the gateway of Subnet/s"),
            ("198.51.100.1", "198.51.100.1 is outside Subnet/s (192.0.2.0/24)"),
        ] {
            let problem = subnet.check_host(address.parse().unwrap()).unwrap_err();
            assert_eq!(problem.to_string(), message);
        }
        assert!(subnet.check_host("192.0.2.2".parse().unwrap()).is_ok());
    }
}
