//! Whether a translated packet may leave, and where.

use crate::{
    family::Family,
    packet::Packet,
    pipeline::Work,
    records::Config,
    tuple::Direction,
    verdict::{DropReason, Exit, PassReason, Verdict},
};

/// Refuses a packet that has no hop left, is too large or cannot be sent from here, before anything
/// of it is changed or counted.
///
/// # Errors
///
/// [`PassReason::TtlExpired`] lets the kernel answer a host of the VPC from the LAN address; it
/// forwards nothing whose TTL has run out. What [`Packet::reach`] says. In all other cases a
/// [`DropReason`].
#[inline(always)]
pub fn check<F: Family, P: Packet>(
    packet: &mut P,
    work: &mut Work<F>,
    config: &Config,
) -> Result<(), Exit> {
    let (parsed, rewrite) = (&mut work.parsed, &work.rewrite);
    if parsed.ttl <= 1 {
        let turns_round = rewrite.endpoints.destination != parsed.tuple.endpoints.destination;
        return Err(match work.arrival.direction {
            // The kernel would take a packet to an EIP for its own and answer in its place.
            Direction::Outbound if !turns_round => PassReason::TtlExpired.into(),
            Direction::Outbound | Direction::Inbound => DropReason::TtlExpired.into(),
        });
    }
    let egress = rewrite.next_hop.ifindex;
    if packet.exceeds(egress, config.mtu(egress)) {
        // Fragments are the complete path's; of a GSO packet, its segments are what is too large.
        if P::ACCELERATES || packet.segments() > 1 || !F::may_be_fragmented(packet) {
            return Err(DropReason::TooBig.into());
        }
        parsed.oversize = true;
    }
    Ok(packet.reach(&rewrite.next_hop)?)
}

/// The verdict on a translated packet.
#[inline(always)]
pub fn forward<F: Family>(work: &Work<F>) -> Verdict<F> {
    if work.parsed.oversize {
        return Verdict::Pass(PassReason::Fragmented);
    }
    Verdict::Forward(work.rewrite.next_hop)
}
