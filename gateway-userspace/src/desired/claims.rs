//! Which rules can get into each other's way: an index of rules by what they want.
//!
//! Rules that share no claim, directly or by others between them, say nothing about each other. So when one
//! changes, those that it is connected with are resolved again and no others.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::value;
use super::{Port, Protocol};
use crate::crd::{Kind, Object, ObjectRef};
use crate::source::SourceObject;

/// What only one rule can have, or what several have together. EIPs are named by their objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Claim {
    /// The floating IP of an EIP.
    Fip(String),
    /// The floating IP for an inside address, which must not be that of an EIP.
    Inside(IpAddr),
    /// A port of an EIP.
    Port(String, Port, Protocol),
    /// A source.
    Source(IpNet),
}

/// What a rule or an EIP wants, as far as it can be told. Those that are wrong want nothing.
pub(super) fn claims(object: &Object) -> Vec<Claim> {
    match object {
        Object::Fip(fip) => {
            let inside = value::address(&fip.spec.internal_ip).ok().map(Claim::Inside);
            [Some(Claim::Fip(fip.spec.eip.clone())), inside].into_iter().flatten().collect()
        }
        Object::Dnat(dnat) => {
            let spec = &dnat.spec;
            match (spec.external_port.0.parse(), spec.protocol.parse()) {
                (Ok(port), Ok(protocol)) => vec![Claim::Port(spec.eip.clone(), port, protocol)],
                _ => Vec::new(),
            }
        }
        Object::Snat(snat) => {
            let source = value::cidr(&snat.spec.internal_cidr);
            source.map(|cidr| Claim::Source(cidr.trunc())).into_iter().collect()
        }
        Object::Eip(eip) => {
            let texts = [&eip.spec.v4ip, &eip.spec.v6ip, &eip.status.ip];
            texts
                .into_iter()
                .filter_map(|text| value::address(text).ok())
                .map(Claim::Inside)
                .collect()
        }
        _ => Vec::new(),
    }
}

/// The EIP that a rule names.
pub(super) fn eip_of(object: &Object) -> Option<&str> {
    match object {
        Object::Fip(fip) => Some(&fip.spec.eip),
        Object::Dnat(dnat) => Some(&dnat.spec.eip),
        Object::Snat(snat) => Some(&snat.spec.eip),
        _ => None,
    }
}

/// All rules of a snapshot by name, by claim and by the EIP that they name.
#[derive(Debug, Default)]
pub(super) struct Claims {
    rules: BTreeMap<ObjectRef, Arc<SourceObject>>,
    holders: HashMap<Claim, Vec<Arc<SourceObject>>>,
    users: HashMap<String, BTreeSet<ObjectRef>>,
}

impl Claims {
    /// The rules among the objects; `None` if one is there twice.
    pub(super) fn of(objects: &[Arc<SourceObject>]) -> Option<Self> {
        let mut all = Self::default();
        for source in objects.iter().filter(|source| source.object.kind().is_rule()) {
            if all.replace(&source.object_ref(), Some(source)).is_some() {
                return None;
            }
        }
        Some(all)
    }

    /// The rule of that name.
    pub(super) fn get(&self, object: &ObjectRef) -> Option<&Arc<SourceObject>> {
        self.rules.get(object)
    }

    /// Replaces, adds or removes a rule. Returns what it was before.
    pub(super) fn replace(
        &mut self,
        object: &ObjectRef,
        now: Option<&Arc<SourceObject>>,
    ) -> Option<Arc<SourceObject>> {
        let before = match now {
            Some(now) => self.rules.insert(object.clone(), Arc::clone(now)),
            None => self.rules.remove(object),
        };
        if let Some(before) = &before {
            for claim in claims(&before.object) {
                if let Some(holders) = self.holders.get_mut(&claim) {
                    holders.retain(|holder| !Arc::ptr_eq(holder, before));
                    if holders.is_empty() {
                        self.holders.remove(&claim);
                    }
                }
            }
            if let Some(eip) = eip_of(&before.object)
                && let Some(users) = self.users.get_mut(eip)
            {
                users.remove(object);
                if users.is_empty() {
                    self.users.remove(eip);
                }
            }
        }
        if let Some(now) = now {
            for claim in claims(&now.object) {
                self.holders.entry(claim).or_default().push(Arc::clone(now));
            }
            if let Some(eip) = eip_of(&now.object) {
                self.users.entry(eip.to_owned()).or_default().insert(object.clone());
            }
        }
        before
    }

    /// The rules that name an EIP, unless there are more than `most`.
    pub(super) fn users(&self, eip: &str, most: usize) -> Option<Vec<&Arc<SourceObject>>> {
        let Some(users) = self.users.get(eip) else { return Some(Vec::new()) };
        (users.len() <= most).then(|| users.iter().filter_map(|rule| self.get(rule)).collect())
    }

    /// Whether the EIP of a rule has both a floating IP and port forwards, which then have no effect.
    pub(super) fn shadows(&self, object: &Object) -> bool {
        let eip = eip_of(object).filter(|_| object.kind() != Kind::IptablesSnatRule);
        let Some(users) = eip.and_then(|eip| self.users.get(eip)) else { return false };
        let has = |kind| {
            let first = users.range(ObjectRef::new(kind, "")..).next();
            first.is_some_and(|rule| rule.kind == kind)
        };
        has(Kind::IptablesFipRule) && has(Kind::IptablesDnatRule)
    }

    /// All rules that are connected with these claims, unless there are more than `most`.
    pub(super) fn connected(
        &self,
        mut open: Vec<Claim>,
        most: usize,
    ) -> Option<BTreeMap<ObjectRef, Arc<SourceObject>>> {
        let mut seen: BTreeSet<*const SourceObject> = BTreeSet::new();
        let mut found = BTreeMap::new();
        let mut done: Vec<Claim> = Vec::new();
        while let Some(claim) = open.pop() {
            if done.contains(&claim) {
                continue;
            }
            for holder in self.holders.get(&claim).into_iter().flatten() {
                if seen.insert(Arc::as_ptr(holder)) {
                    open.extend(claims(&holder.object));
                    found.insert(holder.object_ref(), Arc::clone(holder));
                }
                if found.len() > most {
                    return None;
                }
            }
            done.push(claim);
        }
        Some(found)
    }
}
