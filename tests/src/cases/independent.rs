//! Endpoint-independent mapping and filtering (RFC 4787 REQ-1, -3, -8, -9, -11; RFC 5382 REQ-1, -3, -7;
//! RFC 5508 REQ-1).

use std::collections::BTreeSet;

use gateway_common::records::{FILTER_ADDRESS, FILTER_INDEPENDENT};
use gateway_common::verdict::{DropReason, PassReason};

use super::Gateway;
use crate::build_packet::{ACK, Draft, SYN, TCP, ping, tcp, udp};

const EIP: &str = "203.0.113.10";
const INSIDE: &str = "10.0.1.10:4000";

/// Address and port, an address of that with another port, and another address (RFC 4787 section 5).
const KNOWN: &str = "198.51.100.7:5000";
const OTHER_PORT: &str = "198.51.100.7:5001";
const STRANGER: &str = "198.51.100.8:5000";

const NO_FILTER: u32 = 0;

fn external(gw: &mut Gateway<'_>, inside: &str, remote: &str) -> String {
    gw.outbound(udp(inside, remote)).forwarded().source().to_string()
}

// RFC 4787 REQ-1.
pub(super) fn one_endpoint_is_the_same_for_every_remote(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], NO_FILTER);
    let first = external(gw, INSIDE, KNOWN);
    for remote in [OTHER_PORT, STRANGER, "198.51.100.9:53"] {
        assert_eq!(external(gw, INSIDE, remote), first, "to {remote}");
        gw.inbound(udp(remote, &first)).forwarded().is(remote, INSIDE);
    }
    assert_eq!((gw.mappings(), gw.sessions().len()), (1, 8));
    assert_ne!(external(gw, "10.0.1.10:4001", KNOWN), first, "another port of the host");
}

// RFC 5382 REQ-1.
pub(super) fn a_connection_keeps_its_endpoint_too(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], NO_FILTER);
    let remotes = ["198.51.100.7:80", "198.51.100.8:443", "198.51.100.9:22"];
    let seen: BTreeSet<_> =
        remotes.map(|to| gw.outbound(tcp(INSIDE, to, SYN)).forwarded().source()).into();
    assert_eq!(seen.len(), 1, "{seen:?}");
    // Another protocol is another mapping.
    gw.outbound(udp(INSIDE, "198.51.100.7:80")).forwarded();
    assert_eq!(gw.mappings(), 2);
}

// RFC 5508 REQ-1a.
pub(super) fn a_query_id_is_the_same_for_every_remote(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_INDEPENDENT);
    let mut ping_to = |to: &str| {
        let there = gw.outbound(ping("10.0.1.10", to, 7)).forwarded();
        gw.inbound(there.answer()).forwarded().is(to, "10.0.1.10:7");
        there.source()
    };
    let first = ping_to("198.51.100.7");
    assert_eq!(ping_to("198.51.100.8"), first);
    assert_eq!(ping_to("198.51.100.9"), first);
    assert_ne!(gw.outbound(ping("10.0.1.20", "198.51.100.9", 7)).forwarded().source(), first);
}

// RFC 4787 REQ-3.
pub(super) fn two_hosts_with_one_source_port_have_two_endpoints(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], NO_FILTER);
    gw.configure(|config| (config.port_low, config.port_high) = (20_000, 20_001));
    let b = external(gw, "10.0.1.10:4000", KNOWN);
    // Towards another remote, where the port of the first host would be free.
    let c = external(gw, "10.0.1.20:4000", STRANGER);
    assert_ne!(b, c);
    gw.outbound(udp("10.0.1.30:4000", "198.51.100.9:53")).dropped(DropReason::PortsExhausted);
    assert_eq!(gw.eip(EIP).refused, 1);
    // Those who have an endpoint go on opening sessions.
    assert_eq!(external(gw, "10.0.1.10:4000", "198.51.100.9:53"), b);
}

// RFC 4787 REQ-3.
pub(super) fn a_session_with_a_port_for_each_remote_leaves_mapped_ports_alone(
    gw: &mut Gateway<'_>,
) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_INDEPENDENT);
    gw.snat("10.0.2.0/24", &[EIP]);
    gw.configure(|config| (config.port_low, config.port_high) = (20_000, 20_003));
    let mapped: BTreeSet<_> =
        ["10.0.1.10:4000", "10.0.1.20:4000"].map(|inside| external(gw, inside, KNOWN)).into();
    let mut seen = BTreeSet::new();
    for port in [5000, 5001] {
        seen.insert(external(gw, &format!("10.0.2.30:{port}"), STRANGER));
    }
    assert_eq!(seen.len(), 2);
    assert!(mapped.is_disjoint(&seen), "{mapped:?} and {seen:?}");
    gw.outbound(udp("10.0.2.30:5002", STRANGER)).dropped(DropReason::PortsExhausted);
}

pub(super) fn a_mapping_leaves_ports_of_sessions_and_of_port_forwards_alone(gw: &mut Gateway<'_>) {
    gw.snat("10.0.2.0/24", &[EIP]);
    gw.configure(|config| (config.port_low, config.port_high) = (20_000, 20_002));
    gw.dnat("203.0.113.10:20000", 17, "10.0.1.10:53");
    // The one session to this remote has 20 000, 20 001 or 20 002.
    let session = external(gw, "10.0.2.30:5000", KNOWN);
    gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_INDEPENDENT);
    let first = gw.outbound(udp(INSIDE, KNOWN));
    let mapping = first.forwarded().source();
    assert!(mapping.to_string() != session && mapping.port() != 20_000, "{mapping}");
}

/// Who gets in by the mapping of a host that has talked to [`KNOWN`].
fn admitted(gw: &mut Gateway<'_>, filter: u32) -> [bool; 3] {
    gw.snat_mapped("10.0.1.0/24", &[EIP], filter);
    let mapped = external(gw, INSIDE, KNOWN);
    [KNOWN, OTHER_PORT, STRANGER].map(|remote| {
        let sent = gw.inbound(udp(remote, &mapped));
        let admitted = sent.outcome() == crate::harness::Outcome::Forward;
        if admitted {
            sent.forwarded().is(remote, INSIDE);
            // The answer leaves by the mapping.
            assert_eq!(external(gw, INSIDE, remote), mapped);
        } else {
            sent.passed(PassReason::Local);
        }
        admitted
    })
}

// RFC 4787 REQ-8: the matrix of three remotes.
pub(super) fn an_independent_filter_lets_everybody_in(gw: &mut Gateway<'_>) {
    assert_eq!(admitted(gw, FILTER_INDEPENDENT), [true, true, true]);
}

pub(super) fn an_address_dependent_filter_lets_known_addresses_in(gw: &mut Gateway<'_>) {
    assert_eq!(admitted(gw, FILTER_ADDRESS), [true, true, false]);
}

pub(super) fn without_a_filter_only_known_endpoints_get_in(gw: &mut Gateway<'_>) {
    assert_eq!(admitted(gw, NO_FILTER), [true, false, false]);
}

// RFC 5382 REQ-3.
pub(super) fn a_connection_from_outside_gets_in_by_a_mapping(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_INDEPENDENT);
    let mapped = gw.outbound(tcp(INSIDE, "198.51.100.7:80", SYN)).forwarded().source().to_string();
    let there = gw.inbound(tcp(STRANGER, &mapped, SYN)).forwarded();
    there.is(STRANGER, INSIDE);
    gw.outbound(there.answer()).forwarded().is(&mapped, STRANGER);
    gw.inbound(tcp(STRANGER, &mapped, ACK)).forwarded().is(STRANGER, INSIDE);
    // The other protocol has no mapping.
    gw.inbound(udp(STRANGER, &mapped)).passed(PassReason::Local);
}

pub(super) fn nobody_gets_in_for_a_flow_that_came_from_outside(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_ADDRESS);
    let mapped = external(gw, INSIDE, KNOWN);
    gw.inbound(udp(OTHER_PORT, &mapped)).forwarded();
    // The inside has not talked to the stranger, whoever else came in.
    gw.inbound(udp(STRANGER, &mapped)).passed(PassReason::Local);
    gw.outbound(udp(INSIDE, STRANGER)).forwarded();
    gw.inbound(udp("198.51.100.8:9", &mapped)).forwarded();
}

// RFC 4787 REQ-9a, RFC 5382 REQ-8.
pub(super) fn a_hairpin_shows_the_external_endpoint(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_INDEPENDENT);
    let [b, c] = ["10.0.1.10:4000", "10.0.1.20:4000"].map(|inside| external(gw, inside, KNOWN));
    gw.outbound(udp("10.0.1.10:4000", &c)).forwarded().is(&b, "10.0.1.20:4000");
    gw.outbound(udp("10.0.1.20:4000", &b)).forwarded().is(&c, "10.0.1.10:4000");
    assert_eq!(gw.sessions().len(), 6, "one session between the two");
}

pub(super) fn a_hairpin_meets_the_filter(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_ADDRESS);
    let [b, c] = ["10.0.1.10:4000", "10.0.1.20:4000"].map(|inside| external(gw, inside, KNOWN));
    gw.outbound(udp("10.0.1.10:4000", &c)).passed(PassReason::Local);
    // Both have one EIP: who talks to it knows the address of both.
    gw.outbound(udp("10.0.1.20:4000", "203.0.113.10:9")).passed(PassReason::Local);
    gw.dnat("203.0.113.10:9", 17, "10.0.1.30:9");
    gw.outbound(udp("10.0.1.20:4000", "203.0.113.10:9")).forwarded().is(&c, "10.0.1.30:9");
    gw.outbound(udp("10.0.1.10:4000", &c)).forwarded().is(&b, "10.0.1.20:4000");
}

pub(super) fn a_hairpin_to_a_port_forward_shows_the_external_endpoint(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], NO_FILTER);
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.20:8080");
    let there = gw.outbound(tcp(INSIDE, "203.0.113.11:80", SYN)).forwarded();
    assert_eq!(there.source().ip().to_string(), EIP);
    gw.outbound(there.answer()).forwarded().is("203.0.113.11:80", INSIDE);
    let seen = gw.outbound(tcp(INSIDE, KNOWN, SYN)).forwarded().source();
    assert_eq!(seen, there.source());
}

pub(super) fn a_host_does_not_reach_itself_by_its_own_mapping(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_INDEPENDENT);
    let mapped = external(gw, INSIDE, KNOWN);
    let before = gw.sessions();
    // Both entries of such a session would be one.
    gw.outbound(udp(INSIDE, &mapped)).dropped(DropReason::TupleTaken);
    assert_eq!(gw.sessions(), before);
    // From another port it is a hairpin as any other.
    let other = external(gw, "10.0.1.10:4001", KNOWN);
    gw.outbound(udp("10.0.1.10:4001", &mapped)).forwarded().is(&other, INSIDE);
}

pub(super) fn a_mapping_lives_as_long_as_its_sessions(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_INDEPENDENT);
    let mapped = external(gw, INSIDE, KNOWN);
    gw.advance(100);
    assert_eq!(external(gw, INSIDE, STRANGER), mapped);
    gw.advance(30);
    assert_eq!(gw.sweep(), 1);
    assert_eq!((gw.mappings(), gw.sessions().len()), (1, 2));
    // What comes in keeps it too (RFC 4787 REQ-6).
    gw.inbound(udp("198.51.100.9:53", &mapped)).forwarded();
    gw.advance(100);
    assert_eq!(gw.sweep(), 1);
    assert_eq!(gw.mappings(), 1);
    gw.advance(201);
    assert_eq!(gw.sweep(), 1);
    assert_eq!(gw.mappings(), 0);
    gw.inbound(udp("198.51.100.9:53", &mapped)).passed(PassReason::Local);
}

pub(super) fn a_removed_rule_takes_its_mappings_along(gw: &mut Gateway<'_>) {
    let rules = gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_INDEPENDENT);
    let mapped = external(gw, INSIDE, KNOWN);
    gw.inbound(udp(STRANGER, &mapped)).forwarded();
    gw.remove(rules[0]);
    assert_eq!(gw.sweep(), 2);
    assert_eq!((gw.mappings(), gw.sessions().len()), (0, 0));
    gw.inbound(udp(STRANGER, &mapped)).passed(PassReason::Local);
}

pub(super) fn a_removed_rule_takes_its_mappings_from_hairpins_too(gw: &mut Gateway<'_>) {
    let other = gw.snat_mapped("10.0.2.0/24", &["203.0.113.11"], FILTER_INDEPENDENT);
    let rules = gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_INDEPENDENT);
    let mapped = external(gw, INSIDE, KNOWN);
    gw.outbound(udp("10.0.2.30:4000", &mapped)).forwarded();
    gw.outbound(udp("10.0.2.30:4000", KNOWN)).forwarded();
    gw.remove(rules[0]);
    assert_eq!(gw.sweep(), 2);
    gw.inbound(udp(STRANGER, &mapped)).passed(PassReason::Local);
    assert_eq!((gw.mappings(), gw.sessions().len()), (1, 2));
    gw.remove(other[0]);
    assert_eq!(gw.sweep(), 1);
}

// RFC 4787 REQ-11: the behaviour does not change under load.
pub(super) fn a_nearly_full_range_maps_as_an_empty_one(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.0.0/16", &[EIP], NO_FILTER);
    gw.configure(|config| (config.port_low, config.port_high) = (20_000, 20_099));
    let mut endpoints = BTreeSet::new();
    for host in 1..=100 {
        let inside = format!("10.0.1.{host}:4000");
        let first = external(gw, &inside, KNOWN);
        if [10, 50, 90, 99, 100].contains(&host) {
            for remote in [OTHER_PORT, STRANGER] {
                assert_eq!(external(gw, &inside, remote), first, "with {host} in use");
            }
        }
        assert!(endpoints.insert(first), "with {host} in use");
    }
    gw.outbound(udp("10.0.1.101:4000", KNOWN)).dropped(DropReason::PortsExhausted);
}

pub(super) fn a_pool_overflows_with_mappings_too(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP, "203.0.113.11"], NO_FILTER);
    gw.configure(|config| (config.port_low, config.port_high) = (20_000, 20_000));
    let b = external(gw, "10.0.1.10:4000", KNOWN);
    let c = external(gw, "10.0.1.20:4000", KNOWN);
    assert_ne!(b, c);
    gw.outbound(udp("10.0.1.30:4000", KNOWN)).dropped(DropReason::PortsExhausted);
    assert_eq!(external(gw, "10.0.1.10:4000", STRANGER), b);
}

pub(super) fn a_port_class_is_kept_by_mappings(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], NO_FILTER);
    for (port, class) in [(53, 1..=511), (700, 600..=1023), (4000, 1024..=65_535)] {
        let sent: Draft = udp(&format!("10.0.1.10:{port}"), KNOWN);
        let chosen = gw.outbound(sent).forwarded().source().port();
        assert!(class.contains(&chosen), "{port} became {chosen}");
    }
}

pub(super) fn a_full_table_leaves_no_mapping(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_ADDRESS);
    gw.outbound(udp("10.0.1.20:4000", KNOWN)).forwarded();
    gw.outbound(udp(INSIDE, KNOWN)).dropped(DropReason::SessionsFull);
    assert_eq!(gw.mappings(), 1);
}

pub(super) fn a_limited_host_has_no_more_mappings_than_sessions(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_INDEPENDENT);
    gw.configure(|config| config.host_limits.sessions = 2);
    let mapped = external(gw, INSIDE, KNOWN);
    gw.outbound(udp("10.0.1.10:4001", KNOWN)).forwarded();
    gw.outbound(udp("10.0.1.10:4002", KNOWN)).dropped(DropReason::HostSessions);
    assert_eq!(gw.mappings(), 2);
    // What others open is not the host's.
    gw.inbound(udp(STRANGER, &mapped)).forwarded();
}

pub(super) fn a_rule_without_mappings_is_as_it_was(gw: &mut Gateway<'_>) {
    gw.snat_mapped("10.0.1.0/24", &[EIP], FILTER_INDEPENDENT);
    gw.snat("10.0.2.0/24", &["203.0.113.11"]);
    gw.configure(|config| (config.port_low, config.port_high) = (30_000, 30_000));
    for remote in [KNOWN, OTHER_PORT, STRANGER] {
        gw.outbound(udp("10.0.2.30:4000", remote)).forwarded().is("203.0.113.11:30000", remote);
        gw.outbound(udp("10.0.2.31:4000", remote)).dropped(DropReason::PortsExhausted);
    }
    gw.inbound(udp("198.51.100.9:53", "203.0.113.11:30000")).passed(PassReason::Local);
    assert_eq!(gw.mappings(), 0);
}
