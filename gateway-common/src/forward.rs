//! Whether a translated packet may leave, and where.

use crate::{
    family::Family,
    packet::Packet,
    pipeline::{Passage, Rewrite},
    tuple::Direction,
    verdict::{DropReason, Exit, PassReason, Verdict},
};

/// Refuses a packet that has no hop left or is too large, before anything of it is changed.
///
/// # Errors
///
/// [`PassReason::TtlExpired`] lets the kernel answer a host of the VPC from the LAN address; it
/// forwards nothing whose TTL has run out. In all other cases a [`DropReason`].
#[inline(always)]
pub fn check<F: Family, P: Packet, T>(
    packet: &mut P,
    passage: &Passage<'_, F, T>,
) -> Result<(), Exit> {
    let (parsed, rewrite) = (&passage.work.parsed, &passage.work.rewrite);
    if parsed.ttl <= 1 {
        let turns_round = rewrite.endpoints.destination != parsed.tuple.endpoints.destination;
        return Err(match passage.arrival.direction {
            // The kernel would take a packet to an EIP for its own and answer in its place.
            Direction::Outbound if !turns_round => PassReason::TtlExpired.into(),
            Direction::Outbound | Direction::Inbound => DropReason::TtlExpired.into(),
        });
    }
    let egress = rewrite.next_hop.ifindex;
    if packet.exceeds(egress, passage.config.mtu(egress)) {
        return Err(DropReason::TooBig.into());
    }
    Ok(())
}

/// The verdict on a translated packet.
#[inline(always)]
pub fn forward<F: Family>(rewrite: &Rewrite<F>) -> Verdict<F> {
    Verdict::Forward(rewrite.next_hop)
}
