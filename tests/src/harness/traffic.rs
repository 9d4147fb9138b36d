//! Random packets that have something to do with each other, and with the rules of [`rules`].

use std::net::IpAddr;

use gateway_common::records::{Balance, FILTER_ADDRESS, FILTER_INDEPENDENT, MAP_INDEPENDENT};
use gateway_common::tuple::Direction;
use gateway_userspace::balance::assign;

use super::NatRule;
use super::routes::{embed_prefix, ingress_mac, prefix};
use crate::build_packet::{
    ACK, DCCP, Draft, FIN, RST, SYN, TCP, Transport, UDP, UDP_LITE, datagram, embed, end, icmp,
    other, ping, tcp, udp,
};
use crate::decode::decode;

/// How many forwarded frames are remembered, to be answered and complained about.
const MEMORY: usize = 512;

/// A source of decisions: random numbers, or the bytes of a fuzzer.
#[derive(Clone, Debug)]
pub struct Dice(Source);

#[derive(Clone, Debug)]
enum Source {
    /// The state of a generator of random numbers (xorshift64*).
    Seed(u64),
    /// What is left of an input.
    Input(std::collections::VecDeque<u8>),
}

impl Dice {
    /// A generator that gives the same numbers for the same seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(Source::Seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1))
    }

    /// Numbers out of an input, and 0 when it has been used up. Each decision takes as few bytes as
    /// it needs, so that a changed byte changes one decision.
    #[must_use]
    pub fn of(input: &[u8]) -> Self {
        Self(Source::Input(input.iter().copied().collect()))
    }

    /// Whether an input has been used up.
    #[must_use]
    pub fn is_used_up(&self) -> bool {
        matches!(&self.0, Source::Input(left) if left.is_empty())
    }

    /// The next number; of an input, two bytes of it.
    pub fn roll(&mut self) -> u64 {
        match &mut self.0 {
            Source::Seed(state) => {
                *state ^= *state >> 12;
                *state ^= *state << 25;
                *state ^= *state >> 27;
                state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
            }
            Source::Input(left) => take(left, 2),
        }
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        let number = match &mut self.0 {
            Source::Input(left) if limit <= 256 => take(left, 1),
            Source::Seed(_) | Source::Input(_) => self.roll(),
        };
        (number % limit as u64) as usize
    }

    /// True in `percent` of 100 cases.
    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// One of several.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

fn take(input: &mut std::collections::VecDeque<u8>, bytes: usize) -> u64 {
    (0..bytes).fold(0, |number, _| number << 8 | u64::from(input.pop_front().unwrap_or(0)))
}

const INSIDE: &[&str] =
    &["10.0.1.5", "10.0.1.10", "10.0.1.20", "10.0.1.30", "10.0.2.30", "10.0.2.31", "172.20.0.1"];
const REMOTE: &[&str] = &["198.51.100.7", "198.51.100.8", "203.0.113.1", "203.0.113.200"];
const EIP: &[&str] = &[
    "203.0.113.10",
    "203.0.113.11",
    "203.0.113.12",
    "203.0.113.13",
    "203.0.113.14",
    "203.0.113.15",
    "203.0.113.16",
];
const ODD: &[&str] = &[
    "10.0.1.254",
    "203.0.113.2",
    "10.0.1.255",
    "224.0.0.5",
    "255.255.255.255",
    "127.0.0.1",
    "0.0.0.0",
    "192.0.2.9",
    "172.16.0.9",
    "169.254.169.254",
    "240.0.0.1",
];
const PORTS: &[u16] = &[0, 1, 53, 80, 443, 511, 512, 700, 1023, 1024, 4000, 4001, 8080, 65_535];

/// Rules that meet the packets of [`Traffic`], in both families.
#[must_use]
pub fn rules() -> Vec<NatRule> {
    let mut rules = Vec::new();
    for ipv6 in [false, true] {
        let ip = |text: &str| match end(text).ip() {
            IpAddr::V4(v4) if ipv6 => embed(v4).into(),
            address => address,
        };
        let at = |text: &str, port| std::net::SocketAddr::new(ip(text), port);
        let mut id = if ipv6 { 100 } else { 1 };
        let mut next = || {
            id += 1;
            id
        };
        for (eip, inside) in [("203.0.113.14", "10.0.1.5"), ("203.0.113.15", "10.0.2.30")] {
            rules.push(NatRule::Fip { eip: ip(eip), inside: ip(inside), id: next() });
        }
        for (external, protocol, inside) in [
            (at("203.0.113.11", 80), TCP, at("10.0.1.10", 8080)),
            (at("203.0.113.11", 53), UDP, at("10.0.1.10", 53)),
            (at("203.0.113.12", 80), TCP, at("10.0.1.10", 8080)),
            (at("203.0.113.12", 443), TCP, at("10.0.1.5", 443)),
            (at("203.0.113.12", 53), UDP, at("198.51.100.8", 53)),
        ] {
            rules.push(NatRule::Dnat { external, protocol, inside, id: next() });
        }
        // The backends of the random one have ports that no other rule leads to: else the choice would
        // decide whether a tuple is taken; and the way to them is never lost, or it would decide that.
        for (external, protocol, balance, insides) in [
            (at("203.0.113.12", 8080), TCP, Balance::Random, ["10.0.1.10", "10.0.1.30"]),
            (at("203.0.113.11", 4000), UDP, Balance::ClientAddress, ["10.0.1.20", "10.0.1.30"]),
        ] {
            let port = if balance == Balance::Random { 9000 } else { 53 };
            let backends: Vec<_> =
                insides.iter().map(|inside| (at(inside, port), next())).collect();
            let weights: Vec<_> = backends.iter().map(|(_, id)| (*id, 1)).collect();
            let slots = Box::new(assign(None, &weights).expect("backends"));
            rules.push(NatRule::Share { external, protocol, balance, backends, slots });
        }
        for (source, eips) in [
            ("10.0.1.0/24", &["203.0.113.10", "203.0.113.13"][..]),
            ("10.0.1.20/32", &["203.0.113.16"]),
        ] {
            let prefix = prefix(source);
            let prefix = if ipv6 { embed_prefix(prefix) } else { prefix };
            let pool = eips.iter().map(|eip| (ip(eip), next())).collect();
            rules.push(NatRule::Snat { prefix, pool });
        }
        // Each on an EIP that others use too.
        for (source, eip, filter) in [
            ("10.0.2.0/24", "203.0.113.10", FILTER_ADDRESS),
            ("10.0.1.30/32", "203.0.113.13", FILTER_INDEPENDENT),
        ] {
            let prefix = prefix(source);
            let prefix = if ipv6 { embed_prefix(prefix) } else { prefix };
            let options = MAP_INDEPENDENT | filter;
            rules.push(NatRule::Mapped { prefix, pool: vec![(ip(eip), next())], options });
        }
    }
    rules
}

/// A source of frames.
#[derive(Clone, Debug)]
pub struct Traffic {
    dice: Dice,
    forwarded: Vec<(Direction, Vec<u8>)>,
    sent: Vec<(Direction, Vec<u8>)>,
    /// Fragments that are still to be sent, the next one last.
    pending: Vec<(Direction, Vec<u8>)>,
}

impl Traffic {
    /// Frames that depend on the seed and on what is [learned](Traffic::learn).
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::of(Dice::new(seed))
    }

    /// Frames that depend on these decisions and on what is [learned](Traffic::learn).
    #[must_use]
    pub fn of(dice: Dice) -> Self {
        Self { dice, forwarded: Vec::new(), sent: Vec::new(), pending: Vec::new() }
    }

    /// The source of randomness.
    pub fn dice(&mut self) -> &mut Dice {
        &mut self.dice
    }

    /// Remembers a frame as it was forwarded.
    pub fn learn(&mut self, direction: Direction, frame: &[u8]) {
        remember(&mut self.dice, &mut self.forwarded, direction, frame);
    }

    /// The next frame.
    pub fn next_frame(&mut self) -> (Direction, Vec<u8>) {
        if self.dice.chance(80)
            && let Some(fragment) = self.pending.pop()
        {
            return fragment;
        }
        let kind = self.dice.below(100);
        let related = match kind {
            0..35 => self.answer(),
            35..48 => self.error(),
            48..60 => self.repeat(),
            _ => None,
        };
        let (direction, mut frame) = related.unwrap_or_else(|| self.fresh());
        remember(&mut self.dice, &mut self.sent, direction, &frame);
        if self.dice.chance(20) {
            self.mutate(&mut frame);
        }
        (direction, frame)
    }

    fn earlier(&mut self) -> Option<(Direction, Vec<u8>)> {
        let index = self.dice.below(self.forwarded.len().max(1));
        self.forwarded.get(index).cloned()
    }

    /// The side from which the answer to a forwarded packet comes, nearly always.
    fn other_side(&mut self, direction: Direction, destination: IpAddr) -> Direction {
        let inside = matches!(destination, IpAddr::V4(v4) if v4.octets()[0] == 10)
            || matches!(destination, IpAddr::V6(v6) if v6.segments()[6] >> 8 == 10);
        let from_inside = inside || direction == Direction::Inbound;
        if from_inside != self.dice.chance(4) { Direction::Outbound } else { Direction::Inbound }
    }

    fn answer(&mut self) -> Option<(Direction, Vec<u8>)> {
        let (direction, frame) = self.earlier()?;
        let decoded = decode(&frame).ok()?;
        let direction = self.other_side(direction, decoded.destination);
        let mut draft = decoded.answer();
        if let Transport::Tcp { flags, .. } = &mut draft.transport {
            *flags = self.dice.pick(&[ACK, SYN | ACK, FIN | ACK, RST, SYN]);
        }
        self.decorate(&mut draft);
        Some(self.fragmented(direction, &draft))
    }

    /// An ICMP error about a packet that was forwarded.
    fn error(&mut self) -> Option<(Direction, Vec<u8>)> {
        let (direction, frame) = self.earlier()?;
        let decoded = decode(&frame).ok()?;
        let direction = self.other_side(direction, decoded.destination);
        let kinds: &[u8] = if decoded.source.is_ipv4() { &[3, 11, 12, 5] } else { &[1, 2, 3, 4] };
        let quoted = &frame[14..];
        let length = [quoted.len(), 28, 48, 60, 20][self.dice.below(5)].min(quoted.len());
        let (kind, code) = (self.dice.pick(kinds), self.dice.below(5) as u8);
        let rest = [0, 0, 5, 0xdc];
        let mut draft =
            icmp("0.0.0.0", "0.0.0.0", kind, code, rest).with_payload(&quoted[..length]);
        draft.source = decoded.destination;
        draft.destination = decoded.source;
        self.decorate(&mut draft);
        Some((direction, draft.frame(ingress_mac(direction))))
    }

    fn repeat(&mut self) -> Option<(Direction, Vec<u8>)> {
        let index = self.dice.below(self.sent.len().max(1));
        self.sent.get(index).cloned()
    }

    fn fresh(&mut self) -> (Direction, Vec<u8>) {
        let dice = &mut self.dice;
        let direction = dice.pick(&[Direction::Outbound, Direction::Outbound, Direction::Inbound]);
        let mut address = |pools: [(usize, &[&'static str]); 4]| {
            let mut left = dice.below(100);
            for (percent, pool) in pools {
                if left < percent {
                    return dice.pick(pool);
                }
                left -= percent;
            }
            dice.pick(ODD)
        };
        let (source, destination) = match direction {
            Direction::Outbound => (
                address([(92, INSIDE), (3, REMOTE), (2, EIP), (3, ODD)]),
                address([(55, REMOTE), (30, EIP), (7, INSIDE), (8, ODD)]),
            ),
            Direction::Inbound => (
                address([(90, REMOTE), (4, INSIDE), (3, EIP), (3, ODD)]),
                address([(80, EIP), (10, INSIDE), (3, REMOTE), (7, ODD)]),
            ),
        };
        let mut draft = self.transport(source, destination);
        self.decorate(&mut draft);
        if self.dice.chance(50) {
            draft = draft.over_ipv6();
        }
        self.fragmented(direction, &draft)
    }

    /// The frame of a draft; now and then its fragments, of which the others follow soon.
    fn fragmented(&mut self, direction: Direction, draft: &Draft) -> (Direction, Vec<u8>) {
        let mac = ingress_mac(direction);
        if draft.segment().len() < 40 || !self.dice.chance(30) {
            return (direction, draft.frame(mac));
        }
        // Of 16 bytes, TCP's header does not fit into the first.
        let pieces = draft.pieces(self.dice.pick(&[16, 24, 32, 32]));
        let mut frames: Vec<_> = pieces.iter().map(|piece| (direction, piece.frame(mac))).collect();
        match self.dice.below(10) {
            0 => {}
            1 => {
                let (one, two) = (self.dice.below(frames.len()), self.dice.below(frames.len()));
                frames.swap(one, two);
            }
            // The last is the next.
            _ => frames.reverse(),
        }
        self.pending.extend(frames);
        self.pending.pop().expect("at least one fragment")
    }

    fn transport(&mut self, source: &str, destination: &str) -> Draft {
        let dice = &mut self.dice;
        let [from, to] = [source, destination].map(|host| {
            let port = if dice.chance(10) { dice.roll() as u16 } else { dice.pick(PORTS) };
            format!("{host}:{port}")
        });
        match dice.below(20) {
            0..7 => tcp(&from, &to, dice.pick(&[SYN, ACK, SYN | ACK, FIN | ACK, RST, 0])),
            7..13 => udp(&from, &to),
            13 => udp(&from, &to).without_checksum(),
            14 => datagram(dice.pick(&[UDP_LITE, DCCP]), &from, &to),
            15..18 => {
                let ping = ping(source, destination, dice.pick(PORTS));
                if dice.chance(20) {
                    let (source, destination) = (ping.source, ping.destination);
                    Draft { source, destination, ..ping.reversed() }
                } else {
                    ping
                }
            }
            18 => icmp(source, destination, dice.roll() as u8, dice.roll() as u8, [0, 9, 0, 1]),
            _ => other(dice.pick(&[99, 47, 50, 132, 4, 41]), source, destination),
        }
    }

    /// Payload, TTL and headers that are not like the others.
    fn decorate(&mut self, draft: &mut Draft) {
        let dice = &mut self.dice;
        if draft.payload.len() < 60 && dice.chance(50) {
            draft.payload = (0..dice.below(120)).map(|_| dice.roll() as u8).collect();
        }
        if dice.chance(1) {
            draft.payload.resize(1400 + dice.below(200), 0xa5);
        }
        draft.tos = dice.roll() as u8;
        // Few, so that fragments of one datagram find each other.
        draft.identification = dice.pick(&[7, 8, 9]);
        draft.dont_fragment = dice.chance(50);
        if dice.chance(8) {
            draft.ttl = dice.pick(&[0, 1, 2, 255]);
        }
        if dice.chance(5) {
            draft.ipv4_options = (0..=dice.below(40)).map(|_| 1).collect();
        }
        if dice.chance(5) {
            let number = dice.pick(&[0, 43, 51, 60]);
            let content = vec![1, 4, 0, 0, 0, 0, 1, 4, 0, 0, 0, 0, 0, 0];
            draft.extensions = vec![(number, content); 1 + dice.below(7)];
        }
        if dice.chance(1) {
            draft.mac = Some(dice.pick(&[[0xff; 6], [0x33, 0x33, 0, 0, 0, 1], [2; 6]]));
        }
        if dice.chance(1) {
            draft.vlan = Some(7);
        }
    }

    /// Changes some bytes, most of them in the headers, or the length.
    fn mutate(&mut self, frame: &mut Vec<u8>) {
        let dice = &mut self.dice;
        for _ in 0..=dice.below(3) {
            let reach = if dice.chance(80) { frame.len().min(80) } else { frame.len() };
            // The Ethernet header is not where the interest lies.
            let at = if dice.chance(97) { 14 + dice.below(reach - 14) } else { dice.below(reach) };
            frame[at] = if dice.chance(50) {
                frame[at] ^ (1 << dice.below(8))
            } else {
                dice.pick(&[0, 1, 0x45, 0x7f, 0x80, 0xff])
            };
        }
        if dice.chance(30) {
            frame.truncate(14 + dice.below(frame.len() - 13));
        }
        // The kernel runs no program on less.
        let shortest = match frame[12..14] {
            [0x08, 0x00] => 14 + 20,
            [0x86, 0xdd] => 14 + 40,
            _ => 15,
        };
        frame.resize(frame.len().max(shortest), 0);
    }
}

fn remember(
    dice: &mut Dice,
    memory: &mut Vec<(Direction, Vec<u8>)>,
    direction: Direction,
    frame: &[u8],
) {
    let item = (direction, frame.to_vec());
    if memory.len() < MEMORY {
        memory.push(item);
    } else {
        let index = dice.below(MEMORY);
        memory[index] = item;
    }
}
