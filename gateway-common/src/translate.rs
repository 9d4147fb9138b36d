//! The new bytes.

use crate::{
    checksum::{ChecksumDelta, Difference, L4Checksum},
    family::{Address, Family},
    packet::{Packet, Truncated},
    parse::{Parsed, PortFields},
    tuple::Endpoints,
    verdict::Exit,
    wire::{
        ethernet,
        transport::{IcmpStart, Ports},
    },
};

/// Rewrites addresses, ports or query id, TTL and all checksums of a packet.
///
/// Addresses, ports and the header checksum are written first; the layer-4 checksum comes last,
/// because bringing it up to date may move the packet.
///
/// # Errors
///
/// [`Exit::Drop`] if a field lies outside the frame.
#[inline(always)]
pub fn translate<F: Family, P: Packet>(
    packet: &mut P,
    parsed: &Parsed<F>,
    new: &Endpoints<F>,
) -> Result<(), Exit> {
    let (source, destination) = (&new.source, &new.destination);
    let addresses = addresses_difference(parsed, source, destination);
    let header = F::rewrite(packet, ethernet::BYTES, 1, source, destination, addresses)?;
    let ports = write_ports(packet, parsed, (new.source_port, new.destination_port))?;
    let mut change = header;
    if parsed.checksum != L4Checksum::None {
        change = change.and(packet.patch_l4(parsed, ChecksumDelta { addresses, ports })?);
    }
    packet.add_to_sum(change);
    Ok(())
}

/// Writes ports or query id into the layer-4 header. Returns by how much that changes its sum.
///
/// A query has one id: what the rewrite says of the other end is not written, and not counted.
#[inline(always)]
fn write_ports<F: Family, P: Packet>(
    packet: &mut P,
    parsed: &Parsed<F>,
    (source, destination): (u16, u16),
) -> Result<Difference, Truncated> {
    let l4 = usize::from(parsed.l4);
    let old = &parsed.tuple.endpoints;
    match parsed.ports {
        PortFields::Both => {
            let ports = packet.at::<Ports>(l4)?;
            ports.source.set(source);
            ports.destination.set(destination);
            Ok(replaced(old.source_port, source).and(replaced(old.destination_port, destination)))
        }
        PortFields::SourceId => {
            packet.at::<IcmpStart>(l4)?.id.set(source);
            Ok(replaced(old.source_port, source))
        }
        PortFields::DestinationId => {
            packet.at::<IcmpStart>(l4)?.id.set(destination);
            Ok(replaced(old.destination_port, destination))
        }
        PortFields::Quoted | PortFields::Redirect | PortFields::None => Ok(Difference::NONE),
    }
}

/// The difference of a port or id, in memory order.
#[inline(always)]
fn replaced(old: u16, new: u16) -> Difference {
    Difference::NONE.replace_u16(old.to_be(), new.to_be())
}

/// Rewrites the packet at offset `at` that an ICMP error quotes, from what `quote` says.
///
/// Returns by how much that changes the sum of the quoted bytes, which the checksum of the error
/// covers. A quote may end before its checksum (RFC 792: eight bytes of TCP): then there is none
/// to keep right.
///
/// # Errors
///
/// [`Truncated`] if addresses or ports lie outside the frame.
#[inline(always)]
pub fn translate_quote<F: Family, P: Packet>(
    packet: &mut P,
    at: usize,
    quote: &Parsed<F>,
    source: &F::Addr,
    destination: &F::Addr,
    ports: (u16, u16),
) -> Result<Difference, Truncated> {
    let addresses = addresses_difference(quote, source, destination);
    let header = F::rewrite(packet, at, 0, source, destination, addresses)?;
    let ports = write_ports(packet, quote, ports)?;
    let delta = ChecksumDelta { addresses, ports };
    let changed = header.and(delta.ports);
    if quote.checksum == L4Checksum::None {
        return Ok(changed);
    }
    let Ok(field) = packet.at::<[u8; 2]>(quote.checksum_offset()) else {
        return Ok(changed);
    };
    let old = *field;
    *field = quote.checksum.patched(old, delta);
    Ok(changed.replace_u16(u16::from_ne_bytes(old), u16::from_ne_bytes(*field)))
}

/// What the checksum field of a packet holds whose sender leaves the sum to whoever sends it on
/// (`CHECKSUM_PARTIAL`): the sum of the pseudo header. As it lies in memory.
///
/// # Errors
///
/// [`Truncated`] if there is no network header.
#[inline(always)]
pub fn unfinished_checksum<F: Family, P: Packet>(
    packet: &mut P,
    parsed: &Parsed<F>,
) -> Result<[u8; 2], Truncated> {
    let length = F::l4_bytes(packet, parsed)?;
    let (nobody, ends) = (F::Addr::default(), &parsed.tuple.endpoints);
    let addresses = nobody.difference(&ends.source).and(nobody.difference(&ends.destination));
    let rest = replaced(0, length).and(replaced(0, u16::from(parsed.tuple.protocol)));
    Ok(addresses.and(rest).to_sum())
}

/// The difference of both addresses.
#[inline(always)]
pub(crate) fn addresses_difference<F: Family>(
    parsed: &Parsed<F>,
    source: &F::Addr,
    destination: &F::Addr,
) -> Difference {
    let old = &parsed.tuple.endpoints;
    old.source.difference(source).and(old.destination.difference(destination))
}
