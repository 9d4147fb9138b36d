//! The choice of external ports: classes, collisions, exhaustion.

use std::collections::BTreeSet;

use gateway_common::records::Unmatched;
use gateway_common::tuple::Direction;
use gateway_common::verdict::DropReason;

use super::Gateway;
use crate::build_packet::{ACK, Draft, ping, tcp, udp};

const REMOTE: &str = "198.51.100.7:53";

pub(super) fn each_class_of_source_ports_is_kept(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for (ports, class) in [
        ([1, 53, 511], 1..=511),
        ([512, 700, 1023], 600..=1023),
        ([1024, 40_000, 65_535], 1024..=65_535),
    ] {
        for port in ports {
            let source = format!("10.0.1.10:{port}");
            let chosen = gw.outbound(udp(&source, REMOTE)).forwarded().source().port();
            assert!(class.contains(&chosen), "UDP {port} became {chosen}");
            let chosen = gw.outbound(tcp(&source, REMOTE, ACK)).forwarded().source().port();
            assert!(class.contains(&chosen), "TCP {port} became {chosen}");
        }
    }
}

pub(super) fn an_icmp_id_may_become_any_other(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    // Of many small ids most leave the smallest class.
    let chosen = (1..=60)
        .map(|id| gw.outbound(ping("10.0.1.10", "198.51.100.7", id)).forwarded().source().port());
    let large = chosen.filter(|id| *id >= 1024).count();
    assert!(large > 40, "{large} of 60");
}

pub(super) fn two_pingers_with_the_same_id_are_told_apart(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let [b, c] = ["10.0.1.10", "10.0.1.20"]
        .map(|host| gw.outbound(ping(host, "198.51.100.7", 1)).forwarded());
    assert_ne!(b.source(), c.source());
    gw.inbound(b.answer()).forwarded().is("198.51.100.7", "10.0.1.10:1");
    gw.inbound(c.answer()).forwarded().is("198.51.100.7", "10.0.1.20:1");
}

pub(super) fn two_hosts_with_the_same_source_port_are_told_apart(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let [b, c] = ["10.0.1.10:5353", "10.0.1.20:5353"]
        .map(|source| (gw.outbound(udp(source, REMOTE)).forwarded(), source));
    assert_ne!(b.0.source(), c.0.source());
    for (seen, source) in [b, c] {
        gw.inbound(seen.answer()).forwarded().is(REMOTE, source);
    }
}

pub(super) fn one_port_serves_many_remotes(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.configure(|config| (config.port_low, config.port_high) = (30_000, 30_000));
    for remote in ["198.51.100.7:53", "198.51.100.7:54", "198.51.100.8:53"] {
        let there = gw.outbound(udp("10.0.1.10:5353", remote)).forwarded();
        there.is("203.0.113.10:30000", remote);
    }
    for remote in ["198.51.100.7:53", "198.51.100.7:54", "198.51.100.8:53"] {
        let back = udp(remote, "203.0.113.10:30000");
        gw.inbound(back).forwarded().is(remote, "10.0.1.10:5353");
    }
}

pub(super) fn an_exhausted_range_refuses_and_other_remotes_go_on(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.configure(|config| (config.port_low, config.port_high) = (20_000, 20_001));
    let packet = |port: u16, remote: &str| udp(&format!("10.0.1.10:{port}"), remote);
    let used: BTreeSet<u16> = [4001, 4002]
        .map(|port| gw.outbound(packet(port, REMOTE)).forwarded().source().port())
        .into();
    assert_eq!(used, [20_000, 20_001].into());
    gw.outbound(packet(4003, REMOTE)).dropped(DropReason::PortsExhausted);
    gw.outbound(packet(4003, "198.51.100.8:53")).forwarded();
    let other_protocol = tcp("10.0.1.10:4003", REMOTE, ACK);
    gw.outbound(other_protocol).forwarded();
    // Another class has other ports.
    gw.outbound(packet(100, REMOTE)).forwarded();
    assert_eq!(gw.sessions().len(), 2 * 5);
}

pub(super) fn a_pool_overflows_to_its_other_members_before_it_refuses(gw: &mut Gateway<'_>) {
    let pool = ["203.0.113.10", "203.0.113.11", "203.0.113.12"];
    gw.snat("10.0.1.0/24", &pool);
    gw.configure(|config| (config.port_low, config.port_high) = (20_000, 20_001));
    let mut used = BTreeSet::new();
    for port in 4001..=4006 {
        let packet = udp(&format!("10.0.1.10:{port}"), REMOTE);
        used.insert(gw.outbound(packet).forwarded().source());
    }
    assert_eq!(used.len(), 6, "{used:?}");
    gw.outbound(udp("10.0.1.10:4007", REMOTE)).dropped(DropReason::PortsExhausted);
    gw.outbound(udp("10.0.1.20:4007", REMOTE)).dropped(DropReason::PortsExhausted);
    assert_eq!(gw.sessions().len(), 12);
}

pub(super) fn a_range_of_one_port_serves_one_flow_per_remote(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.configure(|config| (config.port_low, config.port_high) = (30_000, 30_000));
    gw.outbound(udp("10.0.1.10:5353", REMOTE)).forwarded().is("203.0.113.10:30000", REMOTE);
    gw.outbound(udp("10.0.1.20:5353", REMOTE)).dropped(DropReason::PortsExhausted);
    gw.inbound(udp(REMOTE, "203.0.113.10:30000")).forwarded().is(REMOTE, "10.0.1.10:5353");
}

pub(super) fn exhaustion_leaves_open_sessions_alone(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.configure(|config| (config.port_low, config.port_high) = (20_000, 20_003));
    let source = |flow: u16| format!("10.0.1.10:{}", 5000 + flow);
    let first: Vec<_> =
        (0..4).map(|flow| gw.outbound(udp(&source(flow), REMOTE)).forwarded()).collect();
    let before: Vec<_> = gw.sessions();
    for flow in 4..40 {
        gw.outbound(udp(&source(flow), REMOTE)).dropped(DropReason::PortsExhausted);
    }
    assert_eq!(gw.sessions(), before);
    for (flow, seen) in (0..).zip(first) {
        gw.inbound(seen.answer()).forwarded().is(REMOTE, &source(flow));
    }
}

pub(super) fn a_range_is_used_to_the_last_port(gw: &mut Gateway<'_>) {
    gw.snat("10.0.0.0/16", &["203.0.113.10"]);
    let packet = |flow: u16| {
        let (subnet, host) = (flow / 200, 1 + flow % 200);
        udp(&format!("10.0.{subnet}.{host}:700"), REMOTE)
    };
    let used: BTreeSet<u16> =
        (600..=1023).map(|flow| gw.outbound(packet(flow)).forwarded().source().port()).collect();
    assert_eq!(used, (600..=1023).collect());
    gw.outbound(packet(1024)).dropped(DropReason::PortsExhausted);
    // And again, while it is remembered.
    gw.outbound(packet(1025)).dropped(DropReason::PortsExhausted);
    assert_eq!(gw.sessions().len(), 2 * 424);
}

pub(super) fn an_answer_that_nobody_asked_for_opens_no_session(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let answer = || ping("198.51.100.7", "10.0.1.10", 7).reversed();
    gw.outbound(answer()).dropped(DropReason::IcmpUntracked);
    gw.configure(|config| config.unmatched = Unmatched::Forward as u8);
    let inbound = answer().reversed();
    let frame = gw.frame(Direction::Inbound, Draft { transport: answer().transport, ..inbound });
    gw.send(Direction::Inbound, frame).forwarded().is("198.51.100.7", "10.0.1.10:7");
    assert_eq!(gw.sessions(), []);
}

pub(super) fn an_answer_with_the_id_of_a_query_keeps_its_checksum(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    // Both have the same tuple: the one without source port, the other without destination port.
    gw.outbound(ping("10.0.1.10", "198.51.100.7", 0)).forwarded();
    let answer = ping("198.51.100.7", "10.0.1.10", 0).reversed();
    gw.outbound(answer).forwarded().is("203.0.113.10", "198.51.100.7");
}
