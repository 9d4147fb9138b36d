//! What must hold of every packet that leaves, whatever the rules are.

use std::net::IpAddr;

use super::routes::{EIPS, Links};
use crate::build_packet::{end, unembed};
use crate::decode::{decode, decode_whole};

/// Whether an address is one of the VPC, in either family.
#[must_use]
pub fn is_inside(address: IpAddr) -> bool {
    matches!(unembed(address), IpAddr::V4(v4) if v4.octets()[0] == 10)
}

/// Says what is wrong with a packet that leaves by an interface, if only translated ones may.
#[must_use]
pub fn leak(frame: &[u8], egress: u32, links: &Links) -> Option<&'static str> {
    let packet = decode_whole(frame).ok()?;
    if egress == links.internal {
        return (!is_inside(packet.destination)).then_some("an outside destination leaves inside");
    }
    if !EIPS.iter().any(|eip| unembed(packet.source) == end(eip).ip()) {
        return Some("a source that is no EIP leaves outside");
    }
    let errors: &[u8] = if packet.source.is_ipv4() { &[3, 4, 11, 12] } else { &[1, 2, 3, 4] };
    let (kind, ..) = packet.icmp.filter(|(kind, ..)| errors.contains(kind))?;
    let quote = decode_whole(&[&frame[..14], packet.payload()].concat()).ok()?;
    // The address that the error is sent to is no secret.
    let named = [quote.source, quote.destination]
        .iter()
        .any(|address| is_inside(*address) && *address != packet.destination);
    (kind != 0 && named).then_some("the quote of an error names an inside address outside")
}

/// Whether all lengths and checksums of a frame are right, in the eyes of the test's own decoder.
#[must_use]
pub fn is_sound(frame: &[u8]) -> bool {
    decode(frame).is_ok_and(|packet| packet.faults.is_empty())
}
