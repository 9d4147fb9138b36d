//! Frames, written and looked at by pointer.

use aya_ebpf::programs::XdpContext;

use crate::flow::{Endpoint, Flows};

const ETHERNET: usize = 14;
const TCP: u8 = 6;
const UDP: u8 = 17;
const IPV4_BYTES: u32 = 20;
const IPV6_BYTES: u32 = 40;

/// The first `N` bytes of a frame.
#[inline(always)]
fn head<'a, const N: usize>(data: usize, end: usize) -> Option<&'a mut [u8; N]> {
    if data + N > end {
        return None;
    }
    // SAFETY: the bounds were checked, and every byte is valid.
    Some(unsafe { &mut *(data as *mut [u8; N]) })
}

/// What a frame carries over IP.
#[inline(always)]
fn protocol(data: usize, end: usize) -> Option<u8> {
    let bytes = head::<{ ETHERNET + 20 }>(data, end)?;
    match (bytes[12], bytes[13]) {
        (0x08, 0x00) => Some(bytes[ETHERNET + 9]),
        (0x86, 0xdd) => Some(bytes[ETHERNET + 6]),
        _ => None,
    }
}

/// Whether a frame is UDP over IP.
#[inline(always)]
pub(crate) fn is_udp(data: usize, end: usize) -> bool {
    protocol(data, end) == Some(UDP)
}

/// Whether a frame is TCP or UDP over IP.
#[inline(always)]
pub(crate) fn has_ports(data: usize, end: usize) -> bool {
    matches!(protocol(data, end), Some(TCP | UDP))
}

/// Source, destination, ports and protocol of UDP over IPv4 without options, as they are in the packet.
#[inline(always)]
pub(crate) fn tuple(data: usize, end: usize) -> Option<[u32; 4]> {
    let bytes = head::<{ ETHERNET + 24 }>(data, end)?;
    let word =
        |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let is_v4 = bytes[12] == 0x08 && bytes[13] == 0x00 && bytes[ETHERNET + 9] == UDP;
    is_v4.then(|| [word(26), word(30), word(34), u32::from(UDP)])
}

/// Writes both addresses of the Ethernet header.
#[inline(always)]
pub(crate) fn write_macs(data: usize, end: usize, macs: &[u8; 12]) {
    if let Some(bytes) = head::<12>(data, end) {
        *bytes = *macs;
    }
}

/// Writes words of host byte order as they are on the wire.
#[inline(always)]
fn put(bytes: &mut [u8], at: usize, word: u32) {
    bytes[at..at + 4].copy_from_slice(&word.to_be_bytes());
}

/// The ones' complement sum of words, folded and inverted.
#[inline(always)]
fn checksum(words: &[u32]) -> u16 {
    let mut sum: u64 = 0;
    for word in words {
        sum += u64::from(*word);
    }
    sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The UDP header; its payload is zeros. `pseudo` is what the pseudo header adds.
#[inline(always)]
fn write_udp(
    bytes: &mut [u8],
    at: usize,
    ends: (Endpoint, Endpoint),
    length: u32,
    pseudo: [u32; 9],
) {
    let ports = u32::from(ends.0.port) << 16 | u32::from(ends.1.port);
    let [a, b, c, d, e, f, g, h, i] = pseudo;
    let sum = checksum(&[a, b, c, d, e, f, g, h, i, length + u32::from(UDP), ports, length]);
    let sum = if sum == 0 { 0xffff } else { sum };
    put(bytes, at, ports);
    put(bytes, at + 4, length << 16 | u32::from(sum));
}

/// Writes a whole IPv4 frame, checksums included.
#[inline(always)]
pub(crate) fn write_v4(ctx: &XdpContext, flows: &Flows, number: u32) -> Option<()> {
    let bytes = head::<{ ETHERNET + 28 }>(ctx.data(), ctx.data_end())?;
    let ends = flows.ends(number);
    let length = flows.frame_bytes.checked_sub(ETHERNET as u32)?;
    let (source, destination) = (ends.0.low, ends.1.low);
    bytes[..12].copy_from_slice(&flows.macs);
    let bytes = &mut bytes[12..];
    put(bytes, 0, 0x0800_4500);
    let (words, ttl) = ([0x4500_0000 | length, 0x4000], 0x4011);
    let sum = checksum(&[words[0], words[1], ttl, source, destination]);
    put(bytes, 4, length << 16);
    put(bytes, 8, 0x4000_0000 | ttl);
    put(bytes, 12, u32::from(sum) << 16 | source >> 16);
    put(bytes, 16, source << 16 | destination >> 16);
    bytes[20..22].copy_from_slice(&(destination as u16).to_be_bytes());
    let udp = length - IPV4_BYTES;
    write_udp(bytes, 22, ends, udp, [source, destination, 0, 0, 0, 0, 0, 0, 0]);
    Some(())
}

/// Writes a whole IPv6 frame, checksum included.
#[inline(always)]
pub(crate) fn write_v6(ctx: &XdpContext, flows: &Flows, number: u32) -> Option<()> {
    let bytes = head::<{ ETHERNET + 48 }>(ctx.data(), ctx.data_end())?;
    let ends = flows.ends(number);
    let udp = flows.frame_bytes.checked_sub(ETHERNET as u32 + IPV6_BYTES)?;
    let ([a, b, c, _], [e, f, g, _]) = (flows.source.address, flows.destination.address);
    let (d, h) = (ends.0.low, ends.1.low);
    bytes[..12].copy_from_slice(&flows.macs);
    let bytes = &mut bytes[12..];
    put(bytes, 0, 0x86dd_6000);
    put(bytes, 4, udp);
    // Next header, hop limit, then the addresses, all shifted by the two bytes of the EtherType.
    put(bytes, 8, 0x1140_0000 | a >> 16);
    let words = [a, b, c, d, e, f, g, h];
    for (index, word) in words.into_iter().enumerate() {
        put(bytes, 10 + 4 * index, word);
    }
    write_udp(bytes, 42, ends, udp, [a, b, c, d, e, f, g, h, 0]);
    Some(())
}
