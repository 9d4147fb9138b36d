//! Floating IPs: rows 1 to 3 and 7.

use gateway_common::tuple::Direction;
use gateway_common::verdict::{DropReason, PassReason};

use super::{Gateway, Sent};
use crate::build_packet::{DCCP, Draft, SYN, TCP, UDP_LITE, datagram, end, other, ping, tcp, udp};
use crate::decode::{checksum, decode, pseudo_header};

const EIP: &str = "203.0.113.14";
const HOST: &str = "10.0.1.5";
const X: &str = "198.51.100.7";

/// One packet of every kind from `source` to `destination`.
fn every_kind(source: &str, destination: &str) -> Vec<Draft> {
    let (from, to) = (format!("{source}:4000"), format!("{destination}:80"));
    vec![
        tcp(&from, &to, SYN),
        udp(&from, &to),
        datagram(UDP_LITE, &from, &to),
        datagram(DCCP, &from, &to),
        ping(source, destination, 77),
        ping(source, destination, 77).reversed().reversed(),
        other(99, source, destination),
        other(132, source, destination),
    ]
}

pub(super) fn any_protocol_comes_in_with_ports_kept(gw: &mut Gateway<'_>) {
    gw.fip(EIP, HOST);
    for packet in every_kind(X, EIP) {
        let sent = gw.inbound(packet);
        let there = sent.forwarded();
        assert_eq!((there.source().ip(), there.destination().ip()), (end(X).ip(), end(HOST).ip()));
        ports_are_kept(&sent, there.decoded.ports);
        there.leaves_by(gw.links().internal, HOST);
    }
    assert_eq!(gw.sessions(), []);
}

pub(super) fn any_protocol_goes_out_with_ports_kept(gw: &mut Gateway<'_>) {
    gw.fip(EIP, HOST);
    for packet in every_kind(HOST, X) {
        let sent = gw.outbound(packet);
        let there = sent.forwarded();
        assert_eq!((there.source().ip(), there.destination().ip()), (end(EIP).ip(), end(X).ip()));
        ports_are_kept(&sent, there.decoded.ports);
        there.leaves_by(gw.links().external, "203.0.113.1");
    }
    assert_eq!(gw.sessions(), []);
}

fn ports_are_kept(sent: &Sent, ports: Option<(u16, u16)>) {
    let expected = decode(sent.bytes()).expect("a packet").ports.map(|_| (4000, 80));
    assert_eq!(ports, expected);
}

pub(super) fn no_state_is_kept(gw: &mut Gateway<'_>) {
    gw.fip(EIP, HOST);
    let there = gw.inbound(tcp("198.51.100.7:5000", "203.0.113.14:22", SYN)).forwarded();
    gw.outbound(there.answer()).forwarded().is("203.0.113.14:22", "198.51.100.7:5000");
    gw.outbound(ping(HOST, X, 3)).forwarded().is("203.0.113.14:3", X);
    assert_eq!(gw.sessions(), []);
}

// Row 7.
pub(super) fn a_floating_ip_wins_over_snat(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.fip(EIP, HOST);
    gw.outbound(udp("10.0.1.5:4000", "198.51.100.7:53"))
        .forwarded()
        .is("203.0.113.14:4000", "198.51.100.7:53");
    let packet = udp("10.0.1.10:4000", "198.51.100.7:53");
    gw.outbound(packet).forwarded().is_from("203.0.113.10", "198.51.100.7:53");
}

pub(super) fn a_floating_ip_wins_over_dnat_on_its_eip(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.14:80", TCP, "10.0.1.10:8080");
    gw.fip(EIP, HOST);
    let packet = tcp("198.51.100.7:5000", "203.0.113.14:80", SYN);
    gw.inbound(packet).forwarded().is("198.51.100.7:5000", "10.0.1.5:80");
}

pub(super) fn fragments_pass_both_ways_and_reassemble(gw: &mut Gateway<'_>) {
    gw.fip(EIP, HOST);
    let payload: Vec<u8> = (0..100).collect();
    for (direction, source, destination) in [
        (Direction::Inbound, "198.51.100.7:4000", "203.0.113.14:80"),
        (Direction::Outbound, "10.0.1.5:4000", "198.51.100.7:80"),
    ] {
        for whole in [udp(source, destination), tcp(source, destination, SYN)] {
            let fragments = whole.with_payload(&payload).fragments(32);
            let parts = fragments.map(|fragment| {
                let frame = gw.frame(direction, fragment);
                gw.send(direction, frame).forwarded()
            });
            // A later fragment has no ports to be rewritten, only addresses.
            assert_eq!(parts[1].decoded.ports, None);
            let segment = [&parts[0].decoded.segment[..], &parts[1].decoded.segment].concat();
            let first = &parts[0].decoded;
            let (from, to) = (first.source, first.destination);
            let pseudo = pseudo_header(from, to, first.protocol, segment.len());
            assert_eq!(checksum(&[&pseudo, &segment]), 0, "reassembled");
            assert_eq!(segment[segment.len() - 100..], payload);
        }
    }
}

pub(super) fn ipv4_options_are_kept(gw: &mut Gateway<'_>) {
    gw.fip(EIP, HOST);
    for packet in every_kind(X, EIP) {
        let packet = Draft { ipv4_options: vec![7, 7, 4, 0, 0, 0, 0, 1], ..packet };
        assert_eq!(gw.inbound(packet).forwarded().destination().ip(), end(HOST).ip());
    }
}

pub(super) fn both_directions_count_for_the_rule(gw: &mut Gateway<'_>) {
    let rule = gw.fip(EIP, HOST);
    let there = gw.inbound(udp("198.51.100.7:5000", "203.0.113.14:53")).forwarded();
    gw.outbound(there.answer()).forwarded();
    assert_eq!(gw.rule_counter(rule).packets, 2);
}

pub(super) fn an_open_session_wins_over_a_new_floating_ip(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let packet = || udp("10.0.1.5:4000", "198.51.100.7:53");
    let before = gw.outbound(packet()).forwarded().source();
    gw.fip(EIP, HOST);
    assert_eq!(gw.outbound(packet()).forwarded().source(), before);
    let other = udp("10.0.1.5:4001", "198.51.100.7:53");
    gw.outbound(other).forwarded().is("203.0.113.14:4001", "198.51.100.7:53");
}

pub(super) fn a_removed_floating_ip_ends_at_once(gw: &mut Gateway<'_>) {
    let rule = gw.fip(EIP, HOST);
    gw.inbound(ping(X, EIP, 1)).forwarded();
    gw.remove(rule);
    gw.inbound(ping(X, EIP, 1)).passed(PassReason::Local);
    gw.outbound(ping(HOST, X, 1)).dropped(DropReason::NoRule);
}

pub(super) fn a_blackhole_route_stops_it(gw: &mut Gateway<'_>) {
    gw.fip(EIP, HOST);
    gw.outbound(ping(HOST, "192.0.2.9", 1)).dropped(DropReason::NoRoute);
    gw.fip("203.0.113.15", "192.0.2.8");
    gw.inbound(ping(X, "203.0.113.15", 1)).dropped(DropReason::NoRoute);
}

// Row 22.
pub(super) fn traffic_to_another_vpc_network_is_left_to_the_kernel(gw: &mut Gateway<'_>) {
    gw.fip(EIP, HOST);
    gw.outbound(udp("10.0.1.5:4000", "10.0.2.30:53")).passed(PassReason::VpcInternal);
    gw.outbound(udp("10.0.2.30:53", "10.0.1.5:4000")).passed(PassReason::VpcInternal);
}
