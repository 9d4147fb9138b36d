//! The new bytes.

use crate::{
    checksum::{ChecksumDelta, Difference, L4Checksum},
    family::{Address, Family},
    packet::Packet,
    parse::{Parsed, PortFields},
    tuple::Endpoints,
    verdict::Exit,
    wire::transport::{IcmpStart, Ports},
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
    let old = &parsed.tuple.endpoints;
    F::rewrite(packet, &new.source, &new.destination)?;
    let l4 = usize::from(parsed.l4);
    match parsed.ports {
        PortFields::Both => {
            let ports = packet.at::<Ports>(l4)?;
            ports.source.set(new.source_port);
            ports.destination.set(new.destination_port);
        }
        PortFields::SourceId => packet.at::<IcmpStart>(l4)?.id.set(new.source_port),
        PortFields::DestinationId => {
            packet.at::<IcmpStart>(l4)?.id.set(new.destination_port);
        }
        PortFields::None => {}
    }
    if parsed.checksum != L4Checksum::None {
        let delta = ChecksumDelta {
            addresses: old
                .source
                .difference(&new.source)
                .and(old.destination.difference(&new.destination)),
            ports: port_difference(old.source_port, new.source_port)
                .and(port_difference(old.destination_port, new.destination_port)),
        };
        packet.patch_l4(l4 + usize::from(parsed.checksum_at), parsed.checksum, delta)?;
    }
    Ok(())
}

/// The difference of a port or id, in memory order.
#[inline(always)]
fn port_difference(old: u16, new: u16) -> Difference {
    Difference::NONE.replace_u16(old.to_be(), new.to_be())
}
