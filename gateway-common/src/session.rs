//! Sessions: looked up, refreshed, opened.

use crate::{
    classify::{self, Action},
    family::Family,
    mapping::{self, PortRange, TRIES},
    pipeline::{Arrival, Passage},
    records::{Config, HAIRPIN, ORIGINAL, POOL_MEMBERS, Session, Ticks},
    tables::{ClaimError, Route, Tables},
    tuple::{Direction, Endpoints, Tuple},
    verdict::{DropReason, Exit, SESSIONS_OPENED},
    wire::transport::{ACK, FIN, RST, SYN},
};

/// Sessions look their route up again when their time crosses a multiple of 2^11 ticks (2.1 s).
///
/// So a change of routes is followed even if nobody raises [`Config::routing`].
const ROUTE_EPOCH_SHIFT: u32 = 11;

/// Finds the session of a packet, counts the packet in and fills `rewrite`.
///
/// `false` if there is no session.
///
/// # Errors
///
/// [`DropReason::NoRoute`] if the route that the session needs is gone.
#[inline(always)]
pub fn lookup<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<bool, Exit> {
    let (parsed, rewrite) = (&*passage.parsed, &mut *passage.rewrite);
    let Some(session) = passage.tables.session(&parsed.tuple) else {
        return Ok(false);
    };
    let routed = session.routing == passage.config.routing
        && session.egress != 0
        && (session.last_seen ^ passage.arrival.now) >> ROUTE_EPOCH_SHIFT == 0;
    let closing = session.seen & (FIN | RST) != 0;
    touch(session, parsed.tcp_flags, passage.arrival);
    rewrite.endpoints = session.translated;
    rewrite.next_hop.address = session.next_hop;
    rewrite.next_hop.ifindex = session.egress;
    rewrite.rule = session.rule;
    if closing && parsed.tcp_flags & (SYN | ACK) == SYN {
        reopen(&parsed.tuple, passage.tables);
    }
    if !routed {
        reroute(passage)?;
    }
    Ok(true)
}

/// Counts a packet in. Writes nothing but the counters while nothing else changes.
#[inline(always)]
fn touch<F: Family>(session: &mut Session<F>, tcp_flags: u8, arrival: &Arrival) {
    session.packets = session.packets.wrapping_add(1);
    session.bytes = session.bytes.wrapping_add(u64::from(arrival.frame_bytes));
    if session.last_seen != arrival.now {
        session.last_seen = arrival.now;
    }
    let seen = session.seen | tcp_flags & (FIN | SYN | RST | ACK);
    if session.seen != seen {
        session.seen = seen;
    }
}

/// A SYN on a closing flow begins a new one on the same tuple (RFC 7857 section 2.1).
#[inline(never)]
fn reopen<F: Family, T: Tables<F>>(key: &Tuple<F>, tables: &mut T) {
    let Some(session) = tables.session(key) else {
        return;
    };
    session.seen = SYN;
    let opposite = session.opposite(key);
    if let Some(other) = tables.session(&opposite) {
        other.seen = 0;
        other.packets = 0;
        other.bytes = 0;
    }
}

/// Looks the route of a session up and keeps it there.
#[inline(always)]
fn reroute<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    if classify::route(passage) != Route::Forward {
        return Err(DropReason::NoRoute.into());
    }
    if let Some(session) = passage.tables.session(&passage.parsed.tuple) {
        session.next_hop = passage.rewrite.next_hop.address;
        session.egress = passage.rewrite.next_hop.ifindex;
        session.routing = passage.config.routing;
    }
    Ok(())
}

/// Opens a session for the packet that asks for it, and completes `rewrite`.
///
/// The reply's entry comes first: its key holds the external port, and inserting it is what makes
/// the port ours (RFC 6888 REQ-11: nothing that is there gives way).
///
/// # Errors
///
/// The [`DropReason`] for which no session could be opened. With [`DropReason::TupleTaken`] there
/// may be a session by now: another CPU opened the same flow meanwhile.
#[inline(always)]
pub fn open<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    let flags = passage.flags;
    let key = &passage.parsed.tuple;
    let turns_back = key.direction == Direction::Outbound as u8 && flags & HAIRPIN == 0;
    let reply_direction = if turns_back { Direction::Inbound } else { Direction::Outbound };
    let mut reply_key = Tuple::new(Endpoints::default(), key.protocol, reply_direction);
    reply_key.endpoints.set_reversed(&passage.rewrite.endpoints);
    // One record, used twice: first for the reply, whose content does not depend on the port.
    // Its route back is looked up by the first packet that needs it.
    let mut record = Session {
        last_seen: passage.arrival.now,
        rule: passage.rewrite.rule,
        routing: passage.config.routing,
        flags,
        ..Session::default()
    };
    record.translated.set_reversed(&key.endpoints);
    let claimed = claim_source(passage, &mut reply_key, &mut record)?;
    let rewrite = &mut *passage.rewrite;
    rewrite.endpoints.source = reply_key.endpoints.destination;
    rewrite.endpoints.source_port = reply_key.endpoints.destination_port;
    rewrite.rule = record.rule;

    record.packets = 1;
    record.bytes = u64::from(passage.arrival.frame_bytes);
    record.translated = rewrite.endpoints;
    record.next_hop = rewrite.next_hop.address;
    record.egress = rewrite.next_hop.ifindex;
    record.seen = passage.parsed.tcp_flags & (FIN | SYN | RST | ACK);
    record.flags = flags | ORIGINAL;
    let Err(error) = passage.tables.claim(&passage.parsed.tuple, &record) else {
        passage.tables.count_event(SESSIONS_OPENED);
        return Ok(());
    };
    // An entry that was there already belongs to whoever made it.
    if claimed {
        passage.tables.release(&reply_key);
    }
    Err(refusal(error))
}

/// Why a session could not be opened.
#[inline(always)]
fn refusal(error: ClaimError) -> Exit {
    match error {
        ClaimError::Occupied => DropReason::TupleTaken.into(),
        ClaimError::Full => DropReason::SessionsFull.into(),
    }
}

/// Chooses source address and port, and inserts the reply's entry; `false` if it was there.
#[inline(always)]
fn claim_source<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
    reply_key: &mut Tuple<F>,
    reply: &mut Session<F>,
) -> Result<bool, Exit> {
    if passage.action == Action::OpenKept {
        return claim_kept(reply_key, reply, passage.tables);
    }
    let pooled = passage.action == Action::OpenPool;
    let inside = &passage.parsed.tuple.endpoints;
    let mut outcome = Err(Exit::from(DropReason::NoRule));
    for turn in 0..POOL_MEMBERS as u32 {
        if pooled {
            let Some(member) = passage.tables.snat(&inside.source, turn) else {
                break;
            };
            reply_key.endpoints.destination = member.eip;
            reply.rule = member.rule;
        }
        outcome = claim_port(inside.source_port, reply_key, reply, passage.tables, passage.config);
        let taken = outcome == Err(DropReason::PortsExhausted.into());
        if !pooled || !taken {
            break;
        }
    }
    outcome.map(|()| true)
}

/// Walks the ports of the session's class until one is free.
///
/// A protocol without ports has one try: its only tuple.
#[inline(always)]
fn claim_port<F: Family, T: Tables<F>>(
    source_port: u16,
    reply_key: &mut Tuple<F>,
    reply: &Session<F>,
    tables: &mut T,
    config: &Config,
) -> Result<(), Exit> {
    let classes = mapping::has_port_classes(reply_key.protocol);
    let walks = classes || reply_key.protocol == F::ICMP;
    let range = PortRange::for_source(classes, source_port, config);
    let mut seed = tables.random();
    for _ in 0..TRIES {
        if walks {
            reply_key.endpoints.destination_port = range.candidate(seed);
            seed = mapping::next_seed(seed);
        }
        match tables.claim(reply_key, reply) {
            Ok(()) => return Ok(()),
            Err(ClaimError::Occupied) if walks => {}
            Err(ClaimError::Occupied) => break,
            Err(ClaimError::Full) => return Err(DropReason::SessionsFull.into()),
        }
    }
    Err(DropReason::PortsExhausted.into())
}

/// Inserts the reply's entry for a tuple that must be used as it is; `false` if it was there.
///
/// An entry that is there and leads back to the same flow is ours: another CPU is opening it too,
/// or its other half got lost and is made again here.
#[inline(always)]
fn claim_kept<F: Family, T: Tables<F>>(
    reply_key: &Tuple<F>,
    reply: &Session<F>,
    tables: &mut T,
) -> Result<bool, Exit> {
    match tables.claim(reply_key, reply) {
        Ok(()) => Ok(true),
        Err(ClaimError::Full) => Err(DropReason::SessionsFull.into()),
        Err(ClaimError::Occupied) => match tables.session(reply_key) {
            Some(there) if there.translated == reply.translated && there.rule == reply.rule => {
                Ok(false)
            }
            _ => Err(DropReason::TupleTaken.into()),
        },
    }
}

/// Time since `then`.
#[inline(always)]
#[must_use]
pub fn elapsed(now: Ticks, then: Ticks) -> Ticks {
    now.wrapping_sub(then)
}
