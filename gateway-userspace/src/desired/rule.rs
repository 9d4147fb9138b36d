//! FIP, DNAT and SNAT rules of both generations -> entries of the [`DesiredState`].

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use super::eip::{Eips, Named};
use super::findings::{Findings, Site};
use super::{
    Affinity, Backend, DesiredState, Dnat, DnatKey, Fip, Owner, Port, Protocol, Sharing, Snat,
    SnatEip,
};
use super::{annotation, behavior, value};
use crate::crd::{DnatSpec, Kind, Metadata, NatGatewaySpec, ObjectRef};
use crate::rejection::{Claim, Note, Problem, Remark, Role};

/// Puts rules into the states of their gateways.
pub(super) struct Rules<'r> {
    pub(super) eips: &'r Eips,
    pub(super) states: &'r mut BTreeMap<String, DesiredState>,
    pub(super) findings: &'r mut Findings,
    /// The FIP of each internal address.
    internal: BTreeMap<(String, IpAddr), Owner>,
    /// What the rules of shared ports say about affinity.
    affinities: BTreeMap<(String, DnatKey), Vec<(Affinity, Site)>>,
}

/// How a rule names its EIP.
#[derive(Clone, Copy)]
pub(super) enum EipName<'n> {
    /// By the name of the `IptablesEIP`.
    Object(&'n str),
    /// By its address, in the v1.7 gateway of that name.
    Address(&'n str, &'n str),
}

/// An EIP that a rule can use.
struct Target {
    site: Site,
    gateway: String,
    object: ObjectRef,
    addresses: Vec<IpAddr>,
}

impl<'r> Rules<'r> {
    pub(super) fn new(
        eips: &'r Eips,
        states: &'r mut BTreeMap<String, DesiredState>,
        findings: &'r mut Findings,
    ) -> Self {
        Self { eips, states, findings, internal: BTreeMap::new(), affinities: BTreeMap::new() }
    }

    /// The rules in the spec of a v1.7 gateway.
    pub(super) fn inline(&mut self, site: &Site, spec: &NatGatewaySpec) {
        let name = &site.object.name;
        for (index, rule) in spec.floating_ip_rules.iter().enumerate() {
            let site = site.entry("floatingIpRules", index);
            self.fip(&site, EipName::Address(name, &rule.eip), &rule.internal_ip);
        }
        for (index, rule) in spec.dnat_rules.iter().enumerate() {
            let site = site.entry("dnatRules", index);
            let spec = DnatSpec {
                eip: String::new(),
                external_port: rule.external_port.clone(),
                protocol: rule.protocol.clone(),
                internal_ip: rule.internal_ip.clone(),
                internal_port: rule.internal_port.clone(),
                sharing: String::new(),
            };
            let eip = EipName::Address(name, &rule.eip);
            self.dnat(&site, eip, &spec, &Metadata::default());
        }
        for (index, rule) in spec.snat_rules.iter().enumerate() {
            let site = site.entry("snatRules", index);
            let eip = EipName::Address(name, &rule.eip);
            self.snat(&site, eip, &rule.internal_cidr, &Metadata::default());
        }
    }

    /// Whether all annotations of an object are known; rejects those that are not.
    pub(super) fn annotated(&mut self, site: &Site, metadata: &Metadata) -> bool {
        annotation::check(site, metadata, self.findings)
    }

    pub(super) fn fip(&mut self, site: &Site, eip: EipName<'_>, internal: &str) {
        let Some(target) = self.target(site, eip) else { return };
        let site = &target.site;
        let address = value::address(internal);
        let Some(internal) = self.findings.accept(site, "internalIp", address) else { return };
        let Some(eip) = self.of_family(&target, internal.is_ipv4(), &internal.to_string()) else {
            return;
        };
        if let Some(taken) = self.eips.held_by(&target.gateway, internal) {
            let role = Role::Eip(taken.owner.object.clone());
            let problem = Problem::Reserved { address: internal, role };
            return self.findings.reject(site, "internalIp", problem);
        }
        let key = (target.gateway.clone(), internal);
        if let Some(holder) = self.internal.get(&key) {
            let problem = taken(Claim::FipFor(internal), holder);
            return self.findings.reject(site, "internalIp", problem);
        }
        let Some(state) = self.states.get_mut(&target.gateway) else { return };
        if let Some(fip) = state.fips.get(&eip) {
            let problem = taken(Claim::FipOf(eip), &fip.owner);
            return self.findings.reject(site, "eip", problem);
        }
        self.internal.insert(key, site.owner());
        state.fips.insert(eip, Fip { internal, owner: site.owner() });
    }

    pub(super) fn dnat(
        &mut self,
        site: &Site,
        eip: EipName<'_>,
        spec: &DnatSpec,
        metadata: &Metadata,
    ) {
        let Some(target) = self.target(site, eip) else { return };
        let values = self.dnat_values(&target.site, spec);
        let balance = self.balance_values(&target.site, metadata);
        let Some((port, protocol, sharing, endpoint)) = values else { return };
        let Some((weight, affinity)) = balance else { return };
        let (internal, site) = (endpoint.ip(), &target.site);
        let Some(eip) = self.of_family(&target, internal.is_ipv4(), &internal.to_string()) else {
            return;
        };
        let key = DnatKey { eip, protocol, port };
        let backend = Backend { endpoint, weight, owner: site.owner() };
        if sharing == Sharing::Exclusive {
            for name in [annotation::WEIGHT, annotation::SESSION_AFFINITY] {
                if metadata.annotations.contains_key(name) {
                    self.findings.note(site, &annotation::path(name), Remark::NotShared);
                }
            }
        } else if let Some(affinity) = affinity {
            let said = self.affinities.entry((target.gateway.clone(), key)).or_default();
            said.push((affinity, site.clone()));
        }
        let Some(state) = self.states.get_mut(&target.gateway) else { return };
        let Some(dnat) = state.dnats.get_mut(&key) else {
            let affinity = Affinity::default();
            state.dnats.insert(key, Dnat { sharing, affinity, backends: vec![backend] });
            return;
        };
        if (dnat.sharing, sharing) != (Sharing::Share, Sharing::Share) {
            let problem = taken(Claim::Port(key.to_string()), &dnat.backends[0].owner);
            return self.findings.reject(site, "externalPort", problem);
        }
        match dnat.backends.binary_search_by_key(&endpoint, |backend| backend.endpoint) {
            Ok(index) => {
                let claim = Claim::Backend(format!("{endpoint} of {key}"));
                let problem = taken(claim, &dnat.backends[index].owner);
                self.findings.reject(site, "internalIp", problem);
            }
            Err(index) => dnat.backends.insert(index, backend),
        }
    }

    /// Decides for each shared port whether it has session affinity, once all rules are known: it
    /// does if one of its rules asks for it. No order of the rules matters, and none loses its
    /// backend because another one was edited.
    pub(super) fn settle_affinity(&mut self) {
        for ((gateway, key), said) in std::mem::take(&mut self.affinities) {
            let dnat = self.states.get_mut(&gateway).and_then(|state| state.dnats.get_mut(&key));
            let Some(dnat) = dnat else { continue };
            // A rule that was rejected has no say.
            let heard = |site: &Site| {
                dnat.backends.iter().any(|backend| backend.owner.object == site.object)
            };
            let said: Vec<_> = said.iter().filter(|(_, site)| heard(site)).collect();
            let asks = said.iter().find(|(affinity, _)| *affinity == Affinity::ClientIp);
            let Some((_, asking)) = asks else { continue };
            dnat.affinity = Affinity::ClientIp;
            for (affinity, site) in said {
                if *affinity == Affinity::None {
                    let (other, port) = (asking.object.clone(), key.to_string());
                    let field = annotation::path(annotation::SESSION_AFFINITY);
                    self.findings.note(site, &field, Remark::OtherAffinity { other, port });
                }
            }
        }
    }

    pub(super) fn snat(&mut self, site: &Site, eip: EipName<'_>, cidr: &str, metadata: &Metadata) {
        let Some(target) = self.target(site, eip) else { return };
        let site = &target.site;
        let behavior = behavior::read(site, metadata, self.findings);
        let Some(cidr) = self.findings.accept_cidr(site, "internalCIDR", cidr) else { return };
        let v4 = cidr.addr().is_ipv4();
        let Some(eip) = self.of_family(&target, v4, &cidr.to_string()) else { return };
        let Some(behavior) = behavior else { return };
        let Some(state) = self.states.get_mut(&target.gateway) else { return };
        let snat = state.snats.entry(cidr).or_insert_with(|| Snat { eips: Vec::new() });
        match snat.eips.binary_search_by_key(&eip, |snat| snat.eip) {
            Ok(index) => {
                let problem = taken(Claim::Source(cidr, eip), &snat.eips[index].owner);
                self.findings.reject(site, "internalCIDR", problem);
            }
            Err(index) => snat.eips.insert(index, SnatEip { eip, behavior, owner: site.owner() }),
        }
    }

    /// Reads the fields of a DNAT rule and reports every bad one.
    fn dnat_values(
        &mut self,
        site: &Site,
        spec: &DnatSpec,
    ) -> Option<(Port, Protocol, Sharing, SocketAddr)> {
        let port = |text| value::required(text, "a port, 1 to 65535").and_then(str::parse::<Port>);
        let external = self.findings.accept(site, "externalPort", port(&spec.external_port.0));
        let protocol = value::required(&spec.protocol, "tcp or udp").and_then(str::parse);
        let protocol = self.findings.accept(site, "protocol", protocol);
        let address = value::address(&spec.internal_ip);
        let address = self.findings.accept(site, "internalIp", address);
        let internal = self.findings.accept(site, "internalPort", port(&spec.internal_port.0));
        let sharing = self.findings.accept(site, "type", value::sharing(&spec.sharing));
        Some((external?, protocol?, sharing?, SocketAddr::new(address?, internal?.get())))
    }

    /// Reads the annotations of a DNAT rule and reports every bad one.
    fn balance_values(
        &mut self,
        site: &Site,
        metadata: &Metadata,
    ) -> Option<(u16, Option<Affinity>)> {
        let (weight, affinity) = (annotation::weight(metadata), annotation::affinity(metadata));
        let weight = self.findings.accept(site, &annotation::path(annotation::WEIGHT), weight);
        let path = annotation::path(annotation::SESSION_AFFINITY);
        let affinity = self.findings.accept(site, &path, affinity);
        Some((weight?, affinity?))
    }

    /// The EIP that a rule names, or a rejection, or a note if that one was rejected itself.
    fn target(&mut self, site: &Site, eip: EipName<'_>) -> Option<Target> {
        match eip {
            EipName::Object(name) => {
                let name = value::required(name, "the name of an IptablesEIP");
                let name = self.findings.accept(site, "eip", name)?;
                self.target_by_name(site, ObjectRef::new(Kind::IptablesEip, name))
            }
            EipName::Address(gateway, address) => {
                let address = self.findings.accept(site, "eip", value::address(address))?;
                self.target_by_address(site, gateway, address)
            }
        }
    }

    fn target_by_name(&mut self, site: &Site, object: ObjectRef) -> Option<Target> {
        match self.eips.named(&object.name).cloned() {
            Some(Named::Accepted { gateway, addresses }) => {
                Some(Target { site: site.of_gateway(Some(&gateway)), gateway, object, addresses })
            }
            Some(Named::Rejected { gateway }) => {
                let site = site.of_gateway(gateway.as_deref());
                self.findings.leave_out(&site, "eip", object);
                None
            }
            None => {
                self.findings.reject(site, "eip", Problem::Unresolved { target: object });
                None
            }
        }
    }

    fn target_by_address(&mut self, site: &Site, gateway: &str, address: IpAddr) -> Option<Target> {
        if let Some(eip) = self.eips.held_by(gateway, address) {
            let object = eip.owner.object.clone();
            let (site, gateway) = (site.clone(), gateway.to_owned());
            return Some(Target { site, gateway, object, addresses: vec![address] });
        }
        if self.eips.was_rejected(gateway, address) {
            self.findings.leave_out(site, "eip", site.object.whole());
        } else {
            self.findings.reject(site, "eip", Problem::NotAnEip { address });
        }
        None
    }

    /// The address of the EIP that has the family of the internal side.
    fn of_family(&mut self, target: &Target, v4: bool, internal: &str) -> Option<IpAddr> {
        let found = target.addresses.iter().copied().find(|address| address.is_ipv4() == v4);
        if found.is_none() {
            let problem = Problem::FamilyMismatch {
                internal: internal.to_owned(),
                eip: target.object.clone(),
                field: if v4 { "spec.v4ip" } else { "spec.v6ip" },
            };
            self.findings.reject(&target.site, "eip", problem);
        }
        found
    }
}

fn taken(claim: Claim, holder: &Owner) -> Problem {
    Problem::Taken { claim, holder: holder.object.clone(), at: holder.origin.clone() }
}

/// Notes what a complete state has that its user may not expect.
pub(super) fn remark(state: &DesiredState, findings: &mut Findings) {
    let note = |owner: &Owner, remark| Note {
        origin: owner.origin.clone(),
        object: Some(owner.object.clone()),
        field: None,
        gateway: Some(state.gateway.name.clone()),
        remark,
    };
    for (key, dnat) in &state.dnats {
        if let Some(fip) = state.fips.get(&key.eip) {
            findings.notes.extend(dnat.backends.iter().map(|backend| {
                let (fip, eip) = (fip.owner.object.clone(), key.eip);
                note(&backend.owner, Remark::ShadowedByFip { fip, eip })
            }));
        }
    }
}
