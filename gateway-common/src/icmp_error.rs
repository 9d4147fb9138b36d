//! ICMP errors about translated packets (RFC 5508 section 7, RFC 4787 REQ-12, RFC 5382 REQ-9).
//!
//! An error quotes the packet it is about, as its sender saw it. The quote names the flow: turned
//! round and seen in the direction of the error, it is the key of the session, and the session's
//! translation turned round again is the quote as the receiver of the error must see it.
//!
//! ```text
//!  error from outside   R -> EIP:      quotes EIP:p' -> Y:q    becomes  R -> B:    quotes B:p -> Y:q
//!  error from inside    B -> X:        quotes X:q -> B:i       becomes  EIP -> X:  quotes X:q -> EIP:e
//! ```
//!
//! Errors neither refresh a session nor end it (RFC 5508 REQ-6).

use crate::{
    checksum::ChecksumDelta,
    classify,
    family::{Address, Family},
    packet::Packet,
    parse::{self, Fragment, Parsed, PortFields},
    pipeline::{Passage, Rewrite, Work},
    records::{FipKey, Session},
    spread,
    tables::{Route, Tables},
    translate::{addresses_difference, translate_quote},
    tuple::Direction,
    verdict::{DropReason, Exit},
    wire::ethernet,
};

/// Bytes from the start of the ICMP header to the quoted packet.
const QUOTE_AT: usize = 8;

/// Whether the packet is an ICMP error that quotes another packet.
#[inline(always)]
#[must_use]
pub fn is_error<F: Family>(parsed: &Parsed<F>) -> bool {
    parsed.ports == PortFields::Quoted && parsed.fragment == Fragment::Whole
}

/// Reads the packet that an ICMP error quotes into [`Work::quote`].
///
/// # Errors
///
/// An [`Exit`] for an error that no honest host sends.
#[inline(always)]
pub fn parse_quote<F: Family, P: Packet>(packet: &mut P, work: &mut Work<F>) -> Result<(), Exit> {
    let quote = &mut work.quote;
    // Which direction does not matter: the quote is only read.
    quote.clear(Direction::Outbound);
    F::parse(packet, quote_at(&work.parsed), quote)?;
    if quote.fragment != Fragment::Later {
        parse::parse_ports(packet, quote)?;
    }
    // An error goes back to where the quoted packet came from, and is not about an error.
    if quote.tuple.endpoints.source != work.parsed.tuple.endpoints.destination
        || quote.ports == PortFields::Quoted
    {
        return Err(DropReason::IcmpUntracked.into());
    }
    Ok(())
}

#[inline(always)]
fn quote_at<F: Family>(parsed: &Parsed<F>) -> usize {
    usize::from(parsed.l4) + QUOTE_AT
}

/// Finds the flow that an ICMP error is about; `false` if it is none of ours.
///
/// Leaves in the rewrite the addresses of the error itself and the ports of the quote: from both
/// follows all the rest.
#[inline(always)]
pub fn find<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    let work = &mut *passage.work;
    // The key of the session lies where a key to be opened would.
    let key = &mut work.reply_key;
    key.endpoints.set_reversed(&work.quote.tuple.endpoints);
    key.protocol = work.quote.tuple.protocol;
    key.direction = work.arrival.direction as u8;
    key.zero = 0;
    work.rewrite.endpoints.set(&work.parsed.tuple.endpoints);
    if let Some(session) = passage.tables.session(key) {
        by_session(session, work.arrival.direction, &mut work.rewrite);
        return true;
    }
    let ends = &work.quote.tuple.endpoints;
    work.rewrite.endpoints.source_port = ends.source_port;
    work.rewrite.endpoints.destination_port = ends.destination_port;
    by_fip(passage)
}

/// The quoted packet belongs to a session; its own direction is the other one.
#[inline(always)]
fn by_session<F: Family>(session: &Session<F>, direction: Direction, rewrite: &mut Rewrite<F>) {
    rewrite.rule = session.rule;
    rewrite.endpoints.destination.set(&session.translated.destination);
    rewrite.endpoints.source_port = session.translated.destination_port;
    rewrite.endpoints.destination_port = session.translated.source_port;
    // RFC 5508 REQ-5: whoever inside reports, the outside sees the EIP of the flow.
    if direction == Direction::Outbound {
        rewrite.endpoints.source.set(&session.translated.source);
    }
}

/// The quoted packet came from one floating IP, or went to one, or both.
#[inline(always)]
fn by_fip<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    let ends = &passage.work.quote.tuple.endpoints;
    passage.work.rewrite.rule = 0;
    if let Some(target) = passage.tables.fip(&FipKey::new(&ends.source, Direction::Inbound)) {
        passage.work.rewrite.endpoints.destination.set(&target.peer);
        passage.work.rewrite.rule = target.rule;
    }
    if passage.work.arrival.direction == Direction::Inbound {
        return passage.work.rewrite.rule != 0;
    }
    let Some(own) = passage.tables.fip(&FipKey::new(&ends.destination, Direction::Outbound)) else {
        return false;
    };
    passage.work.rewrite.endpoints.source.set(&own.peer);
    passage.work.rewrite.rule = own.rule;
    true
}

/// Finds the way of the error itself.
///
/// # Errors
///
/// An [`Exit`] if there is none.
#[inline(always)]
pub fn route<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    match classify::route(passage) {
        Route::Forward if classify::turns_outside(passage) => Err(DropReason::NotInside.into()),
        // With the flow that it is about.
        Route::Forward => spread::spread_error(passage),
        Route::Local | Route::Refused => Err(DropReason::NoRoute.into()),
    }
}

/// Rewrites the error and its quote, as [`find`] left it in the rewrite.
///
/// # Errors
///
/// [`Exit::Drop`] if a field lies outside the frame.
#[inline(always)]
pub fn translate<F: Family, P: Packet, T>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<(), Exit> {
    let work = &*passage.work;
    let (quote, ends) = (&work.quote, &work.rewrite.endpoints);
    let destination = match passage.work.arrival.direction {
        Direction::Outbound => &ends.source,
        Direction::Inbound => &quote.tuple.endpoints.destination,
    };
    let ports = (ends.source_port, ends.destination_port);
    let at = quote_at(&work.parsed);
    let quoted = translate_quote(packet, at, quote, &ends.destination, destination, ports)?;
    let (source, destination) = (&ends.source, &ends.destination);
    let addresses = addresses_difference(&work.parsed, source, destination);
    let header = F::rewrite(packet, ethernet::BYTES, 1, source, destination, addresses)?;
    let delta = ChecksumDelta { addresses, ports: quoted };
    let change = header.and(packet.patch_l4(&work.parsed, delta)?);
    packet.add_to_sum(change);
    Ok(())
}
