//! What the RFCs about NAT ask for and no other module shows.

use std::collections::BTreeSet;

use gateway_common::verdict::{DropReason, PassReason};

use super::{Gateway, Sent};
use crate::build_packet::{ACK, Draft, FIN, SYN, icmp, ping, tcp, udp};

const INSIDE: &str = "10.0.1.10:4000";
const REMOTE: &str = "198.51.100.7:443";
const ROUTER: &str = "198.51.100.1";
const EIP: &str = "203.0.113.10";

fn snat(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
}

/// Type and code of every ICMP error that is about a packet.
fn kinds(gw: &Gateway<'_>) -> Vec<(u8, u8)> {
    let codes: &[(u8, std::ops::RangeInclusive<u8>)] = if gw.is_ipv6() {
        &[(1, 0..=6), (2, 0..=0), (3, 0..=1), (4, 0..=2)]
    } else {
        &[(3, 0..=15), (4, 0..=0), (11, 0..=1), (12, 0..=2)]
    };
    codes.iter().flat_map(|(kind, codes)| codes.clone().map(|code| (*kind, code))).collect()
}

fn report(from: &str, to: &str, (kind, code): (u8, u8), about: &Sent) -> Draft {
    icmp(from, to, kind, code, [0; 4]).with_payload(&about.bytes()[14..])
}

// RFC 5508 REQ-10.
pub(super) fn every_kind_of_error_is_translated(gw: &mut Gateway<'_>) {
    snat(gw);
    let sent = gw.outbound(udp(INSIDE, REMOTE));
    let back = gw.inbound(sent.forwarded().answer());
    for kind in kinds(gw) {
        let (seen, quote) = gw.inbound(report(ROUTER, EIP, kind, &sent)).forwarded_error();
        seen.is(ROUTER, "10.0.1.10");
        quote.is(INSIDE, REMOTE);
        let error = report("10.0.1.10", "198.51.100.7", kind, &back);
        let (seen, quote) = gw.outbound(error).forwarded_error();
        seen.is(EIP, "198.51.100.7");
        quote.is(REMOTE, &sent.forwarded().source().to_string());
    }
}

// RFC 4787 REQ-12, RFC 5382 REQ-10.
pub(super) fn no_error_ends_an_open_connection(gw: &mut Gateway<'_>) {
    snat(gw);
    let there = gw.outbound(tcp(INSIDE, REMOTE, SYN)).forwarded();
    gw.inbound(there.answer()).forwarded();
    let sent = gw.outbound(tcp(INSIDE, REMOTE, ACK));
    let before = gw.sessions();
    for kind in kinds(gw) {
        gw.inbound(report(ROUTER, EIP, kind, &sent)).forwarded_error();
    }
    assert_eq!(gw.sessions(), before);
    gw.advance(7000);
    assert_eq!(gw.sweep(), 0);
    gw.inbound(there.answer()).forwarded().is(REMOTE, INSIDE);
}

// RFC 5508 REQ-1, REQ-10b. RFC 792 and RFC 950 for the types.
pub(super) fn every_kind_of_query_has_its_answer(gw: &mut Gateway<'_>) {
    snat(gw);
    for (query, answer) in [(8, 0), (13, 14), (15, 16), (17, 18)] {
        let [high, low] = (1000 + u16::from(query)).to_be_bytes();
        let ask = icmp("10.0.1.10", "198.51.100.7", query, 0, [high, low, 0, 1]);
        let there = gw.outbound(ask).forwarded();
        assert_eq!(there.source().ip().to_string(), EIP);
        let [high, low] = there.source().port().to_be_bytes();
        let back = icmp("198.51.100.7", EIP, answer, 0, [high, low, 0, 1]);
        let back = gw.inbound(back).forwarded();
        back.is("198.51.100.7", &format!("10.0.1.10:{}", 1000 + u16::from(query)));
    }
    assert_eq!(gw.sessions().len(), 8, "each query is a flow of its own");
}

// RFC 5508 REQ-11.
pub(super) fn a_message_that_is_neither_query_nor_error_is_refused(gw: &mut Gateway<'_>) {
    snat(gw);
    let others: &[u8] =
        if gw.is_ipv6() { &[5, 100, 127, 130, 138, 200] } else { &[1, 6, 30, 40, 255] };
    for kind in others {
        let packet = icmp("10.0.1.10", "198.51.100.7", *kind, 0, [0, 9, 0, 1]);
        gw.outbound(packet).dropped(DropReason::IcmpUntracked);
        gw.inbound(icmp("198.51.100.7", EIP, *kind, 0, [0, 9, 0, 1])).passed(PassReason::Local);
    }
    assert_eq!(gw.sessions(), []);
}

// RFC 4884: 128 bytes of quote, padded, then a structure with a header and an MPLS label object.
pub(super) fn extensions_after_the_quote_stay_as_they_are(gw: &mut Gateway<'_>) {
    const STRUCTURE: [u8; 12] = [0x20, 0, 0x5a, 0xa5, 0, 8, 1, 1, 0, 1, 0xf1, 1];
    snat(gw);
    let sent = gw.outbound(udp(INSIDE, REMOTE).with_payload(&[0x17; 20]));
    sent.forwarded();
    let mut payload = sent.bytes()[14..].to_vec();
    payload.resize(128, 0);
    payload.extend(STRUCTURE);
    // The length of the quote: units of four bytes in the second byte, or of eight in the first.
    let (kind, rest) = if gw.is_ipv6() { (3, [16, 0, 0, 0]) } else { (11, [0, 32, 0, 0]) };
    let error = icmp(ROUTER, EIP, kind, 0, rest).with_payload(&payload);
    let sent = gw.inbound(error);
    sent.is_sound();
    let after = sent.bytes();
    assert_eq!(after[after.len() - STRUCTURE.len()..], STRUCTURE);
    let quote = &after[after.len() - payload.len()..after.len() - STRUCTURE.len()];
    let whole = if gw.is_ipv6() { 40 + 8 + 20 } else { 20 + 8 + 20 };
    assert_eq!(quote[whole - 20..], payload[whole - 20..128], "payload and padding");
    let (seen, quote) =
        gw.inbound(icmp(ROUTER, EIP, kind, 0, rest).with_payload(&payload)).forwarded_error();
    assert_eq!(seen.decoded.segment[4..8], rest);
    quote.is(INSIDE, REMOTE);
}

// RFC 5382 REQ-2a.
pub(super) fn both_sides_open_at_once(gw: &mut Gateway<'_>) {
    snat(gw);
    let there = gw.outbound(tcp(INSIDE, REMOTE, SYN)).forwarded();
    let external = there.source().to_string();
    gw.inbound(tcp(REMOTE, &external, SYN)).forwarded().is(REMOTE, INSIDE);
    for flags in [SYN | ACK, ACK] {
        gw.outbound(tcp(INSIDE, REMOTE, flags)).forwarded().is(&external, REMOTE);
        gw.inbound(tcp(REMOTE, &external, flags)).forwarded().is(REMOTE, INSIDE);
    }
    assert_eq!(gw.sessions().len(), 2);
    gw.advance(7400);
    assert_eq!(gw.sweep(), 0, "it is established");
    // And both close at once.
    gw.outbound(tcp(INSIDE, REMOTE, FIN | ACK)).forwarded().is(&external, REMOTE);
    gw.inbound(tcp(REMOTE, &external, FIN | ACK)).forwarded().is(REMOTE, INSIDE);
    gw.outbound(tcp(INSIDE, REMOTE, ACK)).forwarded().is(&external, REMOTE);
    gw.inbound(tcp(REMOTE, &external, ACK)).forwarded().is(REMOTE, INSIDE);
    gw.advance(241);
    assert_eq!(gw.sweep(), 1);
}

// RFC 7857 section 5.
pub(super) fn tcp_and_udp_share_a_port(gw: &mut Gateway<'_>) {
    snat(gw);
    gw.configure(|config| (config.port_low, config.port_high) = (30_000, 30_000));
    let external = format!("{EIP}:30000");
    let over_udp = gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    over_udp.is(&external, REMOTE);
    // Another host, so that the two do not go together.
    let over_tcp = gw.outbound(tcp("10.0.1.20:4000", REMOTE, SYN)).forwarded();
    over_tcp.is(&external, REMOTE);
    gw.inbound(over_udp.answer()).forwarded().is(REMOTE, INSIDE);
    gw.inbound(over_tcp.answer()).forwarded().is(REMOTE, "10.0.1.20:4000");
}

// RFC 6056 section 3, RFC 7857 section 9, RFC 6888 REQ-15.
pub(super) fn external_ports_are_spread(gw: &mut Gateway<'_>) {
    const FLOWS: u16 = 256;
    snat(gw);
    let ports: Vec<u16> = (0..FLOWS)
        .map(|flow| {
            let packet = udp(&format!("10.0.1.10:{}", 40_000 + flow), REMOTE);
            gw.outbound(packet).forwarded().source().port()
        })
        .collect();
    assert!(ports.iter().all(|port| *port >= 1024), "{ports:?}");
    // Of 16 equal parts of the range, none stays empty: one in a million runs would have it.
    let parts: BTreeSet<u16> = ports.iter().map(|port| port / 4096).collect();
    assert_eq!(parts.len(), 16, "{ports:?}");
    // Neither one after the other nor the source port itself.
    let steps = ports.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) < 16).count();
    assert!(steps < 8, "{steps} ports lie beside the last one: {ports:?}");
    let kept = ports.iter().zip(40_000..).filter(|(port, source)| **port == *source).count();
    assert!(kept < 4, "{kept} ports are the source port");
}

// RFC 4787 REQ-14a leaves whole packets alone; here the trailer of a frame is what nobody asked for.
pub(super) fn bytes_after_the_packet_are_not_looked_at(gw: &mut Gateway<'_>) {
    snat(gw);
    let there = gw.outbound(ping("10.0.1.10", "198.51.100.7", 7)).forwarded();
    let mut frame = gw.frame(gateway_common::tuple::Direction::Inbound, there.answer());
    // Ethernet pads to sixty bytes, with whatever was there.
    frame.extend([0xde, 0xad, 0xbe, 0xef, 0x01]);
    let answer = gw.send(gateway_common::tuple::Direction::Inbound, frame);
    answer.forwarded().is("198.51.100.7", "10.0.1.10:7");
    assert_eq!(answer.bytes()[answer.bytes().len() - 5..], [0xde, 0xad, 0xbe, 0xef, 0x01]);
}
