//! ICMP errors about translated packets: row 24 and RFC 5508.

use gateway_common::tuple::Direction;
use gateway_common::verdict::{DropReason, PassReason};

use super::{Gateway, Sent};
use crate::build_packet::{ACK, Draft, SYN, TCP, icmp, ping, tcp, udp};

const INSIDE: &str = "10.0.1.10:4000";
const REMOTE: &str = "198.51.100.7:53";
/// A router on the way to the remote.
const ROUTER: &str = "198.51.100.1";

/// Kind and code of "port unreachable".
fn unreachable(gw: &Gateway<'_>) -> (u8, u8) {
    if gw.is_ipv6() { (1, 4) } else { (3, 3) }
}

/// An error from one address to another about a packet that was seen on the wire.
fn error(gw: &Gateway<'_>, from: &str, to: &str, about: &Sent) -> Draft {
    let (kind, code) = unreachable(gw);
    icmp(from, to, kind, code, [0; 4]).with_payload(&about.bytes()[14..])
}

pub(super) fn an_error_from_outside_reaches_the_host_inside(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for packet in [udp(INSIDE, REMOTE), tcp(INSIDE, REMOTE, SYN)] {
        let sent = gw.outbound(packet);
        sent.forwarded().is_from("203.0.113.10", REMOTE);
        for reporter in [ROUTER, "198.51.100.7"] {
            let report = error(gw, reporter, "203.0.113.10", &sent);
            let (seen, quote) = gw.inbound(report).forwarded_error();
            seen.is(reporter, "10.0.1.10");
            seen.leaves_by(gw.links().internal, "10.0.1.10");
            quote.is(INSIDE, REMOTE);
            assert_eq!(quote.decoded.faults, Vec::<String>::new());
        }
    }
}

// RFC 5508 REQ-5.
pub(super) fn an_error_from_inside_comes_from_the_eip(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let there = gw.outbound(udp(INSIDE, REMOTE)).forwarded();
    let back = gw.inbound(there.answer());
    back.forwarded().is(REMOTE, INSIDE);
    // The host has closed the port meanwhile, or a router of the VPC cannot reach it.
    for reporter in ["10.0.1.10", "10.0.1.1"] {
        let report = error(gw, reporter, "198.51.100.7", &back);
        let (seen, quote) = gw.outbound(report).forwarded_error();
        seen.is("203.0.113.10", "198.51.100.7");
        seen.leaves_by(gw.links().external, "203.0.113.1");
        quote.is(REMOTE, &there.source().to_string());
        assert_eq!(quote.decoded.faults, Vec::<String>::new());
    }
}

pub(super) fn an_error_about_a_port_forward_names_the_eip(gw: &mut Gateway<'_>) {
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    let there = gw.inbound(tcp("198.51.100.7:5000", "203.0.113.11:80", SYN));
    there.forwarded().is("198.51.100.7:5000", "10.0.1.10:8080");
    let report = error(gw, "10.0.1.10", "198.51.100.7", &there);
    let (seen, quote) = gw.outbound(report).forwarded_error();
    seen.is("203.0.113.11", "198.51.100.7");
    quote.is("198.51.100.7:5000", "203.0.113.11:80");
    // And one about the answer, from outside.
    let back = gw.outbound(there.forwarded().answer());
    back.forwarded().is("203.0.113.11:80", "198.51.100.7:5000");
    let report = error(gw, ROUTER, "203.0.113.11", &back);
    let (seen, quote) = gw.inbound(report).forwarded_error();
    seen.is(ROUTER, "10.0.1.10");
    quote.is("10.0.1.10:8080", "198.51.100.7:5000");
}

pub(super) fn an_error_about_a_ping_names_the_id_of_the_host(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let sent = gw.outbound(ping("10.0.1.10", "198.51.100.7", 77));
    sent.forwarded();
    let report = error(gw, ROUTER, "203.0.113.10", &sent);
    let (seen, quote) = gw.inbound(report).forwarded_error();
    seen.is(ROUTER, "10.0.1.10");
    quote.is("10.0.1.10:77", "198.51.100.7");
    assert_eq!(quote.decoded.faults, Vec::<String>::new());
}

pub(super) fn an_error_about_a_floating_ip_passes_both_ways(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    for packet in [
        udp("10.0.1.5:4000", REMOTE),
        ping("10.0.1.5", "198.51.100.7", 3),
        crate::build_packet::other(99, "10.0.1.5", "198.51.100.7"),
    ] {
        let sent = gw.outbound(packet);
        let out = sent.forwarded();
        let report = error(gw, ROUTER, "203.0.113.14", &sent);
        let (seen, quote) = gw.inbound(report).forwarded_error();
        seen.is(ROUTER, "10.0.1.5");
        assert_eq!(quote.source().ip(), seen.destination().ip());
        assert_eq!(quote.decoded.faults, Vec::<String>::new());
        let back = gw.inbound(out.answer());
        back.forwarded();
        let report = error(gw, "10.0.1.5", "198.51.100.7", &back);
        let (seen, quote) = gw.outbound(report).forwarded_error();
        seen.is("203.0.113.14", "198.51.100.7");
        assert_eq!(quote.destination().ip(), seen.source().ip());
        assert_eq!(quote.decoded.faults, Vec::<String>::new());
    }
    assert_eq!(gw.sessions(), []);
}

// RFC 5508 REQ-7.
pub(super) fn an_error_in_a_hairpin_reaches_the_other_host(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    let sent = gw.outbound(udp(INSIDE, "203.0.113.14:53"));
    sent.forwarded().is_from("203.0.113.14", "10.0.1.5:53");
    let report = error(gw, "10.0.1.5", "203.0.113.14", &sent);
    let (seen, quote) = gw.outbound(report).forwarded_error();
    seen.is("203.0.113.14", "10.0.1.10");
    seen.leaves_by(gw.links().internal, "10.0.1.10");
    quote.is(INSIDE, "203.0.113.14:53");
}

/// The packet that was seen, cut to its network header and this many bytes more.
fn cut(gw: &Gateway<'_>, report: Draft, bytes: usize) -> Draft {
    let network = if gw.is_ipv6() { 40 } else { 20 };
    let quote = report.payload[..network + bytes].to_vec();
    report.with_payload(&quote)
}

// RFC 792.
pub(super) fn a_quote_of_eight_bytes_is_enough(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for packet in [tcp(INSIDE, REMOTE, SYN), udp(INSIDE, REMOTE)] {
        let sent = gw.outbound(packet);
        sent.forwarded();
        let whole = error(gw, ROUTER, "203.0.113.10", &sent);
        for bytes in 8..whole.payload.len() - if gw.is_ipv6() { 40 } else { 20 } {
            let report = cut(gw, whole.clone(), bytes);
            let forwarded = gw.inbound(report);
            // The decoder wants whole headers; the ports are the first four bytes after the IP header.
            let after = forwarded.bytes();
            let at = if gw.is_ipv6() { 14 + 40 + 8 + 40 } else { 14 + 20 + 8 + 20 };
            assert_eq!(after[at..at + 4], [4000_u16.to_be_bytes(), 53_u16.to_be_bytes()].concat());
            forwarded.is_sound();
        }
    }
}

pub(super) fn a_quote_of_fewer_bytes_is_refused(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let sent = gw.outbound(udp(INSIDE, REMOTE));
    sent.forwarded();
    let whole = error(gw, ROUTER, "203.0.113.10", &sent);
    for bytes in 0..4 {
        let report = cut(gw, whole.clone(), bytes);
        gw.inbound(report).dropped(DropReason::Truncated);
    }
    for length in 0..20 {
        let report = whole.clone().with_payload(&whole.payload[..length]);
        gw.inbound(report).dropped(DropReason::Truncated);
    }
}

pub(super) fn a_quote_with_options_is_translated(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let options = vec![7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let packet = Draft { ipv4_options: options.clone(), ..udp(INSIDE, REMOTE) };
    let sent = gw.outbound(packet);
    sent.forwarded();
    let report = error(gw, ROUTER, "203.0.113.10", &sent);
    let report = Draft { ipv4_options: options, ..report };
    let (seen, quote) = gw.inbound(report).forwarded_error();
    seen.is(ROUTER, "10.0.1.10");
    quote.is(INSIDE, REMOTE);
    assert_eq!(quote.decoded.faults, Vec::<String>::new());
}

pub(super) fn a_quote_with_extension_headers_is_translated(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let extensions = vec![(60, vec![1, 4, 0, 0, 0, 0])];
    let packet = Draft { extensions: extensions.clone(), ..udp(INSIDE, REMOTE) };
    let sent = gw.outbound(packet);
    sent.forwarded();
    let report = Draft { extensions, ..error(gw, ROUTER, "203.0.113.10", &sent) };
    let (seen, quote) = gw.inbound(report).forwarded_error();
    seen.is(ROUTER, "10.0.1.10");
    quote.is(INSIDE, REMOTE);
    assert_eq!(quote.decoded.faults, Vec::<String>::new());
}

pub(super) fn the_quote_of_a_datagram_without_checksum_stays_without(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let sent = gw.outbound(udp(INSIDE, REMOTE).without_checksum());
    sent.forwarded();
    let report = error(gw, ROUTER, "203.0.113.10", &sent);
    let (_, quote) = gw.inbound(report).forwarded_error();
    assert_eq!(quote.decoded.checksum, Some(0));
}

pub(super) fn the_mtu_of_too_big_is_kept(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let sent = gw.outbound(tcp(INSIDE, REMOTE, ACK));
    sent.forwarded();
    let (kind, code) = if gw.is_ipv6() { (2, 0) } else { (3, 4) };
    let report =
        icmp(ROUTER, "203.0.113.10", kind, code, [0, 0, 5, 0x14]).with_payload(&sent.bytes()[14..]);
    let (seen, quote) = gw.inbound(report).forwarded_error();
    assert_eq!(seen.decoded.segment[4..8], [0, 0, 5, 0x14]);
    quote.is(INSIDE, REMOTE);
}

// RFC 5508 REQ-6.
pub(super) fn an_error_neither_counts_nor_refreshes(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let sent = gw.outbound(udp(INSIDE, REMOTE));
    sent.forwarded();
    gw.advance(100);
    let before = gw.sessions();
    let report = error(gw, ROUTER, "203.0.113.10", &sent);
    gw.inbound(report).forwarded_error();
    assert_eq!(gw.sessions(), before);
    gw.advance(30);
    assert_eq!(gw.sweep(), 1);
}

pub(super) fn an_error_about_no_session_is_refused_or_the_gateways_own(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let (kind, code) = unreachable(gw);
    let about = |gw: &Gateway<'_>, packet| gw.frame(Direction::Inbound, packet)[14..].to_vec();
    // About a packet that the gateway itself sent from the EIP, for all that we know.
    let quote = about(gw, udp("203.0.113.10:9999", REMOTE));
    let report = icmp(ROUTER, "203.0.113.10", kind, code, [0; 4]).with_payload(&quote);
    gw.inbound(report).passed(PassReason::Local);
    let quote = about(gw, udp(REMOTE, INSIDE));
    let report = icmp("10.0.1.10", "198.51.100.7", kind, code, [0; 4]).with_payload(&quote);
    gw.outbound(report).dropped(DropReason::IcmpUntracked);
    assert_eq!(gw.sessions(), []);
}

pub(super) fn an_error_to_somebody_else_than_the_sender_is_refused(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let sent = gw.outbound(udp(INSIDE, REMOTE));
    sent.forwarded();
    let report = error(gw, ROUTER, "203.0.113.11", &sent);
    gw.inbound(report).dropped(DropReason::IcmpUntracked);
}

pub(super) fn an_error_about_an_error_is_refused(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    let sent = gw.outbound(udp("10.0.1.5:4000", REMOTE));
    let inner = error(gw, "203.0.113.14", ROUTER, &sent);
    let quote = gw.frame(Direction::Inbound, inner)[14..].to_vec();
    let (kind, code) = unreachable(gw);
    let report = icmp(ROUTER, "203.0.113.14", kind, code, [0; 4]).with_payload(&quote);
    gw.inbound(report).dropped(DropReason::IcmpUntracked);
}

pub(super) fn an_error_at_its_last_hop_goes_no_further(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let sent = gw.outbound(udp(INSIDE, REMOTE));
    sent.forwarded();
    let report = error(gw, ROUTER, "203.0.113.10", &sent).with_ttl(1);
    gw.inbound(report).dropped(DropReason::TtlExpired);
}

pub(super) fn a_floating_ip_reports_only_about_itself(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    let (kind, code) = unreachable(gw);
    // It routes for another host, whose address is nobody's business outside.
    let quote = gw.frame(Direction::Inbound, udp(REMOTE, INSIDE))[14..].to_vec();
    let report = icmp("10.0.1.5", "198.51.100.7", kind, code, [0; 4]).with_payload(&quote);
    gw.outbound(report).dropped(DropReason::IcmpUntracked);
}

/// A redirect is for the next hop; its quote would tell an inside address outside.
pub(super) fn a_redirect_goes_no_further(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let inside = gw.outbound(udp("10.0.1.5:4000", REMOTE));
    let outside = inside.bytes()[14..].to_vec();
    let redirect = |from: &str, to: &str, quote: &[u8]| {
        icmp(from, to, 5, 1, [203, 0, 113, 99]).with_payload(quote)
    };
    let inward = redirect(ROUTER, "203.0.113.14", &outside);
    gw.inbound(inward).dropped(DropReason::IcmpUntracked);
    let outward = redirect("10.0.1.5", "198.51.100.7", &outside);
    gw.outbound(outward).dropped(DropReason::IcmpUntracked);
    // About a session it belongs to nobody either.
    let sent = gw.outbound(udp(INSIDE, REMOTE));
    sent.forwarded();
    let about = redirect(ROUTER, "203.0.113.10", &sent.bytes()[14..]);
    gw.inbound(about).passed(PassReason::Local);
    // The gateway is somebody's host, too.
    gw.inbound(redirect(ROUTER, "203.0.113.2", &outside)).passed(PassReason::Local);
}

pub(super) fn an_error_in_a_hairpin_does_not_turn_outside(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    // The way back to this host is the default route.
    let sent = gw.outbound(udp("10.0.17.5:4000", "203.0.113.14:53"));
    sent.forwarded();
    let report = error(gw, "10.0.1.5", "203.0.113.14", &sent);
    gw.outbound(report).dropped(DropReason::NotInside);
}
