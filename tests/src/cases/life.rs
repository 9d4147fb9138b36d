//! How sessions live: who meets them, when they end.

use gateway_common::records::ORIGINAL;
use gateway_common::tuple::Direction;
use gateway_common::verdict::{DropReason, PassReason, SESSIONS_CLOSED, SESSIONS_OPENED};

use super::{Gateway, Seen};
use crate::build_packet::{ACK, SYN, TCP, other, ping, tcp, udp};
use crate::harness::notation::Entry;

const INSIDE: &str = "10.0.1.10:4000";
const REMOTE: &str = "198.51.100.7:443";

/// A TCP connection from the inside, after the handshake.
fn connect(gw: &mut Gateway<'_>) -> Seen {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let there = gw.outbound(tcp(INSIDE, REMOTE, SYN)).forwarded();
    gw.inbound(there.answer()).forwarded().is(REMOTE, INSIDE);
    gw.outbound(tcp(INSIDE, REMOTE, ACK)).forwarded()
}

pub(super) fn a_forged_packet_from_outside_misses_the_session_of_the_inside(gw: &mut Gateway<'_>) {
    connect(gw);
    let before = gw.sessions();
    let frame = gw.frame(Direction::Inbound, tcp(INSIDE, REMOTE, ACK));
    gw.send(Direction::Inbound, frame).dropped(DropReason::NotAddressedHere);
    assert_eq!(gw.sessions(), before);
}

pub(super) fn a_forged_packet_from_inside_misses_the_answers_entry(gw: &mut Gateway<'_>) {
    let there = connect(gw);
    let before = gw.sessions();
    let frame = gw.frame(Direction::Outbound, there.answer());
    gw.send(Direction::Outbound, frame).passed(PassReason::Local);
    assert_eq!(gw.sessions(), before);
}

pub(super) fn another_remote_does_not_get_in(gw: &mut Gateway<'_>) {
    let there = connect(gw);
    let before = gw.sessions();
    for remote in ["198.51.100.7:444", "198.51.100.8:443"] {
        let packet = tcp(remote, &there.source().to_string(), ACK);
        gw.inbound(packet).passed(PassReason::Local);
    }
    assert_eq!(gw.sessions(), before);
}

pub(super) fn an_idle_session_ends_and_a_live_one_stays(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.advance(100);
    gw.outbound(udp("10.0.1.20:4000", REMOTE)).forwarded();
    assert_eq!(gw.sweep(), 0);
    gw.advance(30);
    assert_eq!(gw.sweep(), 1);
    gw.session("10.0.1.20:4000", REMOTE);
    assert_eq!(gw.sessions().len(), 2);
    // A packet of either direction keeps it alive.
    gw.advance(100);
    let there = gw.outbound(udp("10.0.1.20:4000", REMOTE)).forwarded();
    gw.advance(100);
    gw.inbound(there.answer()).forwarded();
    gw.advance(299);
    assert_eq!(gw.sweep(), 0);
    gw.advance(2);
    assert_eq!(gw.sweep(), 1);
    assert_eq!(gw.sessions(), []);
}

pub(super) fn each_protocol_has_its_own_patience(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.outbound(ping("10.0.1.10", "198.51.100.7", 1)).forwarded();
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.outbound(tcp(INSIDE, REMOTE, SYN)).forwarded();
    gw.outbound(other(99, "10.0.1.10", "198.51.100.7")).forwarded();
    let mut now = 0;
    for (at, left) in [(59, 4), (61, 3), (119, 3), (121, 2), (239, 2), (241, 1), (299, 1), (301, 0)]
    {
        gw.advance(at - now);
        now = at;
        gw.sweep();
        assert_eq!(gw.sessions().len(), 2 * left, "after {at} s");
    }
}

pub(super) fn a_session_without_its_rule_ends(gw: &mut Gateway<'_>) {
    let rules = gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.snat("10.0.2.0/24", &["203.0.113.10"]);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.outbound(udp("10.0.2.30:4000", REMOTE)).forwarded();
    gw.remove(rules[0]);
    assert_eq!(gw.sweep(), 1);
    gw.session("10.0.2.30:4000", REMOTE);
    gw.outbound(udp(INSIDE, REMOTE)).dropped(DropReason::NoRule);
}

pub(super) fn a_half_without_its_other_half_ends_soon(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    let original = gw.session(INSIDE, REMOTE);
    assert_eq!(original.flags & ORIGINAL, ORIGINAL);
    gw.forget(&original);
    gw.sweep();
    assert_eq!(gw.sessions().len(), 1, "it may be on its way");
    gw.advance(11);
    gw.sweep();
    assert_eq!(gw.sessions(), []);
}

pub(super) fn a_lost_half_of_a_port_forward_is_made_again(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    let packet = || tcp("198.51.100.7:5000", "203.0.113.11:80", ACK);
    gw.inbound(packet()).forwarded();
    let before = gw.sessions();
    let original = gw.session("198.51.100.7:5000", "203.0.113.11:80");
    gw.forget(&original);
    let there = gw.inbound(packet()).forwarded();
    there.is("198.51.100.7:5000", "10.0.1.10:8080");
    let timeless =
        |entries: Vec<Entry>| entries.into_iter().map(Entry::timeless).collect::<Vec<_>>();
    assert_eq!(timeless(gw.sessions()), timeless(before));
    let answer = gw.outbound(there.answer()).forwarded();
    answer.is("203.0.113.11:80", "198.51.100.7:5000");
}

pub(super) fn a_swept_port_is_free_again(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.configure(|config| (config.port_low, config.port_high) = (30_000, 30_000));
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.outbound(udp("10.0.1.20:4000", REMOTE)).dropped(DropReason::PortsExhausted);
    gw.advance(121);
    assert_eq!(gw.sweep(), 1);
    gw.outbound(udp("10.0.1.20:4000", REMOTE)).forwarded().is("203.0.113.10:30000", REMOTE);
}

pub(super) fn sessions_opened_and_closed_are_counted(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for port in 4000..4005 {
        gw.outbound(udp(&format!("10.0.1.10:{port}"), REMOTE)).forwarded();
        gw.outbound(udp(&format!("10.0.1.10:{port}"), REMOTE)).forwarded();
    }
    assert_eq!((gw.event(SESSIONS_OPENED), gw.event(SESSIONS_CLOSED)), (5, 0));
    gw.advance(121);
    assert_eq!(gw.sweep(), 5);
    assert_eq!(gw.sessions(), []);
    assert_eq!((gw.event(SESSIONS_OPENED), gw.event(SESSIONS_CLOSED)), (5, 5));
}

pub(super) fn an_expired_session_gives_its_port_away_before_the_sweep(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.configure(|config| (config.port_low, config.port_high) = (30_000, 30_000));
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    gw.advance(121);
    gw.outbound(udp("10.0.1.20:4000", REMOTE)).forwarded().is("203.0.113.10:30000", REMOTE);
    assert_eq!(gw.sessions().len(), 2);
    gw.session("10.0.1.20:4000", REMOTE);
    // A live one keeps it.
    gw.advance(119);
    gw.outbound(udp(INSIDE, REMOTE)).dropped(DropReason::PortsExhausted);
}

pub(super) fn an_expired_session_gives_its_tuple_away_before_the_sweep(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    gw.dnat("203.0.113.12:80", TCP, "10.0.1.10:8080");
    let client = "198.51.100.7:5000";
    gw.inbound(tcp(client, "203.0.113.11:80", SYN)).forwarded();
    gw.advance(239);
    gw.inbound(tcp(client, "203.0.113.12:80", SYN)).dropped(DropReason::TupleTaken);
    gw.advance(2);
    let there = gw.inbound(tcp(client, "203.0.113.12:80", SYN)).forwarded();
    gw.outbound(there.answer()).forwarded().is("203.0.113.12:80", client);
    assert_eq!(gw.sessions().len(), 2);
}

pub(super) fn an_expired_session_without_ports_gives_way_before_the_sweep(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.outbound(other(99, "10.0.1.10", "198.51.100.7")).forwarded();
    gw.advance(301);
    let there = gw.outbound(other(99, "10.0.1.20", "198.51.100.7")).forwarded();
    gw.inbound(there.answer()).forwarded().is("198.51.100.7", "10.0.1.20");
}
