//! Resolves the objects of one gateway again and again, and a few changed EIPs and rules by themselves.
//!
//! An EIP takes the rules that name it along. Everything else (subnets, gateways) is the ground that they stand
//! on: if that changes, everything is resolved again, and so it is whenever an object that is active would be
//! rejected, because then the old form has to go on, and where EIPs contend for an address or have one that
//! was chosen. What comes out is what [`super::resolve_after`] would say in every case: the tests compare both.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::claims::{self, Claims};
use super::eip::Eips;
use super::findings::Findings;
use super::resolve::resolve_part;
use super::selection::{Chooser, Chosen};
use super::subnet::Subnets;
use super::{Allocations, DesiredState, DnatKey, Eip, Gateway, Previous, Resolution, value};
use super::{EgressGateway, Identity, concerns, resolve_after};
use crate::crd::{Kind, Object, ObjectRef};
use crate::encode::part::Touched;
use crate::rejection::{Note, Rejection};
use crate::source::pods::Pods;
use crate::source::{Addressing, Changed, Snapshot, SourceObject};

/// Up to so many objects that hang together are resolved by themselves.
const FEW: usize = 256;

/// What EIPs and rules stand on, and the EIPs, on which the rules do.
#[derive(Clone, Debug, Default)]
pub(super) struct Ground {
    /// The EIPs of all gateways.
    pub(super) eips: Eips,
    /// The gateways.
    pub(super) gateways: BTreeMap<String, Gateway>,
    /// Whether a gateway has rules of its own, as those of v1.7 had.
    pub(super) inline: bool,
    /// The selectors of the egress gateways.
    pub(super) chooser: Chooser,
    /// The Subnets.
    pub(super) subnets: Subnets,
    /// Who gives addresses to the EIPs.
    pub(super) addressing: Addressing,
    /// The objects that could not be read.
    pub(super) unreadable: BTreeSet<ObjectRef>,
    /// Whether there are more of those, without a name: what is absent may be one of them.
    pub(super) nameless: bool,
    /// The objects that go on in an old form.
    pub(super) kept: BTreeSet<ObjectRef>,
    /// Whether one that did has lost that form too: then the next time all is told differently.
    pub(super) lost: bool,
}

impl Ground {
    /// Whether EIPs and rules can be resolved on it one by one.
    fn is_firm(&self) -> bool {
        !self.inline && !self.lost && self.kept.iter().all(|object| object.kind.is_rule())
    }
}

/// One gateway, what its objects were last time, and what came of them.
#[derive(Debug, Default)]
pub struct Resolver {
    gateway: String,
    previous: Previous,
    rejections: Vec<Rejection>,
    notes: Vec<Note>,
    /// Not there if everything has to be resolved again.
    ground: Option<Ground>,
    /// Not there if they have to be collected again.
    claims: Option<Claims>,
    /// What it is, if it is an egress gateway.
    egress: Option<EgressGateway>,
}

/// What a few changed objects come to.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The rules of the gateway that may differ.
    pub touched: Touched,
    /// Whether its EIPs differ.
    pub eips: bool,
    /// Whether rejections or notes may differ.
    pub told: bool,
}

impl Step {
    /// Adds what came afterwards.
    pub fn extend(&mut self, later: Self) {
        self.touched.extend(later.touched);
        self.eips |= later.eips;
        self.told |= later.told;
    }
}

impl Resolver {
    /// For that gateway, with the addresses that were chosen before.
    #[must_use]
    pub fn new(gateway: &str, allocations: Allocations) -> Self {
        let previous = Previous { allocations, active: BTreeMap::new() };
        Self { gateway: gateway.to_owned(), previous, ..Self::default() }
    }

    /// What is not acted upon.
    #[must_use]
    pub fn rejections(&self) -> &[Rejection] {
        &self.rejections
    }

    /// What the user may want to know.
    #[must_use]
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// What was chosen, and what is active.
    #[must_use]
    pub const fn previous(&self) -> &Previous {
        &self.previous
    }

    /// Forgets which rules there are: more may have changed than is known.
    pub fn forget(&mut self) {
        (self.ground, self.claims) = (None, None);
    }

    /// Resolves everything. Nothing is taken over before [`Self::adopt`].
    #[must_use]
    pub fn resolve(&self, snapshot: &Snapshot) -> Resolution {
        resolve_after(snapshot, &self.gateway, &self.previous)
    }

    /// Takes over what [`Self::resolve`] made of the snapshot.
    pub fn adopt(&mut self, resolution: Resolution, snapshot: &Snapshot) {
        let Resolution { rejections, notes, allocations, active, ground, egress, .. } = resolution;
        self.egress = egress;
        self.previous = Previous { allocations, active };
        (self.rejections, self.notes) = (rejections, notes);
        self.ground = Some(ground).filter(Ground::is_firm);
        if self.claims.is_none() {
            self.claims = Claims::of(&snapshot.objects);
        }
    }

    /// Makes of `desired`, which is what was adopted last, what it is after these changes; `None` if all
    /// objects have to be resolved again.
    pub fn change(&mut self, changes: &[Changed], desired: &mut DesiredState) -> Option<Step> {
        let part = self.take_over(changes);
        if part.is_none() {
            self.ground = None;
        }
        let mut part = part?;
        let (mut ground, claims) = (self.ground.take()?, self.claims.as_ref()?);
        part.complete(&ground, claims)?;
        let Previous { allocations, active } = &self.previous;
        let chosen = |eip: &String| allocations.0.contains_key(eip);
        let kept = |object| part.has(object) || part.wants_of(active.get(object));
        if part.eips.iter().any(chosen) || ground.kept.iter().any(kept) {
            return None;
        }
        let mut touched = Touched::default();
        let mut addresses = part.touch(&ground.eips, &self.gateway, &mut touched);
        part.eips.iter().for_each(|eip| ground.eips.remove(eip));
        let sources = part.in_order(active);
        let (mut states, findings) = resolve_part(&mut ground, allocations, &sources)?;
        let contested = !part.eips.is_empty() && ground.eips.is_contested();
        if contested || findings.rejected.iter().any(|object| active.contains_key(object)) {
            return None;
        }
        addresses.extend(part.touch(&ground.eips, &self.gateway, &mut touched));
        if let Some(state) = states.get_mut(&self.gateway) {
            put(&touched, state, desired);
        }
        let eips = put_eips(&addresses, &ground.eips, &self.gateway, &mut desired.eips);
        let told = self.tell(&part, findings);
        self.ground = Some(ground);
        Some(Step { touched, eips, told })
    }

    /// Makes of `desired`, which is what was adopted last, what it is with these pods; `None` if all objects
    /// have to be resolved again.
    pub fn select(
        &mut self,
        pods: &Pods,
        identity: &Identity,
        desired: &mut DesiredState,
    ) -> Option<Step> {
        let Some(egress) = &mut self.egress else { return Some(Step::default()) };
        let Chosen { mut gateways, mut notes } = self.ground.as_ref()?.chooser.choose(pods);
        let chosen = gateways.remove(&egress.name).unwrap_or_default();
        let snats = egress.replace_pods(chosen, identity, desired)?;
        notes.retain(|note| concerns(&note.gateway, &self.gateway));
        let before: Vec<_> = self.notes.extract_if(.., |it| it.remark.is_about_pods()).collect();
        let told = before != notes;
        self.notes.append(&mut notes);
        self.notes.sort_by(|a, b| a.origin.cmp(&b.origin));
        let touched = Touched { snats, ..Touched::default() };
        Some(Step { touched, told, ..Step::default() })
    }

    /// Takes over which rules there are. `None` if something else than EIPs and rules changed.
    fn take_over(&mut self, changes: &[Changed]) -> Option<Part> {
        let claims = self.claims.as_mut()?;
        let (mut part, mut ground_stays) = (Part::default(), true);
        for Changed { object, now } in changes {
            let mut before = None;
            if object.kind.is_rule() {
                part.shadowed |= claims.get(object).is_some_and(|it| claims.shadows(&it.object));
                before = claims.replace(object, now.as_ref());
            } else if object.kind == Kind::IptablesEip {
                part.eips.insert(object.name.clone());
            } else {
                ground_stays = false;
                continue;
            }
            for form in before.iter().chain(now) {
                part.claims.extend(claims::claims(&form.object));
            }
            match now {
                Some(now) => {
                    part.gone.remove(object);
                    part.now.insert(object.clone(), Arc::clone(now))
                }
                None => {
                    part.gone.insert(object.clone());
                    part.now.remove(object)
                }
            };
            part.before.extend(before);
        }
        ground_stays.then_some(part)
    }

    /// Replaces what is said about the objects of a part. Returns whether anything was or is.
    fn tell(&mut self, part: &Part, findings: Findings) -> bool {
        let ours = |object: &Option<ObjectRef>| object.as_ref().is_some_and(|it| part.has(it));
        let before = (self.rejections.len(), self.notes.len());
        self.rejections.retain(|rejection| !ours(&rejection.object));
        self.notes.retain(|note| !ours(&note.object));
        let mut told = before != (self.rejections.len(), self.notes.len());
        let Findings { rejections, notes, rejected, left_out } = findings;
        let gateway = self.gateway.as_str();
        let before = (self.rejections.len(), self.notes.len());
        self.rejections.extend(rejections.into_iter().filter(|it| concerns(&it.gateway, gateway)));
        self.notes.extend(notes.into_iter().filter(|note| concerns(&note.gateway, gateway)));
        told |= before != (self.rejections.len(), self.notes.len());
        if told {
            self.rejections.sort_by(|a, b| a.origin.cmp(&b.origin));
            self.notes.sort_by(|a, b| a.origin.cmp(&b.origin));
        }
        let active = &mut self.previous.active;
        for object in &part.gone {
            active.remove(object);
        }
        for (object, source) in &part.now {
            if rejected.contains(object) || left_out.contains(object) {
                active.remove(object);
            } else {
                active.insert(object.clone(), Arc::clone(source));
            }
        }
        told
    }
}

/// Objects that are resolved by themselves.
#[derive(Default)]
struct Part {
    /// What they want and what those before them wanted.
    claims: Vec<claims::Claim>,
    /// What the rules among them were before.
    before: Vec<Arc<SourceObject>>,
    /// What they are.
    now: BTreeMap<ObjectRef, Arc<SourceObject>>,
    /// Those that went.
    gone: BTreeSet<ObjectRef>,
    /// The EIPs among both, by name.
    eips: BTreeSet<String>,
    /// Whether a port forward and a floating IP are in each other's way.
    shadowed: bool,
}

impl Part {
    /// Adds the rules that name one of the EIPs, and those that are connected. `None` if these are too many,
    /// have no effect for another one's sake, or are of those that could not be read.
    fn complete(&mut self, ground: &Ground, claims: &Claims) -> Option<()> {
        for eip in &self.eips {
            for rule in claims.users(eip, FEW)? {
                self.claims.extend(claims::claims(&rule.object));
                self.now.insert(rule.object_ref(), Arc::clone(rule));
            }
            let had = ground.eips.addresses(eip).iter();
            self.claims.extend(had.copied().map(claims::Claim::Inside));
        }
        self.now.extend(claims.connected(self.claims.clone(), FEW)?);
        let few = self.now.len() + self.gone.len() <= FEW;
        let shadowed =
            self.shadowed || self.now.values().any(|source| claims.shadows(&source.object));
        let unsure = (ground.nameless && !self.gone.is_empty())
            || ground.unreadable.iter().any(|object| self.has(object));
        (few && !shadowed && !unsure).then_some(())
    }

    fn has(&self, object: &ObjectRef) -> bool {
        self.now.contains_key(object) || self.gone.contains(object)
    }

    /// What there is, in the order in which it is resolved.
    fn in_order(&self, active: &BTreeMap<ObjectRef, Arc<SourceObject>>) -> Vec<&Arc<SourceObject>> {
        let mut now: Vec<_> = self.now.iter().collect();
        now.sort_by_key(|(object, source)| {
            (!active.contains_key(*object), source.rank, &object.name)
        });
        now.into_iter().map(|(_, source)| source).collect()
    }

    /// Adds the entries of the rules, as they were and as they are, to those that are touched. Returns the
    /// addresses that the gateway has of the EIPs.
    fn touch(&self, eips: &Eips, gateway: &str, touched: &mut Touched) -> BTreeSet<IpAddr> {
        for form in self.before.iter().chain(self.now.values()) {
            touch(&form.object, eips, gateway, touched);
        }
        let names = self.eips.iter();
        names.flat_map(|name| eips.addresses_in(gateway, name)).copied().collect()
    }

    /// Whether one of them wants, or wanted, what the old form of another one has, or an EIP for
    /// something else, or is its EIP.
    fn wants_of(&self, old: Option<&Arc<SourceObject>>) -> bool {
        let Some(old) = old.map(|source| &source.object) else { return false };
        let theirs = claims::claims(old);
        let mut forms = self.before.iter().chain(self.now.values()).map(|source| &source.object);
        let shadows = |form: &Object| {
            form.kind() != old.kind() && claims::eip_of(form) == claims::eip_of(old)
        };
        claims::eip_of(old).is_some_and(|eip| self.eips.contains(eip))
            || self.claims.iter().any(|claim| theirs.contains(claim))
            || forms.any(|form| {
                shadows(form) || claims::claims(form).iter().any(|claim| theirs.contains(claim))
            })
    }
}

/// Replaces the touched rules of a state by those of another one.
fn put(touched: &Touched, from: &mut DesiredState, to: &mut DesiredState) {
    fn each<K: Ord + Copy, V>(
        keys: &BTreeSet<K>,
        from: &mut BTreeMap<K, V>,
        to: &mut BTreeMap<K, V>,
    ) {
        for key in keys {
            match from.remove(key) {
                Some(value) => to.insert(*key, value),
                None => to.remove(key),
            };
        }
    }
    each(&touched.fips, &mut from.fips, &mut to.fips);
    each(&touched.dnats, &mut from.dnats, &mut to.dnats);
    each(&touched.snats, &mut from.snats, &mut to.snats);
}

/// Takes over what a gateway has at these addresses. Returns whether that is something else than before.
fn put_eips(
    addresses: &BTreeSet<IpAddr>,
    eips: &Eips,
    gateway: &str,
    to: &mut BTreeMap<IpAddr, Eip>,
) -> bool {
    let mut differ = false;
    for address in addresses {
        let now = eips.held_by(gateway, *address);
        differ |= to.get(address) != now;
        match now {
            Some(eip) => to.insert(*address, eip.clone()),
            None => to.remove(address),
        };
    }
    differ
}

/// Adds the entries of a rule to those that are touched, if its EIP belongs to the gateway.
fn touch(object: &Object, eips: &Eips, gateway: &str, touched: &mut Touched) {
    let of = |name| eips.addresses_in(gateway, name);
    match object {
        Object::Fip(fip) => touched.fips.extend(of(&fip.spec.eip)),
        Object::Dnat(dnat) => {
            let spec = &dnat.spec;
            if let (Ok(port), Ok(protocol)) = (spec.external_port.0.parse(), spec.protocol.parse())
            {
                let keys = of(&spec.eip).iter().map(|eip| DnatKey { eip: *eip, protocol, port });
                touched.dnats.extend(keys);
            }
        }
        Object::Snat(snat) => {
            if let Ok(cidr) = value::cidr(&snat.spec.internal_cidr)
                && !of(&snat.spec.eip).is_empty()
            {
                touched.snats.insert(cidr.trunc());
            }
        }
        _ => {}
    }
}
