//! `IptablesEIP` -> addresses: static ones as given, the others chosen from their Subnet.
//!
//! Claims are made in this order: addresses that were chosen before, static ones in the order of
//! the input, new choices in the order of names. So a choice never moves, and it does not depend
//! on the order of the input.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::eip::{Eips, Named};
use super::findings::{Findings, Site};
use super::subnet::{DEFAULT_EXTERNAL_SUBNET, Lookup, Subnet, Subnets};
use super::value;
use super::{Allocations, Eip, Gateway};
use crate::crd::{InlineEip, IptablesEip, Kind, ObjectRef};
use crate::rejection::{Problem, Remark, Role};
use crate::source::Addressing;

/// What placing an EIP depends on.
pub(super) struct Placement<'s> {
    pub(super) gateways: &'s BTreeMap<String, Gateway>,
    pub(super) subnets: &'s Subnets,
    pub(super) previous: &'s Allocations,
    pub(super) addressing: Addressing,
    /// Some objects of the input could not be read: what was chosen for them is kept for them.
    pub(super) incomplete: bool,
    /// The objects among those that can be told.
    pub(super) unreadable: &'s BTreeSet<ObjectRef>,
}

/// An `IptablesEIP` whose fields make sense.
struct Draft<'s> {
    site: Site,
    gateway: String,
    given: Vec<(&'static str, Eip)>,
    choices: Vec<Choice<'s>>,
}

/// An address that is to be chosen.
#[derive(Clone, Copy)]
struct Choice<'s> {
    field: &'static str,
    subnet: &'s Subnet,
    cidr: IpNet,
    /// What was chosen before.
    before: Option<IpAddr>,
}

/// Where the addresses of an EIP come from.
#[derive(Clone, Copy)]
enum External<'s> {
    Known(&'s Subnet),
    /// Not in the input.
    Missing(&'s str),
    Rejected(&'s str),
}

impl<'s> Placement<'s> {
    /// Places all `IptablesEIP`s and returns the addresses that were chosen.
    pub(super) fn place(
        &self,
        objects: &'s [(Site, &'s IptablesEip)],
        eips: &mut Eips,
        findings: &mut Findings,
    ) -> Allocations {
        let mut drafts = Vec::with_capacity(objects.len());
        for (site, eip) in objects {
            let gateway = Some(&eip.spec.nat_gw_dp);
            let gateway = gateway.filter(|name| self.gateways.contains_key(*name)).cloned();
            let site = site.of_gateway(gateway.as_deref());
            match self.draft(&site, eip, findings) {
                Some(draft) => drafts.push(draft),
                None => eips.record(&site.object.name, Named::Rejected { gateway }),
            }
        }
        drafts.sort_by_key(|draft| match &draft.choices[..] {
            [] => (1, String::new()),
            choices if choices.iter().any(|choice| choice.before.is_some()) => (0, String::new()),
            _ => (2, draft.site.object.name.clone()),
        });
        let mut chosen = self.absent(objects);
        let mut chooser =
            Chooser { reserved: chosen.0.values().flatten().copied().collect(), ..<_>::default() };
        for mut draft in drafts {
            let name = draft.site.object.name.clone();
            let gateway = draft.gateway.clone();
            let choice = chooser.choose(&mut draft, eips, findings);
            let addresses = draft.given.iter().map(|(_, eip)| eip.address.addr()).collect();
            let placed =
                choice.is_some() && eips.claim(&draft.site, &gateway, draft.given, findings);
            if let Some(choice) = choice.filter(|choice| placed && !choice.is_empty()) {
                chosen.0.insert(name.clone(), choice);
            }
            match placed {
                true => eips.record(&name, Named::Accepted { gateway, addresses }),
                false => eips.record_contested(&name, gateway),
            }
        }
        chosen
    }

    /// What was chosen for EIPs that are not in the input but may only be unreadable.
    fn absent(&self, objects: &[(Site, &IptablesEip)]) -> Allocations {
        if !self.incomplete {
            return Allocations::default();
        }
        let present: BTreeSet<_> = objects.iter().map(|(site, _)| &site.object.name).collect();
        let absent = self.previous.0.iter().filter(|(name, _)| !present.contains(name));
        Allocations(absent.map(|(name, chosen)| (name.clone(), chosen.clone())).collect())
    }

    fn draft(
        &self,
        site: &Site,
        eip: &'s IptablesEip,
        findings: &mut Findings,
    ) -> Option<Draft<'s>> {
        let spec = &eip.spec;
        let name = value::required(&spec.nat_gw_dp, "the name of a VpcNatGateway");
        let name = findings.accept(site, "natGwDp", name)?;
        let Some(gateway) = self.gateways.get(name) else {
            let target = ObjectRef::new(Kind::VpcNatGateway, name);
            if self.unreadable.contains(&target) {
                findings.leave_out(site, "natGwDp", target);
            } else {
                findings.reject(site, "natGwDp", Problem::Unresolved { target });
            }
            return None;
        };
        let external = self.external(site, &spec.external_subnet, gateway, findings)?;
        // What the cluster chose is as good as what the user asked for; where there is a cluster, it
        // decides.
        let (first, second) = match self.addressing {
            Addressing::Ours => (&spec.v4ip, &eip.status.ip),
            Addressing::Cluster => (&eip.status.ip, &spec.v4ip),
        };
        let v4ip = if first.is_empty() { second } else { first };
        let mut given = Vec::new();
        for (field, text, v4) in [("v4ip", v4ip, true), ("v6ip", &spec.v6ip, false)] {
            if !text.is_empty() {
                let address = value::address_of_family(text, v4);
                let address = findings.accept(site, field, address)?;
                given.push((field, static_eip(site, field, address, external, gateway, findings)?));
            }
        }
        let choices = self.choices(site, &given, external, findings)?;
        Some(Draft { site: site.clone(), gateway: name.to_owned(), given, choices })
    }

    /// The Subnet of an EIP: its own, else the one of its gateway, else the usual one.
    fn external(
        &self,
        site: &Site,
        own: &'s str,
        gateway: &'s Gateway,
        findings: &mut Findings,
    ) -> Option<External<'s>> {
        let of_gateway = gateway.external_subnets.first();
        let name = match (own, of_gateway) {
            ("", Some(network)) => network.name.as_str(),
            ("", None) => DEFAULT_EXTERNAL_SUBNET,
            (own, _) => own,
        };
        match self.subnets.lookup(name) {
            // The gateway has the note about the provider.
            Lookup::Found(subnet) | Lookup::ByProvider(subnet) => Some(External::Known(subnet)),
            Lookup::Rejected => Some(External::Rejected(name)),
            Lookup::Missing if !own.is_empty() && self.subnets.has_external() => {
                let target = ObjectRef::new(Kind::Subnet, name);
                findings.reject(site, "externalSubnet", Problem::Unresolved { target });
                None
            }
            Lookup::Missing => Some(External::Missing(name)),
        }
    }

    /// The addresses that are to be chosen: one of each family that the Subnet has if none is given;
    /// beside a given IPv6 address one of IPv4, which Kube-OVN's EIPs always have. `None` is a
    /// rejection.
    fn choices(
        &self,
        site: &Site,
        given: &[(&'static str, Eip)],
        external: External<'s>,
        findings: &mut Findings,
    ) -> Option<Vec<Choice<'s>>> {
        let has = |field| given.iter().any(|(given, _)| *given == field);
        if has("v4ip") {
            return Some(Vec::new());
        }
        if self.addressing == Addressing::Cluster {
            if given.is_empty() {
                findings.reject(site, "v4ip", Problem::NoAddressYet);
            }
            return (!given.is_empty()).then(Vec::new);
        }
        let (name, subnet) = match external {
            External::Known(subnet) => (&*subnet.network.name, Some(subnet)),
            External::Missing(name) | External::Rejected(name) => (name, None),
        };
        let cidr_of = |v4: bool| {
            let cidrs = &subnet?.network.cidrs;
            cidrs.iter().copied().find(|cidr| cidr.addr().is_ipv4() == v4)
        };
        let wanted: Vec<_> = [("v4ip", cidr_of(true)), ("v6ip", cidr_of(false))]
            .into_iter()
            .filter(|(field, _)| !has(field))
            .filter_map(|(field, cidr)| Some((field, cidr?)))
            .collect();
        if wanted.is_empty() && !has("v6ip") {
            let object = ObjectRef::new(Kind::Subnet, name);
            if let External::Rejected(_) = external {
                findings.leave_out(site, "externalSubnet", object);
            } else {
                findings.reject(site, "v4ip", Problem::NoSubnet { subnet: object });
            }
            return None;
        }
        let before = self.previous.0.get(&site.object.name);
        let choice = |(field, cidr): (&'static str, IpNet)| {
            let before = before.into_iter().flatten().copied();
            let before = { before }.find(|address| cidr.contains(address));
            Some(Choice { field, subnet: subnet?, cidr, before })
        };
        Some(wanted.into_iter().filter_map(choice).collect())
    }
}

/// Chooses addresses, each subnet from the bottom up.
#[derive(Default)]
struct Chooser {
    /// Kept for EIPs that are not to be seen.
    reserved: BTreeSet<IpAddr>,
    /// Below these, everything is taken.
    next: BTreeMap<IpNet, IpAddr>,
}

impl Chooser {
    /// Adds the addresses that the draft lacks, and returns them; `None` is a rejection.
    fn choose(
        &mut self,
        draft: &mut Draft<'_>,
        eips: &Eips,
        findings: &mut Findings,
    ) -> Option<Vec<IpAddr>> {
        let choices = std::mem::take(&mut draft.choices);
        choices.into_iter().map(|choice| self.choose_one(choice, draft, eips, findings)).collect()
    }

    fn choose_one(
        &mut self,
        Choice { field, subnet, cidr, before }: Choice<'_>,
        draft: &mut Draft<'_>,
        eips: &Eips,
        findings: &mut Findings,
    ) -> Option<IpAddr> {
        let name = &subnet.network.name;
        let taken = |address| {
            self.reserved.contains(&address) || eips.is_taken(&draft.gateway, name, address)
        };
        let address = match before.filter(|address| !taken(*address)) {
            Some(address) => address,
            None => {
                let from = self.next.get(&cidr).copied();
                let Some(address) = subnet.free_address(cidr, from, taken) else {
                    let cidrs = subnet.network.cidrs.clone();
                    let problem = Problem::Exhausted { subnet: subnet.object(), cidrs };
                    findings.reject(&draft.site, field, problem);
                    return None;
                };
                self.next.insert(cidr, address);
                address
            }
        };
        findings.note(&draft.site, field, Remark::Allocated { address });
        let eip = eip(&draft.site, address, cidr.prefix_len(), Some(subnet));
        draft.given.push((field, eip));
        Some(address)
    }
}

fn eip(site: &Site, address: IpAddr, prefix_len: u8, subnet: Option<&Subnet>) -> Eip {
    Eip {
        address: IpNet::new(address, prefix_len).unwrap_or_else(|_| IpNet::from(address)),
        subnet: subnet.map(|subnet| subnet.network.name.clone()),
        gateway: subnet.and_then(|subnet| subnet.network.gateway_for(address)),
        owner: site.owner(),
    }
}

/// An address that the user gave.
fn static_eip(
    site: &Site,
    field: &'static str,
    address: IpAddr,
    external: External<'_>,
    gateway: &Gateway,
    findings: &mut Findings,
) -> Option<Eip> {
    let eip = match external {
        External::Known(subnet) => {
            let cidr = findings.accept(site, field, subnet.check_host(address))?;
            eip(site, address, cidr.prefix_len(), Some(subnet))
        }
        External::Missing(name) | External::Rejected(name) => {
            let subnet = ObjectRef::new(Kind::Subnet, name);
            findings.note(
                site,
                field,
                match external {
                    External::Rejected(_) => Remark::LeftOut { because: subnet },
                    _ => Remark::NoExternalSubnet { subnet, address },
                },
            );
            let single = IpNet::from(address).prefix_len();
            Eip { subnet: Some(name.to_owned()), ..eip(site, address, single, None) }
        }
    };
    findings.accept(site, field, outside_vpc(address, gateway))?;
    Some(eip)
}

/// An external address must not be one of the VPC.
fn outside_vpc(address: IpAddr, gateway: &Gateway) -> Result<(), Problem> {
    let inside = gateway
        .subnet
        .iter()
        .find(|subnet| subnet.cidrs.iter().any(|cidr| cidr.contains(&address)));
    let role = if gateway.lan_ips.contains(&address) {
        Role::LanIp(gateway.owner.object.clone())
    } else if let Some(subnet) = inside {
        Role::InsideVpc(ObjectRef::new(Kind::Subnet, subnet.name.clone()))
    } else {
        return Ok(());
    };
    Err(Problem::Reserved { address, role })
}

/// Places the addresses in the spec of a v1.7 gateway.
pub(super) fn place_inline(
    site: &Site,
    entries: &[InlineEip],
    gateway: &Gateway,
    eips: &mut Eips,
    findings: &mut Findings,
) {
    for (index, entry) in entries.iter().enumerate() {
        let site = site.entry("eips", index);
        let Some(address) = findings.accept(&site, "eipCIDR", value::cidr(&entry.eip_cidr)) else {
            continue;
        };
        let placed = inline_eip(&site, entry, address, gateway, findings)
            .is_some_and(|eip| eips.claim(&site, &gateway.name, vec![("eipCIDR", eip)], findings));
        if !placed {
            eips.record_rejected(&gateway.name, address.addr());
        }
    }
}

fn inline_eip(
    site: &Site,
    entry: &InlineEip,
    address: IpNet,
    gateway: &Gateway,
    findings: &mut Findings,
) -> Option<Eip> {
    let host = value::address(&address.addr().to_string());
    let host = findings.accept(site, "eipCIDR", host)?;
    findings.accept(site, "eipCIDR", outside_vpc(host, gateway))?;
    let mut router = None;
    if !entry.gateway.is_empty() {
        let text = value::address(&entry.gateway).and_then(|router| {
            let fits = address.contains(&router) && router != host;
            let single = address.prefix_len() == address.max_prefix_len();
            if fits || single { Ok(router) } else { Err(not_a_router(router)) }
        });
        router = Some(findings.accept(site, "gateway", text)?);
    }
    Some(Eip { address, subnet: None, gateway: router, owner: site.owner() })
}

fn not_a_router(address: IpAddr) -> Problem {
    Problem::Invalid {
        value: address.to_string(),
        not: "a gateway for this address",
        expected: "another address of the network in eipCIDR",
    }
}
