//! Resolves the objects of one gateway again and again, and a few changed rules by themselves.
//!
//! Everything but rules (EIPs, subnets, gateways) is the ground that rules stand on: if that changes,
//! everything is resolved again, and so it is whenever a rule that is active would be rejected, because
//! then the old form has to go on. What comes out is what [`super::resolve_after`] would say in every case:
//! the tests compare both.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::claims::{self, Claims};
use super::eip::{Eips, Named};
use super::findings::Findings;
use super::resolve::resolve_rules;
use super::selection::{Chooser, Chosen};
use super::{Allocations, DesiredState, DnatKey, Gateway, Previous, Resolution, value};
use super::{EgressGateway, Identity, concerns, resolve_after};
use crate::crd::{Object, ObjectRef};
use crate::encode::part::Touched;
use crate::rejection::{Note, Rejection};
use crate::source::pods::Pods;
use crate::source::{Changed, Snapshot, SourceObject};

/// Up to so many rules that hang together are resolved by themselves.
const FEW: usize = 256;

/// What rules stand on.
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
    /// The objects that go on in an old form.
    pub(super) kept: BTreeSet<ObjectRef>,
    /// Whether one that did has lost that form too: then the next time all is told differently.
    pub(super) lost: bool,
}

impl Ground {
    /// Whether rules can be resolved on it one by one.
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

/// What a few changed rules come to.
#[derive(Clone, Debug, Default)]
pub struct Step {
    /// The rules of the gateway that may differ.
    pub touched: Touched,
    /// Whether rejections or notes may differ.
    pub told: bool,
}

impl Step {
    /// Adds what came afterwards.
    pub fn extend(&mut self, later: Self) {
        self.touched.extend(later.touched);
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
        let (ground, claims) = (self.ground.take()?, self.claims.as_ref()?);
        part.rules.extend(claims.connected(part.claims.clone(), FEW)?);
        part.shadowed |= part.rules.values().any(|source| claims.shadows(&source.object));
        let objects: BTreeSet<_> = part.gone.iter().chain(part.rules.keys()).collect();
        let active = &self.previous.active;
        let kept = |object| objects.contains(object) || part.wants_of(active.get(object));
        if part.shadowed || objects.len() > FEW || ground.kept.iter().any(kept) {
            return None;
        }
        let mut rules: Vec<_> = part.rules.iter().collect();
        rules.sort_by_key(|(object, source)| {
            (!active.contains_key(*object), source.rank, &object.name)
        });
        let sources: Vec<_> = rules.into_iter().map(|(_, source)| source).collect();
        let (mut states, findings) = resolve_rules(&ground, &sources);
        if findings.rejected.iter().any(|object| active.contains_key(object)) {
            return None;
        }
        let mut touched = Touched::default();
        for form in part.before.iter().chain(part.rules.values()) {
            touch(&form.object, &ground.eips, &self.gateway, &mut touched);
        }
        if let Some(state) = states.get_mut(&self.gateway) {
            put(&touched, state, desired);
        }
        let told = self.tell(&part, findings);
        self.ground = Some(ground);
        Some(Step { touched, told })
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
        Some(Step { touched: Touched { snats, ..Touched::default() }, told })
    }

    /// Takes over which rules there are. `None` if something else than rules changed.
    fn take_over(&mut self, changes: &[Changed]) -> Option<Part> {
        let claims = self.claims.as_mut()?;
        let (mut part, mut only_rules) = (Part::default(), true);
        for Changed { object, now } in changes {
            if !object.kind.is_rule() {
                only_rules = false;
                continue;
            }
            part.shadowed |= claims.get(object).is_some_and(|it| claims.shadows(&it.object));
            let before = claims.replace(object, now.as_ref());
            for form in before.iter().chain(now) {
                part.claims.extend(claims::claims(&form.object));
            }
            match now {
                Some(now) => {
                    part.gone.remove(object);
                    part.rules.insert(object.clone(), Arc::clone(now))
                }
                None => {
                    part.gone.insert(object.clone());
                    part.rules.remove(object)
                }
            };
            part.before.extend(before);
        }
        only_rules.then_some(part)
    }

    /// Replaces what is said about the rules of a part. Returns whether anything was or is.
    fn tell(&mut self, part: &Part, findings: Findings) -> bool {
        let ours = |object: &Option<ObjectRef>| {
            let object = object.as_ref();
            object.is_some_and(|it| part.rules.contains_key(it) || part.gone.contains(it))
        };
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
        for (object, source) in &part.rules {
            if rejected.contains(object) || left_out.contains(object) {
                active.remove(object);
            } else {
                active.insert(object.clone(), Arc::clone(source));
            }
        }
        told
    }
}

/// Rules that are resolved by themselves.
#[derive(Default)]
struct Part {
    /// What they want and what those before them wanted.
    claims: Vec<claims::Claim>,
    /// What they were before.
    before: Vec<Arc<SourceObject>>,
    /// What they are.
    rules: BTreeMap<ObjectRef, Arc<SourceObject>>,
    /// Those that went.
    gone: BTreeSet<ObjectRef>,
    /// Whether a port forward and a floating IP are in each other's way.
    shadowed: bool,
}

impl Part {
    /// Whether one of the rules wants, or wanted, what the old form of another one has, or an EIP for
    /// something else.
    fn wants_of(&self, old: Option<&Arc<SourceObject>>) -> bool {
        let Some(old) = old.map(|source| &source.object) else { return false };
        let theirs = claims::claims(old);
        let mut forms = self.before.iter().chain(self.rules.values()).map(|source| &source.object);
        let shadows = |form: &Object| {
            form.kind() != old.kind() && claims::eip_of(form) == claims::eip_of(old)
        };
        self.claims.iter().any(|claim| theirs.contains(claim))
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

/// Adds the entries of a rule to those that are touched, if its EIP belongs to the gateway.
fn touch(object: &Object, eips: &Eips, gateway: &str, touched: &mut Touched) {
    let of = |name: &str| -> Vec<IpAddr> {
        match eips.named(name) {
            Some(Named::Accepted { gateway: holder, addresses }) if holder == gateway => {
                addresses.clone()
            }
            _ => Vec::new(),
        }
    };
    match object {
        Object::Fip(fip) => touched.fips.extend(of(&fip.spec.eip)),
        Object::Dnat(dnat) => {
            let spec = &dnat.spec;
            if let (Ok(port), Ok(protocol)) = (spec.external_port.0.parse(), spec.protocol.parse())
            {
                let keys = of(&spec.eip).into_iter().map(|eip| DnatKey { eip, protocol, port });
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
