//! Flows as they appear on the wire.

use crate::family::{Address, Family};

/// The way a packet goes, seen from the tenant.
///
/// It is a property of the interface that the packet came in by: what enters by the internal one
/// is [`Direction::Outbound`], also when it turns round to another host of the VPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Direction {
    /// Came in by the internal interface (`eth0`).
    Outbound = 1,
    /// Came in by the external interface (`net1`).
    Inbound = 2,
}

/// Both ends of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct Endpoints<F: Family> {
    /// Source address.
    pub source: F::Addr,
    /// Destination address.
    pub destination: F::Addr,
    /// Source port; the id of an ICMP query on its way there; 0 where the protocol has neither.
    pub source_port: u16,
    /// Destination port; the id of an ICMP query on its way back; 0 where there is neither.
    pub destination_port: u16,
}

impl<F: Family> Endpoints<F> {
    /// Becomes `other`, without a call of `memmove` (see [`Address::set`]).
    #[inline(always)]
    pub fn set(&mut self, other: &Self) {
        self.source.set(&other.source);
        self.destination.set(&other.destination);
        self.source_port = other.source_port;
        self.destination_port = other.destination_port;
    }

    /// Becomes `other` seen from the other end: [`Endpoints::reversed`] without a copy in between,
    /// which counts on the BPF stack.
    #[inline(always)]
    pub fn set_reversed(&mut self, other: &Self) {
        self.source.set(&other.destination);
        self.destination.set(&other.source);
        self.source_port = other.destination_port;
        self.destination_port = other.source_port;
    }

    /// The same flow seen from the other end.
    #[inline(always)]
    #[must_use]
    pub fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
        }
    }
}

/// A 5-tuple with the direction it was seen in: the key of the session map.
///
/// The direction keeps a forged packet on one interface from meeting a session of the other.
// Aligned so that keys on the BPF stack are copied and compared by words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(8))]
pub struct Tuple<F: Family> {
    /// Both ends.
    pub endpoints: Endpoints<F>,
    /// Number of the layer-4 protocol.
    pub protocol: u8,
    /// A [`Direction`].
    pub direction: u8,
    /// Zero.
    pub zero: u16,
}

impl<F: Family> Tuple<F> {
    /// The tuple of `endpoints` seen in `direction`.
    #[inline(always)]
    #[must_use]
    pub fn new(endpoints: Endpoints<F>, protocol: u8, direction: Direction) -> Self {
        Self { endpoints, protocol, direction: direction as u8, zero: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::{Ipv4, V4};

    #[test]
    fn reversing_twice_is_the_identity() {
        let endpoints = Endpoints::<V4> {
            source: Ipv4 { octets: [10, 0, 1, 5] },
            destination: Ipv4 { octets: [203, 0, 113, 9] },
            source_port: 40_000,
            destination_port: 443,
        };
        assert_ne!(endpoints.reversed(), endpoints);
        assert_eq!(endpoints.reversed().reversed(), endpoints);
    }
}
