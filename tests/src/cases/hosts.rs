//! What is counted of inside hosts and EIPs, and what a host may have (RFC 6888 REQ-4, REQ-11).
//!
//! That every count agrees with the sessions, and is 0 after the last one, is checked at the end of
//! every case there is.

use gateway_common::records::HostLimits;
use gateway_common::verdict::{DropReason, Tries};

use super::Gateway;
use crate::build_packet::{SYN, TCP, other, ping, tcp, udp};

const REMOTE: &str = "198.51.100.7:53";
const EIP: &str = "203.0.113.10";

fn sessions_per_host(gw: &mut Gateway<'_>, sessions: u32) {
    gw.configure(|config| config.host_limits = HostLimits { sessions, ..HostLimits::default() });
}

fn flow(host: &str, port: u16) -> crate::build_packet::Draft {
    udp(&format!("{host}:{port}"), REMOTE)
}

fn sessions_of(gw: &mut Gateway<'_>, host: &str) -> u32 {
    gw.host(host).map_or(0, |host| host.sessions)
}

// RFC 6888 REQ-4.
pub(super) fn a_host_keeps_to_its_number_of_sessions(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    sessions_per_host(gw, 3);
    let first = gw.outbound(flow("10.0.1.10", 4000)).forwarded();
    gw.outbound(flow("10.0.1.10", 4001)).forwarded();
    gw.outbound(ping("10.0.1.10", "198.51.100.7", 5)).forwarded();
    let before = gw.sessions();
    for port in 4002..4010 {
        gw.outbound(flow("10.0.1.10", port)).dropped(DropReason::HostSessions);
        let packet = tcp(&format!("10.0.1.10:{port}"), REMOTE, SYN);
        gw.outbound(packet).dropped(DropReason::HostSessions);
    }
    assert_eq!(gw.sessions(), before);
    // What is open goes on, in both directions.
    gw.outbound(flow("10.0.1.10", 4000)).forwarded();
    gw.inbound(first.answer()).forwarded().is(REMOTE, "10.0.1.10:4000");
    let host = gw.host("10.0.1.10").expect("a host with sessions");
    assert_eq!((host.sessions, host.refused), (3, 16));
}

pub(super) fn another_host_is_not_limited_by_the_first(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    sessions_per_host(gw, 1);
    for host in ["10.0.1.10", "10.0.1.20", "10.0.1.30"] {
        gw.outbound(flow(host, 4000)).forwarded();
        gw.outbound(flow(host, 4001)).dropped(DropReason::HostSessions);
        assert_eq!(sessions_of(gw, host), 1);
    }
    // The limit was lifted.
    sessions_per_host(gw, 0);
    gw.outbound(flow("10.0.1.10", 4001)).forwarded();
    assert_eq!(sessions_of(gw, "10.0.1.10"), 2);
}

pub(super) fn a_host_may_open_again_when_a_session_has_ended(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    sessions_per_host(gw, 2);
    gw.outbound(flow("10.0.1.10", 4000)).forwarded();
    gw.advance(100);
    gw.outbound(flow("10.0.1.10", 4001)).forwarded();
    gw.outbound(flow("10.0.1.10", 4002)).dropped(DropReason::HostSessions);
    gw.advance(30);
    assert_eq!(gw.sweep(), 1);
    assert_eq!(sessions_of(gw, "10.0.1.10"), 1);
    gw.outbound(flow("10.0.1.10", 4002)).forwarded();
    gw.outbound(flow("10.0.1.10", 4003)).dropped(DropReason::HostSessions);
    gw.advance(301);
    gw.sweep();
    assert_eq!(gw.host("10.0.1.10"), None);
}

pub(super) fn what_comes_from_outside_does_not_count_for_the_host(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    sessions_per_host(gw, 1);
    for port in 5000..5005 {
        gw.inbound(tcp(&format!("198.51.100.7:{port}"), "203.0.113.11:80", SYN)).forwarded();
    }
    assert_eq!(gw.host("10.0.1.10"), None);
    gw.outbound(flow("10.0.1.10", 4000)).forwarded();
    gw.outbound(flow("10.0.1.10", 4001)).dropped(DropReason::HostSessions);
    // Nobody outside is refused for it.
    gw.inbound(tcp("198.51.100.7:5005", "203.0.113.11:80", SYN)).forwarded();
}

pub(super) fn a_hairpin_counts_for_the_host_that_opens_it(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    sessions_per_host(gw, 1);
    let there = gw.outbound(tcp("10.0.1.20:4000", "203.0.113.11:80", SYN)).forwarded();
    gw.outbound(there.answer()).forwarded();
    assert_eq!((sessions_of(gw, "10.0.1.20"), sessions_of(gw, "10.0.1.10")), (1, 0));
    let packet = tcp("10.0.1.20:4001", "203.0.113.11:80", SYN);
    gw.outbound(packet).dropped(DropReason::HostSessions);
    assert_eq!(gw.eip("203.0.113.11").sessions, 1);
}

pub(super) fn a_burst_then_the_rate(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    // One in four seconds in the long run: no test takes as long as that.
    let host_limits = HostLimits { sessions: 0, interval_ns: 4_000_000_000, burst: 3 };
    gw.configure(|config| config.host_limits = host_limits);
    for port in 4000..4003 {
        gw.outbound(flow("10.0.1.10", port)).forwarded();
    }
    gw.outbound(flow("10.0.1.10", 4003)).dropped(DropReason::HostRate);
    gw.outbound(flow("10.0.1.10", 4001)).forwarded();
    gw.outbound(flow("10.0.1.20", 4000)).forwarded();
    gw.advance(5);
    gw.outbound(flow("10.0.1.10", 4003)).forwarded();
    gw.outbound(flow("10.0.1.10", 4004)).dropped(DropReason::HostRate);
    gw.advance(60);
    for port in 4004..4007 {
        gw.outbound(flow("10.0.1.10", port)).forwarded();
    }
    gw.outbound(flow("10.0.1.10", 4007)).dropped(DropReason::HostRate);
    assert_eq!(gw.host("10.0.1.10").map(|host| host.refused), Some(3));
}

// Whoever forges source addresses must not fill a map with hosts that have no session.
pub(super) fn a_refused_flow_makes_no_record(gw: &mut Gateway<'_>) {
    gw.snat("10.0.0.0/16", &[EIP]);
    gw.configure(|config| (config.port_low, config.port_high) = (30_000, 30_000));
    gw.outbound(flow("10.0.1.10", 4000)).forwarded();
    for last in 20..120 {
        let packet = flow(&format!("10.0.1.{last}"), 4000);
        gw.outbound(packet).dropped(DropReason::PortsExhausted);
        assert_eq!(gw.host(&format!("10.0.1.{last}")), None);
    }
}

pub(super) fn an_eip_counts_what_it_carries(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    gw.snat("10.0.2.0/24", &["203.0.113.11"]);
    for port in 4000..4004 {
        gw.outbound(flow("10.0.1.10", port)).forwarded();
        gw.outbound(flow("10.0.1.10", port)).forwarded();
    }
    gw.outbound(flow("10.0.2.30", 4000)).forwarded();
    let eip = gw.eip(EIP);
    assert_eq!((eip.sessions, eip.opened, eip.refused), (4, 4, 0));
    assert_eq!(gw.eip("203.0.113.11").sessions, 1);
    gw.advance(121);
    gw.sweep();
    let eip = gw.eip(EIP);
    assert_eq!((eip.sessions, eip.opened, eip.refused), (0, 4, 0));
}

pub(super) fn an_eip_counts_what_it_refuses(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP, "203.0.113.11"]);
    gw.configure(|config| (config.port_low, config.port_high) = (20_000, 20_001));
    for port in 4001..=4004 {
        gw.outbound(flow("10.0.1.10", port)).forwarded();
    }
    for port in 4005..=4010 {
        gw.outbound(flow("10.0.1.10", port)).dropped(DropReason::PortsExhausted);
    }
    let mut refused = [EIP, "203.0.113.11"].map(|eip| gw.eip(eip).refused);
    refused.sort_unstable();
    // The two that overflowed count where they began.
    assert_eq!(refused, [6, 8]);
    // A protocol without ports has one tuple for each remote.
    gw.outbound(other(99, "10.0.1.10", "198.51.100.7")).forwarded();
    gw.outbound(other(99, "10.0.1.20", "198.51.100.7")).forwarded();
    gw.outbound(other(99, "10.0.1.30", "198.51.100.7")).dropped(DropReason::PortsExhausted);
}

pub(super) fn an_eip_of_port_forwards_counts_what_comes_in(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    gw.fip("203.0.113.14", "10.0.1.5");
    for port in 5000..5003 {
        gw.inbound(tcp(&format!("198.51.100.7:{port}"), "203.0.113.11:80", SYN)).forwarded();
    }
    gw.inbound(tcp("198.51.100.7:5000", "203.0.113.14:80", SYN)).forwarded();
    assert_eq!(gw.eip("203.0.113.11").sessions, 3);
    assert_eq!(gw.eip("203.0.113.14").sessions, 0, "a floating IP has no sessions");
    // From a floating IP to a port forward: the session is its own.
    gw.outbound(tcp("10.0.1.5:5000", "203.0.113.11:80", SYN)).forwarded();
    assert_eq!(gw.eip("203.0.113.14").sessions, 1);
    assert_eq!(sessions_of(gw, "10.0.1.5"), 1);
}

pub(super) fn a_session_that_gives_way_is_counted_out(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    gw.configure(|config| (config.port_low, config.port_high) = (30_000, 30_000));
    gw.outbound(flow("10.0.1.10", 4000)).forwarded();
    gw.advance(121);
    // Nobody has swept; the port is needed.
    gw.outbound(flow("10.0.1.20", 4000)).forwarded();
    assert_eq!(gw.host("10.0.1.10"), None);
    assert_eq!(sessions_of(gw, "10.0.1.20"), 1);
    let eip = gw.eip(EIP);
    assert_eq!((eip.sessions, eip.opened), (1, 2));
}

pub(super) fn a_session_cut_with_its_rule_is_counted_out(gw: &mut Gateway<'_>) {
    let rules = gw.snat("10.0.1.0/24", &[EIP]);
    gw.snat("10.0.2.0/24", &[EIP]);
    gw.outbound(flow("10.0.1.10", 4000)).forwarded();
    gw.outbound(flow("10.0.2.30", 4000)).forwarded();
    gw.remove(rules[0]);
    assert_eq!(gw.sweep(), 1);
    assert_eq!((sessions_of(gw, "10.0.1.10"), sessions_of(gw, "10.0.2.30")), (0, 1));
    assert_eq!(gw.eip(EIP).sessions, 1);
}

pub(super) fn a_session_that_does_not_fit_is_not_counted(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    gw.outbound(flow("10.0.1.10", 4000)).forwarded();
    // There is room for one of its two entries.
    gw.outbound(flow("10.0.1.20", 4000)).dropped(DropReason::SessionsFull);
    assert_eq!(gw.host("10.0.1.20"), None);
    assert_eq!(gw.eip(EIP).opened, 1);
}

pub(super) fn tries_are_counted(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    gw.outbound(flow("10.0.1.10", 4000)).forwarded();
    assert_eq!(gw.event(Tries::One.counter()), 1);
    // Nobody draws the last of 64 free ports at random for long.
    gw.configure(|config| (config.port_low, config.port_high) = (20_000, 20_063));
    for port in 4000..4064 {
        gw.outbound(flow("10.0.1.20", port)).forwarded();
    }
    gw.outbound(flow("10.0.1.20", 4064)).dropped(DropReason::PortsExhausted);
    let counted: Vec<u64> = Tries::ALL.iter().map(|tries| gw.event(tries.counter())).collect();
    assert_eq!(counted[..5].iter().sum::<u64>(), 65, "{counted:?}");
    assert_eq!(counted[5], 1, "{counted:?}");
    assert!(counted[4] > 0, "{counted:?}");
}
