//! Ports that several backends share: row 10.

use std::collections::{BTreeMap, BTreeSet};

use gateway_common::records::Balance;
use gateway_common::verdict::{DropReason, PassReason};

use super::Gateway;
use crate::build_packet::{ACK, SYN, TCP, UDP, icmp, ping, tcp, udp};

const EIP: &str = "203.0.113.11:80";
const ONE: &str = "10.0.1.10:8080";
const TWO: &str = "10.0.1.20:8080";
const THREE: &str = "10.0.2.30:8080";

/// Which backend a flow gets.
fn backend(gw: &mut Gateway<'_>, client: &str) -> String {
    let there = gw.inbound(tcp(client, EIP, SYN)).forwarded();
    assert_eq!(there.source().to_string(), client);
    there.destination().to_string()
}

/// Clients that differ in their addresses.
fn clients(count: u32) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("198.{}.{}.7:5000", 51 + n / 200, n % 200))
}

/// One client with many ports.
fn flows(count: u16) -> impl Iterator<Item = String> {
    (0..count).map(|n| format!("198.51.100.7:{}", 2000 + n))
}

/// How many flows each backend gets.
fn tally(gw: &mut Gateway<'_>, flows: impl Iterator<Item = String>) -> BTreeMap<String, f64> {
    let mut tally = BTreeMap::new();
    for client in flows {
        *tally.entry(backend(gw, &client)).or_default() += 1.0;
    }
    tally
}

/// Pearson's test: how far a tally is from the shares that it should show.
fn chi_square(tally: &BTreeMap<String, f64>, shares: &[(&str, u16)]) -> f64 {
    let flows: f64 = tally.values().sum();
    let weights: f64 = shares.iter().map(|(_, weight)| f64::from(*weight)).sum();
    assert_eq!(tally.len(), shares.len(), "{tally:?}");
    let distance = |(name, weight): &(&str, u16)| {
        let expected = flows * f64::from(*weight) / weights;
        (tally[*name] - expected).powi(2) / expected
    };
    shares.iter().map(distance).sum()
}

/// With two degrees of freedom a random tally is above this once in a hundred million times.
const UNLIKELY: f64 = 37.0;

// Row 10.
pub(super) fn a_flow_gets_a_backend_and_keeps_it(gw: &mut Gateway<'_>) {
    gw.share(EIP, TCP, Balance::Random, &[(ONE, 1), (TWO, 1)]);
    let mut met = BTreeSet::new();
    for client in flows(64) {
        let there = gw.inbound(tcp(&client, EIP, SYN)).forwarded();
        let chosen = there.destination().to_string();
        for _ in 0..4 {
            gw.outbound(there.answer()).forwarded().is(EIP, &client);
            gw.inbound(tcp(&client, EIP, ACK)).forwarded().is(&client, &chosen);
        }
        met.insert(chosen);
    }
    assert_eq!(met, [ONE.to_owned(), TWO.to_owned()].into());
}

pub(super) fn new_flows_are_shared_by_weight(gw: &mut Gateway<'_>) {
    let shares = [(ONE, 1), (TWO, 2), (THREE, 5)];
    gw.share(EIP, TCP, Balance::Random, &shares);
    let tally = tally(gw, flows(2000));
    let distance = chi_square(&tally, &shares);
    assert!(distance < UNLIKELY, "{tally:?}: {distance:.1}");
}

pub(super) fn a_client_keeps_its_backend_for_all_flows(gw: &mut Gateway<'_>) {
    gw.share(EIP, TCP, Balance::ClientAddress, &[(ONE, 1), (TWO, 1), (THREE, 1)]);
    assert_eq!(tally(gw, flows(50)).len(), 1);
}

pub(super) fn clients_are_shared_by_weight(gw: &mut Gateway<'_>) {
    let shares = [(ONE, 1), (TWO, 2), (THREE, 5)];
    gw.share(EIP, TCP, Balance::ClientAddress, &shares);
    let tally = tally(gw, clients(2000));
    let distance = chi_square(&tally, &shares);
    assert!(distance < UNLIKELY, "{tally:?}: {distance:.1}");
}

/// Sends a new flow of every client; returns who has another backend than before.
fn moved(
    gw: &mut Gateway<'_>,
    before: &BTreeMap<String, String>,
    port: u16,
) -> Vec<(String, String)> {
    let mut moved = Vec::new();
    for (client, old) in before {
        let new = backend(gw, &client.replace(":5000", &format!(":{port}")));
        if new != *old {
            moved.push((old.clone(), new));
        }
    }
    moved
}

pub(super) fn a_change_of_backends_moves_only_their_share_of_the_clients(gw: &mut Gateway<'_>) {
    let ids = gw.share(EIP, TCP, Balance::ClientAddress, &[(ONE, 1), (TWO, 1), (THREE, 1)]);
    let before: BTreeMap<_, _> = clients(600).map(|c| (c.clone(), backend(gw, &c))).collect();
    let of_two = before.values().filter(|backend| *backend == TWO).count();

    gw.rebalance(ids[0], &[ids[0], ids[2]], &[]);
    let gone = moved(gw, &before, 5001);
    assert_eq!(gone.len(), of_two);
    assert!(gone.iter().all(|(old, new)| old == TWO && new != TWO), "{gone:?}");

    let four = "10.0.1.30:8080";
    gw.rebalance(ids[0], &[ids[0], ids[2]], &[four]);
    let come = moved(gw, &before, 5002);
    assert!(come.iter().all(|(old, new)| old == TWO || new == four), "{come:?}");
    // A third of the slots; the rest stays where it went after the first change.
    assert!((200..=480).contains(&come.len()), "{}", come.len());
}

pub(super) fn a_backend_that_drains_keeps_its_flows_and_gets_no_new_ones(gw: &mut Gateway<'_>) {
    let ids = gw.share(EIP, TCP, Balance::Random, &[(ONE, 1), (TWO, 1)]);
    let open: BTreeMap<_, _> = flows(40).map(|c| (c.clone(), backend(gw, &c))).collect();
    let of_one = open.values().filter(|backend| *backend == ONE).count() as u32;
    gw.rebalance(ids[0], &[ids[1]], &[]);
    assert_eq!(gw.sweep(), 0);
    assert_eq!((gw.left(ids[0]), gw.left(ids[1])), (of_one, 0));
    for (client, chosen) in &open {
        let there = gw.inbound(tcp(client, EIP, ACK)).forwarded();
        there.is(client, chosen);
        gw.outbound(there.answer()).forwarded().is(EIP, client);
    }
    let fresh = tally(gw, (0..100).map(|n| format!("198.51.100.8:{}", 3000 + n)));
    assert_eq!(fresh.into_keys().collect::<Vec<_>>(), [TWO]);
}

pub(super) fn a_drained_backend_has_no_session_left(gw: &mut Gateway<'_>) {
    let ids = gw.share(EIP, UDP, Balance::Random, &[(ONE, 1), (TWO, 1)]);
    for client in flows(20) {
        gw.inbound(udp(&client, EIP)).forwarded();
    }
    gw.rebalance(ids[0], &[ids[1]], &[]);
    gw.advance(100);
    gw.sweep();
    assert!(gw.left(ids[0]) > 0);
    gw.advance(30);
    gw.sweep();
    assert_eq!(gw.left(ids[0]), 0);
}

pub(super) fn a_port_that_goes_cuts_the_flows_of_all_its_backends(gw: &mut Gateway<'_>) {
    let ids = gw.share(EIP, TCP, Balance::Random, &[(ONE, 1), (TWO, 1)]);
    gw.dnat("203.0.113.11:81", TCP, ONE);
    let other = gw.inbound(tcp("198.51.100.7:5000", "203.0.113.11:81", SYN)).forwarded();
    let open: Vec<_> = flows(20).collect();
    open.iter().for_each(|client| drop(backend(gw, client)));
    gw.rebalance(ids[0], &[ids[1]], &[]);
    gw.remove(ids[1]);
    gw.end(ids[0]);
    assert_eq!(gw.sweep(), 20);
    for client in &open {
        gw.inbound(tcp(client, EIP, ACK)).passed(PassReason::Local);
    }
    gw.outbound(other.answer()).forwarded().is("203.0.113.11:81", "198.51.100.7:5000");
}

// Row 9.
pub(super) fn the_answer_keeps_the_eip_whatever_snat_says(gw: &mut Gateway<'_>) {
    gw.snat("10.0.0.0/16", &["203.0.113.10"]);
    gw.share(EIP, TCP, Balance::Random, &[(ONE, 1), (THREE, 1)]);
    for client in flows(16) {
        let there = gw.inbound(tcp(&client, EIP, SYN)).forwarded();
        gw.outbound(there.answer()).forwarded().is(EIP, &client);
    }
}

// Row 12.
pub(super) fn a_host_inside_reaches_it_from_the_eip(gw: &mut Gateway<'_>) {
    gw.share(EIP, TCP, Balance::Random, &[(ONE, 1), (TWO, 1)]);
    let mut met = BTreeSet::new();
    for port in 4000..4032 {
        let client = format!("10.0.1.10:{port}");
        let there = gw.outbound(tcp(&client, EIP, SYN)).forwarded();
        assert_eq!(there.source().ip().to_string(), "203.0.113.11");
        gw.outbound(there.answer()).forwarded().is(EIP, &client);
        met.insert(there.destination().to_string());
    }
    // A backend may get its own connection, as any other.
    assert_eq!(met, [ONE.to_owned(), TWO.to_owned()].into());
}

// Row 13.
pub(super) fn a_floating_ip_host_reaches_it_with_its_own_eip(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    gw.share(EIP, TCP, Balance::Random, &[(ONE, 1), (TWO, 1)]);
    for port in 4000..4008 {
        let client = format!("10.0.1.5:{port}");
        let there = gw.outbound(tcp(&client, EIP, SYN)).forwarded();
        assert_eq!(there.source().to_string(), format!("203.0.113.14:{port}"));
        gw.outbound(there.answer()).forwarded().is(EIP, &client);
    }
}

pub(super) fn an_error_of_a_backend_comes_from_the_eip(gw: &mut Gateway<'_>) {
    gw.share(EIP, UDP, Balance::Random, &[(ONE, 1), (TWO, 1)]);
    for client in flows(8) {
        let there = gw.inbound(udp(&client, EIP));
        let (kind, code) = if gw.is_ipv6() { (1, 4) } else { (3, 3) };
        let chosen = there.forwarded().destination().ip().to_string();
        let quote = &there.bytes()[14..];
        let error = icmp(&chosen, "198.51.100.7", kind, code, [0; 4]).with_payload(quote);
        let (outer, inner) = gw.outbound(error).forwarded_error();
        outer.is_from("203.0.113.11", "198.51.100.7");
        inner.is(&client, EIP);
    }
}

pub(super) fn its_other_ports_and_protocols_are_not_shared(gw: &mut Gateway<'_>) {
    gw.share(EIP, TCP, Balance::Random, &[(ONE, 1), (TWO, 1)]);
    gw.inbound(udp("198.51.100.7:5000", EIP)).passed(PassReason::Local);
    gw.inbound(tcp("198.51.100.7:5000", "203.0.113.11:81", SYN)).passed(PassReason::Local);
    gw.inbound(ping("198.51.100.7", "203.0.113.11", 7)).passed(PassReason::Local);
}

pub(super) fn a_port_whose_slots_are_gone_has_a_backend_still(gw: &mut Gateway<'_>) {
    let ids = gw.share(EIP, TCP, Balance::Random, &[(ONE, 1), (TWO, 1)]);
    gw.lose_slots(ids[0]);
    assert_eq!(tally(gw, flows(20)).into_keys().collect::<Vec<_>>(), [ONE]);
}

pub(super) fn a_backend_outside_is_refused(gw: &mut Gateway<'_>) {
    gw.share(EIP, TCP, Balance::Random, &[("198.51.100.99:80", 1)]);
    gw.inbound(tcp("198.51.100.7:5000", EIP, SYN)).dropped(DropReason::NotInside);
    assert_eq!(gw.sessions(), []);
}
