//! From the VPC back into the VPC by an EIP: rows 11 to 15.

use gateway_common::verdict::DropReason;

use super::Gateway;
use crate::build_packet::{SYN, TCP, UDP, other, ping, tcp, udp};

const EIP: &str = "203.0.113.14";
const HOST: &str = "10.0.1.5";

// Row 11.
pub(super) fn a_plain_host_reaches_a_floating_ip(gw: &mut Gateway<'_>) {
    let rule = gw.fip(EIP, HOST);
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let there = gw.outbound(tcp("10.0.1.10:4000", "203.0.113.14:80", SYN)).forwarded();
    there.is_from(EIP, "10.0.1.5:80");
    there.leaves_by(gw.links().internal, HOST);
    let back = gw.outbound(there.answer()).forwarded();
    back.is("203.0.113.14:80", "10.0.1.10:4000");
    back.leaves_by(gw.links().internal, "10.0.1.10");
    assert_eq!(gw.rule_counter(rule).packets, 2);
    assert_eq!(gw.sessions().len(), 2);
}

// Row 12.
pub(super) fn a_plain_host_reaches_a_port_forward(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    let there = gw.outbound(tcp("10.0.1.20:4000", "203.0.113.11:80", SYN)).forwarded();
    there.is_from("203.0.113.11", "10.0.1.10:8080");
    let back = gw.outbound(there.answer()).forwarded();
    back.is("203.0.113.11:80", "10.0.1.20:4000");
}

pub(super) fn a_backend_reaches_itself_by_its_own_port_forward(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    let there = gw.outbound(tcp("10.0.1.10:4000", "203.0.113.11:80", SYN)).forwarded();
    there.is_from("203.0.113.11", "10.0.1.10:8080");
    let back = gw.outbound(there.answer()).forwarded();
    back.is("203.0.113.11:80", "10.0.1.10:4000");
}

// Its answer would come as its packet does: one key for both entries.
pub(super) fn a_backend_does_not_get_the_port_that_it_talks_to(gw: &mut Gateway<'_>) {
    gw.configure(|config| (config.port_low, config.port_high) = (20_000, 20_000));
    gw.dnat("203.0.113.11:20000", UDP, "10.0.1.10:4000");
    gw.outbound(udp("10.0.1.10:4000", "203.0.113.11:20000")).dropped(DropReason::TupleTaken);
    assert_eq!(gw.sessions(), []);
    let there = gw.outbound(udp("10.0.1.10:4001", "203.0.113.11:20000")).forwarded();
    there.is("203.0.113.11:20000", "10.0.1.10:4000");
    gw.outbound(there.answer()).forwarded().is("203.0.113.11:20000", "10.0.1.10:4001");
}

// So it would by a port forward that came to lie over the backend's own mapping.
pub(super) fn a_backend_does_not_reach_itself_by_its_mapped_port(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &["203.0.113.10"], 0);
    let there = gw.outbound(udp("10.0.1.10:4000", "198.51.100.7:53")).forwarded();
    let mapped = there.source().to_string();
    let before = gw.sessions();
    gw.dnat(&mapped, UDP, "10.0.1.10:4000");
    gw.outbound(udp("10.0.1.10:4000", &mapped)).dropped(DropReason::TupleTaken);
    assert_eq!(gw.sessions(), before);
}

// Row 13.
pub(super) fn a_floating_ip_host_reaches_a_port_forward_with_its_own_eip(gw: &mut Gateway<'_>) {
    gw.fip(EIP, HOST);
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    let there = gw.outbound(tcp("10.0.1.5:4000", "203.0.113.11:80", SYN)).forwarded();
    there.is("203.0.113.14:4000", "10.0.1.10:8080");
    let back = gw.outbound(there.answer()).forwarded();
    back.is("203.0.113.11:80", "10.0.1.5:4000");
}

// Row 14.
pub(super) fn a_floating_ip_host_reaches_its_own_eip(gw: &mut Gateway<'_>) {
    gw.fip(EIP, HOST);
    let there = gw.outbound(tcp("10.0.1.5:4000", "203.0.113.14:80", SYN)).forwarded();
    there.is("203.0.113.14:4000", "10.0.1.5:80");
    let back = gw.outbound(there.answer()).forwarded();
    back.is("203.0.113.14:80", "10.0.1.5:4000");
    assert_eq!(gw.sessions(), []);
}

pub(super) fn two_floating_ip_hosts_reach_each_other_without_state(gw: &mut Gateway<'_>) {
    gw.fip(EIP, HOST);
    gw.fip("203.0.113.15", "10.0.2.30");
    let there = gw.outbound(udp("10.0.1.5:4000", "203.0.113.15:53")).forwarded();
    there.is("203.0.113.14:4000", "10.0.2.30:53");
    there.leaves_by(gw.links().internal, "10.0.1.1");
    let back = gw.outbound(there.answer()).forwarded();
    back.is("203.0.113.15:53", "10.0.1.5:4000");
    // Every fragment goes too, since there is nothing to remember.
    let whole = udp("10.0.1.5:4000", "203.0.113.15:53").with_payload(&[5; 64]);
    for fragment in whole.fragments(24) {
        gw.outbound(fragment).forwarded();
    }
    assert_eq!(gw.sessions(), []);
}

// Row 15.
pub(super) fn a_ping_of_a_floating_ip_gets_a_new_id(gw: &mut Gateway<'_>) {
    gw.fip(EIP, HOST);
    let pings = [("10.0.1.10", 7), ("10.0.1.20", 7)].map(|(host, id)| {
        let there = gw.outbound(ping(host, EIP, id)).forwarded();
        there.is_from(EIP, HOST);
        (there, format!("{host}:{id}"))
    });
    assert_ne!(pings[0].0.source(), pings[1].0.source());
    for (there, host) in pings {
        gw.outbound(there.answer()).forwarded().is(EIP, &host);
    }
}

pub(super) fn two_plain_hosts_with_one_source_port_are_told_apart(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:53", UDP, "10.0.1.10:53");
    let seen = ["10.0.1.20:4000", "10.0.1.30:4000"]
        .map(|host| (gw.outbound(udp(host, "203.0.113.11:53")).forwarded(), host));
    assert_ne!(seen[0].0.source(), seen[1].0.source());
    for (there, host) in seen {
        gw.outbound(there.answer()).forwarded().is("203.0.113.11:53", host);
    }
}

pub(super) fn a_protocol_without_ports_passes(gw: &mut Gateway<'_>) {
    gw.fip(EIP, HOST);
    let there = gw.outbound(other(99, "10.0.1.10", EIP)).forwarded();
    there.is(EIP, HOST);
    gw.outbound(there.answer()).forwarded().is(EIP, "10.0.1.10");
    gw.outbound(other(99, "10.0.1.20", EIP)).dropped(DropReason::PortsExhausted);
}

pub(super) fn the_class_of_the_source_port_is_kept(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:53", UDP, "10.0.1.10:53");
    for (port, class) in [(53, 1..=511), (800, 600..=1023), (5353, 1024..=65_535)] {
        let packet = udp(&format!("10.0.1.20:{port}"), "203.0.113.11:53");
        let chosen = gw.outbound(packet).forwarded().source().port();
        assert!(class.contains(&chosen), "{port} became {chosen}");
    }
}
