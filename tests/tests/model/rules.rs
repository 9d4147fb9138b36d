//! Rules that come and go, and packets that have something to do with them.

use std::net::SocketAddr;

use gateway_common::records::{FILTER_ADDRESS, FILTER_INDEPENDENT};
use gateway_common::share::Balance;
use gateway_tests::build_packet::{ACK, FIN, ICMP, RST, SYN, TCP, UDP, end};
use gateway_tests::cases::Gateway;
use gateway_tests::harness::routes::prefix;
use gateway_tests::harness::traffic::Dice;
use gateway_tests::model::{Ends, Filter, Packet, Piece, Rule, Side, Way};

pub(crate) const INSIDE: [&str; 5] =
    ["10.0.1.5", "10.0.1.10", "10.0.1.20", "10.0.1.21", "10.0.2.30"];
pub(crate) const REMOTES: [&str; 3] = ["198.51.100.7:443", "198.51.100.7:53", "198.51.100.8:443"];
const SOURCES: [u16; 8] = [4000, 4001, 4002, 4003, 8080, 53, 700, 100];
const EXTERNALS: [&str; 9] = [
    SHARED,
    SHARED,
    "203.0.113.11:80",
    "203.0.113.12:80",
    "203.0.113.11:53",
    "203.0.113.10:30003",
    "203.0.113.14:8080",
    "203.0.113.17:4001",
    "203.0.113.10:30001",
];
/// Whose way may be lost.
pub(crate) const LOSABLE: [&str; 3] = ["198.51.100.8", "10.0.1.20", "10.0.1.10"];

/// The rules that come and go.
pub(crate) const RULES: [Line; 14] = [
    Line::Fip("203.0.113.14", "10.0.1.5"),
    Line::Dnat(TCP, "203.0.113.11:80", "10.0.1.10:8080"),
    Line::Dnat(TCP, "203.0.113.12:80", "10.0.1.10:8080"),
    Line::Dnat(UDP, "203.0.113.11:53", "10.0.1.10:53"),
    // In the middle of the range that SNAT rules take their ports from.
    Line::Dnat(UDP, "203.0.113.10:30003", "10.0.1.20:4001"),
    Line::Snat("10.0.1.0/24", &["203.0.113.10"]),
    Line::Snat("10.0.1.20/32", &["203.0.113.13"]),
    Line::Snat("10.0.2.0/24", &["203.0.113.10"]),
    Line::Share(TCP, SHARED, &["10.0.1.5:80", "10.0.1.20:80", "10.0.2.30:80"]),
    Line::Snat("10.0.1.5/32", &["203.0.113.15", "203.0.113.16"]),
    Line::Fip("203.0.113.17", "10.0.2.30"),
    Line::Mapped("10.0.1.10/32", &["203.0.113.10"], Filter::None),
    Line::Mapped("10.0.2.30/32", &["203.0.113.11"], Filter::Addresses),
    // Nobody has a port forward on these: as a remote a host of the pool may be known by either.
    Line::Mapped("10.0.1.20/31", &["203.0.113.15", "203.0.113.16"], Filter::Endpoints),
];

/// A port that several backends share.
pub(crate) const SHARED: &str = "203.0.113.12:443";
pub(crate) const SHARE: usize = 8;
/// Who may come into it.
pub(crate) const JOINS: [&str; 2] = ["10.0.1.10:80", "10.0.2.30:8081"];

#[derive(Clone, Copy)]
pub(crate) enum Line {
    Fip(&'static str, &'static str),
    Dnat(u8, &'static str, &'static str),
    Snat(&'static str, &'static [&'static str]),
    Mapped(&'static str, &'static [&'static str], Filter),
    Share(u8, &'static str, &'static [&'static str]),
}

impl Line {
    /// What it is in the model, a rule for each id.
    pub(crate) fn rules(self) -> Vec<Rule> {
        match self {
            Self::Fip(eip, inside) => vec![Rule::Fip(end(eip).ip(), end(inside).ip())],
            Self::Dnat(protocol, external, inside) => vec![forward(protocol, external, inside)],
            Self::Snat(sources, eips) => {
                let rule = |eip: &&str| Rule::Snat(prefix(sources), end(eip).ip());
                eips.iter().map(rule).collect()
            }
            Self::Mapped(sources, eips, filter) => {
                let rule = |eip: &&str| Rule::Mapped(prefix(sources), end(eip).ip(), filter);
                eips.iter().map(rule).collect()
            }
            Self::Share(protocol, external, insides) => {
                insides.iter().map(|inside| forward(protocol, external, inside)).collect()
            }
        }
    }

    pub(crate) fn add(self, gw: &mut Gateway<'_>) -> Vec<u32> {
        match self {
            Self::Fip(eip, inside) => vec![gw.fip(eip, inside)],
            Self::Dnat(protocol, external, inside) => vec![gw.dnat(external, protocol, inside)],
            Self::Snat(sources, eips) => gw.snat(sources, eips),
            Self::Mapped(sources, eips, filter) => {
                let filter = match filter {
                    Filter::Endpoints => 0,
                    Filter::Addresses => FILTER_ADDRESS,
                    Filter::None => FILTER_INDEPENDENT,
                };
                gw.snat_mapped(sources, eips, filter)
            }
            Self::Share(protocol, external, insides) => {
                let insides: Vec<_> = insides.iter().map(|inside| (*inside, 1)).collect();
                gw.share(external, protocol, Balance::Random, &insides)
            }
        }
    }
}

pub(crate) fn forward(protocol: u8, external: &str, inside: &str) -> Rule {
    Rule::Dnat(protocol, end(external), end(inside))
}

/// A packet of a session, or one that may open another.
pub(crate) fn packet(dice: &mut Dice, known: &[Ends]) -> Packet {
    if !known.is_empty() && dice.chance(50) {
        let ends = dice.pick(known);
        let way = dice.pick(&ends.ways());
        let answer = if way == ends.came { 0 } else { ACK };
        let flags = if ends.protocol == TCP { flags(dice) } else { answer };
        return Packet { flags, ..Packet::new(ends.protocol, way) };
    }
    let side = dice.pick(&[Side::Inside, Side::Inside, Side::Outside]);
    let (protocols, from): (&[u8], _) = match side {
        Side::Inside => (&[TCP, TCP, UDP, UDP, UDP, ICMP], end(dice.pick(&INSIDE))),
        Side::Outside => (&[TCP, UDP], end(dice.pick(&REMOTES))),
    };
    let protocol = dice.pick(protocols);
    let to = match side {
        Side::Inside if dice.chance(70) => end(dice.pick(&REMOTES)),
        _ => external(dice, known),
    };
    let from =
        if side == Side::Inside { SocketAddr::new(from.ip(), dice.pick(&SOURCES)) } else { from };
    let to = if protocol == ICMP { SocketAddr::new(to.ip(), 0) } else { to };
    let flags = if protocol == TCP { flags(dice) } else { 0 };
    Packet { flags, ..Packet::new(protocol, Way { side, from, to }) }
}

/// Where a rule may lead inside, or a port that a session has.
fn external(dice: &mut Dice, known: &[Ends]) -> SocketAddr {
    if known.is_empty() || dice.chance(75) {
        return end(dice.pick(&EXTERNALS));
    }
    let ends = dice.pick(known);
    if ends.left.side == Side::Outside { ends.left.from } else { ends.came.to }
}

fn flags(dice: &mut Dice) -> u8 {
    dice.pick(&[SYN, SYN, SYN | ACK, ACK, ACK, FIN | ACK, RST, RST | ACK])
}

/// A fragment like a packet, or of the datagram of another one.
pub(crate) fn fragment(dice: &mut Dice, packet: Packet, recent: &[Packet]) -> Packet {
    let (packet, id) = match recent {
        [] => (packet, dice.below(4)),
        recent if dice.chance(60) => {
            let other = dice.pick(recent);
            (other, number(other.piece))
        }
        _ => (packet, dice.below(4)),
    };
    // In IPv6 the protocol does not tell datagrams apart.
    let id = id as u16 % 4 + 4 * u16::from(packet.protocol);
    let piece = if dice.chance(40) { Piece::First(id) } else { Piece::Later(id) };
    Packet { piece, ..packet }
}

fn number(piece: Piece) -> usize {
    match piece {
        Piece::Whole => 0,
        Piece::First(id) | Piece::Later(id) => usize::from(id),
    }
}
