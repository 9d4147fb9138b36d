//! SNAT: rows 4 to 6, 23 and 27.

use gateway_common::tuple::Direction;
use gateway_common::verdict::DropReason;

use super::Gateway;
use crate::build_packet::{
    ACK, DCCP, Draft, SYN, TCP, Transport, UDP_LITE, datagram, other, ping, tcp, udp,
};
use crate::decode::{checksum, decode, pseudo_header};

/// B leaves for Y and the answer returns to it.
fn there_and_back(gw: &mut Gateway<'_>, first: Draft, inside: &str, remote: &str) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let there = gw.outbound(first).forwarded();
    there.is_from("203.0.113.10", remote);
    there.leaves_by(gw.links().external, "203.0.113.1");
    let back = gw.inbound(there.answer()).forwarded();
    back.is(remote, inside);
    back.leaves_by(gw.links().internal, "10.0.1.10");
    assert_eq!(gw.sessions().len(), 2);
}

pub(super) fn tcp_leaves_with_the_eip_and_the_answer_comes_back(gw: &mut Gateway<'_>) {
    let (inside, remote) = ("10.0.1.10:40000", "198.51.100.7:443");
    there_and_back(gw, tcp(inside, remote, SYN), inside, remote);
}

pub(super) fn udp_leaves_with_the_eip_and_the_answer_comes_back(gw: &mut Gateway<'_>) {
    let (inside, remote) = ("10.0.1.10:40000", "198.51.100.7:53");
    there_and_back(gw, udp(inside, remote), inside, remote);
}

pub(super) fn ping_leaves_with_the_eip_and_the_answer_comes_back(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let there = gw.outbound(ping("10.0.1.10", "198.51.100.7", 77)).forwarded();
    there.is_from("203.0.113.10", "198.51.100.7");
    let back = gw.inbound(there.answer()).forwarded();
    back.is("198.51.100.7", "10.0.1.10:77");
}

pub(super) fn an_open_session_keeps_its_port_and_counts_both_directions(gw: &mut Gateway<'_>) {
    let rule = gw.snat("10.0.1.0/24", &["203.0.113.10"])[0];
    let packet = || tcp("10.0.1.10:40000", "198.51.100.7:443", ACK).with_payload(&[7; 99]);
    let first = gw.outbound(packet()).forwarded();
    for _ in 0..3 {
        let next = gw.outbound(packet()).forwarded();
        assert_eq!(next.source(), first.source());
    }
    for _ in 0..2 {
        gw.inbound(first.answer().with_payload(&[8; 50])).forwarded();
    }
    let network = if gw.is_ipv6() { 40 } else { 20 };
    let original = gw.session("10.0.1.10:40000", "198.51.100.7:443");
    assert_eq!(original.counted, (4, 4 * (14 + network + 20 + 99)));
    assert_eq!(original.translated, (first.source(), first.destination()));
    assert_eq!((original.rule, original.seen), (rule, ACK));
    let reply = gw.session("198.51.100.7:443", &first.source().to_string());
    assert_eq!(reply.counted, (2, 2 * (14 + network + 20 + 50)));
    assert_eq!(reply.flow.direction, Direction::Inbound as u8);
    assert_eq!(reply.rule, rule);
}

pub(super) fn the_rule_counts_its_packets(gw: &mut Gateway<'_>) {
    let rule = gw.snat("10.0.1.0/24", &["203.0.113.10"])[0];
    let there = gw.outbound(udp("10.0.1.10:40000", "198.51.100.7:53"));
    gw.inbound(there.forwarded().answer()).forwarded();
    gw.outbound(udp("10.0.9.9:1", "198.51.100.7:53")).dropped(DropReason::NoRule);
    assert_eq!(gw.rule_counter(rule).packets, 2);
    assert!(gw.rule_counter(rule).bytes > 2 * there.bytes().len() as u64);
}

pub(super) fn the_longest_prefix_wins(gw: &mut Gateway<'_>) {
    gw.snat("10.0.0.0/16", &["203.0.113.10"]);
    gw.snat("10.0.1.0/24", &["203.0.113.11"]);
    gw.snat("10.0.1.10/32", &["203.0.113.12"]);
    gw.snat("0.0.0.0/0", &["203.0.113.13"]);
    for (source, eip) in [
        ("10.0.2.30", "203.0.113.10"),
        ("10.0.1.20", "203.0.113.11"),
        ("10.0.1.10", "203.0.113.12"),
        ("172.20.0.1", "203.0.113.13"),
    ] {
        let packet = udp(&format!("{source}:5000"), "198.51.100.7:53");
        gw.outbound(packet).forwarded().is_from(eip, "198.51.100.7:53");
    }
}

pub(super) fn a_source_stays_with_its_member_of_the_pool(gw: &mut Gateway<'_>) {
    let pool = ["203.0.113.10", "203.0.113.11", "203.0.113.12"];
    gw.snat("10.0.1.0/24", &pool);
    for host in [10, 20, 30, 40] {
        let source = format!("10.0.1.{host}:6000");
        let first = gw.outbound(udp(&source, "198.51.100.7:53")).forwarded().source().ip();
        for port in [53, 80, 443] {
            let remote = format!("198.51.100.8:{port}");
            assert_eq!(gw.outbound(udp(&source, &remote)).forwarded().source().ip(), first);
            let packet = tcp(&source, &remote, SYN);
            assert_eq!(gw.outbound(packet).forwarded().source().ip(), first);
        }
        let packet = ping(&format!("10.0.1.{host}"), "198.51.100.8", 5);
        assert_eq!(gw.outbound(packet).forwarded().source().ip(), first);
    }
}

pub(super) fn the_members_of_a_pool_share_the_sources(gw: &mut Gateway<'_>) {
    let ids = gw.snat("10.0.1.0/24", &["203.0.113.10", "203.0.113.11"]);
    for host in 1..=100 {
        let packet = udp(&format!("10.0.1.{host}:6000"), "198.51.100.7:53");
        gw.outbound(packet).forwarded();
    }
    let [first, second] = [ids[0], ids[1]].map(|id| gw.rule_counter(id).packets);
    assert_eq!(first + second, 100);
    assert!(first.min(second) >= 25, "{first} and {second}");
}

pub(super) fn protocols_without_ports_keep_everything_but_the_address(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for protocol in [99, 47, 50] {
        let there = gw.outbound(other(protocol, "10.0.1.10", "198.51.100.7")).forwarded();
        there.is("203.0.113.10", "198.51.100.7");
        gw.inbound(there.answer()).forwarded().is("198.51.100.7", "10.0.1.10");
    }
}

/// Row 27. Its ports are another protocol's, and its checksum covers no address.
pub(super) fn sctp_keeps_its_ports(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let association = [0x1f, 0x90, 0x00, 0x50, 1, 2, 3, 4, 0xaa, 0xbb, 0xcc, 0xdd, 1, 0, 0, 4];
    let packet = other(132, "10.0.1.10", "198.51.100.7").with_payload(&association);
    let there = gw.outbound(packet).forwarded();
    there.is("203.0.113.10", "198.51.100.7");
    gw.inbound(there.answer()).forwarded().is("198.51.100.7", "10.0.1.10");
    assert_eq!(gw.sessions().len(), 2);
    // One flow for each pair of addresses and protocol, whatever the ports.
    let other_ports = [&[0x1f, 0x91][..], &association[2..]].concat();
    let packet = other(132, "10.0.1.10", "198.51.100.7").with_payload(&other_ports);
    gw.outbound(packet).forwarded().is("203.0.113.10", "198.51.100.7");
    gw.outbound(other(132, "10.0.1.10", "198.51.100.8")).forwarded();
    gw.outbound(other(99, "10.0.1.10", "198.51.100.7")).forwarded();
    assert_eq!(gw.sessions().len(), 6);
}

pub(super) fn two_hosts_cannot_share_a_protocol_without_ports(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.outbound(other(99, "10.0.1.10", "198.51.100.7")).forwarded();
    // Nothing would tell the answers apart.
    gw.outbound(other(99, "10.0.1.20", "198.51.100.7")).dropped(DropReason::PortsExhausted);
    gw.outbound(other(99, "10.0.1.20", "198.51.100.8")).forwarded();
    assert_eq!(gw.sessions().len(), 4);
}

pub(super) fn udp_lite_and_dccp_have_ports_too(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for protocol in [UDP_LITE, DCCP] {
        let there = gw.outbound(datagram(protocol, "10.0.1.10:700", "198.51.100.7:53")).forwarded();
        let port = there.is_from("203.0.113.10", "198.51.100.7:53");
        assert!((600..1024).contains(&port), "{port}");
        gw.inbound(there.answer()).forwarded().is("198.51.100.7:53", "10.0.1.10:700");
    }
}

pub(super) fn a_datagram_without_checksum_stays_without(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let there = gw.outbound(udp("10.0.1.10:40000", "198.51.100.7:53").without_checksum());
    let there = there.forwarded();
    assert_eq!(there.decoded.checksum, Some(0));
    let back = gw.inbound(there.answer().without_checksum()).forwarded();
    assert_eq!(back.decoded.checksum, Some(0));
}

pub(super) fn a_checksum_that_computes_to_zero_is_sent_as_all_ones(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let packet = |payload: &[u8]| udp("10.0.1.10:40000", "198.51.100.7:53").with_payload(payload);
    // The two bytes that make the translated datagram sum up to zero: its checksum without them.
    let there = gw.outbound(packet(&[0, 0])).forwarded();
    let sum = there.decoded.checksum.expect("a checksum").to_be_bytes();
    let there = gw.outbound(packet(&sum)).forwarded();
    assert_eq!(there.decoded.checksum, Some(0xffff));
}

/// What a sender leaves to the hardware holds the sum of the pseudo header. So does one finished checksum of
/// 65 536.
pub(super) fn a_finished_checksum_may_look_like_an_unfinished_one(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let opening = |from: &str, to: &str| tcp(from, to, SYN);
    for build in [udp as fn(&str, &str) -> Draft, opening] {
        let packet =
            |payload: [u8; 2]| build("10.0.1.10:40000", "198.51.100.7:53").with_payload(&payload);
        let frame = gw.frame(Direction::Outbound, packet([0, 0]));
        let plain = decode(&frame).expect("a packet");
        let length = if plain.protocol == TCP { 20 } else { 8 } + 2;
        let pseudo = pseudo_header(plain.source, plain.destination, plain.protocol, length);
        let pseudo = !checksum(&[&pseudo]);
        // What makes ~(pseudo + rest + payload) the same as the pseudo header's sum.
        let rest = plain.checksum.expect("a checksum");
        let payload = !checksum(&[&(!pseudo).to_be_bytes(), &rest.to_be_bytes()]);
        let packet = packet(payload.to_be_bytes());
        let frame = gw.frame(Direction::Outbound, packet.clone());
        assert_eq!(decode(&frame).expect("a packet").checksum, Some(pseudo));
        gw.outbound(packet).forwarded();
    }
}

pub(super) fn ipv4_options_are_kept(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for options in [vec![1, 1, 1, 0], vec![7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0], vec![1; 40]] {
        let packet = Draft { ipv4_options: options, ..udp("10.0.1.10:4000", "198.51.100.7:53") };
        let there = gw.outbound(packet.clone()).forwarded();
        let answer = Draft { ipv4_options: packet.ipv4_options, ..there.answer() };
        gw.inbound(answer).forwarded().is("198.51.100.7:53", "10.0.1.10:4000");
    }
}

pub(super) fn an_eip_is_for_the_external_interface_only(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.outbound(udp("10.0.1.10:4000", "172.16.0.9:53")).dropped(DropReason::NoRule);
}

pub(super) fn type_of_service_and_identification_are_kept(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let packet = Draft {
        tos: 0xb9,
        identification: 0xbeef,
        dont_fragment: true,
        transport: Transport::Tcp { ports: (40_000, 443), flags: SYN },
        ..udp("10.0.1.10:40000", "198.51.100.7:443")
    };
    let there = gw.outbound(packet);
    let seen = decode(there.bytes()).expect("a packet");
    there.forwarded().is_from("203.0.113.10", "198.51.100.7:443");
    assert_eq!(seen.tos, 0xb9);
}
