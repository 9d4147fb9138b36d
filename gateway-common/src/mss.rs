//! Clamping of the maximum segment size that the ends of a TCP connection announce (RFC 9293 section
//! 3.7.1), for paths on which no ICMP tells them that their packets are too large.

use crate::{
    checksum::{ChecksumDelta, Difference},
    family::Family,
    packet::Packet,
    parse::{Fragment, Parsed},
    records::Config,
    wire::transport::{self, SYN, TcpStart},
};

/// Where the options begin, in bytes from the start of the TCP header.
const OPTIONS: usize = transport::TCP_BYTES as usize;
/// How many options are looked at. Senders put this one first, or nearly so; each turn costs the verifier
/// thousands of steps.
const TURNS: usize = 10;
/// Kinds of options.
const END: u8 = 0;
const NO_OPERATION: u8 = 1;
const MSS: u8 = 2;
/// Length of the option in bytes.
const MSS_BYTES: u8 = 4;

/// Whether the packet may announce a segment size that is to be clamped.
#[inline(always)]
#[must_use]
pub fn applies<F: Family>(parsed: &Parsed<F>, config: &Config) -> bool {
    parsed.tcp_flags & SYN != 0
        && config.clamp_mtu != 0
        && parsed.tuple.protocol == transport::TCP
        && matches!(parsed.fragment, Fragment::Whole | Fragment::First)
}

/// Announces a smaller segment size in a packet to which that [`applies`]; `false` if it announces none, or
/// none that is too large. Nothing is ever added to a packet (RFC 9293: 536 and 1220 bytes are what an end
/// without the option takes).
#[inline(always)]
pub fn clamp<F: Family, P: Packet>(packet: &mut P, parsed: &Parsed<F>, config: &Config) -> bool {
    let start = usize::from(parsed.l4);
    let Ok(header) = packet.at::<TcpStart>(start) else {
        return false;
    };
    let end = usize::from(header.data_offset >> 4) * 4;
    let mut at = OPTIONS;
    for _ in 0..TURNS {
        if at + usize::from(MSS_BYTES) > end {
            return false;
        }
        let Ok(&mut [kind, length]) = packet.at::<[u8; 2]>(start + at) else {
            return false;
        };
        match kind {
            END => return false,
            NO_OPERATION => at += 1,
            MSS if length == MSS_BYTES => {
                return write(packet, parsed, start + at + 2, largest::<F>(config));
            }
            _ if length < 2 => return false,
            _ => at += usize::from(length),
        }
    }
    false
}

/// The largest segment that fits into the MTU, in bytes.
#[inline(always)]
fn largest<F: Family>(config: &Config) -> u16 {
    let headers = if F::BITS == 32 { 40 } else { 60 };
    let bytes = config.clamp_mtu.saturating_sub(headers);
    if bytes > u32::from(u16::MAX) { u16::MAX } else { bytes as u16 }
}

/// Writes the size at offset `at` of the frame, unless it is small enough.
#[inline(always)]
fn write<F: Family, P: Packet>(
    packet: &mut P,
    parsed: &Parsed<F>,
    at: usize,
    largest: u16,
) -> bool {
    let Ok(field) = packet.at::<[u8; 2]>(at) else {
        return false;
    };
    let (old, new) = (*field, largest.to_be_bytes());
    if u16::from_be_bytes(old) <= largest {
        return false;
    }
    *field = new;
    // A value that begins at an odd byte lies in two words of the sum (RFC 1071 section 2 B).
    let odd = (at - usize::from(parsed.l4)) % 2 == 1;
    let word = |bytes: [u8; 2]| {
        let word = u16::from_ne_bytes(bytes);
        if odd { word.swap_bytes() } else { word }
    };
    let delta = ChecksumDelta {
        addresses: Difference::NONE,
        ports: Difference::NONE.replace_u16(word(old), word(new)),
    };
    let Ok(change) = packet.patch_l4(parsed, delta) else { return false };
    packet.add_to_sum(change);
    true
}
