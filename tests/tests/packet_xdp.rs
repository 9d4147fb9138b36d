//! What XDP finishes by itself, and what it leaves to TC for which reason.

use std::net::IpAddr;

use gateway_common::tuple::Direction;
use gateway_common::verdict::{DropReason, PassReason, XDP_FORWARDED};
use gateway_tests::build_packet::{ACK, Draft, SYN, TCP, tcp, udp};
use gateway_tests::decode::{Decoded, decode};
use gateway_tests::harness::routes::{embed_prefix, ingress_mac, prefix};
use gateway_tests::harness::{Backend, NatRule, Outcome};
use gateway_tests::kernel::{self, Options, Tc};

const CAPACITY: u32 = 1 << 14;
const REMOTE: &str = "198.51.100.7:443";

/// XDP in front of TC, in one family.
struct Lab<'a> {
    tc: &'a mut Tc,
    ipv6: bool,
}

impl<'a> Lab<'a> {
    /// A floating IP, a port forward and SNAT for the VPC.
    fn new(tc: &'a mut Tc, ipv6: bool) -> Self {
        tc.clear();
        let network = |text: &str| if ipv6 { embed_prefix(prefix(text)) } else { prefix(text) };
        let ip = |text: &str| -> IpAddr { network(text).0 };
        tc.add(&NatRule::Snat {
            prefix: network("10.0.0.0/8"),
            pool: vec![(ip("203.0.113.10"), 1)],
        });
        tc.add(&NatRule::Fip { eip: ip("203.0.113.14"), inside: ip("10.0.1.5"), id: 2 });
        let (external, inside) = ((ip("203.0.113.11"), 80).into(), (ip("10.0.1.20"), 8080).into());
        tc.add(&NatRule::Dnat { external, protocol: TCP, inside, id: 3 });
        Self { tc, ipv6 }
    }

    /// Sends a packet. Returns what became of it, where XDP has counted it, and the packet.
    fn send(&mut self, direction: Direction, draft: Draft) -> (Outcome, u32, Vec<u8>) {
        let draft = if self.ipv6 && draft.source.is_ipv4() { draft.over_ipv6() } else { draft };
        let mut frame = draft.frame(ingress_mac(direction));
        let outcome = self.tc.send(direction, &mut frame).outcome;
        (outcome, self.tc.accelerated().last, frame)
    }

    /// Sends a packet that is forwarded, by XDP or for this reason by TC. Returns what comes out.
    fn forwarded(&mut self, direction: Direction, draft: Draft, by: Option<PassReason>) -> Decoded {
        let (outcome, counter, frame) = self.send(direction, draft);
        let expected = by.map_or(XDP_FORWARDED, PassReason::counter);
        assert_eq!((outcome, counter), (Outcome::Forward, expected));
        decode(&frame).expect("a packet")
    }
}

/// What the receiver of a packet answers.
fn answer(seen: &Decoded) -> Draft {
    let (from, to) = (seen.to().to_string(), seen.from().to_string());
    if seen.protocol == TCP { tcp(&from, &to, ACK) } else { udp(&from, &to) }
}

#[test]
fn xdp_finishes_every_packet_between_neighbours_that_it_knows() {
    const ROUNDS: u64 = 3;
    use Direction::{Inbound, Outbound};
    let flows = || {
        [
            (Outbound, tcp("10.0.1.10:40000", REMOTE, SYN), Inbound),
            (Outbound, udp("10.0.1.10:40000", REMOTE), Inbound),
            (Inbound, tcp("198.51.100.7:5000", "203.0.113.11:80", SYN), Outbound),
            (Inbound, udp("198.51.100.7:5000", "203.0.113.14:53"), Outbound),
            (Outbound, udp("10.0.1.5:5000", REMOTE), Inbound),
            // Hairpins leave by the interface that they came in by.
            (Outbound, tcp("10.0.1.10:5000", "203.0.113.11:80", SYN), Outbound),
            (Outbound, udp("10.0.1.10:5000", "203.0.113.14:53"), Outbound),
        ]
    };
    kernel::run(Options::xdp(CAPACITY), |tc| {
        for ipv6 in [false, true] {
            let mut lab = Lab::new(tc, ipv6);
            for (there, first, back) in flows() {
                for _ in 0..ROUNDS {
                    let seen = lab.forwarded(there, first.clone(), None);
                    lab.forwarded(back, answer(&seen), None);
                }
            }
            // Once for each packet.
            let counted: u64 = [1, 2, 3].map(|id| lab.tc.rule_counter(id).packets).iter().sum();
            assert_eq!(counted, 2 * ROUNDS * flows().len() as u64);
        }
    });
}

#[test]
fn what_xdp_leaves_to_tc_is_counted_by_its_reason() {
    let drop = |reason: DropReason| (Outcome::Drop(reason), reason.counter());
    let pass = |reason: PassReason| (Outcome::Pass(reason), reason.counter());
    kernel::run(Options::xdp(CAPACITY), |tc| {
        for ipv6 in [false, true] {
            let mut lab = Lab::new(tc, ipv6);
            let plain = || udp("10.0.1.10:4000", REMOTE);
            for (draft, expected) in [
                (Draft { vlan: Some(7), ..plain() }, pass(PassReason::NotIp)),
                (Draft { mac: Some([0xff; 6]), ..plain() }, pass(PassReason::NotForThisHost)),
                (udp("10.0.1.10:4000", "203.0.113.2:53"), pass(PassReason::Local)),
                (plain().with_ttl(1), pass(PassReason::TtlExpired)),
                (udp("192.168.7.7:4000", REMOTE), drop(DropReason::NoRule)),
            ] {
                let (outcome, counter, _) = lab.send(Direction::Outbound, draft);
                assert_eq!((outcome, counter), expected);
            }
            let [first, second] = udp("10.0.1.5:1000", REMOTE).with_payload(&[1; 64]).fragments(32);
            lab.forwarded(Direction::Outbound, first, Some(PassReason::Fragment));
            lab.forwarded(Direction::Outbound, second, Some(PassReason::Fragment));
        }
    });
}

#[test]
fn a_session_that_xdp_opened_goes_on_in_tc_and_the_other_way_round() {
    kernel::run(Options::xdp(CAPACITY), |tc| {
        for ipv6 in [false, true] {
            let mut lab = Lab::new(tc, ipv6);
            // XDP knows the next hop outside, and not the host inside.
            let stranger = udp("10.0.1.30:4000", REMOTE);
            let seen = lab.forwarded(Direction::Outbound, stranger, None);
            lab.forwarded(Direction::Inbound, answer(&seen), Some(PassReason::NoNeighbor));

            let host = || udp("10.0.1.10:4000", REMOTE);
            lab.tc.vouch(false);
            let unconfirmed = Some(PassReason::Unconfirmed);
            let there = lab.forwarded(Direction::Outbound, host(), unconfirmed);
            let back = lab.forwarded(Direction::Inbound, answer(&there), unconfirmed);
            assert_eq!(back.destination, host_of(lab.ipv6));
            lab.tc.vouch(true);
            let again = lab.forwarded(Direction::Outbound, host(), None);
            assert_eq!(again.from(), there.from());
            lab.forwarded(Direction::Inbound, answer(&there), None);
            assert_eq!(lab.tc.rule_counter(1).packets, 6);
            // The original and the reply have counted two packets each, but for the stranger's one.
            let mut counted: Vec<_> = lab.tc.sessions().iter().map(|one| one.counted.0).collect();
            counted.sort_unstable();
            assert_eq!(counted, [1, 1, 2, 2]);
        }
    });
}

fn host_of(ipv6: bool) -> IpAddr {
    let plain = prefix("10.0.1.10");
    if ipv6 { embed_prefix(plain).0 } else { plain.0 }
}

#[test]
fn a_neighbour_that_has_moved_is_followed_with_the_next_packet() {
    kernel::run(Options::xdp(CAPACITY), |tc| {
        for ipv6 in [false, true] {
            let mut lab = Lab::new(tc, ipv6);
            for octet in [1, 2, 0] {
                lab.tc.move_neighbors(octet);
                for _ in 0..2 {
                    lab.forwarded(Direction::Outbound, udp("10.0.1.10:40000", REMOTE), None);
                    assert_eq!(lab.tc.accelerated().to[..2], [6, octet], "IPv6: {ipv6}");
                }
            }
        }
    });
}
