//! Fragments that come before the first one of their datagram (RFC 4787 REQ-14).
//!
//! The programs let those come in again at the interface, which is not there when frames go through one
//! by one: a case sends them once more itself.

use gateway_common::fragment::HELD_FRAGMENTS;
use gateway_common::tuple::Direction;
use gateway_common::verdict::{DropReason, PassReason};

use super::Gateway;
use super::fragments::{content, is, pieces, plain_answer, reassembled, send};
use crate::build_packet::{ACK, Draft, TCP, UDP, ping, tcp, udp};

const EIP: &str = "203.0.113.10";
const HOST: &str = "10.0.1.10";
const X: &str = "198.51.100.7";

/// Sends fragments last one first; then, as the programs do it, all of them again.
fn backwards(gw: &mut Gateway<'_>, direction: Direction, fragments: &[Draft]) {
    let frames: Vec<_> = fragments.iter().map(|one| gw.frame(direction, one.clone())).collect();
    for later in frames[1..].iter().rev() {
        let sent = gw.send(direction, later.clone());
        match direction {
            Direction::Outbound => sent.dropped(DropReason::FragmentHeld),
            // It may be one of the gateway's own, too.
            Direction::Inbound => sent.passed(PassReason::Local),
        }
    }
    gw.send(direction, frames[0].clone()).passed(PassReason::Replayed);
}

pub(super) fn fragments_before_the_first_wait_for_it(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let segment = tcp("10.0.1.10:4001", "198.51.100.7:80", ACK).with_identification(7);
    for whole in [udp("10.0.1.10:4000", "198.51.100.7:53"), segment] {
        let fragments = pieces(&whole);
        backwards(gw, Direction::Outbound, &fragments);
        let there = reassembled(&send(gw, Direction::Outbound, fragments));
        is(&there, EIP, X);
        assert_eq!(there.payload(), content(200));
    }
}

pub(super) fn fragments_of_an_answer_wait_too(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let there = gw.outbound(udp("10.0.1.10:4000", "198.51.100.7:53")).forwarded();
    let answer = pieces(&there.answer());
    backwards(gw, Direction::Inbound, &answer);
    let back = reassembled(&send(gw, Direction::Inbound, answer));
    is(&back, X, HOST);
    assert_eq!(back.to().port(), 4000);
}

pub(super) fn fragments_to_a_port_forward_wait_too(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:53", UDP, "10.0.1.10:5353");
    let fragments = pieces(&udp("198.51.100.7:5000", "203.0.113.11:53"));
    backwards(gw, Direction::Inbound, &fragments);
    let there = reassembled(&send(gw, Direction::Inbound, fragments));
    is(&there, X, HOST);
    let answer = pieces(&plain_answer(&there));
    backwards(gw, Direction::Outbound, &answer);
    is(&reassembled(&send(gw, Direction::Outbound, answer)), "203.0.113.11", X);
}

pub(super) fn fragments_of_a_ping_in_any_order(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let fragments = pieces(&ping(HOST, X, 77));
    gw.outbound(fragments[1].clone()).dropped(DropReason::FragmentHeld);
    gw.outbound(fragments[0].clone()).passed(PassReason::Replayed);
    let mut seen = send(gw, Direction::Outbound, fragments[..2].to_vec());
    seen.extend(send(gw, Direction::Outbound, fragments[2..].to_vec()));
    is(&reassembled(&seen), EIP, X);
}

pub(super) fn what_waits_is_counted_once(gw: &mut Gateway<'_>) {
    let rule = gw.snat("10.0.1.0/24", &[EIP])[0];
    let fragments = pieces(&udp("10.0.1.10:4000", "198.51.100.7:53"));
    let count = fragments.len() as u64;
    backwards(gw, Direction::Outbound, &fragments);
    let entry = gw.session("10.0.1.10:4000", "198.51.100.7:53");
    assert_eq!(entry.counted, (0, 0));
    send(gw, Direction::Outbound, fragments);
    let entry = gw.session("10.0.1.10:4000", "198.51.100.7:53");
    assert_eq!(entry.counted.0, count);
    assert_eq!(gw.rule_counter(rule).packets, count);
    assert_eq!(gw.sessions().len(), 2);
}

pub(super) fn a_first_fragment_alone_waits_for_nobody(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let fragments = pieces(&udp("10.0.1.10:4000", "198.51.100.7:53"));
    gw.outbound(fragments[0].clone()).forwarded();
    // What was released once waits no longer.
    backwards(gw, Direction::Outbound, &pieces(&udp("10.0.1.20:4000", "198.51.100.7:53")));
    let other = pieces(&udp("10.0.1.20:4000", "198.51.100.7:53"));
    gw.outbound(other[0].clone()).forwarded();
}

pub(super) fn a_datagram_does_not_wait_for_another(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let whole = udp("10.0.1.10:4000", "198.51.100.7:53");
    let late = pieces(&whole.clone().with_identification(7));
    gw.outbound(late[1].clone()).dropped(DropReason::FragmentHeld);
    for other in [
        whole.clone().with_identification(8),
        udp("10.0.1.20:4000", "198.51.100.7:53").with_identification(7),
        udp("10.0.1.10:4000", "198.51.100.8:53").with_identification(7),
    ] {
        gw.outbound(pieces(&other)[0].clone()).forwarded();
    }
    gw.outbound(late[0].clone()).passed(PassReason::Replayed);
}

pub(super) fn more_than_a_datagram_has_do_not_wait(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let whole = udp("10.0.1.10:4000", "198.51.100.7:53");
    let count = HELD_FRAGMENTS as usize + 3;
    let fragments = whole.with_payload(&content(8 * count)).pieces(8);
    let (held, others) = fragments[1..].split_at(HELD_FRAGMENTS as usize);
    for one in held {
        gw.outbound(one.clone()).dropped(DropReason::FragmentHeld);
    }
    for one in others {
        gw.outbound(one.clone()).dropped(DropReason::Fragment);
    }
    gw.outbound(fragments[0].clone()).passed(PassReason::Replayed);
    send(gw, Direction::Outbound, fragments);
}

pub(super) fn a_first_fragment_that_is_refused_takes_nothing_along(gw: &mut Gateway<'_>) {
    let fragments = pieces(&udp("198.51.100.7:5000", "203.0.113.11:53"));
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:80");
    gw.inbound(fragments[1].clone()).passed(PassReason::Local);
    gw.inbound(fragments[0].clone()).passed(PassReason::Local);
    assert_eq!(gw.sessions(), []);
}

pub(super) fn what_no_rule_covers_waits_in_vain(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let fragments = pieces(&udp("10.0.2.10:4000", "198.51.100.7:53"));
    // It could be of an answer.
    gw.outbound(fragments[1].clone()).dropped(DropReason::FragmentHeld);
    gw.outbound(fragments[0].clone()).dropped(DropReason::NoRule);
    gw.inbound(pieces(&udp("198.51.100.7:53", "10.0.1.10:4000"))[1].clone())
        .dropped(DropReason::NotAddressedHere);
}

pub(super) fn fragments_of_the_gateways_own_stay_its_own(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:80");
    let fragments = pieces(&ping(X, "203.0.113.11", 9));
    for fragment in fragments.into_iter().rev() {
        gw.inbound(fragment).passed(PassReason::Local);
    }
}
