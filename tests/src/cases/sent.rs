//! What a case sends, and what it sees of it.

use std::net::{IpAddr, SocketAddr};

use gateway_common::verdict::{DropReason, PassReason};

use super::gateway::plain;
use crate::build_packet::{Draft, end, unembed};
use crate::decode::{Decoded, decode, decode_whole, describe};
use crate::harness::{Delivery, Outcome};

/// A packet that went in, and what became of it.
#[derive(Debug)]
pub struct Sent {
    before: Vec<u8>,
    after: Vec<u8>,
    delivery: Delivery,
}

impl Sent {
    /// A frame before and after.
    pub(super) fn new(before: Vec<u8>, after: Vec<u8>, delivery: Delivery) -> Self {
        Self { before, after, delivery }
    }

    /// The packet as the other side sees it. Everything but addresses, ports, TTL, checksums and the
    /// identification of what is not atomic is as it was, and all checksums are right.
    ///
    /// # Panics
    /// It was not forwarded, or something else has changed.
    #[track_caller]
    pub fn forwarded(&self) -> Seen {
        let (before, after) = self.decoded();
        assert_eq!(kept(&before), kept(&after), "{}", self.both());
        Seen { decoded: after, next_hop: self.delivery.next_hop }
    }

    /// An ICMP error as the other side sees it, and the packet that it quotes. As for
    /// [`Sent::forwarded`], but the quote may have changed as the error itself.
    ///
    /// # Panics
    /// It was not forwarded, or something else has changed.
    #[track_caller]
    pub fn forwarded_error(&self) -> (Seen, Seen) {
        let (before, after) = self.decoded();
        assert_eq!(before.icmp, after.icmp, "{}", self.both());
        let quotes = [&before, &after].map(|error| {
            let frame = [&self.after[..14], error.payload()].concat();
            decode_whole(&frame).unwrap_or_else(|why| panic!("quote: {why}\n{}", self.both()))
        });
        assert_eq!(kept(&quotes[0]), kept(&quotes[1]), "quote\n{}", self.both());
        let [_, quote] = quotes;
        let seen = |decoded| Seen { decoded, next_hop: self.delivery.next_hop };
        (seen(after), seen(quote))
    }

    /// The packet, translated, of which the daemon sends fragments. Otherwise as [`Sent::forwarded`].
    ///
    /// # Panics
    /// It was something else, or something else has changed.
    #[track_caller]
    pub fn fragmented(&self) -> Seen {
        self.expect(Outcome::Pass(PassReason::Fragmented));
        let (before, after) = self.compared();
        assert_eq!(kept(&before), kept(&after), "{}", self.both());
        Seen { decoded: after, next_hop: None }
    }

    /// A TCP packet as the other side sees it, whose options may have changed. Returns it with its layer 4
    /// from the end of the fixed header on.
    ///
    /// # Panics
    /// It was not forwarded, or its checksum is wrong.
    #[track_caller]
    pub fn clamped(&self) -> Vec<u8> {
        self.decoded().1.payload().to_vec()
    }

    #[track_caller]
    fn decoded(&self) -> (Decoded, Decoded) {
        self.expect(Outcome::Forward);
        self.compared()
    }

    #[track_caller]
    fn compared(&self) -> (Decoded, Decoded) {
        let [before, after] = [&self.before, &self.after].map(|frame| match decode(frame) {
            Ok(decoded) => decoded,
            Err(why) => panic!("{why}\n{}", self.both()),
        });
        assert_eq!(self.before.len(), self.after.len(), "length\n{}", self.both());
        assert_eq!(self.before[..14], self.after[..14], "Ethernet header\n{}", self.both());
        assert_eq!(after.faults, Vec::<String>::new(), "{}", self.both());
        assert_eq!(after.ttl, before.ttl - 1, "TTL\n{}", self.both());
        (before, after)
    }

    /// Asserts that the packet was forwarded with its own lengths and checksums right, whatever it
    /// carries.
    ///
    /// # Panics
    /// They are not.
    #[track_caller]
    pub fn is_sound(&self) {
        self.decoded();
    }

    /// Asserts that the packet was dropped for this reason.
    ///
    /// # Panics
    /// It was not.
    #[track_caller]
    pub fn dropped(&self, reason: DropReason) {
        self.expect(Outcome::Drop(reason));
    }

    /// Asserts that the packet was left to the kernel for this reason, as it was.
    ///
    /// # Panics
    /// It was not.
    #[track_caller]
    pub fn passed(&self, reason: PassReason) {
        self.expect(Outcome::Pass(reason));
        assert!(self.before == self.after, "changed on the way to the kernel\n{}", self.both());
    }

    /// What became of the packet.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        self.delivery.outcome
    }

    /// The frame as it came.
    #[must_use]
    pub fn before(&self) -> &[u8] {
        &self.before
    }

    /// The frame as it left.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.after
    }

    #[track_caller]
    fn expect(&self, outcome: Outcome) {
        assert_eq!(self.delivery.outcome, outcome, "\n{}", self.both());
    }

    fn both(&self) -> String {
        format!("in:  {}\nout: {}", describe(&self.before), describe(&self.after))
    }
}

/// The parts of a packet that no translation touches.
fn kept(packet: &Decoded) -> Decoded {
    let icmp = packet.icmp.map(|(kind, code, _)| (kind, code, 0));
    let segment = packet.payload().to_vec();
    let (_, dont_fragment, offset, more) = packet.fragment;
    let fragmented = more || offset != 0;
    let mut extensions = packet.extensions.clone();
    if fragmented {
        // The identification ends the last extension header.
        let end = extensions.len();
        extensions[end.saturating_sub(4)..].fill(0);
    }
    let identification = if dont_fragment && !fragmented { packet.fragment.0 } else { 0 };
    let nowhere = IpAddr::from([0, 0, 0, 0]);
    let packet = packet.clone();
    Decoded {
        source: nowhere,
        destination: nowhere,
        ttl: 0,
        ports: None,
        checksum: None,
        faults: Vec::new(),
        fragment: (identification, dont_fragment, offset, more),
        extensions,
        icmp,
        segment,
        ..packet
    }
}

/// A packet as the other side sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The packet.
    pub decoded: Decoded,
    /// Interface and neighbour, where the backend tells.
    pub next_hop: Option<(u32, IpAddr)>,
}

impl Seen {
    /// Source address and port, in the notation of the case.
    #[must_use]
    pub fn source(&self) -> SocketAddr {
        plain(self.decoded.from())
    }

    /// Destination address and port, in the notation of the case.
    #[must_use]
    pub fn destination(&self) -> SocketAddr {
        plain(self.decoded.to())
    }

    /// Asserts both ends, ports included.
    ///
    /// # Panics
    /// They are others.
    #[track_caller]
    pub fn is(&self, source: &str, destination: &str) {
        let expected = (end(source), end(destination));
        assert_eq!((self.source(), self.destination()), expected, "{}", self.decoded);
    }

    /// Asserts the source address and both parts of the destination. Returns the source port.
    ///
    /// # Panics
    /// They are others.
    #[track_caller]
    pub fn is_from(&self, address: &str, destination: &str) -> u16 {
        let expected = (end(address).ip(), end(destination));
        assert_eq!((self.source().ip(), self.destination()), expected, "{}", self.decoded);
        self.source().port()
    }

    /// Asserts where the packet goes next, if the backend tells.
    ///
    /// # Panics
    /// It goes elsewhere.
    #[track_caller]
    pub fn leaves_by(&self, ifindex: u32, neighbor: &str) {
        if let Some((egress, address)) = self.next_hop {
            assert_eq!((egress, unembed(address)), (ifindex, end(neighbor).ip()));
        }
    }

    /// What the receiver answers.
    #[must_use]
    pub fn answer(&self) -> Draft {
        let answer = self.decoded.answer();
        Draft { source: unembed(answer.source), destination: unembed(answer.destination), ..answer }
    }
}
