//! Next-hop groups: which of several routers a flow leaves by, and its reply.
//!
//! Where a packet without a session goes, only the host tells; of a session, its record does.

use std::net::IpAddr;

use gateway_common::nexthop::{HashFields, MemberState};
use gateway_common::tuple::Direction;
use gateway_common::verdict::DropReason;

use super::Gateway;
use super::gateway::Routers;
use crate::build_packet::{Draft, SYN, TCP, end, icmp, tcp, udp};

const INSIDE: &str = "10.0.1.10:4000";
const REMOTE: &str = "198.51.100.7:443";
/// A host behind the routers of the VPC.
const FAR: &str = "10.0.2.30:4000";
const OUTSIDE: [&str; 2] = ["203.0.113.1", "203.0.113.3"];
const VPC: [&str; 2] = ["10.0.1.1", "10.0.1.3"];

use MemberState::{Alive, Dead, Draining, Represented};

/// Sets the group of the two routers of a side.
fn group(gw: &mut Gateway<'_>, side: Direction, states: [MemberState; 2], slots: &[u16]) {
    group_that(gw, side, states, slots, false);
}

fn group_that(
    gw: &mut Gateway<'_>,
    side: Direction,
    states: [MemberState; 2],
    slots: &[u16],
    moves: bool,
) {
    let [one, other] = if side == Direction::Inbound { OUTSIDE } else { VPC };
    let members = [(one, states[0]), (other, states[1])];
    let hash = HashFields::FiveTuple;
    gw.next_hops(side, &Routers { members: &members, slots, moves, hash });
}

fn outside(gw: &mut Gateway<'_>, states: [MemberState; 2], slots: &[u16]) {
    group(gw, Direction::Inbound, states, slots);
}

/// Where packets of a session go.
fn way(gw: &mut Gateway<'_>, from: &str, to: &str) -> IpAddr {
    gw.session(from, to).next_hop.1
}

fn ip(text: &str) -> IpAddr {
    end(text).ip()
}

/// A packet that a router has sent on.
fn by_router(gw: &mut Gateway<'_>, direction: Direction, draft: Draft, place: u8) -> super::Sent {
    let mut frame = gw.frame(direction, draft);
    frame[6..12].copy_from_slice(&Routers::mac(place));
    gw.send(direction, frame)
}

/// Where 64 flows of one host go.
fn spread(gw: &mut Gateway<'_>, from: u16) -> Vec<IpAddr> {
    let flow = |gw: &mut Gateway<'_>, port: u16| {
        let source = format!("10.0.1.10:{port}");
        gw.outbound(udp(&source, REMOTE)).forwarded();
        way(gw, &source, REMOTE)
    };
    (from..from + 64).map(|port| flow(gw, port)).collect()
}

pub(super) fn flows_are_spread_over_the_members(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    outside(gw, [Alive, Alive], &[1, 2]);
    let ways = spread(gw, 4000);
    let first = ways.iter().filter(|way| **way == ip(OUTSIDE[0])).count();
    assert!(ways.iter().all(|way| OUTSIDE.map(ip).contains(way)), "{ways:?}");
    assert!((16..=48).contains(&first), "{first} of 64");
    assert_eq!(spread(gw, 4000), ways, "the same flows again");
}

pub(super) fn an_open_session_stays_with_a_living_member(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    outside(gw, [Alive, Alive], &[1]);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    assert_eq!(way(gw, INSIDE, REMOTE), ip(OUTSIDE[0]));
    outside(gw, [Alive, Alive], &[2]);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded().leaves_by(gw.links().external, OUTSIDE[0]);
    assert_eq!(way(gw, INSIDE, REMOTE), ip(OUTSIDE[0]));
    gw.outbound(udp("10.0.1.10:4001", REMOTE)).forwarded();
    assert_eq!(way(gw, "10.0.1.10:4001", REMOTE), ip(OUTSIDE[1]));
}

pub(super) fn an_open_session_moves_to_its_slot_if_the_group_says_so(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    outside(gw, [Alive, Dead], &[1]);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    group_that(gw, Direction::Inbound, [Alive, Alive], &[2], true);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded().leaves_by(gw.links().external, OUTSIDE[1]);
    assert_eq!(way(gw, INSIDE, REMOTE), ip(OUTSIDE[1]));
}

pub(super) fn only_the_flows_of_a_dead_member_move(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    outside(gw, [Alive, Alive], &[1, 2]);
    let before = spread(gw, 4000);
    outside(gw, [Dead, Alive], &[2]);
    assert!(spread(gw, 4000).iter().all(|way| *way == ip(OUTSIDE[1])));
    // It is back: those that stayed are where they were, those that went stay where they are.
    outside(gw, [Alive, Alive], &[1, 2]);
    assert!(spread(gw, 4000).iter().all(|way| *way == ip(OUTSIDE[1])));
    // Or, if the group moves them, all are where they began.
    group_that(gw, Direction::Inbound, [Alive, Alive], &[1, 2], true);
    assert_eq!(spread(gw, 4000), before);
}

pub(super) fn a_member_that_drains_keeps_its_sessions_and_gets_no_others(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    outside(gw, [Alive, Alive], &[1]);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    for moves in [false, true] {
        group_that(gw, Direction::Inbound, [Draining, Alive], &[2], moves);
        gw.outbound(udp(INSIDE, REMOTE)).forwarded();
        assert_eq!(way(gw, INSIDE, REMOTE), ip(OUTSIDE[0]));
    }
    gw.outbound(udp("10.0.1.10:4001", REMOTE)).forwarded();
    assert_eq!(way(gw, "10.0.1.10:4001", REMOTE), ip(OUTSIDE[1]));
    outside(gw, [Dead, Alive], &[2]);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    assert_eq!(way(gw, INSIDE, REMOTE), ip(OUTSIDE[1]));
}

pub(super) fn nobody_alive_is_no_way_out(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.fip("203.0.113.14", "10.0.1.5");
    outside(gw, [Alive, Alive], &[1]);
    let there = gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    outside(gw, [Dead, Dead], &[0]);
    for source in [INSIDE, "10.0.1.10:4001", "10.0.1.5:4000"] {
        gw.outbound(udp(source, REMOTE)).dropped(DropReason::NoNextHop);
    }
    // Whatever way an answer has come.
    gw.inbound(there.answer()).forwarded().is(REMOTE, INSIDE);
    outside(gw, [Dead, Alive], &[2]);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    assert_eq!(way(gw, INSIDE, REMOTE), ip(OUTSIDE[1]));
}

pub(super) fn what_is_on_link_is_left_to_the_route(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    outside(gw, [Alive, Alive], &[2]);
    for neighbour in ["203.0.113.200:53", "203.0.113.1:53"] {
        gw.outbound(udp(INSIDE, neighbour)).forwarded();
        assert_eq!(way(gw, INSIDE, neighbour), ip(neighbour));
    }
}

pub(super) fn another_router_is_left_to_its_route(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.route("198.51.100.0/24", gw.links().external, Some("203.0.113.99"));
    outside(gw, [Alive, Alive], &[2]);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    assert_eq!(way(gw, INSIDE, REMOTE), ip("203.0.113.99"));
}

pub(super) fn the_router_of_the_default_route_is_represented(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    outside(gw, [Represented, Alive], &[2]);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    assert_eq!(way(gw, INSIDE, REMOTE), ip(OUTSIDE[1]));
}

pub(super) fn without_the_flag_no_group_is_asked(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    outside(gw, [Alive, Alive], &[2]);
    gw.configure(|config| config.next_hops = 0);
    gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    assert_eq!(way(gw, INSIDE, REMOTE), ip(OUTSIDE[0]));
}

pub(super) fn a_reply_leaves_by_the_router_that_the_request_came_from(gw: &mut Gateway<'_>) {
    gw.snat("10.0.2.0/24", &["203.0.113.10"]);
    for moves in [false, true] {
        group_that(gw, Direction::Outbound, [Alive, Alive], &[1], moves);
        let from = if moves { "10.0.2.31:4000" } else { FAR };
        let there = by_router(gw, Direction::Outbound, udp(from, REMOTE), 2).forwarded();
        gw.inbound(there.answer()).forwarded().is(REMOTE, from);
        let external = there.source().to_string();
        assert_eq!(way(gw, REMOTE, &external), ip(VPC[1]));
        // Not only the first reply, and whatever becomes of the slots.
        gw.configure(|config| config.routing += 1);
        gw.inbound(there.answer()).forwarded().leaves_by(gw.links().internal, VPC[1]);
        assert_eq!(way(gw, REMOTE, &external), ip(VPC[1]));
    }
}

pub(super) fn a_reply_from_inside_leaves_by_the_router_outside(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    outside(gw, [Alive, Alive], &[1]);
    for (place, client) in [(1, "198.51.100.7:5001"), (2, "198.51.100.7:5002")] {
        let request = tcp(client, "203.0.113.11:80", SYN);
        by_router(gw, Direction::Inbound, request, place).forwarded().is(client, "10.0.1.10:8080");
        let answer = tcp("10.0.1.10:8080", client, SYN);
        gw.outbound(answer).forwarded().is("203.0.113.11:80", client);
        assert_eq!(way(gw, "10.0.1.10:8080", client), ip(OUTSIDE[usize::from(place) - 1]));
    }
}

pub(super) fn a_reply_moves_when_its_router_dies(gw: &mut Gateway<'_>) {
    gw.snat("10.0.2.0/24", &["203.0.113.10"]);
    group_that(gw, Direction::Outbound, [Alive, Alive], &[1], true);
    let there = by_router(gw, Direction::Outbound, udp(FAR, REMOTE), 2).forwarded();
    gw.inbound(there.answer()).forwarded();
    let external = there.source().to_string();
    group_that(gw, Direction::Outbound, [Alive, Dead], &[1], true);
    gw.inbound(there.answer()).forwarded();
    assert_eq!(way(gw, REMOTE, &external), ip(VPC[0]));
    // From now on it goes by its slot as any other flow.
    group_that(gw, Direction::Outbound, [Alive, Alive], &[2], true);
    gw.inbound(there.answer()).forwarded();
    assert_eq!(way(gw, REMOTE, &external), ip(VPC[1]));
    group_that(gw, Direction::Outbound, [Alive, Alive], &[1], true);
    gw.inbound(there.answer()).forwarded();
    assert_eq!(way(gw, REMOTE, &external), ip(VPC[0]));
}

pub(super) fn a_reply_to_an_unknown_router_goes_by_its_slot(gw: &mut Gateway<'_>) {
    gw.snat("10.0.2.0/24", &["203.0.113.10"]);
    group(gw, Direction::Outbound, [Alive, Dead], &[1]);
    // Nobody's address, and that of a member that is dead.
    for (place, from) in [(9, FAR), (2, "10.0.2.31:4000")] {
        let there = by_router(gw, Direction::Outbound, udp(from, REMOTE), place).forwarded();
        gw.inbound(there.answer()).forwarded();
        assert_eq!(way(gw, REMOTE, &there.source().to_string()), ip(VPC[0]));
    }
}

pub(super) fn a_hairpin_is_answered_by_the_way_it_came(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    group(gw, Direction::Outbound, [Alive, Alive], &[1]);
    let request = tcp(FAR, "203.0.113.11:80", SYN);
    let there = by_router(gw, Direction::Outbound, request, 2).forwarded();
    gw.outbound(there.answer()).forwarded().is("203.0.113.11:80", FAR);
    let external = there.source().to_string();
    assert_eq!(way(gw, "10.0.1.10:8080", &external), ip(VPC[1]));
}

pub(super) fn a_floating_ip_is_spread_without_state(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.2.5");
    let links = gw.links();
    for (slot, place) in [(1, 0), (2, 1)] {
        outside(gw, [Alive, Alive], &[slot]);
        group(gw, Direction::Outbound, [Alive, Alive], &[slot]);
        let there = gw.outbound(udp("10.0.2.5:4000", REMOTE)).forwarded();
        there.leaves_by(links.external, OUTSIDE[place]);
        gw.inbound(there.answer()).forwarded().leaves_by(links.internal, VPC[place]);
    }
    assert_eq!(gw.sessions(), []);
}

pub(super) fn fragments_of_a_floating_ip_go_one_way(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    outside(gw, [Alive, Alive], &[1, 2]);
    for port in 4000..4032 {
        let whole = udp(&format!("10.0.1.5:{port}"), REMOTE).with_payload(&[7; 64]);
        let [first, later] = whole.fragments(24);
        let first = gw.outbound(first).forwarded().next_hop;
        assert_eq!(gw.outbound(later).forwarded().next_hop, first, "port {port}");
    }
}

pub(super) fn an_error_goes_with_its_flow(gw: &mut Gateway<'_>) {
    gw.snat("10.0.2.0/24", &["203.0.113.10"]);
    group(gw, Direction::Outbound, [Alive, Alive], &[1]);
    let sent = by_router(gw, Direction::Outbound, udp(FAR, REMOTE), 2);
    let (kind, code) = if gw.is_ipv6() { (1, 4) } else { (3, 3) };
    let report = icmp("198.51.100.1", "203.0.113.10", kind, code, [0; 4]);
    let report = report.with_payload(&sent.bytes()[14..]);
    let (seen, _) = gw.inbound(report).forwarded_error();
    seen.leaves_by(gw.links().internal, VPC[1]);
}

pub(super) fn by_source_all_that_a_host_does_goes_one_way(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let members = OUTSIDE.map(|router| (router, Alive));
    let hash = HashFields::Source;
    let routers = Routers { members: &members, slots: &[1, 2], moves: false, hash };
    gw.next_hops(Direction::Inbound, &routers);
    let mut ways = spread(gw, 4000);
    gw.outbound(tcp(INSIDE, "198.51.100.8:80", SYN)).forwarded();
    ways.push(way(gw, INSIDE, "198.51.100.8:80"));
    ways.dedup();
    assert_eq!(ways.len(), 1, "{ways:?}");
}
