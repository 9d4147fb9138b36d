//! [`EgressGateway`] and which of its replicas one is -> [`DesiredState`].
//!
//! A replica is a gateway with one external address. What is masqueraded to that is a SNAT rule whose
//! EIP is the replica's own address; what is forwarded unchanged needs no state, so that any replica can
//! go on with a connection that another one began.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnet::IpNet;

use super::egress::{EgressGateway, Replica};
use super::{DesiredState, Eip, Gateway, NatBehavior, Network, Snat, SnatEip};
use crate::encode::part::differing;
use crate::rejection::{Note, Remark};

/// Which replica of an egress gateway is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaName {
    /// The one at this position of the lists of addresses, from 0.
    Index(usize),
    /// The one with this internal or external address.
    Address(IpAddr),
}

impl FromStr for ReplicaName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let index = text.parse().map(Self::Index);
        index
            .or_else(|_| text.parse().map(Self::Address))
            .map_err(|_| "expected a number from 0, or one of the addresses of the replica")
    }
}

impl fmt::Display for ReplicaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Index(index) => index.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// What a replica knows of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// What it was told.
    pub name: Option<ReplicaName>,
    /// The addresses of its internal interface.
    pub internal: Vec<IpNet>,
    /// The addresses of its external interface.
    pub external: Vec<IpNet>,
}

/// No replica of an egress gateway is the one that is meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAReplica {
    /// The one that was named does not exist.
    #[error("{gateway} has no replica {name}, expected {}", known(replicas))]
    Unknown {
        /// The object.
        gateway: String,
        /// What was asked for.
        name: ReplicaName,
        /// Those that it has.
        replicas: Vec<Replica>,
    },
    /// None was named, and the addresses of the interfaces tell nothing.
    #[error(
        "the interfaces have no address of a replica of {gateway} ({}); say --replica",
        known(replicas)
    )]
    Unnamed {
        /// The object.
        gateway: String,
        /// Those that it has.
        replicas: Vec<Replica>,
    },
}

fn known(replicas: &[Replica]) -> String {
    let lines: Vec<_> = replicas.iter().map(ToString::to_string).collect();
    if lines.is_empty() { "its addresses in the manifest".to_owned() } else { lines.join("; ") }
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |addresses: &[IpAddr]| {
            addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
        };
        write!(f, "{}: {}", self.index, list(&self.addresses))?;
        if !self.external.is_empty() {
            write!(f, " outside {}", list(&self.external))?;
        }
        Ok(())
    }
}

impl EgressGateway {
    /// What the replica shall do, with what its user may want to know.
    ///
    /// # Errors
    ///
    /// When it cannot be told which replica is meant.
    pub fn replica(&self, identity: &Identity) -> Result<(DesiredState, Vec<Note>), NotAReplica> {
        let replica = self.find(identity)?;
        let external = self.external_addresses(replica, identity);
        let gateway = Gateway {
            name: self.name.clone(),
            vpc: self.vpc.clone(),
            subnet: self.internal.clone(),
            lan_ips: replica.map(|replica| replica.addresses.clone()).unwrap_or_default(),
            external_subnets: self.external.iter().cloned().collect(),
            routes: self.routes(),
            next_hops: self.next_hops.clone(),
            owner: self.owner.clone(),
        };
        let mut state = DesiredState {
            gateway,
            eips: external.iter().map(|address| (address.addr(), self.eip(*address))).collect(),
            fips: BTreeMap::new(),
            dnats: BTreeMap::new(),
            snats: BTreeMap::new(),
            forwards: BTreeMap::new(),
        };
        let mut notes = Vec::new();
        for (cidr, snat) in &self.sources {
            if !self.admit(*cidr, *snat, &external, &mut state) {
                notes.push(self.note("spec.policies", Remark::NoExternalAddress { cidr: *cidr }));
            }
        }
        let mut without = BTreeSet::new();
        for (address, snat) in &self.pods {
            if !self.admit(IpNet::from(*address), *snat, &external, &mut state) {
                without.insert(if address.is_ipv4() { "IPv4" } else { "IPv6" });
            }
        }
        for family in without {
            notes.push(self.note("spec.selectors", Remark::NoExternalFamily { family }));
        }
        Ok((state, notes))
    }

    /// Lets a source leave. False if it has to be hidden and nothing is there to hide it behind.
    fn admit(&self, cidr: IpNet, snat: bool, external: &[IpNet], state: &mut DesiredState) -> bool {
        let eip = external.iter().find(|address| same_family(address, &cidr));
        match (snat, eip) {
            (false, _) => drop(state.forwards.insert(cidr, self.owner.clone())),
            (true, Some(eip)) => drop(state.snats.insert(cidr, self.snat(eip.addr()))),
            (true, None) => return false,
        }
        true
    }

    /// Replaces the pods, and makes of `state`, which is that of the replica, what it is then. Returns the
    /// sources that differ, `None` if the state differs in more than those.
    pub(super) fn replace_pods(
        &mut self,
        pods: BTreeMap<IpAddr, bool>,
        identity: &Identity,
        state: &mut DesiredState,
    ) -> Option<BTreeSet<IpNet>> {
        let differing = differing(&self.pods, &pods);
        let families = |pods: &BTreeMap<IpAddr, bool>| {
            let last = pods.keys().next_back().map(IpAddr::is_ipv6);
            (pods.keys().next().map(IpAddr::is_ipv4), last)
        };
        let inside = |address: &IpAddr| self.inside.iter().any(|cidr| cidr.contains(address));
        if families(&self.pods) != families(&pods) || !differing.iter().all(inside) {
            return None;
        }
        let external = self.external_addresses(self.find(identity).ok()?, identity);
        self.pods = pods;
        for address in &differing {
            let cidr = IpNet::from(*address);
            state.snats.remove(&cidr);
            state.forwards.remove(&cidr);
            if let Some(snat) = self.pods.get(address) {
                self.admit(cidr, *snat, &external, state);
            }
        }
        Some(differing.into_iter().map(IpNet::from).collect())
    }

    /// The replica that is meant; `None` if the manifest has no addresses, and so all are alike.
    fn find(&self, identity: &Identity) -> Result<Option<&Replica>, NotAReplica> {
        let gateway = self.owner.object.to_string();
        if let Some(name) = identity.name {
            let found = self.replicas.iter().find(|replica| match name {
                ReplicaName::Index(index) => replica.index == index,
                ReplicaName::Address(address) => replica.has(address),
            });
            return found.map(Some).ok_or_else(|| {
                let replicas = self.replicas.clone();
                NotAReplica::Unknown { gateway, name, replicas }
            });
        }
        let own = |addresses: &[IpNet], of: fn(&Replica) -> &[IpAddr]| {
            self.replicas.iter().find(|replica| {
                of(replica).iter().any(|one| addresses.iter().any(|own| own.addr() == *one))
            })
        };
        let outside = own(&identity.external, |replica| &replica.external);
        let found = outside.or_else(|| own(&identity.internal, |replica| &replica.addresses));
        let telling = self.replicas.iter().any(|replica| !replica.external.is_empty());
        if found.is_none() && (telling || identity.external.is_empty()) {
            let replicas = self.replicas.clone();
            return Err(NotAReplica::Unnamed { gateway, replicas });
        }
        Ok(found)
    }

    /// The external addresses: those of the manifest, else those that the interface has.
    fn external_addresses(&self, replica: Option<&Replica>, identity: &Identity) -> Vec<IpNet> {
        let given = replica.map_or(&[][..], |replica| &replica.external);
        if !given.is_empty() {
            return given.iter().map(|address| self.outside(*address)).collect();
        }
        let first = |ipv4: bool| {
            let mut own = identity.external.iter().copied();
            own.find(|address| address.addr().is_ipv4() == ipv4)
        };
        first(true).into_iter().chain(first(false)).collect()
    }

    /// An external address with the prefix length of its network.
    fn outside(&self, address: IpAddr) -> IpNet {
        let cidrs = self.external.iter().flat_map(|network| &network.cidrs);
        let length = cidrs.filter(|cidr| cidr.contains(&address)).map(IpNet::prefix_len).next();
        let with_length = length.and_then(|length| IpNet::new(address, length).ok());
        with_length.unwrap_or_else(|| IpNet::from(address))
    }

    fn eip(&self, address: IpNet) -> Eip {
        let network = self.external.as_ref();
        Eip {
            address,
            subnet: network.map(|network| network.name.clone()),
            gateway: network.and_then(|network| network.gateway_for(address.addr())),
            owner: self.owner.clone(),
        }
    }

    fn snat(&self, eip: IpAddr) -> Snat {
        let (behavior, owner) = (NatBehavior::default(), self.owner.clone());
        Snat { eips: vec![SnatEip { eip, behavior, owner }] }
    }

    /// The way back to sources that are not neighbours: the router of the internal subnet.
    fn routes(&self) -> BTreeMap<IpNet, IpAddr> {
        let Some(network) = &self.internal else { return BTreeMap::new() };
        let neighbours = |cidr: &IpNet| network.cidrs.iter().any(|own| own.contains(cidr));
        // Pods come and go: the ways to all Subnets are there for them beforehand.
        let subnets = self.inside.iter().filter(|_| self.selects);
        let strays = self.pods.keys().map(|address| IpNet::from(*address));
        let strays = strays.filter(|pod| !self.inside.iter().any(|cidr| cidr.contains(pod)));
        let all = self.sources.keys().chain(subnets).copied().chain(strays);
        let far = all.filter(|cidr| !neighbours(cidr));
        far.filter_map(|cidr| Some((cidr, via(network, &cidr)?))).collect()
    }

    fn note(&self, field: &str, remark: Remark) -> Note {
        Note {
            origin: self.owner.origin.clone(),
            object: Some(self.owner.object.clone()),
            field: Some(field.to_owned()),
            gateway: Some(self.name.clone()),
            remark,
        }
    }
}

impl Replica {
    fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address) || self.external.contains(&address)
    }
}

fn via(network: &Network, cidr: &IpNet) -> Option<IpAddr> {
    network.gateway_for(cidr.addr())
}

fn same_family(one: &IpNet, other: &IpNet) -> bool {
    one.addr().is_ipv4() == other.addr().is_ipv4()
}
