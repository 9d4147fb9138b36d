//! What one gateway shall do: `Snapshot -> DesiredState`, with everything that was rejected.
//!
//! Pure: no I/O, no clock, no randomness. The same objects give the same state in whatever order
//! they stand, unless two of them want the same thing. Then the one that is active already keeps
//! it, else the one that comes first, and the other is rejected naming both. A bad object is
//! rejected by itself; what depends on it is left out with a note.
//!
//! Rules of the house, where Kube-OVN or kubectl leaves a choice:
//!
//! - The same kind and name twice: the later one counts, as with `kubectl apply`.
//! - A bad field of a gateway (`lanIp`, a route) is rejected and the gateway goes on without it.
//! - An outside Subnet that is not in the input: a static EIP is a single address, unchecked; an
//!   EIP without an address waits for the Subnet.
//! - An EIP with an address of each family is two EIPs; a rule uses the one of its own family.
//! - A shared port has session affinity as soon as one of its rules asks for it.

mod allocation;
mod annotation;
mod behavior;
mod claims;
mod egress;
mod eip;
mod findings;
mod gateway;
mod next_hops;
mod placement;
mod replica;
mod resolve;
mod resolver;
mod rule;
mod selection;
mod selector;
mod state;
mod subnet;
pub(crate) mod value;
mod vpc;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

pub use self::allocation::{AllocationError, Allocations};
pub use self::egress::{Bfd, EgressGateway, Replica, hash_word};
pub use self::next_hops::{Hashes, NextHops, Router as NextHopRouter};
pub use self::replica::{Identity, NotAReplica, ReplicaName};
use self::resolve::resolve_once;
use self::resolver::Ground;
pub use self::resolver::{Resolver, Step};
pub use self::state::{
    Affinity, Backend, DesiredState, Dnat, DnatKey, Eip, Fip, Gateway, MAX_WEIGHT, NatBehavior,
    NatFiltering, NatMapping, Network, Owner, Port, Protocol, Sharing, Snat, SnatEip,
};
pub use self::vpc::{Action, End, Match, NextHop, Policy, RouteKey, Router};
use crate::crd::{DEFAULT_NAMESPACE, Kind, ObjectRef};
use crate::rejection::{Note, Rejection, Remark};
use crate::source::{Snapshot, SourceObject};

/// What the last resolution left behind, for the next one.
#[derive(Clone, Debug, Default)]
pub struct Previous {
    /// The addresses that were chosen. Kept across restarts.
    pub allocations: Allocations,
    /// The objects that are acted upon. They win conflicts, and go on when their new form is bad.
    pub active: BTreeMap<ObjectRef, Arc<SourceObject>>,
}

/// The result of [`resolve`].
#[derive(Clone, Debug)]
pub struct Resolution {
    /// What the gateway shall do; `None` if there is no such `VpcNatGateway` in the input.
    pub state: Option<DesiredState>,
    /// The egress gateway of that name.
    pub egress: Option<EgressGateway>,
    /// What is not acted upon, in the order of the input.
    pub rejections: Vec<Rejection>,
    /// What the user may want to know, in the order of the input.
    pub notes: Vec<Note>,
    /// The addresses of all EIPs without one of their own, to be kept.
    pub allocations: Allocations,
    /// For [`Previous::active`] of the next [`resolve_after`].
    pub active: BTreeMap<ObjectRef, Arc<SourceObject>>,
    /// What the rules stand on.
    ground: Ground,
}

/// The result of [`resolve_all`].
#[derive(Clone, Debug)]
pub struct Resolutions {
    /// What each gateway of the input shall do, by its name.
    pub states: BTreeMap<String, DesiredState>,
    /// The egress gateways of the input, by their names.
    pub egress: BTreeMap<String, EgressGateway>,
    /// The routes of the VPCs of the input, by their names.
    pub routers: BTreeMap<String, Router>,
    /// What is not acted upon, in the order of the input.
    pub rejections: Vec<Rejection>,
    /// What the user may want to know, in the order of the input.
    pub notes: Vec<Note>,
    /// The addresses of all EIPs without one of their own, to be kept.
    pub allocations: Allocations,
    /// The objects that are acted upon.
    pub active: BTreeMap<ObjectRef, Arc<SourceObject>>,
    /// The objects with a rejection of their own.
    rejected: BTreeSet<ObjectRef>,
    /// What the rules stand on.
    ground: Ground,
}

/// Resolves the objects of one gateway. What concerns other gateways is not reported.
#[must_use]
pub fn resolve(snapshot: &Snapshot, gateway: &str, previous: &Allocations) -> Resolution {
    let allocations = previous.clone();
    resolve_after(snapshot, gateway, &Previous { allocations, active: BTreeMap::new() })
}

/// As [`resolve`], for a gateway that is running: nothing that is active is lost by a mistake.
///
/// An active object whose new form is rejected, or whose document can no longer be read, goes on
/// in its old form until it is corrected or removed.
#[must_use]
pub fn resolve_after(snapshot: &Snapshot, gateway: &str, previous: &Previous) -> Resolution {
    let mut all = resolve_all(snapshot, previous);
    all.rejections.retain(|rejection| concerns(&rejection.gateway, gateway));
    all.notes.retain(|note| concerns(&note.gateway, gateway));
    Resolution {
        state: all.states.remove(gateway),
        egress: all.egress.remove(egress_name(gateway)),
        rejections: all.rejections,
        notes: all.notes,
        allocations: all.allocations,
        active: all.active,
        ground: all.ground,
    }
}

/// Whether what belongs to `of`, or to nobody in particular, is a matter of that gateway.
fn concerns(of: &Option<String>, gateway: &str) -> bool {
    of.as_ref().is_none_or(|name| name == gateway || name == egress_name(gateway))
}

/// The name of the egress gateway that is meant by `NAME` or `NAMESPACE/NAME`, as
/// [`Kind::qualified`] has it.
#[must_use]
pub fn egress_name(gateway: &str) -> &str {
    match gateway.split_once('/') {
        Some((DEFAULT_NAMESPACE, name)) => name,
        _ => gateway,
    }
}

impl Resolution {
    /// Makes the state that of a replica, if the gateway is an egress gateway.
    ///
    /// # Errors
    ///
    /// When it cannot be told which replica is meant.
    pub fn as_replica(mut self, identity: &Identity) -> Result<Self, NotAReplica> {
        if let (None, Some(egress)) = (&self.state, &self.egress) {
            let (state, notes) = egress.replica(identity)?;
            self.state = Some(state);
            self.notes.extend(notes);
        }
        Ok(self)
    }
}

/// Resolves all gateways of the input at once; see [`resolve_after`].
#[must_use]
pub fn resolve_all(snapshot: &Snapshot, previous: &Previous) -> Resolutions {
    let mut patched = snapshot.clone();
    let mut kept: BTreeMap<ObjectRef, Arc<SourceObject>> = BTreeMap::new();
    let mut reported: Vec<Rejection> = Vec::new();
    loop {
        let mut all = resolve_once(&patched, previous);
        let fresh = to_keep(&patched, &all, previous, &kept);
        if fresh.is_empty() {
            // An old form may be wrong by now too, as when its EIP went; a gateway goes on all the same.
            let all_of_them = kept.len();
            kept.retain(|object, _| {
                object.kind == Kind::VpcNatGateway || !all.rejected.contains(object)
            });
            all.ground.lost = kept.len() < all_of_them;
            all.notes.extend(kept.iter().map(|(object, source)| Note {
                origin: source.origin.clone(),
                object: Some(object.clone()),
                field: None,
                gateway: None,
                remark: Remark::KeptAsBefore,
            }));
            // The old forms are free of these.
            reported.retain(|rejection| !all.rejections.contains(rejection));
            all.rejections.append(&mut reported);
            all.rejections.sort_by(|a, b| a.origin.cmp(&b.origin));
            // A gateway is acted upon whatever is wrong with one of its fields: were it not active,
            // the next round would lose it.
            all.ground.kept = kept.keys().cloned().collect();
            all.active.extend(kept.into_iter().filter(|(object, _)| {
                object.kind == Kind::VpcNatGateway && all.states.contains_key(&object.name)
            }));
            return all;
        }
        let replaced = |rejection: &Rejection| {
            rejection.object.as_ref().is_some_and(|object| fresh.contains_key(object))
        };
        reported.extend(all.rejections.into_iter().filter(replaced));
        patched.objects.retain(|source| !fresh.contains_key(&source.object_ref()));
        patched.objects.extend(fresh.values().cloned());
        kept.extend(fresh);
    }
}

/// The active objects that are to go on in their old form and do not yet.
fn to_keep(
    snapshot: &Snapshot,
    all: &Resolutions,
    previous: &Previous,
    kept: &BTreeMap<ObjectRef, Arc<SourceObject>>,
) -> BTreeMap<ObjectRef, Arc<SourceObject>> {
    if all.rejections.is_empty() || previous.active.is_empty() {
        return BTreeMap::new();
    }
    let present: BTreeSet<_> = snapshot.objects.iter().map(|source| source.object_ref()).collect();
    let (mut named, mut files) = (BTreeSet::new(), BTreeSet::new());
    for rejection in &snapshot.rejections {
        match &rejection.object {
            Some(object) => named.insert(object.clone()),
            None => files.insert(&rejection.origin.source),
        };
    }
    let unreadable = |object: &ObjectRef, source: &SourceObject| {
        !present.contains(object)
            && (named.contains(object) || files.contains(&source.origin.source))
    };
    previous
        .active
        .iter()
        .filter(|(object, source)| {
            !kept.contains_key(*object)
                && (all.rejected.contains(*object) || unreadable(object, source))
        })
        .map(|(object, source)| (object.clone(), Arc::clone(source)))
        .collect()
}
