//! The records of the BPF maps: keys and values as both sides of the maps see them.
//!
//! All-zero is never a valid [`Config`]: array maps do not miss, so a configuration that nobody
//! has written reads as zeros and means "not configured".

pub use crate::neighbor::{Neighbor, USED_TICKS, XdpFacts};
pub use crate::share::{BACKEND_SLOTS, Backend, Balance, Draining, RuleState, Slots};
mod shares;

pub use self::shares::{
    Eip, FILTER_ADDRESS, FILTER_INDEPENDENT, Host, HostLimits, KEEP_ADDRESS, LEAVING,
    MAP_INDEPENDENT, Mapping, MappingKey, MappingKind,
};
use crate::{
    family::{Address, Family, V4, V6},
    tuple::{Direction, Endpoints, Tuple},
    verdict::NextHop,
};

/// Version of the layout of everything in this module. Maps of another version are not adopted.
pub const ABI_VERSION: u32 = 4;

/// Most EIPs in the pool of one SNAT source prefix.
pub const POOL_MEMBERS: usize = 8;

/// Length of [`Rule::name`] in bytes.
pub const RULE_NAME_BYTES: usize = 60;

/// Time in units of 2^20 ns (about 1.05 ms) since boot, wrapping after 52 days.
///
/// Compared only by wrapping difference; every timeout is far below half the range.
pub type Ticks = u32;

/// Nanoseconds since boot, as ticks.
#[inline(always)]
#[must_use]
pub const fn ticks_from_ns(ns: u64) -> Ticks {
    (ns >> 20) as u32
}

/// A number of seconds, as ticks (rounded down).
#[must_use]
pub const fn ticks_from_secs(secs: u32) -> Ticks {
    ((secs as u64 * 1_000_000_000) >> 20) as u32
}

/// What to do with a packet that no rule covers (`--unmatched`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Unmatched {
    /// Drop it with a reason.
    #[default]
    Drop = 0,
    /// Route it untranslated, as Kube-OVN's gateway does.
    Forward = 1,
    /// Leave it to the kernel and its iptables rules.
    Kernel = 2,
}

impl Unmatched {
    /// The policy stored as `value`; anything unknown is the strict one.
    #[inline(always)]
    #[must_use]
    pub const fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Forward,
            2 => Self::Kernel,
            _ => Self::Drop,
        }
    }
}

/// Idle time after which a session ends, in [`Ticks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Timeouts {
    /// TCP before both ends have sent an ACK (RFC 5382 REQ-5: at least 4 minutes).
    pub tcp_opening: Ticks,
    /// TCP once both ends have sent an ACK (RFC 5382 REQ-5: at least 2 hours 4 minutes).
    pub tcp_established: Ticks,
    /// TCP after a close or a reset (RFC 7857 section 2: 4 minutes).
    pub tcp_closing: Ticks,
    /// UDP before a reply (RFC 4787 REQ-5: at least 2 minutes).
    pub udp_new: Ticks,
    /// UDP once both ends have spoken (RFC 4787 REQ-5c: 5 minutes).
    pub udp_stream: Ticks,
    /// ICMP queries (RFC 5508 REQ-2: at least 60 s).
    pub icmp: Ticks,
    /// Every other protocol.
    pub other: Ticks,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            tcp_opening: ticks_from_secs(240),
            tcp_established: ticks_from_secs(7440),
            tcp_closing: ticks_from_secs(240),
            udp_new: ticks_from_secs(120),
            udp_stream: ticks_from_secs(300),
            icmp: ticks_from_secs(60),
            other: ticks_from_secs(300),
        }
    }
}

/// Value of `CONFIG`, an array of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Config {
    /// Number of the applied desired state, from 1. 0: nothing has been applied, drop everything.
    pub generation: u32,
    /// [`ABI_VERSION`] of the writer.
    pub abi_version: u32,
    /// Interface index towards the VPC.
    pub internal_ifindex: u32,
    /// Interface index towards the outside.
    pub external_ifindex: u32,
    /// MTU of the internal interface in bytes.
    pub internal_mtu: u32,
    /// MTU of the external interface in bytes.
    pub external_mtu: u32,
    /// MTU in bytes that the segments of new TCP connections are made to fit, whatever their ends ask for;
    /// 0 for none.
    pub clamp_mtu: u32,
    /// Changes with every change of routes or addresses; sessions look their route up again.
    pub routing: u16,
    /// Lowest external port for sources from port 1024 on.
    pub port_low: u16,
    /// Highest external port for sources from port 1024 on.
    pub port_high: u16,
    /// An [`Unmatched`].
    pub unmatched: u8,
    /// 1 if any rule maps endpoint-independently, else 0: then nobody looks for mappings.
    pub mappings: u8,
    /// 1 if there is a next-hop group, else 0: then nobody looks for one.
    pub next_hops: u8,
    /// Zero.
    pub zero: [u8; 3],
    /// When sessions end.
    pub timeouts: Timeouts,
    /// What one inside host may have.
    pub host_limits: HostLimits,
}

impl Config {
    /// MTU in bytes of interface `ifindex`, `u32::MAX` if it is neither of ours.
    #[inline(always)]
    #[must_use]
    pub fn mtu(&self, ifindex: u32) -> u32 {
        if ifindex == self.external_ifindex {
            self.external_mtu
        } else if ifindex == self.internal_ifindex {
            self.internal_mtu
        } else {
            u32::MAX
        }
    }
}

/// Bit of [`Session::flags`]: this entry's key is the tuple of the flow's first packet.
pub const ORIGINAL: u8 = 1;

/// Bit of [`Session::flags`]: both ends are inside the VPC.
pub const HAIRPIN: u8 = 2;

/// Bit of [`Session::flags`]: the source is translated by the mapping of an inside endpoint.
pub const MAPPED_SOURCE: u8 = 4;

/// Bit of [`Session::flags`]: the first packet came to the external endpoint of a mapping.
pub const MAPPED_TARGET: u8 = 8;

/// Bit of [`Session::flags`]: [`Session::next_hop`] is the router that the flow's first packet came from.
/// The session stays with it while it is a living member of its group.
pub const SYMMETRIC: u8 = 16;

/// Value of `SESSIONS_V4` and `SESSIONS_V6`: one direction of a flow, complete in itself.
///
/// A flow has two entries, one for each direction; each leads to the other by
/// [`Session::opposite`], so a missing half can be made again from the one that is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Session<F: Family> {
    /// Packets of this direction. Exact while one CPU at a time handles the direction.
    pub packets: u64,
    /// Bytes of this direction, Ethernet header included. Exact as [`Session::packets`] is.
    pub bytes: u64,
    /// Time of the last packet of this direction; of the opening if there was none.
    pub last_seen: Ticks,
    /// Id of the rule that opened the flow, a key of `RULES`.
    pub rule: u32,
    /// Both ends after translation.
    pub translated: Endpoints<F>,
    /// Neighbour that packets of this direction are sent to. Without [`Session::egress`], where they may
    /// have been sent before, or shall be if that is possible.
    pub next_hop: F::Addr,
    /// Index of the interface that they leave by. 0: not looked up yet.
    pub egress: u32,
    /// [`Config::routing`] at the time of the route look-up.
    pub routing: u16,
    /// TCP flags seen in this direction, or-ed; RST only if the last packet had it.
    pub seen: u8,
    /// [`ORIGINAL`], [`HAIRPIN`], [`MAPPED_SOURCE`], [`MAPPED_TARGET`], [`SYMMETRIC`].
    pub flags: u8,
    /// Zero.
    pub padding: F::Padding,
}

impl<F: Family> Session<F> {
    /// Key of the entry for the other direction of the flow, where this entry's key is `key`.
    #[inline(always)]
    #[must_use]
    pub fn opposite(&self, key: &Tuple<F>) -> Tuple<F> {
        let mut opposite = Tuple::default();
        self.write_opposite(key, &mut opposite);
        opposite
    }

    /// [`Session::opposite`] without a copy in between, which counts on the BPF stack.
    #[inline(always)]
    pub fn write_opposite(&self, key: &Tuple<F>, opposite: &mut Tuple<F>) {
        // A hairpin's packets come from inside in both directions, other flows turn round.
        let outbound = Direction::Outbound as u8;
        let direction = if self.flags & HAIRPIN != 0 || key.direction != outbound {
            Direction::Outbound
        } else {
            Direction::Inbound
        };
        opposite.endpoints.set_reversed(&self.translated);
        opposite.protocol = key.protocol;
        opposite.direction = direction as u8;
        opposite.zero = 0;
    }
}

/// Key of `FIPS_V4` and `FIPS_V6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct FipKey<F: Family> {
    /// The EIP for [`Direction::Inbound`], the inside address for [`Direction::Outbound`].
    pub address: F::Addr,
    /// A [`Direction`].
    pub direction: u32,
}

impl<F: Family> FipKey<F> {
    /// Key of the entry that packets of `direction` with `address` look up.
    #[inline(always)]
    #[must_use]
    pub fn new(address: &F::Addr, direction: Direction) -> Self {
        Self { address: *address, direction: direction as u32 }
    }
}

/// Value of `FIPS_V4` and `FIPS_V6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Fip<F: Family> {
    /// The address on the other side: inside for an EIP, the EIP for an inside address.
    pub peer: F::Addr,
    /// Id of the rule, a key of `RULES`.
    pub rule: u32,
}

/// Key of `DNATS_V4` and `DNATS_V6`: what makes a DNAT rule unique.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct DnatKey<F: Family> {
    /// The EIP.
    pub eip: F::Addr,
    /// External port.
    pub port: u16,
    /// Number of the layer-4 protocol.
    pub protocol: u8,
    /// Zero.
    pub zero: u8,
}

/// Value of `DNATS_V4` and `DNATS_V6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Dnat<F: Family> {
    /// Inside address. Of a shared port one of its backends, for whoever finds the slot table gone.
    pub address: F::Addr,
    /// Inside port.
    pub port: u16,
    /// A [`Balance`].
    pub balance: u16,
    /// Id of the rule, a key of `RULES`.
    pub rule: u32,
}

/// Key of `SNATS_V4` and `SNATS_V6`, as the kernel's longest-prefix tries want it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct SnatKey<F: Family> {
    /// Length of the prefix in bits.
    pub prefix_len: u32,
    /// Source network inside.
    pub network: F::Addr,
}

/// One EIP of a [`Pool`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct PoolMember<F: Family> {
    /// The EIP.
    pub eip: F::Addr,
    /// Id of the rule that brought it, a key of `RULES`.
    pub rule: u32,
    /// [`MAP_INDEPENDENT`], [`FILTER_ADDRESS`], [`FILTER_INDEPENDENT`], or [`KEEP_ADDRESS`].
    pub options: u32,
}

/// Value of `SNATS_V4` and `SNATS_V6`: the EIPs that share a source prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Pool<F: Family> {
    /// How many of [`Pool::members`] are in use, from 1 to [`POOL_MEMBERS`].
    pub length: u32,
    /// The EIPs.
    pub members: [PoolMember<F>; POOL_MEMBERS],
}

impl<F: Family> Pool<F> {
    /// The EIP that `source` uses at its `turn`-th choice: 0 is its own, the others are overflow.
    ///
    /// A source always gets the same one (paired pooling, RFC 4787 REQ-2, RFC 6888 REQ-2).
    #[inline(always)]
    #[must_use]
    pub fn member(&self, source: &F::Addr, turn: u32) -> Option<PoolMember<F>> {
        // Not clamped to POOL_MEMBERS: the bounds check of `get` must be there for the verifier.
        let length = self.length;
        if turn >= length {
            return None;
        }
        let first = ((u64::from(source.spread()) * u64::from(length)) >> 32) as u32;
        let index = first + turn;
        let index = if index >= length { index - length } else { index };
        self.members.get(index as usize).copied()
    }
}

/// Key of `FRAGMENTS_V4` and `FRAGMENTS_V6`: the datagram that a fragment is of, as it arrives.
// Aligned as `Tuple` is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(8))]
pub struct DatagramKey<F: Family> {
    /// Source address.
    pub source: F::Addr,
    /// Destination address.
    pub destination: F::Addr,
    /// Identification that the sender gave: 16 bits in IPv4, 32 in IPv6.
    pub identification: u32,
    /// Number of the layer-4 protocol (RFC 791); 0 in IPv6, where it does not tell datagrams apart.
    pub protocol: u8,
    /// A [`Direction`].
    pub direction: u8,
    /// Zero.
    pub zero: u16,
}

/// Key of `HELD_V4` and `HELD_V6`: a later fragment that came before the first one of its datagram.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct HeldKey<F: Family> {
    /// The datagram.
    pub datagram: DatagramKey<F>,
    /// Its place among those held of the datagram, below [`HELD_FRAGMENTS`](crate::fragment::HELD_FRAGMENTS).
    pub slot: u64,
}

/// Value of `FRAGMENTS_V4` and `FRAGMENTS_V6`: what the first fragment of a datagram told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Datagram {
    /// Identification after translation, the same for all fragments.
    pub identification: u32,
    /// When the first fragment came.
    pub since: Ticks,
    /// Source port as it arrived, or ICMP id, as in [`Endpoints`].
    pub source_port: u16,
    /// Destination port as it arrived, or ICMP id.
    pub destination_port: u16,
}

/// Value of `IDENTIFICATIONS`: a counter that many pairs of addresses share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Identification {
    /// The next identification; its low 16 or 32 bits count.
    pub next: u64,
    /// When it was last asked for.
    pub asked: Ticks,
    /// Zero.
    pub zero: u32,
}

/// Kind of a rule, in [`Rule::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum RuleKind {
    /// IptablesFIPRule.
    Fip = 1,
    /// IptablesDnatRule.
    Dnat = 2,
    /// IptablesSnatRule, or a policy of a VpcEgressGateway with `snat`.
    Snat = 3,
    /// A policy of a VpcEgressGateway without.
    Forward = 4,
}

impl RuleKind {
    /// The kind stored as `value`.
    #[must_use]
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::Fip),
            2 => Some(Self::Dnat),
            3 => Some(Self::Snat),
            4 => Some(Self::Forward),
            _ => None,
        }
    }
}

/// Value of `RULES`, whose key is the rule's id: which object a rule comes from.
///
/// A session whose rule is not in that map is cut by the next sweep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Rule {
    /// A [`RuleKind`].
    pub kind: u8,
    /// How many bytes of [`Rule::name`] are in use.
    pub name_length: u8,
    /// A [`RuleState`].
    pub state: u8,
    /// Zero.
    pub zero: u8,
    /// Name of the object, cut at [`RULE_NAME_BYTES`].
    pub name: [u8; RULE_NAME_BYTES],
}

/// Value of `COUNTERS` (indexed by reason) and `RULE_COUNTERS` (indexed by rule id), one per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Counter {
    /// Packets. A GSO packet counts once.
    pub packets: u64,
    /// Bytes, Ethernet header included.
    pub bytes: u64,
}

pub(crate) mod sealed {
    pub trait Sealed {}
}

/// A type of this module or [`Tuple`]: `repr(C)`, without padding, valid for every bit pattern.
///
/// User space reads and writes such values as plain bytes on the strength of this trait.
pub trait Record: Copy + 'static + sealed::Sealed {}

/// Implements [`Record`], proving the absence of padding: the size is the sum of the fields.
macro_rules! records {
    ($($type:ty = $($field:literal)+;)+) => {
        $(
            impl sealed::Sealed for $type {}
            impl Record for $type {}
            const _: () = assert!(size_of::<$type>() == 0 $(+ $field)+);
        )+
    };
}

pub(crate) use records;

records! {
    u32 = 4;
    Timeouts = 28;
    HostLimits = 4 4 4;
    Config = 4 4 4 4 4 4 4 2 2 2 1 1 1 3 28 12;
    Rule = 1 1 1 1 60;
    Draining = 4 4;
    Slots = 2048;
    Counter = 8 8;
    Eip = 8 8 8 32;
    Host = 8 4 4;
    XdpFacts = 4 6 6;
    Neighbor = 6 6 4;
    NextHop<V4> = 4 4;
    NextHop<V6> = 4 16;
    Endpoints<V4> = 4 4 2 2;
    Endpoints<V6> = 16 16 2 2;
    Tuple<V4> = 12 1 1 2;
    Tuple<V6> = 36 1 1 2;
    Session<V4> = 8 8 4 4 12 4 4 2 1 1;
    Session<V6> = 8 8 4 4 36 16 4 2 1 1 4;
    FipKey<V4> = 4 4;
    FipKey<V6> = 16 4;
    Fip<V4> = 4 4;
    Fip<V6> = 16 4;
    DnatKey<V4> = 4 2 1 1;
    DnatKey<V6> = 16 2 1 1;
    Dnat<V4> = 4 2 2 4;
    Dnat<V6> = 16 2 2 4;
    Backend<V4> = 8 4 2 2;
    Backend<V6> = 20 16 2 2;
    SnatKey<V4> = 4 4;
    SnatKey<V6> = 4 16;
    DatagramKey<V4> = 4 4 4 1 1 2;
    DatagramKey<V6> = 16 16 4 1 1 2;
    HeldKey<V4> = 16 8;
    HeldKey<V6> = 40 8;
    Datagram = 4 4 2 2;
    Identification = 8 4 4;
    PoolMember<V4> = 4 4 4;
    PoolMember<V6> = 16 4 4;
    Pool<V4> = 4 96;
    Pool<V6> = 4 192;
    MappingKey<V4> = 4 4 2 1 1;
    MappingKey<V6> = 16 16 2 1 1;
    Mapping<V4> = 4 2 2 4 4 4;
    Mapping<V6> = 16 2 2 4 4 4;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Ipv4;

    fn ipv4(a: u8, b: u8, c: u8, d: u8) -> Ipv4 {
        Ipv4 { octets: [a, b, c, d] }
    }

    #[test]
    fn opposite_leads_there_and_back() {
        let key = Tuple::<V4>::new(
            Endpoints {
                source: ipv4(10, 0, 1, 10),
                destination: ipv4(198, 51, 100, 7),
                source_port: 40_000,
                destination_port: 80,
            },
            6,
            Direction::Outbound,
        );
        for (flags, back) in [(ORIGINAL, Direction::Inbound), (HAIRPIN, Direction::Outbound)] {
            let translated =
                Endpoints { source: ipv4(203, 0, 113, 10), source_port: 50_000, ..key.endpoints };
            let original = Session::<V4> { translated, flags, ..Session::default() };
            let other = original.opposite(&key);
            assert_eq!(other.direction, back as u8);
            let reply = Session::<V4> {
                translated: key.endpoints.reversed(),
                flags: flags & HAIRPIN,
                ..Session::default()
            };
            assert_eq!(reply.opposite(&other), key);
        }
    }

    #[test]
    fn a_source_keeps_its_pool_member_and_overflows_through_all() {
        let mut pool = Pool::<V4> { length: 3, ..Pool::default() };
        for (index, member) in pool.members.iter_mut().enumerate() {
            member.rule = index as u32;
        }
        for last in 0..=255 {
            let source = ipv4(10, 0, 1, last);
            let rules = [0, 1, 2].map(|turn| pool.member(&source, turn).expect("in range").rule);
            assert_eq!(pool.member(&source, 3), None);
            let mut sorted = rules;
            sorted.sort_unstable();
            assert_eq!(sorted, [0, 1, 2]);
        }
    }

    #[test]
    fn pool_members_share_the_sources_evenly() {
        let pool = Pool::<V4> {
            length: 2,
            members: core::array::from_fn(|index| PoolMember {
                rule: index as u32,
                ..PoolMember::default()
            }),
        };
        let first = (0..=255_u8)
            .filter(|&last| pool.member(&ipv4(10, 0, 1, last), 0).expect("in range").rule == 0)
            .count();
        assert!((96..=160).contains(&first), "{first} of 256 sources use the first EIP");
    }

    #[test]
    fn an_empty_pool_has_no_member() {
        assert_eq!(Pool::<V4>::default().member(&ipv4(10, 0, 0, 1), 0), None);
    }
}
