//! All objects of a snapshot -> the states of all gateways.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::eip::{Eips, Named};
use super::findings::{Findings, Site};
use super::placement::{Placement, place_inline};
use super::rule::{EipName, Rules, remark};
use super::subnet::Subnets;
use super::{Allocations, DesiredState, EgressGateway, Gateway, Ground, Previous, Resolutions};
use super::{Router, egress, gateway, vpc};
use crate::crd::{
    IptablesDnatRule, IptablesEip, IptablesFipRule, IptablesSnatRule, NatGatewaySpec,
};
use crate::crd::{Kind, Object, ObjectRef, Subnet, Vpc, VpcEgressGateway, VpcNatGateway};
use crate::rejection::{Note, Remark};
use crate::source::{Snapshot, SourceObject};

/// The objects of a snapshot by kind, each object once; those that are active come first.
#[derive(Default)]
struct Index<'s> {
    gateways: Vec<(Site, &'s VpcNatGateway)>,
    subnets: Vec<(Site, &'s Subnet)>,
    eips: Vec<(Site, &'s IptablesEip)>,
    fips: Vec<(Site, &'s IptablesFipRule)>,
    dnats: Vec<(Site, &'s IptablesDnatRule)>,
    snats: Vec<(Site, &'s IptablesSnatRule)>,
    egress: Vec<(Site, &'s VpcEgressGateway)>,
    vpcs: Vec<(Site, &'s Vpc)>,
}

impl<'s> Index<'s> {
    fn new(objects: &[&'s Arc<SourceObject>]) -> Self {
        let mut index = Self::default();
        for source in objects {
            let site = Site::new(source);
            match &source.object {
                Object::NatGateway(object) => {
                    index.gateways.push((site.of_gateway(Some(&object.metadata.name)), object));
                }
                Object::Subnet(object) => index.subnets.push((site, object)),
                Object::Eip(object) => index.eips.push((site, object)),
                Object::Fip(object) => index.fips.push((site, object)),
                Object::Dnat(object) => index.dnats.push((site, object)),
                Object::Snat(object) => index.snats.push((site, object)),
                Object::EgressGateway(object) => {
                    let name = site.object.name.clone();
                    index.egress.push((site.of_gateway(Some(&name)), object));
                }
                Object::Vpc(object) => index.vpcs.push((site, object)),
            }
        }
        index
    }
}

/// The last object of each kind and name, in the order of the input.
fn last_of_each<'s>(
    snapshot: &'s Snapshot,
    findings: &mut Findings,
) -> Vec<(ObjectRef, &'s Arc<SourceObject>)> {
    let mut places = BTreeMap::new();
    let mut objects: Vec<(ObjectRef, &Arc<SourceObject>)> = Vec::new();
    for source in &snapshot.objects {
        let object = source.object_ref();
        match places.entry(object.clone()) {
            Entry::Vacant(place) => {
                place.insert(objects.len());
                objects.push((object, source));
            }
            Entry::Occupied(place) => {
                let (_, counting) = &mut objects[*place.get()];
                let earlier = counting.origin.clone();
                *counting = source;
                findings.notes.push(Note {
                    origin: source.origin.clone(),
                    object: Some(object),
                    field: None,
                    gateway: None,
                    remark: Remark::Replaces { earlier },
                });
            }
        }
    }
    objects
}

/// Resolves every gateway of the snapshot, once, as it stands.
pub(super) fn resolve_once(snapshot: &Snapshot, previous: &Previous) -> Resolutions {
    let mut findings = Findings::default();
    let mut objects = last_of_each(snapshot, &mut findings);
    objects.sort_by_key(|(object, _)| !previous.active.contains_key(object));
    let sources: Vec<_> = objects.iter().map(|(_, source)| *source).collect();
    let index = Index::new(&sources);

    let unreadable: BTreeSet<_> =
        snapshot.rejections.iter().filter_map(|rejection| rejection.object.clone()).collect();
    let (mut subnets, mut eips) = (Subnets::default(), Eips::default());
    for (site, subnet) in &index.subnets {
        subnets.add(site, &subnet.spec, &mut findings);
    }
    for object in &unreadable {
        match object.kind {
            Kind::Subnet => subnets.add_rejected(&object.name),
            Kind::IptablesEip => eips.record(&object.name, Named::Rejected { gateway: None }),
            _ => {}
        }
    }
    let mut gateways = BTreeMap::new();
    for (site, object) in &index.gateways {
        let gateway = gateway::read(site, object, &subnets, &mut findings);
        gateways.insert(site.object.name.clone(), gateway);
    }
    for (site, object) in &index.gateways {
        let gateway = &gateways[&site.object.name];
        place_inline(site, &object.spec.eips, gateway, &mut eips, &mut findings);
    }
    let placement = Placement {
        gateways: &gateways,
        subnets: &subnets,
        previous: &previous.allocations,
        addressing: snapshot.addressing,
        incomplete: !snapshot.rejections.is_empty(),
        unreadable: &unreadable,
    };
    let allocations = placement.place(&index.eips, &mut eips, &mut findings);
    let states = states(&gateways, &index, &eips, &mut findings);
    let (mut egress, chooser) = egress::read_all(&index.egress, &subnets, &mut findings);
    let chosen = chooser.choose(&snapshot.pods);
    findings.notes.extend(chosen.notes);
    for (name, addresses) in chosen.gateways {
        egress.entry(name).and_modify(|gateway| gateway.pods = addresses);
    }
    let routers = vpc::read_all(&index.vpcs, &subnets, &mut findings);
    let ground = Ground {
        inline: index.gateways.iter().any(|(_, object)| has_rules(&object.spec)),
        addressing: snapshot.addressing,
        nameless: snapshot.rejections.iter().any(|rejection| rejection.object.is_none()),
        eips,
        gateways,
        chooser,
        subnets,
        unreadable,
        ..Ground::default()
    };
    let mut all = finish(snapshot, objects, (states, egress, routers), findings, allocations);
    all.ground = ground;
    all
}

/// Whether a gateway has rules of its own, as those of v1.7 had.
fn has_rules(spec: &NatGatewaySpec) -> bool {
    let rules = [spec.floating_ip_rules.len(), spec.dnat_rules.len(), spec.snat_rules.len()];
    rules.iter().any(|count| *count > 0)
}

/// Resolves EIPs and rules alone, in that order. `None` if addresses have to be chosen.
pub(super) fn resolve_part(
    ground: &mut Ground,
    previous: &Allocations,
    sources: &[&Arc<SourceObject>],
) -> Option<(BTreeMap<String, DesiredState>, Findings)> {
    let mut findings = Findings::default();
    let index = Index::new(sources);
    let placement = Placement {
        gateways: &ground.gateways,
        subnets: &ground.subnets,
        previous,
        addressing: ground.addressing,
        incomplete: false,
        unreadable: &ground.unreadable,
    };
    let chosen = placement.place(&index.eips, &mut ground.eips, &mut findings);
    if !chosen.0.is_empty() {
        return None;
    }
    let mut states = empty(&ground.gateways);
    fill(Rules::new(&ground.eips, &mut states, &mut findings), &index);
    Some((states, findings))
}

/// The states of gateways that have nothing.
fn empty(gateways: &BTreeMap<String, Gateway>) -> BTreeMap<String, DesiredState> {
    let empty = |gateway: &Gateway| DesiredState {
        gateway: gateway.clone(),
        eips: BTreeMap::new(),
        fips: BTreeMap::new(),
        dnats: BTreeMap::new(),
        snats: BTreeMap::new(),
        forwards: BTreeMap::new(),
    };
    gateways.iter().map(|(name, gateway)| (name.clone(), empty(gateway))).collect()
}

fn states(
    gateways: &BTreeMap<String, Gateway>,
    index: &Index<'_>,
    eips: &Eips,
    findings: &mut Findings,
) -> BTreeMap<String, DesiredState> {
    let mut states = empty(gateways);
    fill(Rules::new(eips, &mut states, findings), index);
    for (name, state) in &mut states {
        state.eips = eips.of_gateway(name);
        remark(state, findings);
    }
    states
}

fn fill(mut rules: Rules<'_>, index: &Index<'_>) {
    for (site, object) in &index.gateways {
        rules.inline(site, &object.spec);
    }
    for (site, object) in &index.fips {
        if rules.annotated(site, &object.metadata) {
            rules.fip(site, EipName::Object(&object.spec.eip), &object.spec.internal_ip);
        }
    }
    for (site, object) in &index.dnats {
        if rules.annotated(site, &object.metadata) {
            let eip = EipName::Object(&object.spec.eip);
            rules.dnat(site, eip, &object.spec, &object.metadata);
        }
    }
    for (site, object) in &index.snats {
        if rules.annotated(site, &object.metadata) {
            let eip = EipName::Object(&object.spec.eip);
            rules.snat(site, eip, &object.spec.internal_cidr, &object.metadata);
        }
    }
    rules.settle_affinity();
}

/// The results of all kinds.
type Gathered =
    (BTreeMap<String, DesiredState>, BTreeMap<String, EgressGateway>, BTreeMap<String, Router>);

fn finish(
    snapshot: &Snapshot,
    objects: Vec<(ObjectRef, &Arc<SourceObject>)>,
    (states, egress, routers): Gathered,
    findings: Findings,
    allocations: Allocations,
) -> Resolutions {
    let Findings { mut rejections, mut notes, rejected, left_out } = findings;
    rejections.extend(snapshot.rejections.iter().cloned());
    notes.extend(snapshot.notes.iter().cloned());
    rejections.sort_by(|a, b| a.origin.cmp(&b.origin));
    notes.sort_by(|a, b| a.origin.cmp(&b.origin));
    let active = objects
        .into_iter()
        .filter(|(object, _)| !rejected.contains(object) && !left_out.contains(object))
        .map(|(object, source)| (object, Arc::clone(source)))
        .collect();
    let ground = Ground::default();
    Resolutions {
        states,
        egress,
        routers,
        rejections,
        notes,
        allocations,
        active,
        rejected,
        ground,
    }
}
