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

mod allocation;
mod state;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use self::allocation::{AllocationError, Allocations};
pub use self::state::{
    Backend, DesiredState, Dnat, DnatKey, Eip, Fip, Gateway, Network, Owner, Port, Protocol,
    Sharing, Snat, SnatEip,
};
use crate::crd::ObjectRef;
use crate::rejection::{Note, Rejection};
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
    /// What the gateway shall do; `None` if there is no such gateway in the input.
    pub state: Option<DesiredState>,
    /// What is not acted upon, in the order of the input.
    pub rejections: Vec<Rejection>,
    /// What the user may want to know, in the order of the input.
    pub notes: Vec<Note>,
    /// The addresses of all EIPs without one of their own, to be kept.
    pub allocations: Allocations,
    /// To be given to the next [`resolve_after`].
    pub active: BTreeMap<ObjectRef, Arc<SourceObject>>,
}

/// Resolves the objects of one gateway. Objects of other gateways are not reported.
#[must_use]
pub fn resolve(snapshot: &Snapshot, gateway: &str, previous: &Allocations) -> Resolution {
    let allocations = previous.clone();
    resolve_after(snapshot, gateway, &Previous { allocations, active: BTreeMap::new() })
}

/// As [`resolve`], for a gateway that is running: nothing that is active is lost by a mistake.
#[must_use]
pub fn resolve_after(snapshot: &Snapshot, gateway: &str, previous: &Previous) -> Resolution {
    let _ = gateway;
    Resolution {
        state: None,
        rejections: snapshot.rejections.clone(),
        notes: snapshot.notes.clone(),
        allocations: previous.allocations.clone(),
        active: BTreeMap::new(),
    }
}
