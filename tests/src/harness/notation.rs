//! Records of either family, in terms that do not name the family.

use std::net::{IpAddr, SocketAddr};

use gateway_common::family::{Family, V4, V6};
use gateway_common::records::Session;
use gateway_common::tuple::{Endpoints, Tuple};

/// A family whose addresses can be written as [`IpAddr`].
pub trait Notation: Family {
    /// The octets of an address.
    type Octets: aya::Pod + AsRef<[u8]>;

    /// What the names of the family's maps end in.
    const SUFFIX: &str;

    /// Octets of an address.
    fn octets(address: Self::Addr) -> Self::Octets;

    /// The inverse of [`Notation::octets`].
    fn address(octets: Self::Octets) -> Self::Addr;

    /// An address as the standard library has it.
    fn to_ip(address: Self::Addr) -> IpAddr;

    /// The inverse of [`Notation::to_ip`]; `None` for the other family.
    fn from_ip(address: IpAddr) -> Option<Self::Addr>;

    /// Whether `address` is in the prefix of `prefix_len` bits of `network`.
    fn covers(network: &Self::Addr, prefix_len: u32, address: &Self::Addr) -> bool {
        covers(Self::to_ip(*network), prefix_len, Self::to_ip(*address))
    }
}

impl Notation for V4 {
    type Octets = [u8; 4];
    const SUFFIX: &str = "V4";

    fn octets(address: Self::Addr) -> [u8; 4] {
        address.octets
    }

    fn address(octets: [u8; 4]) -> Self::Addr {
        Self::Addr { octets }
    }

    fn to_ip(address: Self::Addr) -> IpAddr {
        IpAddr::V4(address.into())
    }

    fn from_ip(address: IpAddr) -> Option<Self::Addr> {
        match address {
            IpAddr::V4(v4) => Some(v4.into()),
            IpAddr::V6(_) => None,
        }
    }
}

impl Notation for V6 {
    type Octets = [u8; 16];
    const SUFFIX: &str = "V6";

    fn octets(address: Self::Addr) -> [u8; 16] {
        address.octets
    }

    fn address(octets: [u8; 16]) -> Self::Addr {
        Self::Addr { octets }
    }

    fn to_ip(address: Self::Addr) -> IpAddr {
        IpAddr::V6(address.into())
    }

    fn from_ip(address: IpAddr) -> Option<Self::Addr> {
        match address {
            IpAddr::V6(v6) => Some(v6.into()),
            IpAddr::V4(_) => None,
        }
    }
}

/// Whether `address` is in the prefix of `prefix_len` bits of `network`.
#[must_use]
pub fn covers(network: IpAddr, prefix_len: u32, address: IpAddr) -> bool {
    let difference = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            u128::from(network.to_bits() ^ address.to_bits()) << 96
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => network.to_bits() ^ address.to_bits(),
        _ => return false,
    };
    difference.leading_zeros() >= prefix_len
}

/// The key of a session entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flow {
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// Protocol number.
    pub protocol: u8,
    /// Direction, as in the record.
    pub direction: u8,
}

/// A session entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// The key.
    pub flow: Flow,
    /// Source and destination after translation.
    pub translated: (SocketAddr, SocketAddr),
    /// Packets and bytes.
    pub counted: (u64, u64),
    /// Time of the last packet, in ticks.
    pub last_seen: u32,
    /// Id of the rule.
    pub rule: u32,
    /// Interface and neighbour that packets leave by.
    pub next_hop: (u32, IpAddr),
    /// Number of the routing table.
    pub routing: u16,
    /// TCP flags seen.
    pub seen: u8,
    /// Flags of the record.
    pub flags: u8,
}

impl Entry {
    /// The entry without the time of its last packet, which two runs need not agree on.
    #[must_use]
    pub fn timeless(self) -> Self {
        Self { last_seen: 0, ..self }
    }
}

fn both_ends<F: Notation>(ends: &Endpoints<F>) -> (SocketAddr, SocketAddr) {
    let end = |address, port| SocketAddr::new(F::to_ip(address), port);
    (end(ends.source, ends.source_port), end(ends.destination, ends.destination_port))
}

/// A key of the session map, without its family.
#[must_use]
pub fn flow<F: Notation>(key: &Tuple<F>) -> Flow {
    let (source, destination) = both_ends(&key.endpoints);
    Flow { source, destination, protocol: key.protocol, direction: key.direction }
}

/// The key of the session map for a flow; `None` if it is of the other family.
#[must_use]
pub fn tuple<F: Notation>(flow: &Flow) -> Option<Tuple<F>> {
    let endpoints = Endpoints {
        source: F::from_ip(flow.source.ip())?,
        destination: F::from_ip(flow.destination.ip())?,
        source_port: flow.source.port(),
        destination_port: flow.destination.port(),
    };
    Some(Tuple { endpoints, protocol: flow.protocol, direction: flow.direction, zero: 0 })
}

/// A session entry, without its family.
#[must_use]
pub fn entry<F: Notation>(key: &Tuple<F>, session: &Session<F>) -> Entry {
    Entry {
        flow: flow(key),
        translated: both_ends(&session.translated),
        counted: (session.packets, session.bytes),
        last_seen: session.last_seen,
        rule: session.rule,
        next_hop: (session.egress, F::to_ip(session.next_hop)),
        routing: session.routing,
        seen: session.seen,
        flags: session.flags,
    }
}
