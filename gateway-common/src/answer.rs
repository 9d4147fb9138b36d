//! Which dropped packets their sender is told of, and what the daemon must know to tell.
//!
//! An ICMP error cannot be made of a socket buffer without spoiling its checksum state, so the program
//! leaves a copy of the packet, as it came, in a ring buffer, and the daemon answers.
//!
//! | dropped because | ICMP | ICMPv6 |
//! |---|---|---|
//! | its TTL has run out | 11, code 0 | 3, code 0 |
//! | too large, and not to be fragmented here | 3, code 4 (RFC 1191) | 2 |
//! | no port, or a limit is reached (RFC 5508 REQ-8) | 3, code 13 | 1, code 1 |

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    family::Family,
    parse::{Fragment, Parsed, PortFields},
    records::Ticks,
    verdict::DropReason,
};

/// How much of a packet is kept, in bytes: what fits into an ICMPv6 error (RFC 4443 section 2.4: no
/// larger than 1280 with its headers).
pub const KEPT: usize = 1280 - 40 - 8;

/// Header of a record of the ring buffer `OVERSIZE`: a translated packet of which the daemon sends
/// fragments. The packet follows, from its IP header on.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Oversize {
    /// Index of the interface that it leaves by.
    pub ifindex: u32,
    /// MTU of that interface in bytes.
    pub mtu: u32,
}

/// The largest packet that is fragmented, in bytes from its IP header on.
pub const OVERSIZE_BYTES: usize = 9216;

/// How many packets a CPU may report in a tick (about a millisecond).
pub const PER_TICK: u32 = 8;

/// What a packet is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Answer {
    /// Time exceeded in transit.
    TimeExceeded = 1,
    /// Fragmentation needed, or packet too big.
    TooBig = 2,
    /// Communication administratively prohibited.
    Refused = 3,
}

impl Answer {
    /// The answer stored as `value`.
    #[must_use]
    pub const fn from_u8(value: u8) -> Option<Self> {
        match value {
            1 => Some(Self::TimeExceeded),
            2 => Some(Self::TooBig),
            3 => Some(Self::Refused),
            _ => None,
        }
    }
}

/// What a packet dropped for `reason` is answered with, if it is.
///
/// Never an ICMP error, nor a fragment other than the first (RFC 1122 section 3.2.2, RFC 4443 section
/// 2.4); what was addressed to many has not come this far.
#[inline(always)]
#[must_use]
pub fn due<F: Family>(reason: DropReason, parsed: &Parsed<F>) -> Option<Answer> {
    let asks = parsed.tuple.protocol != F::ICMP
        || matches!(parsed.ports, PortFields::SourceId | PortFields::DestinationId);
    if !asks || matches!(parsed.fragment, Fragment::Later | Fragment::Known) {
        return None;
    }
    match reason {
        DropReason::TtlExpired => Some(Answer::TimeExceeded),
        // Of IPv4, what is atomic has "don't fragment" set.
        DropReason::TooBig if F::BITS == 128 || parsed.atomic => Some(Answer::TooBig),
        DropReason::PortsExhausted
        | DropReason::HostSessions
        | DropReason::HostRate
        | DropReason::SessionsFull => Some(Answer::Refused),
        _ => None,
    }
}

/// Record of the ring buffer `ANSWERS`: a packet that is to be answered.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Unanswered {
    /// For [`Answer::TooBig`]: the MTU of the interface it would have left by, in bytes.
    pub mtu: u32,
    /// How many bytes of `packet` are there.
    pub bytes: u16,
    /// An [`Answer`].
    pub answer: u8,
    /// The [`Direction`](crate::tuple::Direction) that it came in.
    pub direction: u8,
    /// The packet as it came in, from its IP header on.
    pub packet: [u8; KEPT],
}

/// Value of `ANSWER_RATE`, an array of one: how many packets this CPU has reported.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct AnswerRate {
    /// When it was counted last.
    pub tick: Ticks,
    /// How many since that began.
    pub count: u32,
}

impl AnswerRate {
    /// Counts one more; `false` if that is too many.
    #[inline(always)]
    pub fn permits(&mut self, now: Ticks) -> bool {
        if self.tick != now {
            self.tick = now;
            self.count = 0;
        }
        self.count = self.count.saturating_add(1);
        self.count <= PER_TICK
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{family::V4, family::V6, tuple::Direction, wire::transport};

    fn parsed<F: Family>(protocol: u8, ports: PortFields) -> Parsed<F> {
        let mut parsed = Parsed::new(Direction::Inbound);
        parsed.tuple.protocol = protocol;
        parsed.ports = ports;
        parsed
    }

    #[test]
    fn errors_and_later_fragments_are_never_answered() {
        let ttl = DropReason::TtlExpired;
        let datagram = parsed::<V4>(transport::UDP, PortFields::Both);
        assert_eq!(due(ttl, &datagram), Some(Answer::TimeExceeded));
        let query = parsed::<V4>(V4::ICMP, PortFields::SourceId);
        assert_eq!(due(ttl, &query), Some(Answer::TimeExceeded));
        for ports in [PortFields::Quoted, PortFields::Redirect, PortFields::None] {
            assert_eq!(due(ttl, &parsed::<V4>(V4::ICMP, ports)), None, "{ports:?}");
        }
        for fragment in [Fragment::Later, Fragment::Known] {
            assert_eq!(due(ttl, &Parsed { fragment, ..datagram }), None, "{fragment:?}");
        }
    }

    #[test]
    fn only_packets_that_must_not_be_fragmented_are_too_big() {
        let big = DropReason::TooBig;
        let datagram = parsed::<V4>(transport::UDP, PortFields::Both);
        assert_eq!(due(big, &datagram), Some(Answer::TooBig));
        assert_eq!(due(big, &Parsed { atomic: false, ..datagram }), None);
        let datagram = parsed::<V6>(transport::UDP, PortFields::Both);
        assert_eq!(due(big, &Parsed { atomic: false, ..datagram }), Some(Answer::TooBig));
    }

    #[test]
    fn a_flood_is_not_reported_whole() {
        let mut rate = AnswerRate::default();
        let permitted = (0..1000).filter(|_| rate.permits(7)).count();
        assert_eq!(permitted, PER_TICK as usize);
        assert!(rate.permits(8));
    }
}
