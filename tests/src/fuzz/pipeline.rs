//! A gateway in host memory, and whatever may happen to it.

use std::net::IpAddr;

use gateway_common::records::{ORIGINAL, Unmatched};
use gateway_common::tuple::Direction;
use gateway_common::verdict::PassReason;

use crate::build_packet::{end, unembed};
use crate::decode::{Decoded, decode, describe};
use crate::harness::host::Host;
use crate::harness::invariants::{is_inside, is_sound, leak};
use crate::harness::notation::Entry;
use crate::harness::routes::{Links, Target, embed_prefix, ingress_mac, prefix};
use crate::harness::traffic::{Dice, Traffic, rules};
use crate::harness::{Backend as _, Outcome};

/// Small enough to be filled by an input.
const CAPACITIES: [u32; 4] = [1 << 10, 64, 9, 2];

/// What an input does to a gateway.
struct Play {
    host: Host,
    traffic: Traffic,
    /// Whether only translated packets may leave.
    strict: bool,
    /// Whether the routes are as they were.
    routed: bool,
    /// Whether no entry was taken away behind the data path's back.
    whole: bool,
}

pub(super) fn run(input: &[u8]) {
    let mut dice = Dice::of(input);
    let policy =
        dice.pick(&[Unmatched::Drop, Unmatched::Drop, Unmatched::Forward, Unmatched::Kernel]);
    let mut host = Host::new(Links::IMAGINED, dice.pick(&CAPACITIES));
    for rule in rules() {
        host.add(&rule);
    }
    let mut config = host.config();
    config.unmatched = policy as u8;
    host.configure(config);
    let strict = policy != Unmatched::Forward;
    let mut play = Play { host, traffic: Traffic::of(dice), strict, routed: true, whole: true };
    while !play.traffic.dice().is_used_up() {
        play.step();
    }
    play.sessions_are_pairs();
}

impl Play {
    fn step(&mut self) {
        let dice = self.traffic.dice();
        match dice.below(256) {
            0..216 => {
                let (direction, frame) = self.traffic.next_frame();
                self.send(direction, frame);
            }
            216..224 => {
                let length = 14 + dice.below(256);
                let direction = dice.pick(&[Direction::Outbound, Direction::Inbound]);
                let kind = dice.pick(&[[0x08, 0x00], [0x86, 0xdd]]);
                let mut frame: Vec<u8> = (0..length).map(|_| dice.below(256) as u8).collect();
                frame[..6].copy_from_slice(&ingress_mac(direction));
                frame[12..14].copy_from_slice(&kind);
                self.send(direction, frame);
            }
            224..232 => {
                let seconds = dice.pick(&[1, 11, 61, 121, 241, 301, 7441]);
                self.host.advance(seconds);
            }
            232..236 => drop(self.host.sweep()),
            236..242 => self.configure(),
            242..248 => {
                let all = rules();
                let rule = &all[dice.below(all.len())];
                if dice.chance(50) { self.host.add(rule) } else { self.host.remove(rule) }
            }
            248..251 => self.change_route(),
            251..253 => self.forget(),
            _ => self.sessions_are_pairs(),
        }
    }

    fn send(&mut self, direction: Direction, before: Vec<u8>) {
        let mut frame = before.clone();
        let delivery = self.host.send(direction, &mut frame);
        let shown = || format!("{direction:?} {}\n{}", describe(&before), describe(&frame));
        if delivery.outcome == Outcome::Pass(PassReason::Fragmented) {
            assert!(!is_sound(&before) || is_sound(&frame), "a checksum is wrong: {}", shown());
            return;
        }
        if delivery.outcome != Outcome::Forward {
            assert!(frame == before, "{:?}, but changed: {}", delivery.outcome, shown());
            return;
        }
        let (egress, _) = delivery.next_hop.expect("the host says where a packet goes");
        if is_sound(&before) {
            assert!(is_sound(&frame), "a checksum was right and is wrong: {}", shown());
        }
        let leaked = if self.strict { leak(&frame, egress, &self.host.links()) } else { None };
        assert!(leaked.is_none(), "{leaked:?}: {}", shown());
        if self.strict && self.traffic.dice().chance(10) {
            self.answer_comes_back(direction, egress, &before, &frame);
        }
        self.traffic.learn(direction, &frame);
    }

    /// The answer to a packet reaches its sender, and looks as if it came from where the packet was
    /// sent. Sent on a copy, so that it changes nothing.
    fn answer_comes_back(&mut self, from: Direction, egress: u32, before: &[u8], after: &[u8]) {
        let (Ok(sent), Ok(seen)) = (decode(before), decode(after)) else { return };
        if !is_sound(before) || !is_query(&sent) || before.len() > 1000 {
            return;
        }
        let inside = egress == self.host.links().internal;
        let direction = if inside { Direction::Outbound } else { Direction::Inbound };
        let mut answer = seen.answer().frame(ingress_mac(direction));
        let mut host = self.host.clone();
        let outcome = host.send(direction, &mut answer).outcome;
        let shown = || format!("{}\n{}\n{}", describe(before), describe(after), describe(&answer));
        if outcome == Outcome::Forward {
            let back = decode(&answer).expect("an answer");
            let ends = (back.to(), back.from());
            assert_eq!(ends, (sent.from(), sent.to()), "the answer went astray: {}", shown());
        } else if self.routed && self.whole && from == Direction::Outbound && is_host(sent.source) {
            panic!("the answer ends as {outcome:?}: {}", shown());
        }
    }

    fn configure(&mut self) {
        let dice = self.traffic.dice();
        let ports =
            dice.pick(&[(1024, u16::MAX), (20_000, 20_003), (30_000, 30_000), (5000, 6000)]);
        let generation = u32::from(!dice.chance(5));
        let mtu = dice.pick(&[1500, 1500, 1280, 9000]);
        let mut config = self.host.config();
        (config.port_low, config.port_high) = ports;
        config.generation = generation;
        config.routing = config.routing.wrapping_add(1);
        config.external_mtu = mtu;
        self.host.configure(config);
        // Until it is configured again, nothing comes back.
        self.routed &= generation != 0;
    }

    fn change_route(&mut self) {
        let links = self.host.links();
        let dice = self.traffic.dice();
        let network = prefix(dice.pick(&["198.51.100.0/24", "10.0.1.20/32", "10.0.2.0/24"]));
        let target = match dice.pick(&[None, Some(links.internal), Some(links.external)]) {
            None => Target::Refused,
            Some(ifindex) => {
                let via = dice.chance(50).then(|| end("203.0.113.99").ip());
                Target::Forward { ifindex, via }
            }
        };
        self.host.set_route(network, target);
        let embedded = |via| embed_prefix((via, 32)).0;
        let target = match target {
            Target::Forward { ifindex, via } => Target::Forward { ifindex, via: via.map(embedded) },
            Target::Local | Target::Refused => target,
        };
        self.host.set_route(embed_prefix(network), target);
        self.routed = false;
    }

    fn forget(&mut self) {
        let sessions = self.host.sessions();
        let Some(entry) = sessions.get(self.traffic.dice().below(sessions.len().max(1))) else {
            return;
        };
        self.host.forget(&entry.flow);
        self.whole = false;
    }

    /// Every flow has two entries, and each says where the other is.
    fn sessions_are_pairs(&mut self) {
        if !self.whole {
            return;
        }
        let sessions = self.host.sessions();
        let opposite = |entry: &Entry| {
            let mirrored = (entry.translated.1, entry.translated.0);
            sessions.iter().any(|other| {
                (other.flow.source, other.flow.destination) == mirrored
                    && other.flow.protocol == entry.flow.protocol
                    && (other.flags ^ entry.flags) & ORIGINAL == ORIGINAL
                    && other.rule == entry.rule
            })
        };
        for entry in &sessions {
            assert!(opposite(entry), "half a session: {entry:?}");
        }
    }
}

/// Whether this is the address of a host of the VPC: not of the gateway, nor a broadcast address.
fn is_host(address: IpAddr) -> bool {
    let host = match unembed(address) {
        IpAddr::V4(v4) => v4.octets()[3],
        IpAddr::V6(_) => 0,
    };
    is_inside(address) && (1..=253).contains(&host)
}

/// Whether a packet is one that gets an answer of the same flow.
fn is_query(packet: &Decoded) -> bool {
    let whole = packet.fragment.2 == 0 && !packet.fragment.3;
    let asks =
        packet.ports.is_some() || packet.icmp.is_some_and(|(kind, ..)| matches!(kind, 8 | 128));
    whole && asks
}
