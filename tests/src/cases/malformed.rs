//! Frames that are cut, wrong, or not for us.

use gateway_common::records::Unmatched;
use gateway_common::tuple::Direction;
use gateway_common::verdict::{DropReason, PassReason};

use super::Gateway;
use crate::build_packet::{ACK, Draft, SYN, icmp, other, ping, tcp, udp};
use crate::decode::decode;
use crate::harness::Outcome;

const INSIDE: &str = "10.0.1.10:4000";
const REMOTE: &str = "198.51.100.7:53";

/// Packets with the number of bytes of layer 4 that must be there.
fn packets() -> [(Draft, usize); 4] {
    [
        // The checksum is the last thing that is rewritten.
        (tcp(INSIDE, REMOTE, SYN), 18),
        (udp(INSIDE, REMOTE), 8),
        (ping("10.0.1.10", "198.51.100.7", 3), 6),
        (other(99, "10.0.1.10", "198.51.100.7"), 0),
    ]
}

/// Every length at which a frame is too short for its headers.
fn cuts(gw: &Gateway<'_>, needed: usize) -> std::ops::Range<usize> {
    let network = if gw.is_ipv6() { 40 } else { 20 };
    gw.shortest()..14 + network + needed
}

pub(super) fn a_frame_cut_inside_a_header_is_dropped(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for (packet, needed) in packets() {
        let frame = gw.frame(Direction::Outbound, packet);
        for length in cuts(gw, needed) {
            let sent = gw.send(Direction::Outbound, frame[..length].to_vec());
            sent.dropped(DropReason::Truncated);
        }
    }
}

pub(super) fn a_cut_frame_opens_no_session(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for (packet, needed) in packets() {
        let frame = gw.frame(Direction::Outbound, packet);
        for length in cuts(gw, needed) {
            gw.send(Direction::Outbound, frame[..length].to_vec());
            assert_eq!(gw.sessions(), [], "cut to {length} bytes");
        }
    }
}

pub(super) fn a_cut_frame_of_an_open_session_is_dropped(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for (packet, needed) in packets() {
        gw.outbound(packet.clone()).forwarded();
        let before = gw.sessions();
        let frame = gw.frame(Direction::Outbound, packet);
        for length in cuts(gw, needed) {
            let sent = gw.send(Direction::Outbound, frame[..length].to_vec());
            sent.dropped(DropReason::Truncated);
        }
        assert_eq!(gw.sessions(), before, "a packet that is dropped is not counted");
    }
}

pub(super) fn a_payload_cut_short_is_not_our_business(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for (packet, needed) in packets() {
        let frame = gw.frame(Direction::Outbound, packet);
        let length = cuts(gw, needed).end;
        let sent = gw.send(Direction::Outbound, frame[..length].to_vec());
        assert_eq!(sent.outcome(), Outcome::Forward);
    }
}

pub(super) fn a_wrong_version_is_dropped(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let whole = gw.frame(Direction::Outbound, udp(INSIDE, REMOTE));
    for version in (0..16).filter(|version| *version != whole[14] >> 4) {
        let mut frame = whole.clone();
        frame[14] = version << 4 | frame[14] & 15;
        gw.send(Direction::Outbound, frame).dropped(DropReason::BadHeader);
    }
}

pub(super) fn a_short_header_length_is_dropped(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for words in 0..5 {
        let mut frame = gw.frame(Direction::Outbound, udp(INSIDE, REMOTE));
        frame[14] = 0x40 | words;
        gw.send(Direction::Outbound, frame).dropped(DropReason::BadHeader);
    }
}

pub(super) fn a_header_longer_than_the_frame_is_dropped(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for words in 8..16 {
        let packet = udp(INSIDE, REMOTE).with_payload(&[]);
        let mut frame = gw.frame(Direction::Outbound, packet);
        frame[14] = 0x40 | words;
        frame[16..18].copy_from_slice(&60_u16.to_be_bytes());
        gw.send(Direction::Outbound, frame).dropped(DropReason::Truncated);
    }
}

// Found by the fuzzer: nothing of layer 4 is read of these, so nothing noticed.
pub(super) fn a_header_longer_than_the_frame_is_dropped_whatever_it_carries(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    let [_, tail] = udp("10.0.1.5:4000", REMOTE).with_payload(&[0; 16]).fragments(16);
    for packet in [other(99, "10.0.1.5", "198.51.100.7").with_payload(&[]), tail] {
        let extensions = vec![(60, vec![1, 4, 0, 0, 0, 0])];
        let packet = Draft { ipv4_options: vec![1; 8], extensions, ..packet };
        let mut frame = gw.frame(Direction::Outbound, packet);
        gw.send(Direction::Outbound, frame.clone()).forwarded();
        if gw.is_ipv6() {
            // The length of the first extension header in units of eight bytes beyond the first.
            frame[14 + 40 + 1] = 9;
        } else {
            frame[14] = 0x4f;
            frame[16..18].copy_from_slice(&60_u16.to_be_bytes());
        }
        gw.send(Direction::Outbound, frame).dropped(DropReason::Truncated);
    }
}

pub(super) fn a_total_length_short_of_the_header_is_dropped(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.fip("203.0.113.14", "10.0.1.5");
    for packet in [udp(INSIDE, REMOTE), other(99, "10.0.1.5", "198.51.100.7")] {
        for total in [0_u16, 1, 19] {
            let mut frame = gw.frame(Direction::Outbound, packet.clone());
            frame[16..18].copy_from_slice(&total.to_be_bytes());
            gw.send(Direction::Outbound, frame).dropped(DropReason::BadHeader);
        }
    }
    assert_eq!(gw.sessions(), []);
}

/// RFC 3927: neither a FIP, nor SNAT, nor `--unmatched forward` gets them past the link.
pub(super) fn an_ipv4_link_local_address_is_not_forwarded(gw: &mut Gateway<'_>) {
    gw.snat("0.0.0.0/0", &["203.0.113.10"]);
    gw.fip("203.0.113.14", "10.0.1.5");
    gw.configure(|config| config.unmatched = Unmatched::Forward as u8);
    for inside in ["10.0.1.10:4000", "10.0.1.5:4000"] {
        gw.outbound(udp(inside, "169.254.169.254:80")).dropped(DropReason::LinkLocal);
    }
    gw.outbound(udp("169.254.7.7:4000", REMOTE)).dropped(DropReason::LinkLocal);
    // Beside the range.
    gw.outbound(udp("10.0.1.10:4000", "169.253.0.1:80")).forwarded();
    gw.inbound(udp("169.254.7.7:4000", "10.0.1.10:53")).dropped(DropReason::LinkLocal);
    // The gateway's own addresses are the kernel's business, that of a floating IP among them.
    gw.inbound(udp("169.254.7.7:4000", "203.0.113.14:53")).passed(PassReason::Local);
    gw.inbound(udp("169.254.7.7:4000", "203.0.113.2:53")).passed(PassReason::Local);
}

pub(super) fn another_ether_type_is_left_to_the_kernel(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    // ARP, LLDP, 802.1X, MPLS, and a length as in IEEE 802.3.
    for ether_type in [0x0806_u16, 0x88cc, 0x888e, 0x8847, 0x0040] {
        for direction in [Direction::Outbound, Direction::Inbound] {
            let mut frame = gw.frame(direction, udp(INSIDE, REMOTE));
            frame[12..14].copy_from_slice(&ether_type.to_be_bytes());
            gw.send(direction, frame).passed(PassReason::NotIp);
        }
    }
}

pub(super) fn a_vlan_tag_is_left_to_the_kernel(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let tagged = Draft { vlan: Some(7), ..udp(INSIDE, REMOTE) };
    gw.outbound(tagged).passed(PassReason::NotIp);
}

pub(super) fn frames_to_others_are_left_to_the_kernel(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    gw.fip("203.0.113.14", "10.0.1.5");
    for mac in [[0xff; 6], [0x01, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1], [2, 9, 9, 9, 9, 9]] {
        let packet = Draft { mac: Some(mac), ..udp(INSIDE, REMOTE) };
        gw.outbound(packet).passed(PassReason::NotForThisHost);
        let packet = Draft { mac: Some(mac), ..ping("198.51.100.7", "203.0.113.14", 1) };
        gw.inbound(packet).passed(PassReason::NotForThisHost);
    }
    assert_eq!(gw.sessions(), []);
}

pub(super) fn groups_and_nobody_are_left_to_the_kernel(gw: &mut Gateway<'_>) {
    gw.snat("0.0.0.0/0", &["203.0.113.10"]);
    for nobody in ["224.0.0.1", "239.1.2.3", "255.255.255.255", "0.0.0.0", "127.0.0.1"] {
        let nobody = format!("{nobody}:4000");
        gw.outbound(udp(INSIDE, &nobody)).passed(PassReason::Special);
        gw.outbound(udp(&nobody, REMOTE)).passed(PassReason::Special);
        gw.inbound(udp(&nobody, "203.0.113.10:53")).passed(PassReason::Special);
    }
}

pub(super) fn a_broadcast_address_is_the_gateways_own(gw: &mut Gateway<'_>) {
    gw.snat("0.0.0.0/0", &["203.0.113.10"]);
    gw.outbound(udp(INSIDE, "10.0.1.255:68")).passed(PassReason::Local);
    gw.inbound(udp("203.0.113.1:67", "203.0.113.255:68")).passed(PassReason::Local);
}

pub(super) fn a_link_local_address_is_left_to_the_kernel(gw: &mut Gateway<'_>) {
    let packets =
        [("[fe80::1]:4000", "[2001:db8:64::1]:53"), ("[2001:db8:64::1]:4000", "[fe80::1]:53")];
    for (source, destination) in packets {
        gw.outbound(udp(source, destination)).passed(PassReason::LinkLocal);
    }
}

pub(super) fn a_wrong_header_checksum_stays_wrong(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let mut frame = gw.frame(Direction::Outbound, udp(INSIDE, REMOTE));
    frame[24] ^= 0x10;
    let sent = gw.send(Direction::Outbound, frame);
    assert_eq!(sent.outcome(), Outcome::Forward);
    assert_eq!(decode(sent.bytes()).expect("a packet").faults, ["IP header checksum"]);
}

pub(super) fn a_wrong_checksum_stays_wrong(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    for (packet, _) in packets().into_iter().take(3) {
        let mut frame = gw.frame(Direction::Outbound, packet);
        *frame.last_mut().expect("a payload") ^= 0x10;
        let sent = gw.send(Direction::Outbound, frame);
        assert_eq!(sent.outcome(), Outcome::Forward);
        assert_eq!(decode(sent.bytes()).expect("a packet").faults.len(), 1);
    }
}

pub(super) fn extension_headers_are_stepped_over(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let chains = [
        vec![(0, vec![1, 4, 0, 0, 0, 0])],
        vec![(60, vec![1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])],
        vec![(0, vec![1, 4, 0, 0, 0, 0]), (43, vec![0; 6]), (60, vec![1, 4, 0, 0, 0, 0])],
        vec![(51, vec![0; 14])],
    ];
    for (port, extensions) in (4000..).zip(chains) {
        let inside = format!("10.0.1.10:{port}");
        let packet = Draft { extensions: extensions.clone(), ..tcp(&inside, REMOTE, ACK) };
        let there = gw.outbound(packet).forwarded();
        there.is_from("203.0.113.10", REMOTE);
        let back = Draft { extensions, ..there.answer() };
        gw.inbound(back).forwarded().is(REMOTE, &inside);
    }
}

pub(super) fn too_many_extension_headers_are_dropped(gw: &mut Gateway<'_>) {
    gw.snat("10.0.1.0/24", &["203.0.113.10"]);
    let chain = |length| Draft {
        extensions: vec![(60, vec![1, 4, 0, 0, 0, 0]); length],
        ..udp(INSIDE, REMOTE)
    };
    gw.outbound(chain(5)).forwarded();
    gw.outbound(chain(7)).dropped(DropReason::TooManyExtensions);
}

pub(super) fn neighbour_discovery_is_left_to_the_kernel(gw: &mut Gateway<'_>) {
    gw.fip("203.0.113.14", "10.0.1.5");
    for kind in 133..=137 {
        let message = icmp("198.51.100.7", "203.0.113.14", kind, 0, [0; 4]);
        gw.inbound(message).passed(PassReason::LinkLocal);
    }
}
