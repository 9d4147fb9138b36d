//! DNAT: rows 8 and 9.

use gateway_common::verdict::{DropReason, PassReason};

use super::Gateway;
use crate::build_packet::{ACK, SYN, TCP, UDP, tcp, udp};

const CLIENT: &str = "198.51.100.7:5000";

pub(super) fn the_outside_reaches_the_port_and_the_answer_comes_from_the_eip(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.2.30:8080");
    let there = gw.inbound(tcp(CLIENT, "203.0.113.11:80", SYN)).forwarded();
    there.is(CLIENT, "10.0.2.30:8080");
    there.leaves_by(gw.links().internal, "10.0.1.1");
    let back = gw.outbound(there.answer()).forwarded();
    back.is("203.0.113.11:80", CLIENT);
    back.leaves_by(gw.links().external, "203.0.113.1");
    let again = gw.inbound(back.answer()).forwarded();
    again.is(CLIENT, "10.0.2.30:8080");
    assert_eq!(gw.sessions().len(), 2);
}

// Row 9.
pub(super) fn the_answer_keeps_the_dnat_eip_whatever_snat_says(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    let there = gw.inbound(tcp(CLIENT, "203.0.113.11:80", SYN)).forwarded();
    gw.outbound(there.answer()).forwarded().is("203.0.113.11:80", CLIENT);
    // What the host begins by itself is SNATed.
    let packet = tcp("10.0.1.10:8080", "198.51.100.7:5001", SYN);
    gw.outbound(packet).forwarded().is_from("203.0.113.10", "198.51.100.7:5001");
}

pub(super) fn the_protocol_must_match(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    gw.inbound(udp(CLIENT, "203.0.113.11:80")).passed(PassReason::Local);
}

pub(super) fn the_port_must_match(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    gw.inbound(tcp(CLIENT, "203.0.113.11:81", SYN)).passed(PassReason::Local);
    gw.inbound(tcp(CLIENT, "203.0.113.12:80", SYN)).passed(PassReason::Local);
}

pub(super) fn two_eips_to_the_same_backend_cannot_serve_one_client_port(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    gw.dnat("203.0.113.12:80", TCP, "10.0.1.10:8080");
    let there = gw.inbound(tcp(CLIENT, "203.0.113.11:80", SYN)).forwarded();
    let before = gw.sessions();
    // The backend's answers could belong to either.
    gw.inbound(tcp(CLIENT, "203.0.113.12:80", SYN)).dropped(DropReason::TupleTaken);
    assert_eq!(gw.sessions(), before);
    let other = tcp("198.51.100.7:5001", "203.0.113.12:80", SYN);
    let other = gw.inbound(other).forwarded();
    gw.outbound(other.answer()).forwarded().is("203.0.113.12:80", "198.51.100.7:5001");
    gw.outbound(there.answer()).forwarded().is("203.0.113.11:80", CLIENT);
}

pub(super) fn a_taken_tuple_is_rolled_back(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    // The host already talks from that very port to that very client.
    let own = gw.outbound(tcp("10.0.1.10:8080", CLIENT, SYN)).forwarded();
    let before = gw.sessions();
    gw.inbound(tcp(CLIENT, "203.0.113.11:80", SYN)).dropped(DropReason::TupleTaken);
    assert_eq!(gw.sessions(), before);
    gw.inbound(own.answer()).forwarded().is(CLIENT, "10.0.1.10:8080");
}

pub(super) fn a_flow_from_inside_is_no_answer(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    // Without a SNAT rule a backend reaches nobody but those who called.
    gw.outbound(tcp("10.0.1.10:8080", CLIENT, ACK)).dropped(DropReason::NoRule);
}

pub(super) fn the_rule_counts_both_directions(gw: &mut Gateway<'_>) {
    let rule = gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    let there = gw.inbound(tcp(CLIENT, "203.0.113.11:80", SYN)).forwarded();
    gw.outbound(there.answer()).forwarded();
    assert_eq!(gw.rule_counter(rule).packets, 2);
}

pub(super) fn a_backend_outside_is_refused(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "198.51.100.99:80");
    gw.inbound(tcp(CLIENT, "203.0.113.11:80", SYN)).dropped(DropReason::NotInside);
    assert_eq!(gw.sessions(), []);
}

pub(super) fn a_removed_rule_no_longer_opens(gw: &mut Gateway<'_>) {
    let rule = gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    gw.inbound(tcp(CLIENT, "203.0.113.11:80", SYN)).forwarded();
    gw.remove(rule);
    let other = tcp("198.51.100.7:5001", "203.0.113.11:80", SYN);
    gw.inbound(other).passed(PassReason::Local);
    // The sweep cuts what the rule has opened.
    assert_eq!(gw.sweep(), 1);
    gw.inbound(tcp(CLIENT, "203.0.113.11:80", ACK)).passed(PassReason::Local);
}

pub(super) fn udp_and_tcp_of_one_port_are_two_rules(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:53", TCP, "10.0.1.10:53");
    gw.dnat("203.0.113.11:53", UDP, "10.0.1.20:5353");
    let there = gw.inbound(tcp(CLIENT, "203.0.113.11:53", SYN)).forwarded();
    there.is(CLIENT, "10.0.1.10:53");
    gw.inbound(udp(CLIENT, "203.0.113.11:53")).forwarded().is(CLIENT, "10.0.1.20:5353");
}
