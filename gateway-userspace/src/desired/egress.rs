//! `VpcEgressGateway` -> [`EgressGateway`]: who leaves through which replicas.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use gateway_common::nexthop::HashFields;
use ipnet::IpNet;
use serde::Serialize;

use super::annotation::{self, HASH, WEIGHTS};
use super::findings::{Findings, Site};
use super::next_hops::{self, NextHops};
use super::selection::{Asking, Chooser};
use super::selector;
use super::subnet::{Lookup, Subnet, Subnets, vpc_name};
use super::value;
use super::{Network, Owner};
use crate::crd::{BfdSpec, EgressGatewaySpec, Kind, ObjectRef, VpcEgressGateway};
use crate::rejection::{Claim, Problem, Remark};

/// Most replicas, as Kube-OVN has it.
const MAX_REPLICAS: u32 = 10;

/// Largest bandwidth, as Kube-OVN has it.
const MAX_MEGABITS: u64 = 9_223_372_036_854;

/// Several equal gateways and who leaves through them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EgressGateway {
    /// The name.
    pub name: String,
    /// The VPC that it serves.
    pub vpc: String,
    /// Who leaves through it: source CIDR, and whether sources are translated.
    pub sources: BTreeMap<IpNet, bool>,
    /// The pods that leave through it by a selector: address, and whether it is translated.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub pods: BTreeMap<IpAddr, bool>,
    /// Whether it has selectors.
    #[serde(skip)]
    pub selects: bool,
    /// What is inside the VPC: CIDRs of its Subnets.
    pub inside: Vec<IpNet>,
    /// The subnet of the internal interfaces, if it is known.
    pub internal: Option<Network>,
    /// The subnet of the external interfaces, if it is known.
    pub external: Option<Network>,
    /// The replicas, in their order.
    pub replicas: Vec<Replica>,
    /// How the replicas are watched, if they are.
    pub bfd: Option<Bfd>,
    /// Whether replicas on the own node come first.
    pub local: bool,
    /// What chooses the replica of a flow.
    #[serde(serialize_with = "serialize_hash")]
    pub hash: HashFields,
    /// The routers that each replica sends to.
    #[serde(skip_serializing_if = "NextHops::is_empty")]
    pub next_hops: NextHops,
    /// The object.
    pub owner: Owner,
}

/// One of the gateways.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Replica {
    /// Its position in the lists of addresses, from 0.
    pub index: usize,
    /// Its internal addresses, at most one of each family.
    pub addresses: Vec<IpAddr>,
    /// Its external addresses, at most one of each family; none if nobody says.
    pub external: Vec<IpAddr>,
    /// Its weight; 0 takes it out without stopping it.
    pub weight: u32,
    /// The node it runs on, if the source of the objects says so.
    pub node: Option<String>,
}

/// How replicas are watched: the intervals of the replica, as Kube-OVN means them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bfd {
    /// Shortest interval at which a replica receives.
    pub min_rx: Duration,
    /// Shortest interval at which a replica sends.
    pub min_tx: Duration,
    /// How many packets may be lost in a row.
    pub multiplier: u8,
}

impl Bfd {
    /// What is taken where nothing is said.
    pub const DEFAULT: Self =
        Self { min_rx: Duration::from_secs(1), min_tx: Duration::from_secs(1), multiplier: 3 };
}

/// Reads all egress gateways. A bad policy or replica list is rejected by name; a gateway without
/// replicas serves nobody, so its sources are dropped and not sent past it.
pub(super) fn read_all(
    objects: &[(Site, &VpcEgressGateway)],
    subnets: &Subnets,
    findings: &mut Findings,
) -> (BTreeMap<String, EgressGateway>, Chooser) {
    let mut gateways: BTreeMap<String, EgressGateway> = BTreeMap::new();
    let mut holders: BTreeMap<(String, IpNet), Owner> = BTreeMap::new();
    let mut asking = Vec::new();
    for (site, object) in objects {
        let mut reader = Reader { site, spec: &object.spec, subnets, findings };
        annotation::check(site, &object.metadata, reader.findings);
        let mut gateway = reader.gateway(object);
        gateway.sources.retain(|cidr, _| {
            let holder = holders.entry((gateway.vpc.clone(), *cidr));
            let holder = holder.or_insert_with(|| gateway.owner.clone());
            if *holder == gateway.owner {
                return true;
            }
            let (at, holder) = (holder.origin.clone(), holder.object.clone());
            let problem = Problem::Taken { claim: Claim::Egress(*cidr), holder, at };
            reader.findings.reject(site, "policies", problem);
            false
        });
        if gateway.selects {
            let selectors = selector::read_all(site, &object.spec.selectors, findings);
            let (name, vpc) = (gateway.name.clone(), gateway.vpc.clone());
            let (site, policies) = (site.clone(), gateway.sources.clone());
            asking.push(Asking { site, name, vpc, selectors, policies });
        }
        gateways.insert(gateway.name.clone(), gateway);
    }
    (gateways, Chooser::new(asking, holders, subnets.vpcs()))
}

struct Reader<'r> {
    site: &'r Site,
    spec: &'r EgressGatewaySpec,
    subnets: &'r Subnets,
    findings: &'r mut Findings,
}

impl<'r> Reader<'r> {
    fn gateway(&mut self, object: &VpcEgressGateway) -> EgressGateway {
        let vpc = vpc_name(&self.spec.vpc).to_owned();
        let hash: Hash = self.annotation(object, HASH).unwrap_or_default();
        let local = self.traffic_policy();
        self.bandwidth();
        let internal = self.network("internalSubnet", &self.spec.internal_subnet, Some(&vpc));
        let external = self.external_subnet();
        EgressGateway {
            name: self.site.object.name.clone(),
            sources: self.sources(&vpc),
            pods: BTreeMap::new(),
            selects: !self.spec.selectors.is_empty(),
            inside: self.subnets.of_vpc(&vpc),
            replicas: self.replicas(object, internal, external),
            internal: internal.map(|subnet| subnet.network.clone()),
            external: external.map(|subnet| subnet.network.clone()),
            bfd: self.bfd(),
            local,
            hash: hash.0,
            next_hops: next_hops::read(self.site, &object.metadata, self.findings),
            vpc,
            owner: self.site.owner(),
        }
    }

    /// The value of an annotation; a bad one is rejected, and the default taken.
    fn annotation<T: FromStr<Err = Problem>>(
        &mut self,
        object: &VpcEgressGateway,
        name: &'static str,
    ) -> Option<T> {
        let text = object.metadata.annotations.get(name)?;
        let field = annotation::path(name);
        self.findings.accept(self.site, &field, text.parse())
    }

    fn traffic_policy(&mut self) -> bool {
        let policy = match self.spec.traffic_policy.as_str() {
            "" | "Cluster" => Ok(false),
            "Local" => Ok(true),
            other => Err(Problem::Invalid {
                value: other.to_owned(),
                not: "a traffic policy",
                expected: "Cluster or Local",
            }),
        };
        self.findings.accept(self.site, "trafficPolicy", policy).unwrap_or_default()
    }

    /// Every CIDR of every policy. The same one with and without SNAT is a contradiction.
    fn sources(&mut self, vpc: &str) -> BTreeMap<IpNet, bool> {
        let mut sources = BTreeMap::new();
        if self.spec.policies.is_empty() && self.spec.selectors.is_empty() {
            let expected = "at least one policy or selector";
            self.findings.reject(self.site, "policies", Problem::Missing { expected });
        }
        for (index, policy) in self.spec.policies.iter().enumerate() {
            let site = self.site.entry("policies", index);
            if policy.ip_blocks.is_empty() && policy.subnets.is_empty() {
                let expected = "CIDRs here or names of Subnets in subnets";
                self.findings.reject(&site, "ipBlocks", Problem::Missing { expected });
            }
            let mut found = Vec::new();
            for (index, text) in policy.ip_blocks.iter().enumerate() {
                let field = format!("ipBlocks[{index}]");
                found.extend(self.findings.accept_cidr(&site, &field, text).map(|it| (field, it)));
            }
            for (index, name) in policy.subnets.iter().enumerate() {
                let field = format!("subnets[{index}]");
                let cidrs = self.subnet(&site, &field, name, vpc);
                found.extend(cidrs.into_iter().map(|cidr| (field.clone(), cidr)));
            }
            for (field, cidr) in found {
                if *sources.entry(cidr).or_insert(policy.snat) != policy.snat {
                    self.findings.reject(&site, &field, Problem::BothSnat { cidr });
                }
            }
        }
        sources
    }

    fn subnet(&mut self, site: &Site, field: &str, name: &str, vpc: &str) -> Vec<IpNet> {
        let object = ObjectRef::new(Kind::Subnet, name);
        match self.subnets.lookup(name) {
            Lookup::Found(subnet) if subnet.vpc == vpc => subnet.network.cidrs.clone(),
            Lookup::Found(subnet) => {
                let (found, expected) = (subnet.vpc.clone(), vpc.to_owned());
                let problem = Problem::OtherVpc { subnet: object, found, expected };
                self.findings.reject(site, field, problem);
                Vec::new()
            }
            Lookup::Rejected => {
                self.findings.note(site, field, Remark::LeftOut { because: object });
                Vec::new()
            }
            Lookup::ByProvider(_) | Lookup::Missing => {
                self.findings.note(site, field, Remark::NoSourceSubnet { subnet: object });
                Vec::new()
            }
        }
    }

    fn bandwidth(&mut self) {
        let bandwidth = &self.spec.bandwidth;
        if *bandwidth == Default::default() {
            return;
        }
        for (field, text) in [("ingress", &bandwidth.ingress), ("egress", &bandwidth.egress)] {
            let rate = if text.0.is_empty() { Ok(()) } else { megabits(&text.0) };
            self.findings.accept(self.site, &format!("bandwidth.{field}"), rate);
        }
        self.findings.note(self.site, "bandwidth", Remark::NotEnforced);
    }

    /// A Subnet that is named; of this VPC, if one is given.
    fn network(&mut self, field: &str, name: &str, vpc: Option<&str>) -> Option<&'r Subnet> {
        if name.is_empty() {
            return None;
        }
        let object = ObjectRef::new(Kind::Subnet, name);
        match self.subnets.lookup(name) {
            Lookup::Found(subnet) => {
                let expected = vpc.filter(|vpc| subnet.vpc != **vpc);
                let Some(expected) = expected else { return Some(subnet) };
                let (found, expected) = (subnet.vpc.clone(), expected.to_owned());
                let problem = Problem::OtherVpc { subnet: object, found, expected };
                self.findings.reject(self.site, field, problem);
            }
            Lookup::ByProvider(subnet) => {
                let (name, provider) = (name.to_owned(), subnet.provider.clone());
                let remark = Remark::SubnetByProvider { name, subnet: subnet.object(), provider };
                self.findings.note(self.site, field, remark);
                return Some(subnet);
            }
            Lookup::Rejected => {
                self.findings.note(self.site, field, Remark::LeftOut { because: object });
            }
            Lookup::Missing => {
                let remark = Remark::NoInternalSubnet { subnet: object };
                self.findings.note(self.site, field, remark);
            }
        }
        None
    }

    fn external_subnet(&mut self) -> Option<&'r Subnet> {
        let name = &self.spec.external_subnet;
        if name.is_empty() {
            let expected = "the name of a Subnet of the outside";
            self.findings.reject(self.site, "externalSubnet", Problem::Missing { expected });
        }
        self.network("externalSubnet", name, None)
    }

    /// The replicas: as the user gives them, else those that the status says are running.
    fn replicas(
        &mut self,
        object: &VpcEgressGateway,
        internal: Option<&Subnet>,
        external: Option<&Subnet>,
    ) -> Vec<Replica> {
        let wanted = self.spec.replicas.unwrap_or(1);
        if wanted > MAX_REPLICAS {
            let problem = Problem::Invalid {
                value: wanted.to_string(),
                not: "a number of replicas",
                expected: "0 to 10",
            };
            self.findings.reject(self.site, "replicas", problem);
        }
        let wanted = usize::try_from(wanted.min(MAX_REPLICAS)).unwrap_or(0);
        let (field, texts) = match &self.spec.internal_ips[..] {
            [] => ("status.internalIPs", &object.status.internal_ips),
            given if given.len() < wanted => {
                let problem = Problem::TooFewAddresses { replicas: wanted, given: given.len() };
                self.findings.reject(self.site, "internalIPs", problem);
                ("internalIPs", &self.spec.internal_ips)
            }
            _ => ("internalIPs", &self.spec.internal_ips),
        };
        if texts.is_empty() && wanted > 0 {
            self.findings.note(self.site, "internalIPs", Remark::NoReplicas);
        }
        let outside = self.external_ips(object, wanted, external);
        let weights: Weights = self.annotation(object, WEIGHTS).unwrap_or_default();
        let mut replicas: Vec<Replica> = Vec::new();
        for (index, text) in texts.iter().take(wanted).enumerate() {
            let field = format!("{field}[{index}]");
            let Some(addresses) = self.addresses(&field, text, internal) else { continue };
            let mut all = replicas.iter().flat_map(|replica| &replica.addresses);
            if let Some(address) = all.find(|address| addresses.contains(*address)) {
                let problem = Problem::RepeatedMember { address: *address };
                self.findings.reject(self.site, &field, problem);
                continue;
            }
            let node = object.status.workload.nodes.get(index).cloned();
            let weight = weights.0.get(index).copied().unwrap_or(1);
            let external = outside.get(&index).cloned().unwrap_or_default();
            replicas.push(Replica { index, addresses, external, weight, node });
        }
        replicas
    }

    /// The external addresses of the replicas, by their positions.
    fn external_ips(
        &mut self,
        object: &VpcEgressGateway,
        wanted: usize,
        subnet: Option<&Subnet>,
    ) -> BTreeMap<usize, Vec<IpAddr>> {
        let given = &self.spec.external_ips;
        let (field, texts) = if given.is_empty() {
            ("status.externalIPs", &object.status.external_ips)
        } else {
            ("externalIPs", given)
        };
        if !given.is_empty() && given.len() < wanted {
            let problem = Problem::TooFewAddresses { replicas: wanted, given: given.len() };
            self.findings.reject(self.site, "externalIPs", problem);
        }
        let mut outside: BTreeMap<usize, Vec<IpAddr>> = BTreeMap::new();
        for (index, text) in texts.iter().take(wanted).enumerate() {
            let field = format!("{field}[{index}]");
            let Some(addresses) = self.addresses(&field, text, subnet) else { continue };
            let taken = outside.values().flatten().find(|address| addresses.contains(*address));
            if let Some(&address) = taken {
                self.findings.reject(self.site, &field, Problem::RepeatedMember { address });
                continue;
            }
            outside.insert(index, addresses);
        }
        outside
    }

    /// One address for each family, which a host of the subnet can have.
    fn addresses(
        &mut self,
        field: &str,
        text: &str,
        subnet: Option<&Subnet>,
    ) -> Option<Vec<IpAddr>> {
        let addresses = value::per_family(text, value::address, IpAddr::is_ipv4);
        let addresses = addresses.and_then(|addresses| {
            for address in &addresses {
                subnet.map_or(Ok(()), |subnet| subnet.check_host(*address).map(drop))?;
            }
            Ok(addresses)
        });
        self.findings.accept(self.site, field, addresses)
    }

    fn bfd(&mut self) -> Option<Bfd> {
        let spec: &BfdSpec = &self.spec.bfd;
        let interval = |value: Option<u32>| interval(value.unwrap_or(1000));
        let multiplier = multiplier(spec.multiplier.unwrap_or(3));
        let min_rx = self.findings.accept(self.site, "bfd.minRX", interval(spec.min_rx));
        let min_tx = self.findings.accept(self.site, "bfd.minTX", interval(spec.min_tx));
        let multiplier = self.findings.accept(self.site, "bfd.multiplier", multiplier);
        let default = Duration::from_secs(1);
        // A bad number is rejected, and the default watches on.
        spec.enabled.then(|| Bfd {
            min_rx: min_rx.unwrap_or(default),
            min_tx: min_tx.unwrap_or(default),
            multiplier: multiplier.unwrap_or(3),
        })
    }
}

/// An interval of BFD.
pub(super) fn interval(millis: u32) -> Result<Duration, Problem> {
    let valid = (1..=3_600_000).contains(&millis);
    valid.then(|| Duration::from_millis(millis.into())).ok_or_else(|| Problem::Invalid {
        value: millis.to_string(),
        not: "an interval of BFD",
        expected: "1 to 3600000 ms",
    })
}

/// How many packets of BFD may be lost.
pub(super) fn multiplier(number: u32) -> Result<u8, Problem> {
    let valid = u8::try_from(number).ok().filter(|multiplier| *multiplier > 0);
    valid.ok_or_else(|| Problem::Invalid {
        value: number.to_string(),
        not: "a multiplier of BFD",
        expected: "1 to 255",
    })
}

/// A rate: whole Mbit/s, or a quantity, which may have a fraction.
fn megabits(text: &str) -> Result<(), Problem> {
    let is_number = |text: &str| {
        // `u64` would take "+1".
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        digits && text.parse::<u64>().is_ok_and(|number| number <= MAX_MEGABITS)
    };
    let valid = match ["Mi", "Gi", "M", "G"].iter().find_map(|suffix| text.strip_suffix(suffix)) {
        Some(number) => {
            let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
            let whole = if number.starts_with('.') { "0" } else { whole };
            is_number(whole) && is_number(fraction)
        }
        None => is_number(text),
    };
    valid.then_some(()).ok_or_else(|| Problem::Invalid {
        value: text.to_owned(),
        not: "a bandwidth",
        expected: "a number of Mbit/s, or a quantity such as 100M, 1G or 1Gi",
    })
}

/// As the annotations have it.
#[must_use]
pub fn hash_word(hash: HashFields) -> &'static str {
    match hash {
        HashFields::FiveTuple => "5-tuple",
        HashFields::Source => "source",
    }
}

fn serialize_hash<S: serde::Serializer>(
    hash: &HashFields,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(hash_word(*hash))
}

/// The value of the annotation [`HASH`].
#[derive(Default)]
pub(super) struct Hash(pub(super) HashFields);

impl FromStr for Hash {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        match text {
            "5-tuple" => Ok(Self(HashFields::FiveTuple)),
            "source" => Ok(Self(HashFields::Source)),
            other => Err(Problem::Invalid {
                value: other.to_owned(),
                not: "a choice of fields",
                expected: "5-tuple or source",
            }),
        }
    }
}

/// The value of the annotation [`WEIGHTS`].
#[derive(Default)]
struct Weights(Vec<u32>);

impl FromStr for Weights {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        let one = |part: &str| part.trim().parse().ok().filter(|weight| *weight <= 1000);
        let weights: Option<Vec<u32>> = text.split(',').map(one).collect();
        match weights {
            Some(weights) if weights.iter().any(|weight| *weight > 0) => Ok(Self(weights)),
            _ => Err(Problem::Invalid {
                value: text.to_owned(),
                not: "a list of weights",
                expected: "0 to 1000 for each replica, one of them not 0, such as 2,1,1",
            }),
        }
    }
}
