use super::*;
use crate::build_packet::{SYN, other, ping, tcp, udp};

#[test]
fn a_header_from_the_literature_sums_up_to_zero() {
    let header = [
        0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb8, 0x61, 0xc0, 0xa8, 0x00,
        0x01, 0xc0, 0xa8, 0x00, 0xc7,
    ];
    assert_eq!(checksum(&[&header]), 0);
    assert_eq!(checksum(&[&header[..10], &[0, 0], &header[12..]]), 0xb861);
}

#[test]
fn the_checksum_of_a_datagram_is_that_of_its_words() {
    // Addresses, protocol, length, then the datagram itself: ports, length, "hi".
    let draft = udp("192.0.2.1:1000", "192.0.2.2:2000").with_payload(b"hi");
    let sum = 0xc000 + 0x0201 + 0xc000 + 0x0202 + 17 + 10 + 1000 + 2000 + 10 + 0x6869_u32;
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    assert_eq!(draft.segment()[6..8], sum.to_be_bytes());
}

#[test]
fn what_is_built_is_read_back_without_fault() {
    for draft in [
        tcp("10.0.0.1:1", "10.0.0.2:2", SYN),
        udp("10.0.0.1:1", "10.0.0.2:2"),
        ping("10.0.0.1", "10.0.0.2", 7),
        other(99, "10.0.0.1", "10.0.0.2"),
    ] {
        for draft in [draft.clone(), draft.over_ipv6()] {
            let decoded = decode(&draft.frame([2; 6])).unwrap();
            assert_eq!(decoded.faults, Vec::<String>::new());
            assert_eq!((decoded.source, decoded.ttl), (draft.source, draft.ttl));
            assert_eq!(decoded.segment, draft.segment());
        }
    }
}

#[test]
fn every_flipped_bit_of_a_datagram_is_a_fault() {
    let frame = udp("10.0.0.1:1", "10.0.0.2:2").frame([2; 6]);
    for bit in 14 * 8..frame.len() * 8 {
        let mut frame = frame.clone();
        frame[bit / 8] ^= 1 << (bit % 8);
        let faulty = decode(&frame).map_or(true, |decoded| !decoded.faults.is_empty());
        assert!(faulty, "bit {bit}");
    }
}
