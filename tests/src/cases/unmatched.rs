//! Packets that no rule covers: rows 16 to 22, and `--unmatched`.

use gateway_common::records::Unmatched;
use gateway_common::tuple::Direction;
use gateway_common::verdict::{DropReason, PassReason};

use super::Gateway;
use crate::build_packet::{ACK, SYN, other, ping, tcp, udp};

fn policy(gw: &mut Gateway<'_>, policy: Unmatched) {
    gw.configure(|config| config.unmatched = policy as u8);
}

pub(super) fn a_source_without_rule_is_dropped_by_default(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.outbound(udp("10.0.2.30:4000", "198.51.100.7:53")).dropped(DropReason::NoRule);
    gw.outbound(other(99, "10.0.2.30", "198.51.100.7")).dropped(DropReason::NoRule);
    assert_eq!(gw.sessions(), []);
}

// Row 19.
pub(super) fn a_source_without_rule_is_forwarded_if_asked(gw: &mut Gateway<'_>) {
    policy(gw, Unmatched::Forward);
    let there = gw.outbound(udp("10.0.2.30:4000", "198.51.100.7:53")).forwarded();
    there.is("10.0.2.30:4000", "198.51.100.7:53");
    there.leaves_by(gw.links().external, "203.0.113.1");
    let whole = udp("10.0.2.30:4000", "198.51.100.7:53").with_payload(&[1; 40]);
    for fragment in whole.fragments(16) {
        gw.outbound(fragment).forwarded();
    }
}

pub(super) fn a_source_without_rule_is_left_to_the_kernel_if_asked(gw: &mut Gateway<'_>) {
    policy(gw, Unmatched::Kernel);
    gw.outbound(udp("10.0.2.30:4000", "198.51.100.7:53")).passed(PassReason::Unmatched);
}

pub(super) fn a_packet_straight_to_an_inside_address_is_dropped_by_default(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let packet = tcp("198.51.100.7:5000", "10.0.1.10:22", SYN);
    gw.inbound(packet).dropped(DropReason::NotAddressedHere);
    assert_eq!(gw.sessions(), []);
}

pub(super) fn a_packet_straight_to_an_inside_address_is_left_to_the_kernel_if_asked(
    gw: &mut Gateway<'_>,
) {
    policy(gw, Unmatched::Kernel);
    gw.inbound(tcp("198.51.100.7:5000", "10.0.1.10:22", SYN)).passed(PassReason::Unmatched);
}

// Row 20.
pub(super) fn a_forwarded_inbound_flow_is_pinned_and_its_answer_stays_untranslated(
    gw: &mut Gateway<'_>,
) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    policy(gw, Unmatched::Forward);
    let there = gw.inbound(tcp("198.51.100.7:5000", "10.0.1.10:22", SYN)).forwarded();
    there.is("198.51.100.7:5000", "10.0.1.10:22");
    there.leaves_by(gw.links().internal, "10.0.1.10");
    let back = gw.outbound(there.answer()).forwarded();
    back.is("10.0.1.10:22", "198.51.100.7:5000");
    back.leaves_by(gw.links().external, "203.0.113.1");
    // Another flow of the same host is translated as ever.
    let packet = tcp("10.0.1.10:23", "198.51.100.7:5000", SYN);
    gw.outbound(packet).forwarded().is_from("203.0.113.10", "198.51.100.7:5000");
}

// Rows 16 and 17.
pub(super) fn an_eip_without_a_matching_rule_is_the_gateways_own(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", 6, "10.0.1.10:8080");
    for eip in ["203.0.113.11", "203.0.113.12"] {
        gw.inbound(ping("198.51.100.7", eip, 9)).passed(PassReason::Local);
        let port = format!("{eip}:81");
        gw.inbound(tcp("198.51.100.7:5000", &port, SYN)).passed(PassReason::Local);
        gw.inbound(udp("198.51.100.7:5000", &port)).passed(PassReason::Local);
        gw.inbound(other(99, "198.51.100.7", eip)).passed(PassReason::Local);
        gw.outbound(ping("10.0.1.10", eip, 9)).passed(PassReason::Local);
        gw.outbound(tcp("10.0.1.10:5000", &port, SYN)).passed(PassReason::Local);
    }
    assert_eq!(gw.sessions(), []);
}

// Row 18.
pub(super) fn nobody_reaches_a_snat_eip_unasked(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let port = gw.outbound(udp("10.0.1.10:4000", "198.51.100.7:53")).forwarded().source();
    for remote in ["198.51.100.7:54", "198.51.100.8:53"] {
        gw.inbound(udp(remote, &port.to_string())).passed(PassReason::Local);
        gw.inbound(tcp("198.51.100.7:53", &port.to_string(), ACK)).passed(PassReason::Local);
    }
}

pub(super) fn the_gateways_own_addresses_are_left_to_the_kernel(gw: &mut Gateway<'_>) {
    gw.snat("0.0.0.0/0", &["203.0.113.10"]);
    gw.outbound(tcp("10.0.1.10:5000", "10.0.1.254:22", SYN)).passed(PassReason::Local);
    gw.outbound(tcp("10.0.1.10:5000", "203.0.113.2:22", SYN)).passed(PassReason::Local);
    gw.inbound(tcp("198.51.100.7:5000", "203.0.113.2:22", SYN)).passed(PassReason::Local);
}

// Row 22.
pub(super) fn traffic_between_vpc_networks_is_left_to_the_kernel(gw: &mut Gateway<'_>) {
    gw.snat("10.0.0.0/16", &["203.0.113.10"]);
    gw.outbound(udp("10.0.1.10:4000", "10.0.2.30:53")).passed(PassReason::VpcInternal);
    assert_eq!(gw.sessions(), []);
}

pub(super) fn an_unknown_policy_is_the_strict_one(gw: &mut Gateway<'_>) {
    gw.configure(|config| config.unmatched = 200);
    gw.outbound(udp("10.0.2.30:4000", "198.51.100.7:53")).dropped(DropReason::NoRule);
    let frame = gw.frame(Direction::Inbound, udp("198.51.100.7:4000", "10.0.1.10:53"));
    gw.send(Direction::Inbound, frame).dropped(DropReason::NotAddressedHere);
}
