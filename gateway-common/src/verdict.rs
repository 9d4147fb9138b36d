//! What becomes of a packet, and the one list of reasons why it is not forwarded.

use crate::{family::Family, packet::Truncated};

/// Where a forwarded packet leaves. Also the key of the maps `NEIGHBORS_V4` and `NEIGHBORS_V6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct NextHop<F: Family> {
    /// Index of the interface.
    pub ifindex: u32,
    /// The neighbour to send it to: a gateway, or the destination itself when it is on link.
    pub address: F::Addr,
}

/// The only result of the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Verdict<F: Family> {
    /// Rewritten: send it to this neighbour.
    Forward(NextHop<F>),
    /// Not sent on by this path: the kernel goes on with it as it is, or, for
    /// [`PassReason::Fragmented`] and [`PassReason::Replayed`], with what is made of copies.
    Pass(PassReason),
    /// Gone.
    Drop(DropReason),
}

/// An early end of the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Ends in [`Verdict::Pass`].
    Pass(PassReason),
    /// Ends in [`Verdict::Drop`].
    Drop(DropReason),
}

impl From<PassReason> for Exit {
    #[inline(always)]
    fn from(reason: PassReason) -> Self {
        Self::Pass(reason)
    }
}

impl From<DropReason> for Exit {
    #[inline(always)]
    fn from(reason: DropReason) -> Self {
        Self::Drop(reason)
    }
}

impl PassReason {
    /// Whether only XDP has this reason: TC never leaves a packet to the kernel for it.
    #[must_use]
    pub const fn is_of_xdp(self) -> bool {
        matches!(
            self,
            Self::NoNeighbor | Self::Unconfirmed | Self::Fragment | Self::IcmpError | Self::Syn
        )
    }
}

impl From<Truncated> for Exit {
    #[inline(always)]
    fn from(Truncated: Truncated) -> Self {
        Self::Drop(DropReason::Truncated)
    }
}

impl<F: Family> From<Exit> for Verdict<F> {
    #[inline(always)]
    fn from(exit: Exit) -> Self {
        match exit {
            Exit::Pass(reason) => Self::Pass(reason),
            Exit::Drop(reason) => Self::Drop(reason),
        }
    }
}

/// Declares a reason enum whose value is its counter index, with its text and its explanation.
macro_rules! reasons {
    (
        $(#[$meta:meta])* $name:ident from $first:literal {
            $($(#[doc = $help:literal])+ $variant:ident = $text:literal,)+
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name {
            $($(#[doc = $help])+ $variant,)+
        }

        impl $name {
            /// Every reason, in the order of its counter.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// Index of this reason in the map `COUNTERS`.
            #[inline(always)]
            #[must_use]
            pub const fn counter(self) -> u32 {
                $first + self as u32
            }

            /// The reason as metrics and the command line print it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $text,)+
                }
            }

            /// What happened, in one sentence.
            #[must_use]
            pub fn help(self) -> &'static str {
                match self {
                    $(Self::$variant => concat!($($help),+).trim_ascii(),)+
                }
            }
        }
    };
}

reasons! {
    /// Why a packet was left to the kernel, by XDP to TC, or to whoever goes on with copies of it.
    PassReason from 0 {
        /// Not IPv4 or IPv6: ARP, a VLAN tag, something else.
        NotIp = "not_ip",
        /// Broadcast, multicast or seen in passing on layer 2.
        NotForThisHost = "not_for_this_host",
        /// To a group, a broadcast, loopback or unspecified address.
        Special = "special_address",
        /// From or to a link-local address: neighbour discovery lives there.
        LinkLocal = "link_local",
        /// To an address of the gateway itself that no rule covers, or without a route.
        Local = "local",
        /// The TTL ran out on the way out: the kernel answers with time exceeded from the LAN address.
        TtlExpired = "ttl_expired",
        /// Between two VPC networks: no NAT applies.
        VpcInternal = "vpc_internal",
        /// No rule covers it and `--unmatched kernel` is set.
        Unmatched = "unmatched",
        /// XDP only: the MAC address of the next hop is not known, or its interface takes no redirects.
        NoNeighbor = "no_neighbor",
        /// XDP only: the daemon has not confirmed neighbours and interfaces for too long.
        Unconfirmed = "unconfirmed",
        /// XDP only: a fragment, which is for TC.
        Fragment = "fragment",
        /// XDP only: an ICMP error, which is for TC.
        IcmpError = "icmp_error",
        /// Larger than the interface it leaves by takes, and fragments are allowed: the daemon makes them.
        Fragmented = "fragmented",
        /// XDP only: a SYN whose MSS is to be clamped, which is for TC.
        Syn = "syn",
        /// A first fragment whose later ones came before it, or one of those: it comes in again, with all
        /// that were held.
        Replayed = "replayed",
    }
}

reasons! {
    /// Why a packet was dropped.
    DropReason from 32 {
        /// No complete configuration has been applied yet.
        NotConfigured = "not_configured",
        /// The frame ends inside a header.
        Truncated = "truncated",
        /// Wrong IP version or header length.
        BadHeader = "bad_header",
        /// More IPv6 extension headers than are walked.
        TooManyExtensions = "too_many_extensions",
        /// A packet from inside that no SNAT, FIP or DNAT rule covers.
        NoRule = "no_rule",
        /// A packet from outside straight to an inside address.
        NotAddressedHere = "not_addressed_here",
        /// The route is a blackhole, unreachable or prohibited.
        NoRoute = "no_route",
        /// No member of the next-hop group is alive.
        NoNextHop = "no_next_hop",
        /// A translated packet from outside whose route does not lead inside.
        NotInside = "not_inside",
        /// The TTL ran out on the way in.
        TtlExpired = "ttl_expired",
        /// Every external port towards this remote endpoint is taken.
        PortsExhausted = "ports_exhausted",
        /// The inside host has as many open sessions as it may have: those stay, new ones are refused.
        HostSessions = "host_sessions",
        /// The inside host opens more sessions per second than it may.
        HostRate = "host_rate",
        /// The session map is full: open sessions stay, new ones are refused.
        SessionsFull = "sessions_full",
        /// Another session already uses the translated tuple and the port must be kept.
        TupleTaken = "tuple_taken",
        /// A later fragment whose flow is not known, and for which there was no room to be held.
        Fragment = "fragment",
        /// A first fragment too short for its layer-4 header, or a later one that reaches into it.
        FragmentTiny = "fragment_tiny",
        /// To or from an address that is valid on one link only, and not the gateway's own.
        LinkLocal = "link_local",
        /// An ICMP message that is neither a query nor belongs to a session.
        IcmpUntracked = "icmp_untracked",
        /// Larger than the interface it would leave by takes.
        TooBig = "too_big",
        /// A rule or a session in the maps is not valid.
        BadRecord = "bad_record",
        /// The packet could not be rewritten or redirected.
        HelperFailed = "helper_failed",
        /// A policy route of the VPC says so.
        Denied = "denied",
        /// A later fragment before its first one: held, and sent on if that comes soon.
        FragmentHeld = "fragment_held",
    }
}

/// Number of counters in the maps `COUNTERS` and `XDP_COUNTERS`.
pub const COUNTERS: u32 = 128;

/// Index in `XDP_COUNTERS` of packets that XDP has finished. The others are those of the reasons for
/// which it left a packet to TC, which counts again what it does not forward either.
pub const XDP_FORWARDED: u32 = 64;

/// Index in `COUNTERS` of sessions opened.
pub const SESSIONS_OPENED: u32 = 62;

/// Index in `COUNTERS` of sessions expired or cut.
pub const SESSIONS_CLOSED: u32 = 63;

/// How many candidates a new session took to find its external port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Tries {
    /// The first one was free.
    One,
    /// The second one.
    Two,
    /// The third or fourth.
    UpToFour,
    /// The fifth to eighth.
    UpToEight,
    /// A walk through the whole range found one.
    Walk,
    /// None is free.
    Exhausted,
}

impl Tries {
    /// Every class, in the order of its counter.
    pub const ALL: &[Self] =
        &[Self::One, Self::Two, Self::UpToFour, Self::UpToEight, Self::Walk, Self::Exhausted];

    /// The class of a port that was found at the `tries`-th random candidate, from 1.
    #[inline(always)]
    #[must_use]
    pub const fn at(tries: u32) -> Self {
        match tries {
            0 | 1 => Self::One,
            2 => Self::Two,
            3 | 4 => Self::UpToFour,
            _ => Self::UpToEight,
        }
    }

    /// Index of this class in the map `COUNTERS`.
    #[inline(always)]
    #[must_use]
    pub const fn counter(self) -> u32 {
        PORT_TRIES + self as u32
    }

    /// The class as metrics and the command line print it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::One => "1",
            Self::Two => "2",
            Self::UpToFour => "3-4",
            Self::UpToEight => "5-8",
            Self::Walk => "walk",
            Self::Exhausted => "exhausted",
        }
    }
}

/// Index in `COUNTERS` of the first class of [`Tries`].
pub const PORT_TRIES: u32 = 120;

const _: () = assert!(PORT_TRIES as usize + Tries::ALL.len() <= COUNTERS as usize);
const _: () = assert!(PassReason::ALL.len() <= 32 && DropReason::ALL.len() <= 30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_and_texts_are_unique() {
        let mut seen = [false; COUNTERS as usize];
        let pass = PassReason::ALL.iter().map(|reason| reason.counter());
        let drop = DropReason::ALL.iter().map(|reason| reason.counter());
        let tries = Tries::ALL.iter().map(|tries| tries.counter());
        let events = tries.chain([XDP_FORWARDED, SESSIONS_OPENED, SESSIONS_CLOSED]);
        for index in pass.chain(drop).chain(events) {
            assert!(!core::mem::replace(&mut seen[index as usize], true), "counter {index} twice");
        }
        for (at, reason) in DropReason::ALL.iter().enumerate() {
            assert!(DropReason::ALL[at + 1..].iter().all(|o| o.as_str() != reason.as_str()));
            assert!(reason.help().ends_with('.'), "{}", reason.help());
        }
    }
}
