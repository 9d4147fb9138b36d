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
use crate::crd::{Object, ObjectRef};
use crate::source::SourceObject;

/// What only one rule can have, or what several have together. EIPs are named by their objects.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Claim {
    /// The floating IP of an EIP.
    Fip(String),
    /// The floating IP for an inside address.
    Inside(IpAddr),
    /// A port of an EIP.
    Port(String, Port, Protocol),
    /// A source.
    Source(IpNet),
}

/// What a rule wants, as far as it can be told. Rules that are wrong want nothing.
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
        _ => Vec::new(),
    }
}

/// The EIP of a floating IP or of a port forward.
pub(super) fn eip_of(object: &Object) -> Option<&str> {
    match object {
        Object::Fip(fip) => Some(&fip.spec.eip),
        Object::Dnat(dnat) => Some(&dnat.spec.eip),
        _ => None,
    }
}

/// How many floating IPs and port forwards name an EIP.
#[derive(Clone, Copy, Debug, Default)]
struct Users {
    fips: usize,
    dnats: usize,
}

/// All rules of a snapshot by name and by claim.
#[derive(Debug, Default)]
pub(super) struct Claims {
    rules: BTreeMap<ObjectRef, Arc<SourceObject>>,
    holders: HashMap<Claim, Vec<Arc<SourceObject>>>,
    users: HashMap<String, Users>,
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
            self.count(&before.object, |count| *count -= 1);
        }
        if let Some(now) = now {
            for claim in claims(&now.object) {
                self.holders.entry(claim).or_default().push(Arc::clone(now));
            }
            self.count(&now.object, |count| *count += 1);
        }
        before
    }

    fn count(&mut self, object: &Object, step: impl FnOnce(&mut usize)) {
        let Some(eip) = eip_of(object) else { return };
        let users = self.users.entry(eip.to_owned()).or_default();
        step(if matches!(object, Object::Fip(_)) { &mut users.fips } else { &mut users.dnats });
        if users.fips + users.dnats == 0 {
            self.users.remove(eip);
        }
    }

    /// Whether the EIP of a rule has both a floating IP and port forwards, which then have no effect.
    pub(super) fn shadows(&self, object: &Object) -> bool {
        let users = eip_of(object).and_then(|eip| self.users.get(eip));
        users.is_some_and(|users| users.fips > 0 && users.dnats > 0)
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
