//! A session of the model: its ends, what each of them has sent, and when it is over.

use std::net::SocketAddr;

use super::Packet;
use super::flows::Exit;
use crate::build_packet::{ACK, FIN, ICMP, RST, SYN, TCP};

/// Which side of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The VPC.
    Inside,
    /// Everything else.
    Outside,
}

/// Where a packet comes from and goes to. Of an ICMP query the end that asks has its id as a port, the
/// other end has 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    /// The side of its source; of a packet that leaves, that of its destination.
    pub side: Side,
    /// Source.
    pub from: SocketAddr,
    /// Destination.
    pub to: SocketAddr,
}

impl Way {
    /// The way back.
    #[must_use]
    pub fn back(self) -> Self {
        Self { from: self.to, to: self.from, ..self }
    }
}

/// The ends of a session: how its first packet came, and how it left. A hairpin leaves to the side that
/// it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// Protocol number.
    pub protocol: u8,
    /// As it came.
    pub came: Way,
    /// As it left.
    pub left: Way,
}

impl Ends {
    /// The ways that packets of the session come: those of who asked, and the answers.
    #[must_use]
    pub fn ways(&self) -> [Way; 2] {
        [self.came, self.left.back()]
    }

    /// Whether it is a hairpin.
    #[must_use]
    pub fn turns(&self) -> bool {
        self.came.side == self.left.side
    }
}

/// What one end of a session has sent.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    anything: bool,
    ack: bool,
    fin: bool,
    /// Its last packet was a reset.
    reset: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Session {
    pub(super) ends: Ends,
    pub(super) rule: u32,
    /// The inside endpoints that it knows by their mappings: who asked, and who was asked.
    pub(super) maps: [Option<SocketAddr>; 2],
    last: u64,
    /// Who asked, and who answers.
    sent: [Sent; 2],
}

impl Session {
    /// A session that a packet opens.
    pub(super) fn new(ends: Ends, packet: &Packet, exit: &Exit, now: u64) -> Self {
        let Exit { rule, maps, .. } = *exit;
        let mut session = Self { ends, rule, maps, last: now, sent: [Sent::default(); 2] };
        session.note(packet, now);
        session
    }

    fn is_established(&self) -> bool {
        self.sent.iter().all(|end| end.ack)
    }

    /// A reset counts from inside, or where there is nothing to be cut short.
    fn is_cut(&self) -> bool {
        let [asked, answers] = self.sent;
        let cuts = |side: Side, end: Sent, other: Sent| {
            end.reset && (side == Side::Inside || other.fin || !self.is_established())
        };
        cuts(self.ends.came.side, asked, answers) || cuts(self.ends.left.side, answers, asked)
    }

    fn is_closing(&self) -> bool {
        self.ends.protocol == TCP && (self.is_cut() || self.sent.iter().all(|end| end.fin))
    }

    fn timeout(&self) -> u64 {
        match self.ends.protocol {
            TCP if !self.is_closing() && self.is_established() => 7440,
            TCP => 240,
            ICMP => 60,
            _ if self.sent[1].anything => 300,
            _ => 120,
        }
    }

    pub(super) fn is_over(&self, now: u64) -> bool {
        now - self.last > self.timeout()
    }

    pub(super) fn note(&mut self, packet: &Packet, now: u64) {
        let flags = packet.flags;
        let begins = self.ends.protocol == TCP && flags & (SYN | ACK) == SYN;
        if begins && (self.is_closing() || self.is_over(now)) {
            self.sent = [Sent::default(); 2];
        }
        let sent = &mut self.sent[usize::from(packet.way != self.ends.came)];
        sent.anything = true;
        sent.ack |= flags & ACK != 0;
        sent.fin |= flags & FIN != 0;
        sent.reset = flags & RST != 0;
        self.last = now;
    }

    /// Whether packets that come this way are of this session.
    pub(super) fn meets(&self, protocol: u8, way: Way) -> bool {
        self.ends.protocol == protocol && self.ends.ways().contains(&way)
    }
}
