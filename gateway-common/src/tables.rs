//! What the data path asks of its surroundings: one method per question.

use crate::{
    family::Family,
    known_route::KnownRoute,
    mapping::PortWalk,
    nexthop::NextHopGroup,
    packet::Packet,
    pipeline::{Outcome, PacketStage, Passage, Stage},
    records::{
        Backend, Datagram, DatagramKey, Dnat, DnatKey, Fip, FipKey, HeldKey, Host, Mapping,
        MappingKey, PoolMember, Session, Ticks,
    },
    tuple::Tuple,
    verdict::NextHop,
};

/// Why a session entry was not inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimError {
    /// There is an entry with this key: somebody else's, or another CPU was faster.
    Occupied,
    /// The map is full, or memory is.
    Full,
}

/// What the kernel would do with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Route {
    /// Send it to the next hop.
    Forward,
    /// Take it for itself, or find no route: either way it forwards it nowhere.
    Local,
    /// Blackhole, unreachable, prohibited or not supported.
    Refused,
}

/// A question to the routing table, beside the addresses.
#[derive(Clone, Copy, Debug)]
pub struct RouteQuery {
    /// Interface that the packet came in by.
    pub ifindex: u32,
    /// Number of the layer-4 protocol.
    pub protocol: u8,
}

/// What is counted of an EIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EipEvent {
    /// A session was opened.
    Opened,
    /// A session has ended.
    Closed,
    /// No port was free.
    Refused,
}

/// Maps, routing table and random numbers, as the data path sees them.
pub trait Tables<F: Family> {
    /// The session entry of `key`.
    fn session(&mut self, key: &Tuple<F>) -> Option<&mut Session<F>>;

    /// Inserts a session entry unless its key is taken. This is what makes an external port ours.
    ///
    /// # Errors
    ///
    /// See [`ClaimError`].
    fn claim(&mut self, key: &Tuple<F>, session: &Session<F>) -> Result<(), ClaimError>;

    /// Removes a session entry; `false` if it was not there.
    fn release(&mut self, key: &Tuple<F>) -> bool;

    /// Walks through ports until one is free.
    fn walk(&mut self, walk: &mut PortWalk<'_, F>)
    where
        Self: Sized,
    {
        for index in 0..walk.size {
            if walk.step(index, self) {
                return;
            }
        }
    }

    /// Until when a range of ports is known to be exhausted. The key is that of a reply whose
    /// destination port is the lowest of the range.
    fn exhausted(&mut self, key: &Tuple<F>) -> Option<Ticks>;

    /// Remembers that. It may be forgotten at any time.
    fn set_exhausted(&mut self, key: &Tuple<F>, until: Ticks);

    /// The entry of `key` in the map of mappings, unless it is just being removed.
    fn mapping(&mut self, key: &MappingKey<F>) -> Option<&Mapping<F>>;

    /// Inserts such an entry unless its key is taken.
    ///
    /// # Errors
    ///
    /// See [`ClaimError`].
    fn claim_mapping(
        &mut self,
        key: &MappingKey<F>,
        mapping: &Mapping<F>,
    ) -> Result<(), ClaimError>;

    /// Removes such an entry, if it is there.
    fn release_mapping(&mut self, key: &MappingKey<F>);

    /// Counts one more session that uses a mapping; `false` if it is not there, or just being removed.
    fn join_mapping(&mut self, key: &MappingKey<F>) -> bool;

    /// Counts a session out that used a mapping; `true` if it was the last one. Nobody joins it any more
    /// then, and the caller removes it; `peer` becomes the key of its external entry.
    fn leave_mapping(&mut self, key: &MappingKey<F>, peer: &mut MappingKey<F>) -> bool;

    /// Counts something of an address, if it is an EIP.
    fn count_eip(&mut self, eip: &F::Addr, event: EipEvent);

    /// What is known of an inside host; `None` if it has no open session.
    fn host(&mut self, address: &F::Addr) -> Option<Host>;

    /// Counts a session of an inside host in at `now_ns`, and makes its entry if there is none.
    /// [`Host::due`] moves on by `interval_ns`.
    ///
    /// Nothing happens if there is no memory for the entry.
    fn enter_host(&mut self, address: &F::Addr, now_ns: u64, interval_ns: u32);

    /// Counts a session of an inside host out, and removes its entry with the last one.
    fn leave_host(&mut self, address: &F::Addr);

    /// Counts a refused flow of an inside host, if it has an entry.
    fn refuse_host(&mut self, address: &F::Addr);

    /// The FIP rule of `key`.
    fn fip(&mut self, key: &FipKey<F>) -> Option<&Fip<F>>;

    /// The DNAT rule of `key`.
    fn dnat(&mut self, key: &DnatKey<F>) -> Option<&Dnat<F>>;

    /// The backend in the slot of the shared port `key` that `hash` falls into, and its rule.
    fn backend(&mut self, key: &DnatKey<F>, hash: u32) -> Option<(u32, &Backend<F>)>;

    /// A random number, for [`Tables::backend`].
    fn draw(&mut self, key: &DnatKey<F>) -> u32;

    /// The EIP that `source` uses at its `turn`-th choice, by the longest prefix that covers it.
    fn snat(&mut self, source: &F::Addr, turn: u32) -> Option<PoolMember<F>>;

    /// What is known of a datagram whose first fragment has come.
    fn datagram(&mut self, key: &DatagramKey<F>) -> Option<&Datagram>;

    /// Remembers a datagram. It may be forgotten at any time.
    fn set_datagram(&mut self, key: &DatagramKey<F>, datagram: &Datagram);

    /// Keeps a copy of the packet, which is a later fragment, under `key`, unless there is one that is
    /// younger than [`HELD_FOR`](crate::fragment::HELD_FOR).
    ///
    /// # Errors
    ///
    /// [`ClaimError::Occupied`] if there is; [`ClaimError::Full`] if the packet is too large.
    fn hold(&mut self, key: &HeldKey<F>, now: Ticks) -> Result<(), ClaimError>;

    /// Whether something is held under `key`.
    fn is_held(&mut self, key: &HeldKey<F>) -> bool;

    /// Lets the packet, if `own`, and whatever is held of the datagram of `key` come in again, in this
    /// order. The packet itself goes no further, and of its bytes nothing is left.
    fn replay(&mut self, key: &mut HeldKey<F>, own: bool, now: Ticks);

    /// Takes `count` successive identifications from counter `index` of `IDENTIFICATIONS`; returns
    /// the first. No two CPUs get the same.
    fn identification(&mut self, index: u32, count: u32, now: Ticks) -> u32;

    /// Asks the kernel for the route of a packet with `source` (before translation, as policy rules
    /// see it) to `destination` (after translation), and puts the answer into `next_hop`.
    fn route(
        &mut self,
        query: &RouteQuery,
        source: &F::Addr,
        destination: &F::Addr,
        next_hop: &mut NextHop<F>,
    ) -> Route;

    /// A place for a route that this CPU remembers, below
    /// [`PLACES`](crate::known_route::PLACES). It may be forgotten at any time.
    fn known_route(&mut self, place: u32) -> Option<&mut KnownRoute<F>>;

    /// The next-hop group of the side whose packets have this [`Direction`](crate::tuple::Direction).
    fn next_hops(&mut self, side: u32) -> Option<&NextHopGroup<F>>;

    /// A random number.
    fn random(&mut self) -> u32;

    /// Adds a packet of `bytes` to the counter of rule `rule`.
    fn count_rule(&mut self, rule: u32, bytes: u32);

    /// Adds one to counter `index` of `COUNTERS`.
    fn count_event(&mut self, index: u32);

    /// Runs a stage of the path, with [`Stage::run`] in the end.
    #[inline(always)]
    fn apart(stage: Stage, passage: &mut Passage<'_, F, Self>) -> Outcome
    where
        Self: Sized,
    {
        stage.run(passage)
    }

    /// As [`Tables::apart`], with [`PacketStage::run`].
    #[inline(always)]
    fn apart_with<P: Packet>(
        stage: PacketStage,
        packet: &mut P,
        passage: &mut Passage<'_, F, Self>,
    ) -> Outcome
    where
        Self: Sized,
    {
        stage.run(packet, passage)
    }
}
