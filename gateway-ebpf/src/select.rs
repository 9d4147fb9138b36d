//! The maps of the selector, and [`Groups`] over them.

use aya_ebpf::{
    bindings::{__sk_buff, BPF_F_NO_PREALLOC, TC_ACT_SHOT},
    btf_maps::{HashMap, LpmTrie, PerCpuArray, lpm_trie::Key},
    macros::btf_map,
};
use gateway_common::{
    family::{Family, V4, V6},
    nexthop::{ChoiceKey, Group, MEMBER_IDS, Member},
    pipeline::Arrival,
    records::Counter,
    select::{self, Groups},
    tuple::Direction,
    verdict::DropReason,
};

use crate::{
    action, clock,
    maps::{self, Desk, Maps},
    packet::{self, SkbPacket},
};

/// Most networks that sources, or destinations, are told apart by.
const PREFIX_ENTRIES: usize = 1 << 14;

/// Most pairs of networks.
const CHOICE_ENTRIES: usize = 1 << 16;

/// Most groups.
const GROUP_ENTRIES: usize = 256;

// Entries are replaced whole; memory that is taken anew keeps a reader from seeing half of each.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

type Prefixes<F> = LpmTrie<<F as Family>::Addr, u32, PREFIX_ENTRIES>;
type Members<F> = HashMap<u32, Member<F>, MEMBER_IDS, ON_DEMAND>;

#[btf_map]
static SOURCES_V4: Prefixes<V4> = LpmTrie::new();
#[btf_map]
static SOURCES_V6: Prefixes<V6> = LpmTrie::new();
#[btf_map]
static DESTINATIONS_V4: Prefixes<V4> = LpmTrie::new();
#[btf_map]
static DESTINATIONS_V6: Prefixes<V6> = LpmTrie::new();
#[btf_map]
static CHOICES: HashMap<ChoiceKey, u32, CHOICE_ENTRIES, ON_DEMAND> = HashMap::new();
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
    const SOURCES: &'static Prefixes<Self>;
    const DESTINATIONS: &'static Prefixes<Self>;
    const MEMBERS: &'static Members<Self>;
}

impl SelectMaps for V4 {
    const SOURCES: &'static Prefixes<V4> = &SOURCES_V4;
    const DESTINATIONS: &'static Prefixes<V4> = &DESTINATIONS_V4;
    const MEMBERS: &'static Members<V4> = &MEMBERS_V4;
}

impl SelectMaps for V6 {
    const SOURCES: &'static Prefixes<V6> = &SOURCES_V6;
    const DESTINATIONS: &'static Prefixes<V6> = &DESTINATIONS_V6;
    const MEMBERS: &'static Members<V6> = &MEMBERS_V6;
}

struct KernelGroups;

impl<F: SelectMaps> Groups<F> for KernelGroups {
    #[inline(always)]
    fn source(&mut self, address: &F::Addr) -> u32 {
        F::SOURCES.get(&Key::new(F::BITS, *address)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn destination(&mut self, address: &F::Addr) -> u32 {
        F::DESTINATIONS.get(&Key::new(F::BITS, *address)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn choice(&mut self, key: &ChoiceKey) -> Option<u32> {
        // SAFETY: the entry stays readable until the program ends; only user space writes it.
        unsafe { CHOICES.get(*key) }.copied()
    }

    #[inline(always)]
    fn group(&mut self, id: u32) -> Option<&Group> {
        // SAFETY: as in `choice`.
        unsafe { GROUPS.get(id) }
    }

    #[inline(always)]
    fn member(&mut self, id: u32) -> Option<&Member<F>> {
        // SAFETY: as in `choice`.
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
        now: clock::now(),
        ifindex: packet.ifindex(),
        direction: Direction::Outbound,
        frame_bytes: packet::frame_bytes(skb),
    };
    let Some(Desk { work, neighbor }) = maps::desk::<F>() else {
        maps::count(DropReason::NotConfigured.counter(), arrival.frame_bytes);
        return TC_ACT_SHOT;
    };
    let verdict = select::process(work, &mut packet, &mut KernelGroups, &arrival);
    action::apply(&verdict, &work.rewrite.next_hop, neighbor, arrival.frame_bytes)
}
