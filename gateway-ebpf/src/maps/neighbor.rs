//! The neighbours that XDP knows.

use core::ffi::c_void;

use aya_ebpf::{
    btf_maps::{HashMap, PerCpuArray},
    helpers::generated::bpf_map_lookup_elem,
    macros::btf_map,
};
use gateway_common::{
    family::{Family, V4, V6},
    neighbor::{KnownNeighbor, NEAR},
    records::{Neighbor, Ticks, USED_TICKS},
    session::elapsed,
    verdict::NextHop,
};

use super::ON_DEMAND;

/// Most neighbours that XDP knows; what goes to others is left to TC.
const NEIGHBOR_ENTRIES: usize = 1 << 14;

/// Places for neighbours that a CPU remembers.
const NEAR_ENTRIES: usize = NEAR as usize;

type Neighbors<F> = HashMap<NextHop<F>, Neighbor, NEIGHBOR_ENTRIES, ON_DEMAND>;
type Near<F> = PerCpuArray<KnownNeighbor<F>, NEAR_ENTRIES>;

// Kept up to date by the daemon.
#[btf_map]
static NEIGHBORS_V4: Neighbors<V4> = HashMap::new();
#[btf_map]
static NEIGHBORS_V6: Neighbors<V6> = HashMap::new();
// What a CPU remembers of them: shared with nobody.
#[btf_map]
static NEAR_V4: Near<V4> = PerCpuArray::new();
#[btf_map]
static NEAR_V6: Near<V6> = PerCpuArray::new();

/// The neighbour behind a next hop, which is in use from `now` on. `until` says which neighbours this CPU
/// may remember.
#[inline(always)]
pub(crate) fn neighbor<F: Family>(
    next_hop: &NextHop<F>,
    until: Ticks,
    now: Ticks,
) -> Option<&'static Neighbor> {
    let map: *const c_void =
        if F::BITS == V4::BITS { (&raw const NEAR_V4).cast() } else { (&raw const NEAR_V6).cast() };
    let place = KnownNeighbor::place(next_hop);
    // SAFETY: values of the map are `KnownNeighbor<F>`. The slot belongs to this CPU, and nothing interrupts
    // the program there.
    let known = unsafe {
        let known = bpf_map_lookup_elem(map.cast_mut(), (&raw const place).cast());
        known.cast::<KnownNeighbor<F>>().as_mut()?
    };
    if !known.holds(next_hop, until, now) {
        known.set(next_hop, look_up_neighbor(next_hop, now)?, until);
    }
    Some(&known.neighbor)
}

#[inline(always)]
fn look_up_neighbor<F: Family>(next_hop: &NextHop<F>, now: Ticks) -> Option<&'static Neighbor> {
    let map: *const c_void = if F::BITS == V4::BITS {
        (&raw const NEIGHBORS_V4).cast()
    } else {
        (&raw const NEIGHBORS_V6).cast()
    };
    let key: *const c_void = (&raw const *next_hop).cast();
    // SAFETY: keys of the map are `NextHop<F>`, its values `Neighbor`. An entry stays readable until
    // the program ends (RCU); losing one of two writes of its only field that is written is harmless.
    unsafe {
        let entry = bpf_map_lookup_elem(map.cast_mut(), key).cast::<Neighbor>();
        let entry = entry.as_mut()?;
        if elapsed(now, entry.used) > USED_TICKS {
            entry.used = now;
        }
        Some(entry)
    }
}
