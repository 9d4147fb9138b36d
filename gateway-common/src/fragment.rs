//! Fragments and the identification that holds them together (RFC 4787 REQ-14, RFC 6864).
//!
//! Only the first fragment of a datagram carries ports. It is translated like a whole packet and
//! leaves them in `FRAGMENTS`; a later fragment takes them from there and then finds the session
//! of its flow like any other packet.
//!
//! A later fragment that comes before the first one is held in `HELD`. The first one finds it there
//! and does not go on: all of them come in at the interface once more, the first one first.
//! Whoever holds looks for the first one afterwards, and the first one makes itself known before it
//! looks for what is held, so two CPUs never miss each other.
//!
//! Two hosts behind one EIP choose their identifications without knowing of each other. So every
//! datagram that a session translates gets a new one, unless it is atomic (RFC 6864 section 4.1:
//! "don't fragment" and not fragmented; in IPv6, no fragment), from a counter for its new addresses.
//! Floating IPs are 1:1 and keep what the host chose.

use crate::{
    family::{Address, Family},
    packet::{Packet, Truncated},
    parse::{Fragment, Parsed},
    pipeline::{Outcome, Passage},
    records::{Datagram, DatagramKey, Ticks, ticks_from_secs},
    session::elapsed,
    tables::{ClaimError, Tables},
    verdict::{Exit, PassReason},
    wire::transport,
};

/// How many counters there are. Pairs of addresses that share one skip each other's numbers.
pub const COUNTERS: u32 = 1 << 14;

/// For how long later fragments find the first one (as `net.ipv4.ipfrag_time`; RFC 6146 section 4
/// wants 2 s at least).
pub const LIFETIME: Ticks = ticks_from_secs(30);

/// For how long a later fragment waits for the first one (RFC 6146 section 4: 2 s at least). More of them
/// than there is room for are forgotten earlier, the oldest first.
pub const HELD_FOR: Ticks = ticks_from_secs(2);

/// How many fragments of one datagram are held: as many as 64 KiB over an MTU of 1500 bytes have.
pub const HELD_FRAGMENTS: u64 = 48;

/// The largest frame that is held, in bytes.
pub const HELD_BYTES: u32 = 2040;

/// For how long a first fragment that comes again is the same one and not the next datagram.
const REPEAT: Ticks = ticks_from_secs(2);

/// What a packet says of its place among fragments.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    /// Identification of the datagram.
    pub identification: u32,
    /// Place in the datagram, in units of 8 bytes.
    pub offset: u16,
    /// Where the packet ends by its own account, in bytes from the start of the frame.
    pub end: u32,
}

/// Whether a fragment is one that honest senders make: the first holds the whole layer-4 header, and
/// none of the others reaches into that (RFC 1858, RFC 3128; RFC 7112 for IPv6).
// A function of its own, so that the verifier looks at the rest of the path once.
#[inline(never)]
pub fn is_sound<F: Family, P: Packet>(packet: &mut P, parsed: &Parsed<F>) -> bool {
    let Ok(piece) = F::piece(packet, parsed) else {
        return false;
    };
    let protocol = parsed.tuple.protocol;
    if parsed.fragment == Fragment::Later {
        return protocol != transport::TCP || piece.offset != 1;
    }
    let needed = match protocol {
        transport::TCP => transport::TCP_BYTES,
        transport::UDP | transport::UDP_LITE | transport::DCCP => transport::UDP_BYTES,
        protocol if protocol == F::ICMP => transport::ICMP_BYTES,
        _ => 0,
    };
    piece.end >= u32::from(parsed.l4) + needed
}

/// Gives a later fragment the ports that its first one told, if that has come.
#[inline(never)]
pub fn recall<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> bool {
    if set_key(packet, passage).is_err() {
        return false;
    }
    let work = &mut *passage.work;
    let Some(datagram) = known(&work.held_key.datagram, work.arrival.now, passage.tables) else {
        return false;
    };
    work.parsed.tuple.endpoints.source_port = datagram.source_port;
    work.parsed.tuple.endpoints.destination_port = datagram.destination_port;
    work.parsed.fragment = Fragment::Known;
    work.datagram.identification = datagram.identification;
    true
}

/// What is known of a datagram by its first fragment, if that has come.
#[inline(always)]
fn known<'a, F: Family, T: Tables<F>>(
    key: &DatagramKey<F>,
    now: Ticks,
    tables: &'a mut T,
) -> Option<&'a Datagram> {
    tables.datagram(key).filter(|datagram| elapsed(now, datagram.since) <= LIFETIME)
}

/// Gives a packet that is not atomic its new identification, and remembers a first fragment.
///
/// [`Outcome::No`] if a header lies outside the frame, [`Outcome::Exit`] if fragments are held that wait
/// for this one: it is remembered then, and unchanged.
#[inline(never)]
pub fn identify<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Outcome {
    match passage.work.parsed.fragment {
        Fragment::Whole if keeps_addresses(passage) => return Outcome::Yes,
        Fragment::Whole => passage.work.datagram.identification = fresh(packet, passage),
        Fragment::First => {
            if set_key(packet, passage).is_err() {
                return Outcome::No;
            }
            remember(packet, passage);
            if passage.tables.is_held(&passage.work.held_key) {
                return Outcome::Exit;
            }
        }
        Fragment::Later | Fragment::Known => {}
    }
    let work = &*passage.work;
    match F::renumber(packet, &work.parsed, work.datagram.identification) {
        Ok(difference) => {
            packet.add_to_sum(difference);
            Outcome::Yes
        }
        Err(Truncated) => Outcome::No,
    }
}

/// Keeps a later fragment whose key [`recall`] has set until its first one comes; `false` if there is no
/// room for it.
///
/// # Errors
///
/// [`PassReason::Replayed`] if the first one has come meanwhile.
#[inline(always)]
pub fn hold<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<bool, Exit> {
    let now = passage.work.arrival.now;
    for slot in 0..HELD_FRAGMENTS {
        passage.work.held_key.slot = slot;
        match passage.tables.hold(&passage.work.held_key, now) {
            Ok(()) => break,
            Err(ClaimError::Full) => return Ok(false),
            Err(ClaimError::Occupied) if slot == HELD_FRAGMENTS - 1 => return Ok(false),
            Err(ClaimError::Occupied) => {}
        }
    }
    if known(&passage.work.held_key.datagram, now, passage.tables).is_none() {
        return Ok(true);
    }
    replay(passage).map(|()| true)
}

/// Lets what is held of a datagram come in again, and the packet with it if it is the first fragment.
///
/// # Errors
///
/// Always: the packet goes no further.
#[inline(always)]
pub fn replay<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    let (work, tables) = (&mut *passage.work, &mut *passage.tables);
    let first = work.parsed.fragment == Fragment::First;
    // It will be counted when it comes again.
    if first && let Some(session) = tables.session(&work.parsed.tuple) {
        session.packets = session.packets.wrapping_sub(1);
        session.bytes = session.bytes.wrapping_sub(u64::from(work.arrival.frame_bytes));
    }
    tables.replay(&mut work.held_key, first, work.arrival.now);
    Err(PassReason::Replayed.into())
}

/// The key of the datagram that the packet is a fragment of.
#[inline(always)]
fn set_key<F: Family, P: Packet, T>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<(), Truncated> {
    let work = &mut *passage.work;
    let piece = F::piece(packet, &work.parsed)?;
    work.held_key.slot = 0;
    let (key, tuple) = (&mut work.held_key.datagram, &work.parsed.tuple);
    key.source.set(&tuple.endpoints.source);
    key.destination.set(&tuple.endpoints.destination);
    key.identification = piece.identification;
    key.protocol = distinguishing::<F>(tuple.protocol);
    key.direction = tuple.direction;
    key.zero = 0;
    Ok(())
}

/// A protocol number as far as it tells datagrams with one identification apart.
#[inline(always)]
fn distinguishing<F: Family>(protocol: u8) -> u8 {
    if F::BITS == 32 { protocol } else { 0 }
}

/// Remembers the ports of a first fragment, and the new identification of its datagram.
#[inline(always)]
fn remember<F: Family, P: Packet, T: Tables<F>>(packet: &P, passage: &mut Passage<'_, F, T>) {
    let now = passage.work.arrival.now;
    let repeated = match passage.tables.datagram(&passage.work.held_key.datagram) {
        Some(known) if elapsed(now, known.since) <= REPEAT => Some(known.identification),
        _ => None,
    };
    let identification = match repeated {
        Some(identification) => identification,
        None if keeps_addresses(passage) => passage.work.held_key.datagram.identification,
        None => fresh(packet, passage),
    };
    let (work, tables) = (&mut *passage.work, &mut *passage.tables);
    let ends = &work.parsed.tuple.endpoints;
    work.datagram = Datagram {
        identification,
        since: now,
        source_port: ends.source_port,
        destination_port: ends.destination_port,
    };
    tables.set_datagram(&work.held_key.datagram, &work.datagram);
}

/// Whether the session leaves both addresses as they are: then the identification is still the
/// sender's to choose.
#[inline(always)]
fn keeps_addresses<F: Family, T>(passage: &Passage<'_, F, T>) -> bool {
    let (old, new) = (&passage.work.parsed.tuple.endpoints, &passage.work.rewrite.endpoints);
    old.source == new.source && old.destination == new.destination
}

/// An identification that is free between the addresses after translation.
#[inline(always)]
fn fresh<F: Family, P: Packet, T: Tables<F>>(packet: &P, passage: &mut Passage<'_, F, T>) -> u32 {
    let (work, now) = (&*passage.work, passage.work.arrival.now);
    let ends = &work.rewrite.endpoints;
    let spread = ends.source.spread().rotate_left(16)
        ^ ends.destination.spread()
        ^ u32::from(distinguishing::<F>(work.parsed.tuple.protocol));
    passage.tables.identification(spread % COUNTERS, packet.segments(), now)
}
