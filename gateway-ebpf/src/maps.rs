//! The maps, and [`Tables`] over them and the kernel's routing table.

mod family;
mod neighbor;
mod route;

use core::{
    ffi::c_void,
    intrinsics::{AtomicOrdering, atomic_xadd},
    marker::PhantomData,
};

use aya_ebpf::{
    bindings::{
        BPF_ANY, BPF_F_NO_PREALLOC, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_NOT_FWDED, BPF_FIB_LKUP_RET_SUCCESS, BPF_NOEXIST, bpf_redir_neigh,
    },
    btf_maps::{Array, DevMapHash, HashMap, LpmTrie, LruHashMap, PerCpuArray, lpm_trie::Key},
    helpers::generated::{bpf_for_each_map_elem, bpf_get_prandom_u32},
    macros::btf_map,
};
use gateway_common::{
    family::{Family, V4, V6},
    fragment,
    known_route::{self, KnownRoute},
    mapping::PortWalk,
    nexthop::NextHopGroup,
    packet::Packet,
    pipeline::{Outcome, PacketStage, Passage, Stage, Work},
    records::{
        Backend, Config, Counter, Datagram, DatagramKey, Dnat, DnatKey, Draining, Eip, Fip, FipKey,
        HeldKey, Host, Identification, Mapping, MappingKey, Pool, PoolMember, Rule, Session, Slots,
        Ticks, XdpFacts,
    },
    sweep::NO_RULE,
    tables::{ClaimError, EipEvent, Route, RouteQuery, Tables},
    tuple::Tuple,
    verdict::{COUNTERS as COUNTER_SLOTS, NextHop, Tries},
};

pub(crate) use self::{family::Maps, neighbor::neighbor};
use crate::{
    counts,
    held::{self, Held},
    stages::Hook,
    users,
};

/// Default size of a session map: two entries for each of 262 144 flows, as many as conntrack takes
/// by default. Entries cost memory when they are made, but the map's buckets (16 bytes for each
/// entry there could be) are there from the start, and every sweep reads them.
const SESSION_ENTRIES: usize = 2 << 18;

/// Default number of inside hosts with sessions: one for each flow.
const HOST_ENTRIES: usize = SESSION_ENTRIES / 2;

/// Most rules of one kind, and most rule ids.
const RULE_ENTRIES: usize = 1 << 17;

/// Most SNAT source prefixes.
const PREFIX_ENTRIES: usize = 1 << 14;

/// Most shared ports of DNAT rules.
const SHARED_ENTRIES: usize = 1 << 14;

/// Most exhausted port ranges that are remembered; the oldest are forgotten first.
const EXHAUSTED_ENTRIES: usize = 4096;

/// Most datagrams whose first fragment is remembered, in each family; the oldest are forgotten first.
/// About 1.6 MB for IPv4 and 2.4 MB for IPv6, taken at the start. Not fewer, because every CPU keeps
/// some of them free for itself.
const FRAGMENT_ENTRIES: usize = 1 << 14;

/// Most later fragments that wait for their first one, in each family; the oldest are forgotten first.
/// 2 MB, taken at the start.
const HELD_ENTRIES: usize = 1 << 10;

/// Places for routes that a CPU remembers.
const ROUTE_ENTRIES: usize = known_route::PLACES as usize;

/// Most interfaces that packets are redirected to.
const DEVICE_ENTRIES: usize = 16;

/// Sides that can have a next-hop group.
const SIDES: usize = 2;

/// Memory is taken when an entry is made, so an idle gateway costs little.
const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

type Sessions<F> = HashMap<Tuple<F>, Session<F>, SESSION_ENTRIES, ON_DEMAND>;
type Fips<F> = HashMap<FipKey<F>, Fip<F>, RULE_ENTRIES, ON_DEMAND>;
type Dnats<F> = HashMap<DnatKey<F>, Dnat<F>, RULE_ENTRIES, ON_DEMAND>;
type Eips<F> = HashMap<<F as Family>::Addr, Eip, RULE_ENTRIES, ON_DEMAND>;
type Hosts<F> = HashMap<<F as Family>::Addr, Host, HOST_ENTRIES, ON_DEMAND>;
type SlotTables<F> = HashMap<DnatKey<F>, Slots, SHARED_ENTRIES, ON_DEMAND>;
type Backends<F> = HashMap<u32, Backend<F>, RULE_ENTRIES, ON_DEMAND>;
type Mappings<F> = HashMap<MappingKey<F>, Mapping<F>, SESSION_ENTRIES, ON_DEMAND>;
type Exhausted<F> = LruHashMap<Tuple<F>, Ticks, EXHAUSTED_ENTRIES>;
type Fragments<F> = LruHashMap<DatagramKey<F>, Datagram, FRAGMENT_ENTRIES>;
type HeldFragments<F> = LruHashMap<HeldKey<F>, Held, HELD_ENTRIES>;
type Routes<F> = PerCpuArray<KnownRoute<F>, ROUTE_ENTRIES>;
// Entries are replaced whole; memory that is taken anew keeps a reader from seeing half of each.
type NextHops<F> = HashMap<u32, NextHopGroup<F>, SIDES, ON_DEMAND>;
type Snats<F> = LpmTrie<<F as Family>::Addr, Pool<F>, PREFIX_ENTRIES>;

#[btf_map]
static CONFIG: Array<Config, 1> = Array::new();
#[btf_map]
static SESSIONS_V4: Sessions<V4> = HashMap::new();
#[btf_map]
static SESSIONS_V6: Sessions<V6> = HashMap::new();
#[btf_map]
static FIPS_V4: Fips<V4> = HashMap::new();
#[btf_map]
static FIPS_V6: Fips<V6> = HashMap::new();
#[btf_map]
static DNATS_V4: Dnats<V4> = HashMap::new();
#[btf_map]
static DNATS_V6: Dnats<V6> = HashMap::new();
#[btf_map]
static SLOTS_V4: SlotTables<V4> = HashMap::new();
#[btf_map]
static SLOTS_V6: SlotTables<V6> = HashMap::new();
#[btf_map]
static BACKENDS_V4: Backends<V4> = HashMap::new();
#[btf_map]
static BACKENDS_V6: Backends<V6> = HashMap::new();
#[btf_map]
static SNATS_V4: Snats<V4> = LpmTrie::new();
#[btf_map]
static SNATS_V6: Snats<V6> = LpmTrie::new();
#[btf_map]
static EIPS_V4: Eips<V4> = HashMap::new();
#[btf_map]
static EIPS_V6: Eips<V6> = HashMap::new();
#[btf_map]
static HOSTS_V4: Hosts<V4> = HashMap::new();
#[btf_map]
static HOSTS_V6: Hosts<V6> = HashMap::new();
#[btf_map]
static MAPPINGS_V4: Mappings<V4> = HashMap::new();
#[btf_map]
static MAPPINGS_V6: Mappings<V6> = HashMap::new();
#[btf_map]
static EXHAUSTED_V4: Exhausted<V4> = LruHashMap::new();
#[btf_map]
static EXHAUSTED_V6: Exhausted<V6> = LruHashMap::new();
#[btf_map]
static FRAGMENTS_V4: Fragments<V4> = LruHashMap::new();
#[btf_map]
static FRAGMENTS_V6: Fragments<V6> = LruHashMap::new();
#[btf_map]
static HELD_V4: HeldFragments<V4> = LruHashMap::new();
#[btf_map]
static HELD_V6: HeldFragments<V6> = LruHashMap::new();
#[btf_map]
static IDENTIFICATIONS: Array<Identification, { fragment::COUNTERS as usize }> = Array::new();
// Holds nothing: walking through it is the loop over 65 536 ports (kernel 5.13; bpf_loop is 5.17).
#[btf_map]
static PORTS: Array<u8, { 1 << 16 }> = Array::new();
#[btf_map]
static RULES: HashMap<u32, Rule, RULE_ENTRIES, ON_DEMAND> = HashMap::new();
#[btf_map]
static DRAINING: HashMap<u32, Draining, RULE_ENTRIES, ON_DEMAND> = HashMap::new();
#[btf_map]
static RULE_COUNTERS: PerCpuArray<Counter, RULE_ENTRIES> = PerCpuArray::new();
#[btf_map]
static COUNTERS: PerCpuArray<Counter, { COUNTER_SLOTS as usize }> = PerCpuArray::new();
// What XDP must know to send a packet on, kept up to date by the daemon.
#[btf_map]
static XDP_FACTS: Array<XdpFacts, 1> = Array::new();
// What a CPU remembers of the routing table: shared with nobody.
#[btf_map]
static ROUTES_V4: Routes<V4> = PerCpuArray::new();
#[btf_map]
static ROUTES_V6: Routes<V6> = PerCpuArray::new();
#[btf_map]
static NEXT_HOPS_V4: NextHops<V4> = HashMap::new();
#[btf_map]
static NEXT_HOPS_V6: NextHops<V6> = HashMap::new();
#[btf_map]
static DEVICES: DevMapHash<DEVICE_ENTRIES> = DevMapHash::new();
#[btf_map]
static XDP_COUNTERS: PerCpuArray<Counter, { COUNTER_SLOTS as usize }> = PerCpuArray::new();
// Where packets are worked on: what is found out about them does not fit on the stack.
#[btf_map]
static WORK_V4: PerCpuArray<Desk<V4>, 1> = PerCpuArray::new();
#[btf_map]
static WORK_V6: PerCpuArray<Desk<V6>, 1> = PerCpuArray::new();

/// Where a CPU works on packets of a family.
#[repr(C)]
pub(crate) struct Desk<F: Family> {
    /// What is found out about the packet.
    pub(crate) work: Work<F>,
    /// Its next hop as the kernel's helper takes it: here, and not on the stack of a function, whose call
    /// would cost more than writing it.
    pub(crate) neighbor: bpf_redir_neigh,
}

/// The configuration.
#[inline(always)]
pub(crate) fn config() -> Option<&'static Config> {
    CONFIG.get(0)
}

/// Where this CPU works on packets of family `F`.
#[inline(always)]
pub(crate) fn desk<F: Maps>() -> Option<&'static mut Desk<F>> {
    // SAFETY: the slot belongs to this CPU, and nothing interrupts one classifier by another.
    F::WORK.get_ptr_mut(0).map(|desk| unsafe { &mut *desk })
}

/// What this CPU has found out about its packet of family `F`.
#[inline(always)]
pub(crate) fn work<F: Maps>() -> Option<&'static mut Work<F>> {
    desk().map(|desk| &mut desk.work)
}

/// Adds one packet to counter `index`.
#[inline(always)]
pub(crate) fn count(index: u32, bytes: u32) {
    add(COUNTERS.get_ptr_mut(index), bytes);
}

/// Adds one packet to counter `index` of XDP.
#[inline(always)]
pub(crate) fn count_xdp(index: u32, bytes: u32) {
    add(XDP_COUNTERS.get_ptr_mut(index), bytes);
}

/// What XDP must know of the interfaces.
#[inline(always)]
pub(crate) fn xdp_facts() -> Option<&'static XdpFacts> {
    XDP_FACTS.get(0)
}

/// A map to walk through, whose callback gets the numbers from 0 to 65 535.
#[inline(always)]
pub(crate) fn ports() -> *mut c_void {
    let ports: *const _ = &PORTS;
    ports.cast_mut().cast()
}

/// Sends the frame to an interface; `None` if it is not among `DEVICES`.
#[inline(always)]
pub(crate) fn redirect(ifindex: u32) -> Option<u32> {
    DEVICES.redirect(ifindex, 0).ok()
}

/// The state of rule `rule`, or [`NO_RULE`].
#[inline(always)]
pub(crate) fn rule_state(rule: u32) -> u8 {
    match RULES.get_ptr(rule) {
        // SAFETY: the entry stays readable until the program ends (RCU); only user space writes it.
        Some(rule) => unsafe { (*rule).state },
        None => NO_RULE,
    }
}

/// Counts a session of a rule that is draining.
#[inline(always)]
pub(crate) fn count_draining(rule: u32) {
    if let Some(draining) = DRAINING.get_ptr_mut(rule) {
        // SAFETY: user space lets one sweep run at a time, and writes between them.
        unsafe { (*draining).met += 1 };
    }
}

#[inline(always)]
pub(crate) fn add(counter: Option<*mut Counter>, bytes: u32) {
    if let Some(counter) = counter {
        // SAFETY: the slot belongs to this CPU, and no other program interrupts this one on it.
        unsafe {
            (*counter).packets += 1;
            (*counter).bytes += u64::from(bytes);
        }
    }
}

/// The maps of family `F`, for one packet at hook `H`.
pub(crate) struct KernelTables<F, H> {
    context: *mut c_void,
    kind: PhantomData<(F, H)>,
}

impl<F: Maps, H: Hook> KernelTables<F, H> {
    /// The maps, for the packet of `context`.
    #[inline(always)]
    pub(crate) fn new(context: *mut c_void) -> Self {
        Self { context, kind: PhantomData }
    }
}

/// One step of a walk through the ports; 1 ends it.
extern "C" fn try_port<F: Maps, H: Hook>(
    _map: *mut c_void,
    index: *const u32,
    _value: *const u8,
    walk: *mut PortWalk<'_, F>,
) -> i64 {
    // No step asks for a route, so no context is needed.
    let mut tables = KernelTables::<F, H>::new(core::ptr::null_mut());
    // SAFETY: the kernel passes the index and the pointer that `walk` was called with.
    let over = unsafe { (*walk).step(*index, &mut tables) };
    i64::from(over)
}

/// `-EEXIST`.
pub(crate) const EXISTS: i32 = -17;

impl<F: Maps, H: Hook> Tables<F> for KernelTables<F, H> {
    #[inline(always)]
    fn session(&mut self, key: &Tuple<F>) -> Option<&mut Session<F>> {
        // SAFETY: the entry stays readable until the program ends (RCU). Other CPUs may write the
        // same entry; every field is a plain number and losing one of two updates is harmless.
        F::SESSIONS.get_ptr_mut(key).map(|session| unsafe { &mut *session })
    }

    #[inline(always)]
    fn claim(&mut self, key: &Tuple<F>, session: &Session<F>) -> Result<(), ClaimError> {
        F::SESSIONS.insert(key, session, u64::from(BPF_NOEXIST)).map_err(|error| match error {
            EXISTS => ClaimError::Occupied,
            _ => ClaimError::Full,
        })
    }

    #[inline(always)]
    fn release(&mut self, key: &Tuple<F>) -> bool {
        // It fails only if the entry is gone already.
        F::SESSIONS.remove(key).is_ok()
    }

    #[inline(always)]
    fn walk(&mut self, walk: &mut PortWalk<'_, F>) {
        // SAFETY: the callback has the signature that the kernel calls it with.
        unsafe {
            bpf_for_each_map_elem(
                ports(),
                try_port::<F, H> as *mut c_void,
                (&raw mut *walk).cast(),
                0,
            );
        }
    }

    #[inline(always)]
    fn exhausted(&mut self, key: &Tuple<F>) -> Option<Ticks> {
        // SAFETY: read at once.
        unsafe { F::EXHAUSTED.get(key) }.copied()
    }

    #[inline(always)]
    fn set_exhausted(&mut self, key: &Tuple<F>, until: Ticks) {
        // Forgetting costs a walk.
        let _ = F::EXHAUSTED.insert(key, until, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn mapping(&mut self, key: &MappingKey<F>) -> Option<&Mapping<F>> {
        // SAFETY: the entry stays readable until the program ends; its users are a plain number.
        unsafe { F::MAPPINGS.get(key) }.filter(|mapping| !mapping.is_leaving())
    }

    #[inline(always)]
    fn claim_mapping(
        &mut self,
        key: &MappingKey<F>,
        mapping: &Mapping<F>,
    ) -> Result<(), ClaimError> {
        F::MAPPINGS.insert(key, mapping, u64::from(BPF_NOEXIST)).map_err(|error| match error {
            EXISTS => ClaimError::Occupied,
            _ => ClaimError::Full,
        })
    }

    #[inline(always)]
    fn release_mapping(&mut self, key: &MappingKey<F>) {
        let _ = F::MAPPINGS.remove(key);
    }

    #[inline(always)]
    fn join_mapping(&mut self, key: &MappingKey<F>) -> bool {
        F::MAPPINGS.get_ptr_mut(key).is_some_and(|mapping| {
            // SAFETY: a field of an entry that stays there until the program ends.
            unsafe { users::join(&raw mut (*mapping).users) }
        })
    }

    #[inline(always)]
    fn leave_mapping(&mut self, key: &MappingKey<F>, peer: &mut MappingKey<F>) -> bool {
        counts::leave_mapping::<F>(key, peer)
    }

    #[inline(always)]
    fn count_eip(&mut self, eip: &F::Addr, event: EipEvent) {
        if H::IN_FRONT && matches!(event, EipEvent::Refused) {
            return;
        }
        counts::count_eip::<F>(eip, event);
    }

    #[inline(always)]
    fn host(&mut self, address: &F::Addr) -> Option<Host> {
        // SAFETY: plain numbers; one that is just being written is old or new.
        unsafe { F::HOSTS.get(address) }.copied()
    }

    #[inline(always)]
    fn enter_host(&mut self, address: &F::Addr, now_ns: u64, interval_ns: u32) {
        counts::enter_host::<F>(address, now_ns, interval_ns);
    }

    #[inline(always)]
    fn leave_host(&mut self, address: &F::Addr) {
        counts::leave_host::<F>(address);
    }

    #[inline(always)]
    fn refuse_host(&mut self, address: &F::Addr) {
        if H::IN_FRONT {
            return;
        }
        counts::refuse_host::<F>(address);
    }

    #[inline(always)]
    fn fip(&mut self, key: &FipKey<F>) -> Option<&Fip<F>> {
        // SAFETY: the entry stays readable until the program ends; only user space writes this map.
        unsafe { F::FIPS.get(key) }
    }

    #[inline(always)]
    fn dnat(&mut self, key: &DnatKey<F>) -> Option<&Dnat<F>> {
        // SAFETY: as in `fip`.
        unsafe { F::DNATS.get(key) }
    }

    #[inline(always)]
    fn backend(&mut self, key: &DnatKey<F>, hash: u32) -> Option<(u32, &Backend<F>)> {
        // SAFETY: as in `fip`.
        let rule = unsafe { F::SLOTS.get(key) }?.rule(hash);
        // SAFETY: as in `fip`.
        Some((rule, unsafe { F::BACKENDS.get(rule) }?))
    }

    #[inline(always)]
    fn draw(&mut self, _key: &DnatKey<F>) -> u32 {
        self.random()
    }

    #[inline(always)]
    fn snat(&mut self, source: &F::Addr, turn: u32) -> Option<PoolMember<F>> {
        // What overflows counts as refused where it began, and that is for TC to count.
        if H::IN_FRONT && turn > 0 {
            return None;
        }
        F::SNATS.get(&Key::new(F::BITS, *source))?.member(source, turn)
    }

    #[inline(always)]
    fn datagram(&mut self, key: &DatagramKey<F>) -> Option<&Datagram> {
        // SAFETY: as in `session`; of two first fragments either may win.
        unsafe { F::FRAGMENTS.get(key) }
    }

    #[inline(always)]
    fn set_datagram(&mut self, key: &DatagramKey<F>, datagram: &Datagram) {
        // Forgetting costs the later fragments.
        let _ = F::FRAGMENTS.insert(key, datagram, u64::from(BPF_ANY));
    }

    #[inline(always)]
    fn hold(&mut self, key: &HeldKey<F>, now: Ticks) -> Result<(), ClaimError> {
        if H::IN_FRONT {
            return Err(ClaimError::Full);
        }
        held::hold::<F>(self.context.cast(), key, now)
    }

    #[inline(always)]
    fn is_held(&mut self, key: &HeldKey<F>) -> bool {
        // SAFETY: nothing of it is read.
        !H::IN_FRONT && unsafe { F::HELD.get(key) }.is_some()
    }

    #[inline(always)]
    fn replay(&mut self, key: &mut HeldKey<F>, own: bool, now: Ticks) {
        if !H::IN_FRONT {
            held::replay::<F>(self.context.cast(), key, own, now);
        }
    }

    #[inline(always)]
    fn identification(&mut self, index: u32, count: u32, now: Ticks) -> u32 {
        let Some(counter) = IDENTIFICATIONS.get_ptr_mut(index) else {
            return self.random();
        };
        // SAFETY: the slot is there for ever. Of two CPUs that write the time either may win; the
        // number is taken atomically.
        unsafe {
            let idle = now.wrapping_sub((*counter).asked);
            // As in Linux: whoever watches one counter does not see how many packets others sent.
            let skipped = match idle {
                0 => 0,
                _ => {
                    (*counter).asked = now;
                    ((u64::from(self.random()) * u64::from(idle)) >> 32) as u32
                }
            };
            let step = u64::from(skipped) + u64::from(count);
            let next = &raw mut (*counter).next;
            // A relaxed addition would be the instruction that gives no result.
            let before = atomic_xadd::<u64, u64, { AtomicOrdering::AcqRel }>(next, step);
            (before as u32).wrapping_add(skipped)
        }
    }

    #[inline(always)]
    fn route(
        &mut self,
        query: &RouteQuery,
        source: &F::Addr,
        destination: &F::Addr,
        next_hop: &mut NextHop<F>,
    ) -> Route {
        match route::lookup(self.context, query, source, destination, next_hop) {
            // Without a neighbour entry the kernel resolves it when the packet is sent.
            // Whether the packet is too big is for `Packet::exceeds` to say.
            BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
                Route::Forward
            }
            BPF_FIB_LKUP_RET_NOT_FWDED => Route::Local,
            _ => Route::Refused,
        }
    }

    #[inline(always)]
    fn known_route(&mut self, place: u32) -> Option<&mut KnownRoute<F>> {
        // SAFETY: the slot belongs to this CPU, and nothing interrupts the program there.
        F::ROUTES.get_ptr_mut(place).map(|known| unsafe { &mut *known })
    }

    #[inline(always)]
    fn next_hops(&mut self, side: u32) -> Option<&NextHopGroup<F>> {
        // SAFETY: as in `fip`.
        unsafe { F::NEXT_HOPS.get(side) }
    }

    #[inline(always)]
    fn random(&mut self) -> u32 {
        // SAFETY: a helper without arguments.
        unsafe { bpf_get_prandom_u32() }
    }

    #[inline(always)]
    fn count_rule(&mut self, rule: u32, bytes: u32) {
        add(RULE_COUNTERS.get_ptr_mut(rule), bytes);
    }

    #[inline(always)]
    fn count_event(&mut self, index: u32) {
        if H::IN_FRONT && index == Tries::Exhausted.counter() {
            return;
        }
        count(index, 0);
    }

    #[inline(always)]
    fn apart(stage: Stage, passage: &mut Passage<'_, F, Self>) -> Outcome {
        Outcome::from_u32(H::apart::<F>(stage, passage.tables.context))
    }

    #[inline(always)]
    fn apart_with<P: Packet>(
        stage: PacketStage,
        _packet: &mut P,
        passage: &mut Passage<'_, F, Self>,
    ) -> Outcome {
        Outcome::from_u32(H::apart_with::<F>(stage, passage.tables.context))
    }
}
