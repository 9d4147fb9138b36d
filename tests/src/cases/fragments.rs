//! Fragments, and the identification that holds them together: row 28.

use std::collections::BTreeSet;

use gateway_common::records::Unmatched;
use gateway_common::tuple::Direction;
use gateway_common::verdict::{DropReason, PassReason};

use super::{Gateway, Sent};
use crate::build_packet::{ACK, Draft, TCP, UDP, end, icmp, other, ping, tcp, udp};
use crate::decode::{Decoded, checksum, decode, pseudo_header};

const EIP: &str = "203.0.113.10";
const HOST: &str = "10.0.1.10";
const OTHER_HOST: &str = "10.0.1.20";
const X: &str = "198.51.100.7";

/// What is in the datagrams: no two bytes next to each other are alike.
pub(super) fn content(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 7 + index / 256) as u8).collect()
}

/// A datagram of 200 bytes and its fragments.
pub(super) fn pieces(whole: &Draft) -> Vec<Draft> {
    let pieces = whole.clone().with_payload(&content(200)).pieces(48);
    assert!(pieces.len() > 3);
    pieces
}

/// Sends fragments in order; all of them are forwarded.
pub(super) fn send(
    gw: &mut Gateway<'_>,
    direction: Direction,
    fragments: Vec<Draft>,
) -> Vec<Decoded> {
    let one = |fragment| {
        let frame = gw.frame(direction, fragment);
        gw.send(direction, frame).forwarded().decoded
    };
    fragments.into_iter().map(one).collect()
}

/// The datagram that the receiver makes of its fragments, in the order of their offsets.
#[track_caller]
pub(super) fn reassembled(fragments: &[Decoded]) -> Decoded {
    let mut fragments = fragments.to_vec();
    fragments.sort_by_key(|fragment| fragment.fragment.2);
    let first = &fragments[0];
    let mut segment = Vec::new();
    for (index, fragment) in fragments.iter().enumerate() {
        let (id, _, offset, more) = fragment.fragment;
        assert_eq!(id, first.fragment.0, "one identification");
        assert_eq!((fragment.source, fragment.destination), (first.source, first.destination));
        assert_eq!(offset, segment.len(), "no gap, no overlap");
        assert_eq!(more, index + 1 < fragments.len());
        segment.extend(&fragment.segment);
    }
    let pseudo = pseudo_header(first.source, first.destination, first.protocol, segment.len());
    let covered = if first.protocol == 1 { &[][..] } else { &pseudo };
    assert_eq!(checksum(&[covered, &segment]), 0, "checksum of the whole: {first}");
    let fragment = (first.fragment.0, false, 0, false);
    Decoded { segment, fragment, ..first.clone() }
}

/// Identification before and after.
fn identifications(sent: &Sent) -> (u32, u32) {
    let [before, after] =
        [sent.before(), sent.bytes()].map(|frame| decode(frame).expect("a packet").fragment.0);
    (before, after)
}

/// A packet of this case's notation, as the other side sees it.
pub(super) fn is(seen: &Decoded, source: &str, destination: &str) {
    let plain = |address: std::net::SocketAddr| super::gateway::plain(address);
    assert_eq!(
        (plain(seen.from()).ip(), plain(seen.to()).ip()),
        (end(source).ip(), end(destination).ip())
    );
}

pub(super) fn fragments_leave_with_the_eip_and_those_of_the_answer_come_back(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    for whole in
        [udp("10.0.1.10:40000", "198.51.100.7:53"), tcp("10.0.1.10:40001", "198.51.100.7:80", ACK)]
    {
        let there = send(gw, Direction::Outbound, pieces(&whole));
        let there = reassembled(&there);
        is(&there, EIP, X);
        assert_eq!(there.payload(), content(200));
        let answer = pieces(&plain_answer(&there));
        let back = reassembled(&send(gw, Direction::Inbound, answer));
        is(&back, X, HOST);
        assert_eq!(back.to().port(), whole_port(&whole));
        assert_eq!(back.payload(), content(200));
    }
}

fn whole_port(draft: &Draft) -> u16 {
    decode(&draft.frame([2; 6])).expect("a packet").from().port()
}

pub(super) fn plain_answer(seen: &Decoded) -> Draft {
    super::Seen { decoded: seen.clone(), next_hop: None }.answer()
}

pub(super) fn fragments_of_a_ping_share_its_id(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let whole = ping(HOST, X, 77).with_payload(&content(3000));
    let there = reassembled(&send(gw, Direction::Outbound, whole.pieces(1440)));
    is(&there, EIP, X);
    let back = plain_answer(&there).with_payload(&content(3000));
    let back = reassembled(&send(gw, Direction::Inbound, back.pieces(1440)));
    is(&back, X, HOST);
    assert_eq!(back.icmp.expect("an echo reply").2, 77);
}

pub(super) fn fragments_reach_a_port_forward(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:53", UDP, "10.0.1.10:5353");
    let whole = udp("198.51.100.7:5000", "203.0.113.11:53");
    let there = reassembled(&send(gw, Direction::Inbound, pieces(&whole)));
    is(&there, X, HOST);
    assert_eq!(there.to().port(), 5353);
    let answer = pieces(&plain_answer(&there));
    let back = reassembled(&send(gw, Direction::Outbound, answer));
    is(&back, "203.0.113.11", X);
    assert_eq!((back.from().port(), back.to().port()), (53, 5000));
}

pub(super) fn fragments_turn_round_in_a_hairpin(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:53", UDP, "10.0.1.10:5353");
    gw.fip("203.0.113.14", "10.0.1.5");
    for (to, inside) in [("203.0.113.11:53", HOST), ("203.0.113.14:53", "10.0.1.5")] {
        let whole = udp("10.0.1.20:4000", to);
        let there = reassembled(&send(gw, Direction::Outbound, pieces(&whole)));
        is(&there, &end(to).ip().to_string(), inside);
        let answer = pieces(&plain_answer(&there));
        let back = reassembled(&send(gw, Direction::Outbound, answer));
        is(&back, &end(to).ip().to_string(), OTHER_HOST);
        assert_eq!(back.to().port(), 4000);
    }
}

pub(super) fn a_later_fragment_counts_for_session_and_rule(gw: &mut Gateway<'_>) {
    let rule = gw.snat("10.0.1.0/24", &[EIP])[0];
    let fragments = pieces(&udp("10.0.1.10:4000", "198.51.100.7:53"));
    let count = fragments.len() as u64;
    send(gw, Direction::Outbound, fragments);
    assert_eq!(gw.session("10.0.1.10:4000", "198.51.100.7:53").counted.0, count);
    assert_eq!(gw.rule_counter(rule).packets, count);
    assert_eq!(gw.sessions().len(), 2);
}

pub(super) fn a_later_fragment_does_not_outlive_its_session(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let fragments = pieces(&udp("10.0.1.10:4000", "198.51.100.7:53"));
    gw.outbound(fragments[0].clone()).forwarded();
    let entry = gw.session("10.0.1.10:4000", "198.51.100.7:53");
    gw.forget(&entry);
    gw.outbound(fragments[1].clone()).dropped(DropReason::Fragment);
    assert_eq!(gw.sessions().len(), 1, "a later fragment opens nothing");
}

pub(super) fn interleaved_datagrams_with_one_identification_are_told_apart(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    // Two hosts, one remote, one identification, in turn: what reassembly would mix up (RFC 6864).
    let [one, two] =
        [HOST, OTHER_HOST].map(|host| pieces(&udp(&format!("{host}:4000"), "198.51.100.7:53")));
    let mut seen = [Vec::new(), Vec::new()];
    for (one, two) in one.into_iter().zip(two) {
        seen[0].push(gw.outbound(one).forwarded().decoded);
        seen[1].push(gw.outbound(two).forwarded().decoded);
    }
    let [one, two] = seen.map(|fragments| reassembled(&fragments));
    assert_ne!(one.from(), two.from());
    assert_ne!(one.fragment.0, two.fragment.0);
}

pub(super) fn interleaved_answers_with_one_identification_are_told_apart(gw: &mut Gateway<'_>) {
    // To two EIPs, but to one host: behind the gateway both are between the same two addresses.
    gw.dnat("203.0.113.11:53", UDP, "10.0.1.10:53");
    gw.dnat("203.0.113.12:53", UDP, "10.0.1.10:54");
    let [one, two] =
        ["203.0.113.11:53", "203.0.113.12:53"].map(|to| pieces(&udp("198.51.100.7:5000", to)));
    let mut seen = [Vec::new(), Vec::new()];
    for (one, two) in one.into_iter().zip(two) {
        seen[0].push(gw.inbound(one).forwarded().decoded);
        seen[1].push(gw.inbound(two).forwarded().decoded);
    }
    let [one, two] = seen.map(|fragments| reassembled(&fragments));
    assert_eq!((one.to().port(), two.to().port()), (53, 54));
    assert_ne!(one.fragment.0, two.fragment.0);
}

pub(super) fn a_first_fragment_that_comes_twice_keeps_its_identification(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let mut fragments = pieces(&udp("10.0.1.10:4000", "198.51.100.7:53"));
    let first = fragments[0].clone();
    fragments.insert(2, first);
    let mut seen = send(gw, Direction::Outbound, fragments);
    let again = seen.remove(2);
    assert_eq!(again, seen[0]);
    reassembled(&seen);
}

pub(super) fn the_next_datagram_of_one_identification_takes_over(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    for port in [4000, 4001] {
        let whole = udp(&format!("10.0.1.10:{port}"), "198.51.100.7:53");
        reassembled(&send(gw, Direction::Outbound, pieces(&whole)));
        let counted = gw.session(&format!("10.0.1.10:{port}"), "198.51.100.7:53").counted.0;
        assert_eq!(counted, pieces(&whole).len() as u64, "each fragment with its own flow");
    }
}

// RFC 1858 section 3, RFC 3128: what a filter behind the gateway could not judge.
pub(super) fn a_first_fragment_without_its_whole_header_is_dropped(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    gw.fip("203.0.113.14", "10.0.1.5");
    for host in [HOST, "10.0.1.5"] {
        let from = format!("{host}:4000");
        let whole = tcp(&from, "198.51.100.7:80", ACK).with_payload(&content(64));
        for size in [8, 16] {
            // Padded, as Ethernet does: what follows the packet is no header.
            let mut frame = gw.frame(Direction::Outbound, whole.pieces(size)[0].clone());
            frame.resize(100, 0x55);
            gw.send(Direction::Outbound, frame).dropped(DropReason::FragmentTiny);
        }
    }
    assert_eq!(gw.sessions(), []);
    gw.outbound(udp("10.0.1.10:4000", "198.51.100.7:80").pieces(8)[0].clone()).forwarded();
    gw.outbound(ping(HOST, X, 5).pieces(8)[0].clone()).forwarded();
    gw.outbound(other(99, HOST, X).pieces(8)[0].clone()).forwarded();
}

pub(super) fn a_later_fragment_that_reaches_into_the_header_is_dropped(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let whole = tcp("10.0.1.10:4000", "198.51.100.7:80", ACK).with_payload(&content(64));
    gw.outbound(whole.pieces(24)[0].clone()).forwarded();
    gw.outbound(whole.pieces(8)[1].clone()).dropped(DropReason::FragmentTiny);
    gw.outbound(whole.pieces(24)[1].clone()).forwarded();
}

pub(super) fn a_fragment_of_a_fragment_is_dropped(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let mut first =
        udp("10.0.1.10:4000", "198.51.100.7:53").with_payload(&content(64)).pieces(32)[0].clone();
    first.extensions = vec![(44, vec![0, 1, 0, 0, 0, 9])];
    gw.outbound(first).dropped(DropReason::TooManyExtensions);
}

// RFC 6946.
pub(super) fn a_datagram_in_one_fragment_is_a_whole_one(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let whole = udp("10.0.1.10:4000", "198.51.100.7:53");
    let atomic = whole.pieces(64);
    assert_eq!(atomic.len(), 1);
    let there = gw.outbound(atomic[0].clone());
    let (before, after) = identifications(&there);
    assert_eq!(before, after);
    let there = there.forwarded();
    assert_eq!(there.decoded.extensions.len(), 8);
    let port = there.is_from(EIP, "198.51.100.7:53");
    assert_eq!(gw.outbound(whole).forwarded().source().port(), port);
}

pub(super) fn a_datagram_that_may_be_fragmented_is_renumbered(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let mut used = BTreeSet::new();
    for count in 0..50 {
        for host in [HOST, OTHER_HOST] {
            let packet = udp(&format!("{host}:4000"), "198.51.100.7:53").with_identification(count);
            let sent = gw.outbound(packet);
            sent.forwarded();
            assert!(used.insert(identifications(&sent).1), "an identification twice: {used:?}");
        }
    }
}

pub(super) fn an_atomic_datagram_keeps_its_identification(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let packet = Draft { dont_fragment: true, ..udp("10.0.1.10:4000", "198.51.100.7:53") };
    let sent = gw.outbound(packet);
    sent.forwarded();
    let (before, after) = identifications(&sent);
    assert_eq!(before, after);
}

pub(super) fn a_floating_ip_keeps_the_identification(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    let outbound = udp("10.0.1.5:4000", "198.51.100.7:53");
    let inbound = udp("198.51.100.7:53", "203.0.113.14:4000");
    for (direction, whole) in [(Direction::Outbound, outbound), (Direction::Inbound, inbound)] {
        for draft in pieces(&whole).into_iter().rev().chain([whole]) {
            let frame = gw.frame(direction, draft);
            let sent = gw.send(direction, frame);
            sent.forwarded();
            let (before, after) = identifications(&sent);
            assert_eq!(before, after);
        }
    }
    assert_eq!(gw.sessions(), []);
}

pub(super) fn an_untranslated_flow_keeps_the_identification(gw: &mut Gateway<'_>) {
    gw.configure(|config| config.unmatched = Unmatched::Forward as u8);
    let whole = udp("198.51.100.7:5000", "10.0.1.10:53");
    for draft in pieces(&whole).into_iter().chain([whole]) {
        let sent = gw.inbound(draft);
        sent.forwarded();
        let (before, after) = identifications(&sent);
        assert_eq!(before, after);
    }
}

pub(super) fn a_later_fragment_of_the_gateway_is_its_own(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:80");
    for fragment in pieces(&ping(X, "203.0.113.11", 9)) {
        gw.inbound(fragment).passed(PassReason::Local);
    }
}

pub(super) fn an_error_in_fragments_is_refused(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let there = gw.outbound(udp("10.0.1.10:4000", "198.51.100.7:53"));
    let kind = if gw.is_ipv6() { 1 } else { 3 };
    let error = icmp(X, EIP, kind, 1, [0; 4]).with_payload(&there.bytes()[14..]);
    gw.inbound(error.pieces(40)[0].clone()).passed(PassReason::Local);
}
