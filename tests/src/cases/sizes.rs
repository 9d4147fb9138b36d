//! Packets that are too large for what comes next, and how TCP learns to send smaller ones.

use gateway_common::tuple::Direction;
use gateway_common::verdict::DropReason;

use super::Gateway;
use super::fragments::{content, pieces};
use crate::build_packet::{ACK, Draft, SYN, TCP, UDP, tcp, udp};
use crate::harness::routes::MTU;

const EIP: &str = "203.0.113.10";
const INSIDE: &str = "10.0.1.10:4000";
const REMOTE: &str = "198.51.100.7:53";

/// A datagram that makes an IP packet of `bytes` over IPv4.
fn large(bytes: u32, source: &str, destination: &str) -> Draft {
    udp(source, destination).with_payload(&content(bytes as usize - 28))
}

pub(super) fn a_packet_that_may_be_fragmented_is(gw: &mut Gateway<'_>) {
    let rule = gw.snat("10.0.1.0/24", &[EIP])[0];
    let there = gw.outbound(large(MTU + 1, INSIDE, REMOTE)).fragmented();
    there.is_from(EIP, REMOTE);
    // Counted as a packet like others, and its session is one like others.
    assert_eq!(gw.session(INSIDE, REMOTE).counted.0, 1);
    assert_eq!(gw.rule_counter(rule).packets, 1);
    let back = there.answer().with_payload(&content(2000));
    gw.inbound(back).fragmented().is(REMOTE, INSIDE);
    gw.outbound(large(MTU, INSIDE, REMOTE)).forwarded();
}

pub(super) fn so_is_one_of_a_floating_ip_and_one_that_turns_round(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    gw.dnat("203.0.113.11:53", UDP, "10.0.1.10:5353");
    gw.outbound(large(1600, "10.0.1.5:7", REMOTE)).fragmented().is("203.0.113.14:7", REMOTE);
    gw.inbound(large(1600, REMOTE, "203.0.113.14:7")).fragmented().is(REMOTE, "10.0.1.5:7");
    gw.inbound(large(1600, REMOTE, "203.0.113.11:53")).fragmented().is(REMOTE, "10.0.1.10:5353");
    let round = gw.outbound(large(1600, "10.0.1.20:4000", "203.0.113.11:53")).fragmented();
    round.is_from("203.0.113.11", "10.0.1.10:5353");
}

pub(super) fn so_is_a_fragment_and_they_keep_one_identification(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let fragments = udp(INSIDE, REMOTE).with_payload(&content(3300)).pieces(1600);
    assert_eq!(fragments.len(), 3);
    let first = gw.outbound(fragments[0].clone()).fragmented().decoded;
    let second = gw.outbound(fragments[1].clone()).fragmented().decoded;
    let third = gw.outbound(fragments[2].clone()).forwarded().decoded;
    assert_eq!([second.fragment.0, third.fragment.0], [first.fragment.0; 2]);
}

pub(super) fn one_that_must_not_be_fragmented_is_not(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let whole = Draft { dont_fragment: true, ..large(MTU + 1, INSIDE, REMOTE) };
    gw.outbound(whole.clone()).dropped(DropReason::TooBig);
    // Linux sends fragments like this.
    gw.outbound(whole.with_payload(&content(4000)).pieces(1600)[0].clone())
        .dropped(DropReason::TooBig);
    assert_eq!(gw.sessions(), []);
}

/// A SYN that announces segments of `mss` bytes, after these options.
fn syn(before: &[u8], mss: u16, source: &str, destination: &str) -> Draft {
    let option = [[2, 4], mss.to_be_bytes()].concat();
    let tcp_options = [before, &option].concat();
    Draft { tcp_options, ..tcp(source, destination, SYN) }
}

/// Clamps to what fits into 1400 bytes. Returns that.
fn clamp(gw: &mut Gateway<'_>) -> u16 {
    gw.configure(|config| config.clamp_mtu = 1400);
    if gw.is_ipv6() { 1340 } else { 1360 }
}

fn announced(options: &[u8]) -> u16 {
    u16::from_be_bytes([options[2], options[3]])
}

pub(super) fn a_large_segment_size_is_clamped_in_both_directions(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    gw.dnat("203.0.113.11:80", TCP, "10.0.1.10:8080");
    gw.fip("203.0.113.14", "10.0.1.5");
    let largest = clamp(gw);
    for mss in [largest + 1, 1460, u16::MAX] {
        let there = gw.outbound(syn(&[], mss, "10.0.1.10:4000", "198.51.100.7:80"));
        assert_eq!(announced(&there.clamped()), largest);
        let floating = gw.outbound(syn(&[], mss, "10.0.1.5:4000", "198.51.100.7:80"));
        assert_eq!(announced(&floating.clamped()), largest);
        let into = gw.inbound(syn(&[], mss, "198.51.100.7:5000", "203.0.113.11:80"));
        assert_eq!(announced(&into.clamped()), largest);
        let back = syn(&[], mss, "10.0.1.10:8080", "198.51.100.7:5000").with_tcp_flags(SYN | ACK);
        assert_eq!(announced(&gw.outbound(back).clamped()), largest);
    }
}

pub(super) fn a_small_segment_size_stays(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let largest = clamp(gw);
    for mss in [0, 536, largest] {
        gw.outbound(syn(&[], mss, "10.0.1.10:4000", "198.51.100.7:80")).forwarded();
    }
    gw.outbound(tcp("10.0.1.10:4000", "198.51.100.7:80", SYN)).forwarded();
}

pub(super) fn only_the_option_of_a_syn_is_clamped(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    clamp(gw);
    let segment = syn(&[], 1460, "10.0.1.10:4000", "198.51.100.7:80");
    gw.outbound(segment.with_tcp_flags(ACK)).forwarded();
    // What looks like options is content.
    let content = [2, 4, 5, 0xb4, 0, 0, 0, 0];
    let segment = tcp("10.0.1.10:4000", "198.51.100.7:80", SYN).with_payload(&content);
    gw.outbound(segment).forwarded();
    gw.outbound(udp("10.0.1.10:4000", "198.51.100.7:80").with_payload(&[2; 40])).forwarded();
}

pub(super) fn the_option_is_found_among_others(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    let largest = clamp(gw);
    // No-operations move it to odd places, over which the checksum has to be right too.
    let timestamps = [8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    for before in [&[1][..], &[1, 1, 1], &[3, 3, 7], &[4, 2], &timestamps, &[1; 9]] {
        let sent = gw.outbound(syn(before, 1460, "10.0.1.10:4000", "198.51.100.7:80"));
        let options = sent.clamped();
        assert_eq!(options[..before.len()], *before);
        assert_eq!(announced(&options[before.len()..]), largest, "after {before:?}");
    }
}

pub(super) fn broken_options_are_left_alone(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    clamp(gw);
    for options in [
        // Ended before; a length of nothing; of one; past the end; of another size.
        &[0, 0, 0, 0, 2, 4, 5, 0xb4][..],
        &[9, 0, 2, 4, 5, 0xb4, 1, 1],
        &[9, 1, 2, 4, 5, 0xb4, 1, 1],
        &[9, 60, 2, 4, 5, 0xb4, 1, 1],
        &[2, 3, 5, 0xb4],
        &[2, 5, 5, 0xb4, 5, 1, 1, 1],
        &[1, 1, 1, 2],
        &[1, 1, 2, 4],
    ] {
        let tcp_options = options.to_vec();
        let segment = tcp("10.0.1.10:4000", "198.51.100.7:80", SYN);
        gw.outbound(Draft { tcp_options, ..segment }).forwarded();
    }
    // Cut off by the end of the packet.
    let segment = syn(&[1; 8], 1460, "10.0.1.10:4000", "198.51.100.7:80").with_payload(&[]);
    let mut frame = gw.frame(Direction::Outbound, segment);
    frame.truncate(frame.len() - 2);
    gw.send(Direction::Outbound, frame);
}

pub(super) fn nothing_is_clamped_unless_asked_for(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &[EIP]);
    gw.outbound(syn(&[], u16::MAX, "10.0.1.10:4000", "198.51.100.7:80")).forwarded();
    let fragments = pieces(&udp(INSIDE, REMOTE));
    gw.outbound(fragments[0].clone()).forwarded();
}
