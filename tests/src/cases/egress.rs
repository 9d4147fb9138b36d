//! Policies of an egress gateway: section 4.4 of Kube-OVN's behaviour, with its oddities put right.

use gateway_common::tuple::Direction;
use gateway_common::verdict::{DropReason, PassReason};

use super::Gateway;
use crate::build_packet::{ACK, DCCP, SYN, UDP_LITE, datagram, icmp, other, ping, tcp, udp};
use crate::harness::routes::{LAN, WAN};

const HOST: &str = "10.0.2.30";
const INSIDE: &str = "10.0.2.30:4000";
const REMOTE: &str = "198.51.100.7:443";
const ROUTER: &str = "198.51.100.1";

/// 10.0.1.0/24 is hidden behind the replica's own address, 10.0.2.0/24 is not.
fn policies(gw: &mut Gateway<'_>) -> u32 {
    gw.snat("10.0.1.0/24", &[WAN]);
    gw.forward("10.0.2.0/24")
}

pub(super) fn a_prefix_passes_as_it_is_both_ways(gw: &mut Gateway<'_>) {
    let rule = policies(gw);
    for packet in [tcp(INSIDE, REMOTE, SYN), udp(INSIDE, REMOTE), ping(HOST, "198.51.100.7", 7)] {
        let there = gw.outbound(packet).forwarded();
        assert_eq!(there.source().ip().to_string(), HOST);
        there.leaves_by(gw.links().external, "203.0.113.1");
        let back = gw.inbound(there.answer()).forwarded();
        assert_eq!(back.destination().ip().to_string(), HOST);
        back.leaves_by(gw.links().internal, "10.0.1.1");
    }
    assert_eq!(gw.rule_counter(rule).packets, 6);
    assert_eq!(gw.sessions(), []);
    gw.outbound(udp("10.0.1.10:4000", REMOTE)).forwarded().is_from(WAN, REMOTE);
}

pub(super) fn any_protocol_passes(gw: &mut Gateway<'_>) {
    policies(gw);
    for packet in [
        datagram(UDP_LITE, INSIDE, REMOTE),
        datagram(DCCP, INSIDE, REMOTE),
        other(47, HOST, "198.51.100.7"),
        other(132, HOST, "198.51.100.7"),
    ] {
        let there = gw.outbound(packet).forwarded();
        assert_eq!(there.source().ip().to_string(), HOST);
        gw.inbound(there.answer()).forwarded();
    }
}

pub(super) fn a_new_connection_from_outside_is_delivered_as_it_is(gw: &mut Gateway<'_>) {
    policies(gw);
    let there = gw.inbound(tcp(REMOTE, INSIDE, SYN)).forwarded();
    there.is(REMOTE, INSIDE);
    there.leaves_by(gw.links().internal, "10.0.1.1");
    gw.outbound(there.answer()).forwarded().is(INSIDE, REMOTE);
    // Kube-OVN delivers it with the replica's internal address as source.
    gw.inbound(tcp(REMOTE, "10.0.1.10:22", SYN)).dropped(DropReason::NotAddressedHere);
    assert_eq!(gw.sessions(), []);
}

pub(super) fn fragments_pass_as_they_are(gw: &mut Gateway<'_>) {
    policies(gw);
    for (direction, from, to) in
        [(Direction::Outbound, INSIDE, REMOTE), (Direction::Inbound, REMOTE, INSIDE)]
    {
        let fragments = udp(from, to).with_payload(&[7; 100]).fragments(32);
        for fragment in fragments.into_iter().rev() {
            let frame = gw.frame(direction, fragment);
            let seen = gw.send(direction, frame).forwarded();
            assert!(from.starts_with(&seen.source().ip().to_string()), "{seen:?}");
        }
    }
}

pub(super) fn an_error_passes_with_its_quote(gw: &mut Gateway<'_>) {
    policies(gw);
    let (kind, code) = if gw.is_ipv6() { (1, 4) } else { (3, 3) };
    let sent = gw.outbound(udp(INSIDE, REMOTE));
    let report = icmp(ROUTER, HOST, kind, code, [0; 4]).with_payload(&sent.bytes()[14..]);
    let (seen, quote) = gw.inbound(report).forwarded_error();
    seen.is(ROUTER, HOST);
    quote.is(INSIDE, REMOTE);
    let back = gw.inbound(sent.forwarded().answer());
    let report = icmp(HOST, "198.51.100.7", kind, code, [0; 4]).with_payload(&back.bytes()[14..]);
    let (seen, quote) = gw.outbound(report).forwarded_error();
    seen.is(HOST, "198.51.100.7");
    quote.is(REMOTE, INSIDE);
}

pub(super) fn a_redirect_goes_no_further(gw: &mut Gateway<'_>) {
    policies(gw);
    let sent = gw.outbound(udp(INSIDE, REMOTE));
    let redirect = icmp(ROUTER, HOST, 5, 1, [0; 4]).with_payload(&sent.bytes()[14..]);
    gw.inbound(redirect).dropped(DropReason::IcmpUntracked);
}

pub(super) fn the_longest_prefix_decides_both_ways(gw: &mut Gateway<'_>) {
    policies(gw);
    gw.snat("10.0.2.64/26", &[WAN]);
    gw.forward("10.0.1.128/25");
    gw.outbound(udp("10.0.2.70:4000", REMOTE)).forwarded().is_from(WAN, REMOTE);
    gw.inbound(tcp(REMOTE, "10.0.2.70:22", SYN)).dropped(DropReason::NotAddressedHere);
    let there = gw.outbound(udp("10.0.1.200:4000", REMOTE)).forwarded();
    there.is("10.0.1.200:4000", REMOTE);
    gw.inbound(there.answer()).forwarded().is(REMOTE, "10.0.1.200:4000");
}

pub(super) fn no_state_is_kept_so_another_replica_goes_on(gw: &mut Gateway<'_>) {
    policies(gw);
    // Both come from the middle of a connection that another replica began.
    gw.outbound(tcp(INSIDE, REMOTE, ACK)).forwarded().is(INSIDE, REMOTE);
    gw.inbound(tcp(REMOTE, INSIDE, ACK)).forwarded().is(REMOTE, INSIDE);
    assert_eq!(gw.sessions(), []);
}

pub(super) fn a_removed_rule_stops_it_at_once(gw: &mut Gateway<'_>) {
    let rule = policies(gw);
    let there = gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.remove(rule);
    gw.outbound(udp(INSIDE, REMOTE)).dropped(DropReason::NoRule);
    gw.inbound(there.answer()).dropped(DropReason::NotAddressedHere);
}

pub(super) fn a_lost_way_inside_does_not_turn_outside(gw: &mut Gateway<'_>) {
    policies(gw);
    let external = gw.links().external;
    gw.route("10.0.2.0/24", external, Some("203.0.113.1"));
    gw.inbound(tcp(REMOTE, INSIDE, SYN)).dropped(DropReason::NotInside);
}

// Kube-OVN masquerades them too, which takes BFD out of the ports of RFC 5881.
pub(super) fn the_gateways_own_packets_stay_its_own(gw: &mut Gateway<'_>) {
    policies(gw);
    let peer = "10.0.1.1";
    gw.outbound(udp(&format!("{peer}:49152"), &format!("{LAN}:3784"))).passed(PassReason::Local);
    gw.inbound(ping("198.51.100.7", WAN, 9)).passed(PassReason::Local);
    gw.inbound(tcp("198.51.100.7:5000", &format!("{WAN}:179"), SYN)).passed(PassReason::Local);
}

pub(super) fn an_unselected_source_is_dropped(gw: &mut Gateway<'_>) {
    policies(gw);
    gw.outbound(udp("10.0.3.1:4000", REMOTE)).dropped(DropReason::NoRule);
}
