//! `VpcNatGateway` -> [`Gateway`]: where it stands in the VPC.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::findings::{Findings, Site};
use super::subnet::{DEFAULT_EXTERNAL_SUBNET, Lookup, Subnet, Subnets, vpc_name};
use super::value;
use super::{Gateway, Network};
use super::{annotation, next_hops};
use crate::crd::{Kind, NatGatewaySpec, ObjectRef, VpcNatGateway};
use crate::rejection::{Problem, Remark};

/// Reads a gateway. A bad field is rejected and left empty; the gateway itself goes on.
pub(super) fn read(
    site: &Site,
    object: &VpcNatGateway,
    subnets: &Subnets,
    findings: &mut Findings,
) -> Gateway {
    let spec = &object.spec;
    annotation::check(site, &object.metadata, findings);
    let next_hops = next_hops::read(site, &object.metadata, findings);
    let mut reader = Reader { site, spec, subnets, findings };
    let subnet = reader.internal_subnet();
    let network = subnet.map(|subnet| subnet.network.clone());
    let lan_ips = reader.lan_ips(subnet);
    let external_subnets = reader.external_subnets();
    let routes = reader.routes(network.as_ref());
    Gateway {
        name: site.object.name.clone(),
        vpc: vpc_name(&spec.vpc).to_owned(),
        // Without its object the name is all that is known.
        subnet: network.or_else(|| {
            let name = Some(spec.subnet.clone()).filter(|name| !name.is_empty())?;
            Some(Network { name, cidrs: Vec::new(), gateways: Vec::new() })
        }),
        lan_ips,
        external_subnets,
        routes,
        next_hops,
        owner: site.owner(),
    }
}

struct Reader<'r> {
    site: &'r Site,
    spec: &'r NatGatewaySpec,
    subnets: &'r Subnets,
    findings: &'r mut Findings,
}

impl<'r> Reader<'r> {
    fn internal_subnet(&mut self) -> Option<&'r Subnet> {
        let name = value::required(&self.spec.subnet, "the name of a Subnet of the VPC");
        let name = self.findings.accept(self.site, "subnet", name)?;
        let object = ObjectRef::new(Kind::Subnet, name);
        match self.subnets.lookup(name) {
            Lookup::Found(subnet) => {
                let expected = vpc_name(&self.spec.vpc);
                if subnet.vpc == expected {
                    return Some(subnet);
                }
                let (found, expected) = (subnet.vpc.clone(), expected.to_owned());
                let problem = Problem::OtherVpc { subnet: object, found, expected };
                self.findings.reject(self.site, "subnet", problem);
            }
            Lookup::Rejected => {
                self.findings.note(self.site, "subnet", Remark::LeftOut { because: object });
            }
            Lookup::ByProvider(_) | Lookup::Missing => {
                let remark = Remark::NoInternalSubnet { subnet: object };
                self.findings.note(self.site, "subnet", remark);
            }
        }
        None
    }

    fn lan_ips(&mut self, subnet: Option<&Subnet>) -> Vec<IpAddr> {
        let text = &self.spec.lan_ip;
        if text.is_empty() {
            return Vec::new();
        }
        let addresses = value::per_family(text, value::address, IpAddr::is_ipv4);
        let addresses = addresses.and_then(|addresses| {
            for address in &addresses {
                subnet.map_or(Ok(()), |subnet| subnet.check_host(*address).map(drop))?;
            }
            Ok(addresses)
        });
        self.findings.accept(self.site, "lanIp", addresses).unwrap_or_default()
    }

    fn external_subnets(&mut self) -> Vec<Network> {
        let default = [DEFAULT_EXTERNAL_SUBNET.to_owned()];
        let inline = !self.spec.eips.is_empty();
        let names = match &self.spec.external_subnets[..] {
            // v1.7 knew no external Subnets.
            [] if inline => &[],
            [] => &default[..],
            names => names,
        };
        let mut networks = Vec::new();
        for (index, name) in names.iter().enumerate() {
            let network = match self.subnets.lookup(name) {
                Lookup::Found(subnet) => subnet.network.clone(),
                Lookup::ByProvider(subnet) => {
                    let remark = Remark::SubnetByProvider {
                        name: name.clone(),
                        subnet: subnet.object(),
                        provider: subnet.provider.clone(),
                    };
                    let field = format!("externalSubnets[{index}]");
                    self.findings.note(self.site, &field, remark);
                    subnet.network.clone()
                }
                Lookup::Rejected | Lookup::Missing => {
                    Network { name: name.clone(), cidrs: Vec::new(), gateways: Vec::new() }
                }
            };
            networks.push(network);
        }
        networks
    }

    fn routes(&mut self, network: Option<&Network>) -> BTreeMap<IpNet, IpAddr> {
        let mut routes = BTreeMap::new();
        for (index, route) in self.spec.routes.iter().enumerate() {
            let site = self.site.entry("routes", index);
            let Some(cidr) = self.findings.accept_cidr(&site, "cidr", &route.cidr) else {
                continue;
            };
            let next_hop = match route.next_hop_ip.as_str() {
                "gateway" => network
                    .and_then(|network| network.gateway_for(cidr.addr()))
                    .ok_or(Problem::NoSubnetGateway { cidr }),
                text => value::address(text).and_then(|address| same_family(cidr, address)),
            };
            let Some(next_hop) = self.findings.accept(&site, "nextHopIP", next_hop) else {
                continue;
            };
            if let Some(given) = routes.insert(cidr, next_hop) {
                routes.insert(cidr, given);
                self.findings.reject(&site, "cidr", Problem::RepeatedRoute { cidr });
            }
        }
        routes
    }
}

fn same_family(cidr: IpNet, next_hop: IpAddr) -> Result<IpAddr, Problem> {
    if cidr.addr().is_ipv4() == next_hop.is_ipv4() {
        return Ok(next_hop);
    }
    Err(Problem::Invalid {
        value: next_hop.to_string(),
        not: "a next hop for this CIDR",
        expected: "an address of the same family",
    })
}
