//! Where forwarding ends: hops, sizes, full tables, no configuration, routes.

use gateway_common::verdict::{DropReason, PassReason};

use super::Gateway;
use crate::build_packet::{Draft, SYN, TCP, end, ping, tcp, udp};
use crate::harness::routes::MTU;

const INSIDE: &str = "10.0.1.10:4000";
const REMOTE: &str = "198.51.100.7:53";

pub(super) fn the_last_hop_outbound_is_the_kernels(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.fip("203.0.113.14", "10.0.1.5");
    for ttl in [0, 1] {
        gw.outbound(udp(INSIDE, REMOTE).with_ttl(ttl)).passed(PassReason::TtlExpired);
        gw.outbound(ping("10.0.1.5", "198.51.100.7", 1).with_ttl(ttl))
            .passed(PassReason::TtlExpired);
    }
    assert_eq!(gw.sessions(), []);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.outbound(udp(INSIDE, REMOTE).with_ttl(1)).passed(PassReason::TtlExpired);
}

pub(super) fn the_last_hop_inbound_is_dropped(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.fip("203.0.113.14", "10.0.1.5");
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    let there = gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    for ttl in [0, 1] {
        gw.inbound(there.answer().with_ttl(ttl)).dropped(DropReason::TtlExpired);
        let packet = ping("198.51.100.7", "203.0.113.14", 1).with_ttl(ttl);
        gw.inbound(packet).dropped(DropReason::TtlExpired);
        let packet = tcp("198.51.100.7:5000", "203.0.113.11:80", SYN).with_ttl(ttl);
        gw.inbound(packet).dropped(DropReason::TtlExpired);
    }
    assert_eq!(gw.sessions().len(), 2);
}

pub(super) fn the_last_hop_of_a_hairpin_is_dropped(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    let packet = || ping("10.0.1.10", "203.0.113.14", 1);
    gw.outbound(packet().with_ttl(1)).dropped(DropReason::TtlExpired);
    assert_eq!(gw.sessions(), []);
    gw.outbound(packet()).forwarded();
    gw.outbound(packet().with_ttl(1)).dropped(DropReason::TtlExpired);
}

pub(super) fn two_hops_are_enough(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.fip("203.0.113.14", "10.0.1.5");
    let there = gw.outbound(udp(INSIDE, REMOTE).with_ttl(2)).forwarded();
    assert_eq!(there.decoded.ttl, 1);
    assert_eq!(gw.inbound(there.answer().with_ttl(2)).forwarded().decoded.ttl, 1);
    let packet = ping("198.51.100.7", "203.0.113.14", 1).with_ttl(2);
    assert_eq!(gw.inbound(packet).forwarded().decoded.ttl, 1);
}

pub(super) fn what_goes_no_further_is_not_counted(gw: &mut Gateway<'_>) {
    let rule = gw.snat("10.0.1.0/24", &["203.0.113.10"])[0];
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    let before = gw.sessions();
    gw.outbound(udp(INSIDE, REMOTE).with_ttl(1)).passed(PassReason::TtlExpired);
    let large = sized(gw, MTU + 1, INSIDE, REMOTE);
    gw.outbound(large).dropped(DropReason::TooBig);
    assert_eq!(gw.sessions(), before);
    assert_eq!(gw.rule_counter(rule).packets, 1);
}

/// A datagram that makes an IP packet of `bytes`.
fn sized(gw: &Gateway<'_>, bytes: u32, source: &str, destination: &str) -> Draft {
    let headers = if gw.is_ipv6() { 48 } else { 28 };
    let draft = udp(source, destination).with_payload(&vec![0x5a; bytes as usize - headers]);
    Draft { dont_fragment: true, ..draft }
}

pub(super) fn too_big_for_the_interface_is_dropped(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.fip("203.0.113.14", "10.0.1.5");
    for bytes in [MTU + 1, MTU + 5, 2000] {
        gw.outbound(sized(gw, bytes, INSIDE, REMOTE)).dropped(DropReason::TooBig);
        let packet = sized(gw, bytes, "198.51.100.7:5000", "203.0.113.14:53");
        gw.inbound(packet).dropped(DropReason::TooBig);
    }
    assert_eq!(gw.sessions(), []);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.outbound(sized(gw, MTU + 1, INSIDE, REMOTE)).dropped(DropReason::TooBig);
}

pub(super) fn just_as_big_as_the_interface_takes_is_forwarded(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let there = gw.outbound(sized(gw, MTU, INSIDE, REMOTE)).forwarded();
    let answer = there.answer();
    let back = sized(gw, MTU, REMOTE, &there.source().to_string());
    gw.inbound(answer.with_payload(&back.payload)).forwarded().is(REMOTE, INSIDE);
}

pub(super) fn a_full_table_refuses_and_leaves_the_others_alone(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    let first = gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    let second = gw.outbound(udp("10.0.1.20:4000", REMOTE)).forwarded();
    let before = gw.sessions();
    assert_eq!(before.len(), 4);
    for port in 5000..5010 {
        let packet = udp(&format!("10.0.1.30:{port}"), REMOTE);
        gw.outbound(packet).dropped(DropReason::SessionsFull);
        let packet = tcp(&format!("198.51.100.7:{port}"), "203.0.113.11:80", SYN);
        gw.inbound(packet).dropped(DropReason::SessionsFull);
    }
    assert_eq!(gw.sessions(), before);
    gw.inbound(first.answer()).forwarded().is(REMOTE, INSIDE);
    gw.inbound(second.answer()).forwarded().is(REMOTE, "10.0.1.20:4000");
}

pub(super) fn a_full_table_leaves_no_half_session(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    let before = gw.sessions();
    // There is room for one entry, and a session has two.
    gw.outbound(udp("10.0.1.20:4000", REMOTE)).dropped(DropReason::SessionsFull);
    let packet = tcp("198.51.100.7:5000", "203.0.113.11:80", SYN);
    gw.inbound(packet).dropped(DropReason::SessionsFull);
    assert_eq!(gw.sessions(), before);
}

pub(super) fn a_full_table_leaves_stateless_rules_alone(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.fip("203.0.113.14", "10.0.1.5");
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.outbound(udp("10.0.1.20:4000", REMOTE)).dropped(DropReason::SessionsFull);
    gw.inbound(ping("198.51.100.7", "203.0.113.14", 1)).forwarded();
    gw.outbound(udp("10.0.1.5:4000", REMOTE)).forwarded().is("203.0.113.14:4000", REMOTE);
}

pub(super) fn nothing_passes_before_a_configuration(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.fip("203.0.113.14", "10.0.1.5");
    let there = gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.configure(|config| config.generation = 0);
    gw.outbound(udp(INSIDE, REMOTE)).dropped(DropReason::NotConfigured);
    gw.inbound(there.answer()).dropped(DropReason::NotConfigured);
    gw.inbound(ping("198.51.100.7", "203.0.113.14", 1)).dropped(DropReason::NotConfigured);
    gw.inbound(ping("198.51.100.7", "203.0.113.2", 1)).dropped(DropReason::NotConfigured);
}

pub(super) fn a_route_change_is_followed_at_once_when_announced(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let external = gw.links().external;
    gw.outbound(udp(INSIDE, REMOTE)).forwarded().leaves_by(external, "203.0.113.1");
    assert_eq!(gw.session(INSIDE, REMOTE).next_hop, (external, end("203.0.113.1").ip()));
    gw.route("198.51.100.0/24", external, Some("203.0.113.99"));
    gw.configure(|config| config.routing += 1);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded().leaves_by(external, "203.0.113.99");
    let session = gw.session(INSIDE, REMOTE);
    assert_eq!(session.next_hop, (external, end("203.0.113.99").ip()));
    assert_eq!(session.routing, 2);
}

pub(super) fn a_route_change_is_followed_soon_when_not_announced(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let external = gw.links().external;
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.route("198.51.100.0/24", external, Some("203.0.113.99"));
    gw.advance(3);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded().leaves_by(external, "203.0.113.99");
    let next_hop = gw.session(INSIDE, REMOTE).next_hop;
    assert_eq!(next_hop, (external, end("203.0.113.99").ip()));
}

pub(super) fn a_floating_ip_follows_a_route_change_at_once_when_announced(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    let external = gw.links().external;
    let packet = || udp("10.0.1.5:5000", REMOTE);
    let there = gw.outbound(packet()).forwarded();
    there.leaves_by(external, "203.0.113.1");
    gw.inbound(there.answer()).forwarded();
    gw.route("198.51.100.0/24", external, Some("203.0.113.99"));
    gw.route("10.0.1.5/32", external, Some("203.0.113.1"));
    gw.configure(|config| config.routing += 1);
    gw.outbound(packet()).forwarded().leaves_by(external, "203.0.113.99");
    // The way into the VPC is lost, so that the default route takes over.
    gw.inbound(there.answer()).dropped(DropReason::NotInside);
    gw.blackhole("198.51.100.0/24");
    gw.configure(|config| config.routing += 1);
    gw.outbound(packet()).dropped(DropReason::NoRoute);
}

pub(super) fn a_floating_ip_follows_a_route_change_soon_when_not_announced(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    let external = gw.links().external;
    let there = gw.outbound(udp("10.0.1.5:5000", REMOTE)).forwarded();
    gw.inbound(there.answer()).forwarded();
    gw.blackhole("198.51.100.0/24");
    gw.route("10.0.1.5/32", external, Some("203.0.113.1"));
    gw.advance(3);
    gw.outbound(udp("10.0.1.5:5000", REMOTE)).dropped(DropReason::NoRoute);
    gw.inbound(there.answer()).dropped(DropReason::NotInside);
    // A way that is there again is taken at once: of one that leads nowhere nothing is remembered.
    gw.route("198.51.100.0/24", external, Some("203.0.113.99"));
    gw.outbound(udp("10.0.1.5:5000", REMOTE)).forwarded().leaves_by(external, "203.0.113.99");
}

pub(super) fn a_remembered_route_is_of_one_protocol_and_one_pair_of_ends(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    let external = gw.links().external;
    gw.route("198.51.100.9/32", external, Some("203.0.113.99"));
    for _ in 0..2 {
        for (remote, neighbor) in
            [("198.51.100.7", "203.0.113.1"), ("198.51.100.9", "203.0.113.99")]
        {
            let to = format!("{remote}:443");
            gw.outbound(udp("10.0.1.5:5000", &to)).forwarded().leaves_by(external, neighbor);
            gw.outbound(tcp("10.0.1.5:5000", &to, SYN)).forwarded().leaves_by(external, neighbor);
            gw.outbound(ping("10.0.1.5", remote, 1)).forwarded().leaves_by(external, neighbor);
        }
        gw.inbound(udp("198.51.100.7:443", "203.0.113.14:5000")).forwarded();
        gw.outbound(udp("10.0.1.5:5000", "192.0.2.9:53")).dropped(DropReason::NoRoute);
    }
}

pub(super) fn a_blackhole_route_stops_an_open_session(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let there = gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.blackhole("198.51.100.0/24");
    gw.configure(|config| config.routing += 1);
    gw.outbound(udp(INSIDE, REMOTE)).dropped(DropReason::NoRoute);
    // The way in is another one.
    gw.inbound(there.answer()).forwarded().is(REMOTE, INSIDE);
}

pub(super) fn a_blackhole_route_stops_every_packet_of_a_session(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.blackhole("198.51.100.0/24");
    // Nobody says so, but time passes.
    gw.advance(3);
    for _ in 0..3 {
        gw.outbound(udp(INSIDE, REMOTE)).dropped(DropReason::NoRoute);
    }
    gw.route("198.51.100.0/24", gw.links().external, Some("203.0.113.1"));
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
}

pub(super) fn a_blackhole_route_opens_no_session(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.outbound(udp(INSIDE, "192.0.2.9:53")).dropped(DropReason::NoRoute);
    gw.dnat("203.0.113.11:80", TCP, "192.0.2.10:8080");
    let packet = tcp("198.51.100.7:5000", "203.0.113.11:80", SYN);
    gw.inbound(packet).dropped(DropReason::NoRoute);
    assert_eq!(gw.sessions(), []);
}

pub(super) fn an_inside_address_that_is_outside_is_refused(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "198.51.100.99");
    gw.inbound(ping("198.51.100.7", "203.0.113.14", 1)).dropped(DropReason::NotInside);
    gw.outbound(ping("10.0.1.10", "203.0.113.14", 1)).dropped(DropReason::NotInside);
    assert_eq!(gw.sessions(), []);
}

pub(super) fn an_open_session_does_not_turn_outside(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.fip("203.0.113.14", "10.0.1.5");
    let external = gw.links().external;
    let there = gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.inbound(there.answer()).forwarded();
    let hairpin = gw.outbound(udp("10.0.2.30:4000", "203.0.113.14:53")).forwarded();
    gw.outbound(hairpin.answer()).forwarded();
    // The way into the VPC is lost, so that the default route takes over.
    gw.route("10.0.1.10/32", external, Some("203.0.113.1"));
    gw.route("10.0.2.0/24", external, Some("203.0.113.1"));
    gw.configure(|config| config.routing += 1);
    gw.inbound(there.answer()).dropped(DropReason::NotInside);
    gw.outbound(hairpin.answer()).dropped(DropReason::NotInside);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
}
