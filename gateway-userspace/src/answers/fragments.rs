//! The fragments of an IPv4 packet (RFC 791 section 3.2). Pure.

use crate::announce::checksum;

const HEADER: usize = 20;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Option: one byte, nothing follows.
const END: u8 = 0;
/// Option: one byte.
const NO_OPERATION: u8 = 1;
/// Bit of an option's type: it goes into every fragment.
const COPIED: u8 = 0x80;

/// The fragments of `packet`, which begins with its IP header, each no longer than `mtu` bytes; in order.
///
/// A checksum that the sender left to hardware is finished first. `None` if it is no IPv4 packet, says not
/// to fragment it, or has a header that leaves no room.
#[must_use]
pub fn fragments(packet: &[u8], mtu: usize, identification: u16) -> Option<Vec<Vec<u8>>> {
    let mut packet = packet.to_vec();
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let total = usize::from(word(&packet, 2)?);
    if packet[0] >> 4 != 4 || header < HEADER || total < header || packet.len() < total {
        return None;
    }
    // Ethernet pads.
    packet.truncate(total);
    let place = word(&packet, 6)?;
    if place & DONT_FRAGMENT != 0 {
        return None;
    }
    if place & (MORE_FRAGMENTS | OFFSET) == 0 {
        finish_checksum(&mut packet, header);
    }
    // All fragments have to have one, and of none the kernel chooses one for each.
    if word(&packet, 4)? == 0 {
        packet[4..6].copy_from_slice(&identification.to_be_bytes());
    }
    let (first, payload) = packet.split_at(header);
    let others = of_others(first);
    let mut fragments = Vec::new();
    let mut start = 0;
    while start < payload.len() {
        let header = if start == 0 { first } else { &others };
        let room = mtu.checked_sub(header.len())? & !7;
        let last = payload.len() - start <= mtu - header.len();
        let end = if last { payload.len() } else { start + room };
        if end == start {
            return None;
        }
        let more = if last { place & MORE_FRAGMENTS } else { MORE_FRAGMENTS };
        let offset = (place & OFFSET).checked_add(u16::try_from(start / 8).ok()?)?;
        fragments.push(one(header, more | offset & OFFSET, &payload[start..end])?);
        start = end;
    }
    Some(fragments)
}

fn word(packet: &[u8], at: usize) -> Option<u16> {
    packet.get(at..)?.first_chunk().map(|bytes| u16::from_be_bytes(*bytes))
}

fn one(header: &[u8], place: u16, payload: &[u8]) -> Option<Vec<u8>> {
    let mut fragment = header.to_vec();
    let total = u16::try_from(header.len() + payload.len()).ok()?;
    fragment[0] = 0x40 | u8::try_from(header.len() / 4).ok()?;
    fragment[2..4].copy_from_slice(&total.to_be_bytes());
    fragment[6..8].copy_from_slice(&place.to_be_bytes());
    fragment[10..12].fill(0);
    let sum = checksum(&fragment);
    fragment[10..12].copy_from_slice(&sum.to_be_bytes());
    fragment.extend(payload);
    Some(fragment)
}

/// The header of fragments after the first: with the options that are copied, padded to words.
fn of_others(header: &[u8]) -> Vec<u8> {
    let mut others = header[..HEADER].to_vec();
    let mut options = &header[HEADER..];
    while let [kind, rest @ ..] = options {
        let length = match *kind {
            END => break,
            NO_OPERATION => 1,
            _ => rest.first().map_or(0, |length| usize::from(*length)),
        };
        if length == 0 || length > options.len() || (*kind != NO_OPERATION && length < 2) {
            break;
        }
        if kind & COPIED != 0 {
            others.extend(&options[..length]);
        }
        options = &options[length..];
    }
    others.resize(others.len().next_multiple_of(4), END);
    others
}

/// Completes a checksum of TCP or UDP that is still the sum of the pseudo header, as it is while a packet
/// waits for hardware that would do it. A finished one that looks the same is the same afterwards.
fn finish_checksum(packet: &mut [u8], header: usize) {
    let protocol = packet[9];
    let at = header
        + match protocol {
            TCP => 16,
            UDP => 6,
            _ => return,
        };
    let Some(found) = word(packet, at) else { return };
    let length = u16::try_from(packet.len() - header).unwrap_or(u16::MAX);
    let mut pseudo = packet[12..20].to_vec();
    pseudo.extend([0, protocol]);
    pseudo.extend(length.to_be_bytes());
    if found != !checksum(&pseudo) {
        return;
    }
    packet[at..at + 2].fill(0);
    pseudo.extend(&packet[header..]);
    let sum = match checksum(&pseudo) {
        0 if protocol == UDP => u16::MAX,
        sum => sum,
    };
    packet[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A UDP packet with `options` and so many bytes of content, whose checksum is still to be finished.
    fn packet(options: &[u8], content: usize) -> Vec<u8> {
        let header = HEADER + options.len();
        let segment = 8 + content;
        let mut packet = vec![0; HEADER];
        packet[0] = 0x40 | u8::try_from(header / 4).unwrap();
        packet[2..4].copy_from_slice(&u16::try_from(header + segment).unwrap().to_be_bytes());
        packet[4..6].copy_from_slice(&[0x12, 0x34]);
        (packet[8], packet[9]) = (63, UDP);
        packet[12..20].copy_from_slice(&[203, 0, 113, 10, 198, 51, 100, 7]);
        packet.extend(options);
        let length = u16::try_from(segment).unwrap().to_be_bytes();
        let mut pseudo = packet[12..20].to_vec();
        pseudo.extend([0, UDP]);
        pseudo.extend(length);
        packet.extend([0x9c, 0x40, 0, 53]);
        packet.extend(length);
        packet.extend((!checksum(&pseudo)).to_be_bytes());
        packet.extend((0..content).map(|index| (index * 7 + index / 256) as u8));
        packet
    }

    /// What a receiver makes of fragments: the segment, whose checksum must be right.
    fn reassembled(fragments: &[Vec<u8>], mtu: usize) -> Vec<u8> {
        let mut segment = Vec::new();
        for (index, fragment) in fragments.iter().enumerate() {
            let header = usize::from(fragment[0] & 0x0f) * 4;
            assert!(fragment.len() <= mtu, "{} bytes", fragment.len());
            assert_eq!(usize::from(word(fragment, 2).unwrap()), fragment.len());
            assert_eq!(checksum(&fragment[..header]), 0, "header checksum");
            assert_eq!(fragment[4..6], fragments[0][4..6]);
            let place = word(fragment, 6).unwrap();
            assert_eq!(usize::from(place & OFFSET) * 8, segment.len());
            assert_eq!(place & MORE_FRAGMENTS != 0, index + 1 < fragments.len());
            segment.extend(&fragment[header..]);
        }
        let mut covered = fragments[0][12..20].to_vec();
        covered.extend([0, UDP]);
        covered.extend(u16::try_from(segment.len()).unwrap().to_be_bytes());
        covered.extend(&segment);
        assert_eq!(checksum(&covered), 0, "checksum of the datagram");
        segment
    }

    #[test]
    fn a_datagram_is_cut_and_its_checksum_finished() {
        for (content, mtu, count) in [(1400, 1280, 2), (4000, 576, 8), (1472, 1499, 2), (1, 28, 2)]
        {
            let whole = packet(&[], content);
            let fragments = fragments(&whole, mtu, 1).unwrap();
            assert_eq!(fragments.len(), count, "{content} over {mtu}");
            let segment = reassembled(&fragments, mtu);
            assert_eq!(segment[8..], whole[28..]);
        }
    }

    #[test]
    fn a_finished_checksum_stays() {
        let mut whole = packet(&[], 1000);
        finish_checksum(&mut whole, HEADER);
        let finished = whole.clone();
        let mut fragments = fragments(&whole, 600, 1).unwrap();
        assert_eq!(reassembled(&fragments, 600), finished[HEADER..]);
        // A wrong one stays wrong.
        whole[26] ^= 0x40;
        fragments = super::fragments(&whole, 600, 1).unwrap();
        assert_eq!(fragments[0][26..28], whole[26..28]);
    }

    #[test]
    fn a_fragment_is_cut_again_in_its_place() {
        let mut middle = packet(&[], 1000);
        middle[6..8].copy_from_slice(&(MORE_FRAGMENTS | 100).to_be_bytes());
        let fragments = fragments(&middle, 420, 1).unwrap();
        let places: Vec<_> = fragments.iter().map(|one| word(one, 6).unwrap()).collect();
        assert_eq!(places, [100, 150, 200].map(|offset| MORE_FRAGMENTS | offset));
        assert_eq!(fragments.iter().map(|one| one.len() - HEADER).sum::<usize>(), 1008);
        assert_eq!(fragments[0][20..28], middle[20..28], "what may be no checksum stays");
    }

    #[test]
    fn only_options_for_all_go_into_all() {
        // Timestamp (once), no-operation, router alert (copied).
        let options = [68, 4, 5, 0, 1, 148, 4, 0, 0, 0, 0, 0];
        let fragments = fragments(&packet(&options, 200), 120, 1).unwrap();
        assert_eq!(fragments[0][..1], [0x48]);
        assert_eq!(fragments[0][20..32], options);
        for other in &fragments[1..] {
            assert_eq!(other[..1], [0x46]);
            assert_eq!(other[20..24], [148, 4, 0, 0]);
        }
        reassembled(&fragments, 120);
    }

    #[test]
    fn without_an_identification_all_get_one() {
        let mut whole = packet(&[], 200);
        whole[4..6].fill(0);
        let fragments = fragments(&whole, 120, 0xbeef).unwrap();
        assert!(fragments.iter().all(|one| one[4..6] == [0xbe, 0xef]));
    }

    #[test]
    fn what_cannot_be_cut_is_not() {
        let whole = packet(&[], 200);
        assert_eq!(fragments(&whole[..100], 120, 1), None, "less than its header says");
        assert_eq!(fragments(&whole, 20, 1), None, "no room");
        assert_eq!(fragments(&whole, 27, 1), None, "no room for eight bytes");
        assert_eq!(fragments(&[], 120, 1), None);
        let mut whole = whole;
        whole[6] = 0x40;
        assert_eq!(fragments(&whole, 120, 1), None, "not to be fragmented");
        whole[0] = 0x60;
        assert_eq!(fragments(&whole, 120, 1), None, "IPv6");
        whole[0] = 0x44;
        assert_eq!(fragments(&whole, 120, 1), None, "a short header");
    }
}
