//! The selector: which gateway of several a tenant's flow takes.
//!
//! It runs where tenant traffic enters, in front of gateways that are equal but for their address,
//! and keeps nothing of a flow: the same packet fields give the same slot, and a slot keeps its
//! member until the group itself changes. So the cost is that of five look-ups, however many rules
//! there are, and a selector that is restarted sends every flow where it went before.
//!
//! ```text
//! network of the source, network of the destination ─► choice ─none─► kernel
//!                                                        │    ─denied─► drop
//!                     hash ─► slot ─► member  ◄──group───┘
//!                                └─none alive─► drop
//! ```

use crate::{
    family::{Address, Family, mix},
    icmp_error,
    nexthop::{ChoiceKey, DENIED, Group, HashFields, Member, SLOTS},
    packet::Packet,
    parse::{self, Fragment, Parsed},
    pipeline::{Arrival, Work},
    tuple::Tuple,
    verdict::{DropReason, Exit, PassReason, Verdict},
    wire::ethernet,
};

/// What the selector asks of its surroundings.
pub trait Groups<F: Family> {
    /// The id of the longest network that sources are told apart by; 0 for none.
    fn source(&mut self, address: &F::Addr) -> u32;

    /// The id of the longest network that destinations are told apart by; 0 for none.
    fn destination(&mut self, address: &F::Addr) -> u32;

    /// The id of the group for packets between two networks, or [`DENIED`].
    fn choice(&mut self, key: &ChoiceKey) -> Option<u32>;

    /// The group of that id.
    fn group(&mut self, id: u32) -> Option<&Group>;

    /// The member of that id.
    fn member(&mut self, id: u32) -> Option<&Member<F>>;

    /// Adds a packet of `bytes` to the counter of a member.
    fn count_member(&mut self, id: u32, bytes: u32);
}

/// Takes one packet of a tenant to a gateway.
#[inline(always)]
pub fn process<F: Family, P: Packet, G: Groups<F>>(
    work: &mut Work<F>,
    packet: &mut P,
    groups: &mut G,
    arrival: &Arrival,
) -> Verdict<F> {
    match run(work, packet, groups, arrival) {
        Ok(()) => Verdict::Forward(work.rewrite.next_hop),
        Err(exit) => exit.into(),
    }
}

#[inline(always)]
fn run<F: Family, P: Packet, G: Groups<F>>(
    work: &mut Work<F>,
    packet: &mut P,
    groups: &mut G,
    arrival: &Arrival,
) -> Result<(), Exit> {
    work.parsed.clear(arrival.direction);
    parse::parse(packet, &mut work.parsed)?;
    let ends = &work.parsed.tuple.endpoints;
    let key = ChoiceKey {
        source: groups.source(&ends.source),
        destination: groups.destination(&ends.destination),
    };
    let Some(choice) = groups.choice(&key) else {
        return Err(PassReason::Unmatched.into());
    };
    if choice == DENIED {
        return Err(DropReason::Denied.into());
    }
    if icmp_error::is_error(&work.parsed) {
        icmp_error::parse_quote(packet, work)?;
    }
    let Some(group) = groups.group(choice) else {
        return Err(DropReason::NoNextHop.into());
    };
    let hash = flow_hash(work, HashFields::from_u8(group.hash), group.seed);
    let id = u32::from(group.slots.get(slot(hash)).copied().unwrap_or(0));
    if id == 0 {
        return Err(DropReason::NoNextHop.into());
    }
    let Some(member) = groups.member(id) else {
        return Err(DropReason::NoNextHop.into());
    };
    if work.parsed.ttl <= 1 {
        return Err(PassReason::TtlExpired.into());
    }
    work.rewrite.next_hop.address.set(&member.address);
    work.rewrite.next_hop.ifindex = member.ifindex;
    if packet.exceeds(member.ifindex, member.mtu) {
        return Err(DropReason::TooBig.into());
    }
    hop(packet, &work.parsed)?;
    groups.count_member(id, arrival.frame_bytes);
    Ok(())
}

/// The slot of a hash: all slots alike.
#[inline(always)]
#[must_use]
pub const fn slot(hash: u32) -> usize {
    ((hash as u64 * SLOTS as u64) >> 32) as usize
}

/// The hash of the flow that a packet belongs to. An ICMP error belongs to the flow it is about.
#[inline(always)]
fn flow_hash<F: Family>(work: &mut Work<F>, fields: HashFields, seed: u32) -> u32 {
    if icmp_error::is_error(&work.parsed) {
        return quoted_hash(work, fields, seed);
    }
    let parsed = &work.parsed;
    hash(&parsed.tuple, parsed.fragment == Fragment::Whole, fields, seed)
}

/// The hash of the flow that an ICMP error is about, which [`Work::quote`] holds.
#[inline(always)]
pub(crate) fn quoted_hash<F: Family>(work: &mut Work<F>, fields: HashFields, seed: u32) -> u32 {
    let quote = &work.quote;
    work.reply_key.endpoints.set_reversed(&quote.tuple.endpoints);
    work.reply_key.protocol = quote.tuple.protocol;
    hash(&work.reply_key, quote.fragment == Fragment::Whole, fields, seed)
}

/// A number in which every bit depends on all the fields.
///
/// Fragments know no ports, so all packets of a fragmented datagram, the first too, go by their
/// addresses.
#[inline(always)]
#[must_use]
pub fn hash<F: Family>(tuple: &Tuple<F>, ports: bool, fields: HashFields, seed: u32) -> u32 {
    let ends = &tuple.endpoints;
    let mut hash = mix(ends.source.spread() ^ seed);
    if fields == HashFields::Source {
        return hash;
    }
    hash = mix(hash ^ ends.destination.spread());
    if ports {
        let both = u32::from(ends.source_port) << 16 | u32::from(ends.destination_port);
        hash = mix(hash ^ both);
        hash = mix(hash ^ u32::from(tuple.protocol));
    }
    hash
}

/// One hop less to live; nothing else of the packet changes.
#[inline(always)]
fn hop<F: Family, P: Packet>(packet: &mut P, parsed: &Parsed<F>) -> Result<(), Exit> {
    let ends = &parsed.tuple.endpoints;
    let none = crate::checksum::Difference::NONE;
    let (source, destination) = (&ends.source, &ends.destination);
    let change = F::rewrite(packet, ethernet::BYTES, 1, source, destination, none)?;
    packet.add_to_sum(change);
    Ok(())
}
