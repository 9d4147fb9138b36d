//! What a gateway that is broken does, and that the model objects.

use std::net::SocketAddr;

use gateway_common::records::{Timeouts, ticks_from_secs};
use gateway_common::verdict::DropReason;
use gateway_tests::build_packet::{UDP, end};
use gateway_tests::harness::host::Host;
use gateway_tests::harness::routes::{Links, prefix};
use gateway_tests::model::{Became, Filter, Packet, Piece, ReferenceNat, Rule, Side, Way};

use super::rules::{INSIDE, REMOTES, SHARE};
use super::{PORTS, Run, SESSIONS};

/// Runs until the model objects to what a broken gateway does; `None` if it never does.
fn objection(break_it: impl Fn(&mut Run<'_>, u64)) -> Option<String> {
    let mut host = Host::new(Links::IMAGINED, 2 * SESSIONS);
    let mut run = Run::new(&mut host, false, 7);
    (0..20_000).find_map(|step| {
        break_it(&mut run, step);
        run.step().err()
    })
}

#[test]
fn a_gateway_that_loses_a_session_is_caught() {
    let why = objection(|run, step| {
        if step % 100 == 99 {
            let entries = run.gw.sessions();
            let flow = entries[0].flow;
            let both = entries.iter().filter(|entry| {
                entry.flow == flow || entry.translated == (flow.destination, flow.source)
            });
            both.for_each(|entry| run.gw.forget(entry));
        }
    });
    assert!(why.is_some());
}

#[test]
fn a_gateway_that_is_impatient_is_caught() {
    let impatient = Timeouts { tcp_opening: ticks_from_secs(200), ..Timeouts::default() };
    let why = objection(|run, _| run.gw.configure(|config| config.timeouts = impatient));
    assert!(why.is_some_and(|why| why.contains("sweep") || why.contains("disappeared")));
}

#[test]
fn a_gateway_with_another_range_of_ports_is_caught() {
    let why = objection(|run, _| run.gw.configure(|config| config.port_high = PORTS.1 + 1));
    assert!(why.is_some_and(|why| why.contains("a port from 30001 to 30003")));
}

#[test]
fn a_rule_that_stays_behind_is_caught() {
    let why = objection(|run, step| {
        if step > 500
            && let Some(id) = run.rules[5].first()
        {
            run.model.remove(*id);
        }
    });
    assert!(why.is_some());
}

#[test]
fn a_new_flow_to_a_backend_that_left_is_caught() {
    let why = objection(|run, step| {
        if step > 500
            && let Some(id) = run.rules[SHARE].first()
        {
            run.model.drain(*id);
        }
    });
    assert!(why.is_some_and(|why| why.contains("expected")));
}

#[test]
fn a_host_with_two_addresses_of_a_pool_is_caught() {
    let mut model = ReferenceNat::new(PORTS, SESSIONS as usize);
    let eips = ["203.0.113.15:30001", "203.0.113.16:30002"].map(end);
    for (id, eip) in (1..).zip(eips) {
        model.add(id, Rule::Snat(prefix("10.0.1.0/24"), eip.ip()));
    }
    let packet = |port: u16, to: &str| {
        let from = SocketAddr::new(end(INSIDE[0]).ip(), port);
        Packet::new(UDP, Way { side: Side::Inside, from, to: end(to) })
    };
    let (one, two) = (packet(4000, REMOTES[0]), packet(4001, REMOTES[1]));
    model.packet(&one, Became::Sent(eips[0], one.way.to)).expect("a free port");
    let why = model.packet(&two, Became::Sent(eips[1], two.way.to)).expect_err("another EIP");
    assert!(why.contains("is paired with 203.0.113.15"), "{why}");
}

#[test]
fn a_hairpin_that_the_other_side_would_answer_past_the_gateway_is_caught() {
    let mut model = ReferenceNat::new(PORTS, SESSIONS as usize);
    let (eip, inside) = (end("203.0.113.11:53"), end("10.0.1.10:53"));
    model.add(1, Rule::Dnat(UDP, eip, inside));
    let way = Way { side: Side::Inside, from: end("10.0.1.20:4000"), to: eip };
    let packet = |way: Way| Packet::new(UDP, way);
    for wrong in [way.from, end("203.0.113.12:30001"), end("203.0.113.11:80")] {
        let why = model.clone().packet(&packet(way), Became::Sent(wrong, inside));
        assert!(why.is_err_and(|why| why.contains("a port from 30001 to 30003")), "{wrong}");
    }
    let seen = end("203.0.113.11:30001");
    model.packet(&packet(way), Became::Sent(seen, inside)).expect("as it must be");
    let answer = Way { side: Side::Inside, from: inside, to: seen };
    let why = model.clone().packet(&packet(answer), Became::Sent(inside, way.from));
    assert!(why.is_err_and(|why| why.contains("expected from 203.0.113.11:53")));
    model.packet(&packet(answer), Became::Sent(eip, way.from)).expect("as it must be");
}

#[test]
fn an_endpoint_that_talks_to_itself_is_caught() {
    let mut model = ReferenceNat::new(PORTS, SESSIONS as usize);
    let (eip, inside) = (end("203.0.113.11:30001"), end("10.0.1.10:4000"));
    model.add(1, Rule::Dnat(UDP, eip, inside));
    let way = Way { side: Side::Inside, from: inside, to: eip };
    let packet = Packet::new(UDP, way);
    let why = model.packet(&packet, Became::Sent(eip, inside)).expect_err("one key for both");
    assert!(why.contains("talks to itself"), "{why}");
    model.packet(&packet, Became::Sent(end("203.0.113.11:30002"), inside)).expect("another port");
}

#[test]
fn a_second_endpoint_of_a_mapping_is_caught() {
    let mut model = ReferenceNat::new(PORTS, SESSIONS as usize);
    let [eip, other] = ["203.0.113.10:30001", "203.0.113.10:30002"].map(end);
    model.add(1, Rule::Mapped(prefix("10.0.1.10/32"), eip.ip(), Filter::Addresses));
    model.add(2, Rule::Snat(prefix("10.0.1.0/24"), eip.ip()));
    let packet =
        |side, from: &str, to: &str| Packet::new(UDP, Way { side, from: end(from), to: end(to) });
    let [one, two] = [REMOTES[0], REMOTES[2]];
    let (mapped, plain) = ("10.0.1.10:4000", "10.0.1.20:4000");
    let first = packet(Side::Inside, mapped, one);
    model.packet(&first, Became::Sent(eip, end(one))).expect("a free port");
    // To another remote, and from a host that has a port for each remote.
    let why =
        model.clone().packet(&packet(Side::Inside, mapped, two), Became::Sent(other, end(two)));
    assert!(why.is_err_and(|why| why.contains("expected from 203.0.113.10:30001")));
    let why = model.clone().packet(&packet(Side::Inside, plain, two), Became::Sent(eip, end(two)));
    assert!(why.is_err_and(|why| why.contains("is the port of")));
    // Who has not been asked, and who has.
    let stranger = packet(Side::Outside, two, "203.0.113.10:30001");
    let why = model.clone().packet(&stranger, Became::Sent(end(two), end(mapped)));
    assert!(why.is_err_and(|why| why.contains("nobody's")));
    let known = packet(Side::Outside, REMOTES[1], "203.0.113.10:30001");
    let why = model.clone().packet(&known, Became::Passed);
    assert!(why.is_err_and(|why| why.contains("a rule covers it")));
    model.packet(&known, Became::Sent(end(REMOTES[1]), end(mapped))).expect("its address is known");
    // With its last session the port is free.
    model.advance(301);
    assert_eq!((model.sweep(), model.mappings()), (2, 0));
    model.packet(&packet(Side::Inside, plain, two), Became::Sent(eip, end(two))).expect("free");
}

#[test]
fn fragments_on_ways_of_their_own_are_caught() {
    let mut model = ReferenceNat::new(PORTS, SESSIONS as usize);
    let [eip, to] = ["203.0.113.10:30001", REMOTES[0]].map(end);
    model.add(1, Rule::Snat(prefix("10.0.1.0/24"), eip.ip()));
    let way = Way { side: Side::Inside, from: end("10.0.1.10:4000"), to };
    let [first, later] =
        [Piece::First(7), Piece::Later(7)].map(|piece| Packet { piece, ..Packet::new(UDP, way) });
    let bare = |end: SocketAddr| SocketAddr::new(end.ip(), 0);
    let held = Became::Dropped(DropReason::FragmentHeld);
    let seen = Became::Sent(bare(eip), bare(to));
    // Before the first one, translated or not; and more than wait.
    for early in [seen, Became::Sent(bare(way.from), bare(to)), Became::Passed] {
        model.clone().packet(&later, early).expect_err("too early");
    }
    (0..48).for_each(|_| model.packet(&later, held).expect("it waits"));
    model.packet(&later, held).expect_err("one too many");
    // The first one leaves them behind, or takes them along.
    let left = (eip.ip(), to.ip());
    model.packet(&first, Became::Sent(eip, to)).expect("a free port");
    let why = model.identified(&first, left, 7, 8).expect_err("the others");
    assert!(why.contains("others wait"), "{why}");
    assert_eq!(model.replays(&first).map(|behind| behind.len()), Ok(48));
    model.identified(&first, left, 7, 8).expect("alone");
    // Behind it, as another datagram's or untranslated.
    model.packet(&later, seen).expect("behind it");
    model.identified(&later, left, 7, 8).expect("the same");
    model.identified(&later, left, 7, 7).expect_err("that of another datagram");
    model.packet(&later, Became::Sent(bare(way.from), bare(to))).expect_err("untranslated");
    let other = Packet { piece: Piece::First(8), ..first };
    model.packet(&other, Became::Sent(eip, to)).expect("the same session");
    model.identified(&other, left, 8, 8).expect_err("taken by the first datagram");
    // Nobody remembers it for ever.
    model.advance(31);
    model.packet(&later, seen).expect_err("too late");
}
