//! The maps of the selector, and [`Groups`] over them.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_NO_PREALLOC, TC_ACT_SHOT},
    btf_maps::{HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    helpers::generated::bpf_ktime_get_coarse_ns,
    macros::btf_map,
};
use gateway_common::{
    family::{Family, V4, V6},
    nexthop::{Group, MEMBER_IDS, Member},
    pipeline::Arrival,
    records::{Counter, ticks_from_ns},
    select::{self, Groups},
    tuple::Direction,
    verdict::DropReason,
};

use crate::{
    action,
    maps::{self, Maps},
    packet::{self, SkbPacket},
};

/// Most prefixes: of tenants that groups serve, or inside the VPC.
const PREFIX_ENTRIES: usize = 1 << 14;

/// Most groups.
const GROUP_ENTRIES: usize = 256;

// Entries are replaced whole; memory that is taken anew keeps a reader from seeing half of each.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

type Prefixes<F> = LpmTrie<<F as Family>::Addr, u32, PREFIX_ENTRIES>;
type Members<F> = HashMap<u32, Member<F>, MEMBER_IDS, ON_DEMAND>;

#[btf_map]
static SELECT_V4: Prefixes<V4> = LpmTrie::new();
#[btf_map]
static SELECT_V6: Prefixes<V6> = LpmTrie::new();
#[btf_map]
static INSIDE_V4: Prefixes<V4> = LpmTrie::new();
#[btf_map]
static INSIDE_V6: Prefixes<V6> = LpmTrie::new();
#[btf_map]
static GROUPS: HashMap<u32, Group, GROUP_ENTRIES, ON_DEMAND> = HashMap::new();
#[btf_map]
static MEMBERS_V4: Members<V4> = HashMap::new();
#[btf_map]
static MEMBERS_V6: Members<V6> = HashMap::new();
#[btf_map]
static MEMBER_COUNTERS: PerCpuArray<Counter, MEMBER_IDS> = PerCpuArray::new();

/// A family's maps of the selector.
pub(crate) trait SelectMaps: Maps {
    const SELECT: &'static Prefixes<Self>;
    const INSIDE: &'static Prefixes<Self>;
    const MEMBERS: &'static Members<Self>;
}

impl SelectMaps for V4 {
    const SELECT: &'static Prefixes<V4> = &SELECT_V4;
    const INSIDE: &'static Prefixes<V4> = &INSIDE_V4;
    const MEMBERS: &'static Members<V4> = &MEMBERS_V4;
}

impl SelectMaps for V6 {
    const SELECT: &'static Prefixes<V6> = &SELECT_V6;
    const INSIDE: &'static Prefixes<V6> = &INSIDE_V6;
    const MEMBERS: &'static Members<V6> = &MEMBERS_V6;
}

struct KernelGroups;

impl<F: SelectMaps> Groups<F> for KernelGroups {
    #[inline(always)]
    fn is_inside(&mut self, destination: &F::Addr) -> bool {
        F::INSIDE.get(&Key::new(F::BITS, *destination)).is_some()
    }

    #[inline(always)]
    fn group(&mut self, source: &F::Addr) -> Option<&Group> {
        let id = *F::SELECT.get(&Key::new(F::BITS, *source))?;
        // SAFETY: the entry stays readable until the program ends; only user space writes it.
        unsafe { GROUPS.get(id) }
    }

    #[inline(always)]
    fn member(&mut self, id: u32) -> Option<&Member<F>> {
        // SAFETY: as in `group`.
        unsafe { F::MEMBERS.get(id) }
    }

    #[inline(always)]
    fn count_member(&mut self, id: u32, bytes: u32) {
        maps::add(MEMBER_COUNTERS.get_ptr_mut(id), bytes);
    }
}

/// Sends a frame of a tenant to a gateway.
#[inline(always)]
pub(crate) fn run<F: SelectMaps>(skb: *mut __sk_buff) -> i32 {
    let mut packet = SkbPacket::new(skb);
    let arrival = Arrival {
        // SAFETY: a helper without arguments.
        now: ticks_from_ns(unsafe { bpf_ktime_get_coarse_ns() }),
        ifindex: packet.ifindex(),
        direction: Direction::Outbound,
        frame_bytes: packet::frame_bytes(skb),
    };
    let Some(work) = maps::work::<F>() else {
        maps::count(DropReason::NotConfigured.counter(), arrival.frame_bytes);
        return TC_ACT_SHOT;
    };
    let verdict = select::process(work, &mut packet, &mut KernelGroups, &arrival);
    action::apply(&verdict, &work.rewrite.next_hop, arrival.frame_bytes)
}
