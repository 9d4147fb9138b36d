//! Sessions: looked up, refreshed, opened.

use crate::{
    classify::{self, Source},
    family::Family,
    mapping::{self, PortRange, TRIES},
    parse::Parsed,
    pipeline::{Arrival, Rewrite},
    records::{Config, HAIRPIN, ORIGINAL, POOL_MEMBERS, Session, Ticks},
    tables::{ClaimError, Route, Tables},
    tuple::{Direction, Tuple},
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
pub fn lookup<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    rewrite: &mut Rewrite<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<bool, Exit> {
    let Some(session) = tables.session(&parsed.tuple) else {
        return Ok(false);
    };
    let routed = session.routing == config.routing
        && session.egress != 0
        && (session.last_seen ^ arrival.now) >> ROUTE_EPOCH_SHIFT == 0;
    let closing = session.seen & (FIN | RST) != 0;
    touch(session, parsed.tcp_flags, arrival);
    rewrite.endpoints = session.translated;
    rewrite.next_hop.address = session.next_hop;
    rewrite.next_hop.ifindex = session.egress;
    rewrite.rule = session.rule;
    if closing && parsed.tcp_flags & (SYN | ACK) == SYN {
        reopen(&parsed.tuple, tables);
    }
    if !routed {
        reroute(parsed, rewrite, tables, config, arrival)?;
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
fn reroute<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    rewrite: &mut Rewrite<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<(), Exit> {
    if classify::route(parsed, rewrite, tables, arrival) != Route::Forward {
        return Err(DropReason::NoRoute.into());
    }
    if let Some(session) = tables.session(&parsed.tuple) {
        session.next_hop = rewrite.next_hop.address;
        session.egress = rewrite.next_hop.ifindex;
        session.routing = config.routing;
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
/// The [`DropReason`] for which no session could be opened.
#[inline(always)]
pub fn open<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    source: Source,
    flags: u8,
    rewrite: &mut Rewrite<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<(), Exit> {
    let key = &parsed.tuple;
    // One record, used twice: first for the reply, whose content does not depend on the port.
    let mut record = Session {
        packets: 0,
        bytes: 0,
        last_seen: arrival.now,
        rule: rewrite.rule,
        translated: key.endpoints.reversed(),
        next_hop: F::Addr::default(),
        // The route back is looked up by the first packet that needs it.
        egress: 0,
        routing: config.routing,
        seen: 0,
        flags,
        padding: F::Padding::default(),
    };
    let turns_back = key.direction == Direction::Outbound as u8 && flags & HAIRPIN == 0;
    let reply_direction = if turns_back { Direction::Inbound } else { Direction::Outbound };
    let mut reply_key = Tuple::new(rewrite.endpoints.reversed(), key.protocol, reply_direction);
    claim_source(key, &mut reply_key, &mut record, source, tables, config)?;
    rewrite.endpoints.source = reply_key.endpoints.destination;
    rewrite.endpoints.source_port = reply_key.endpoints.destination_port;
    rewrite.rule = record.rule;

    record.packets = 1;
    record.bytes = u64::from(arrival.frame_bytes);
    record.translated = rewrite.endpoints;
    record.next_hop = rewrite.next_hop.address;
    record.egress = rewrite.next_hop.ifindex;
    record.seen = parsed.tcp_flags & (FIN | SYN | RST | ACK);
    record.flags = flags | ORIGINAL;
    let Err(error) = tables.claim(key, &record) else {
        tables.count_event(SESSIONS_OPENED);
        return Ok(());
    };
    tables.release(&reply_key);
    match error {
        // Another CPU opened the same flow meanwhile: its session is the one.
        ClaimError::Occupied if lookup(parsed, rewrite, tables, config, arrival)? => Ok(()),
        ClaimError::Occupied => Err(DropReason::TupleTaken.into()),
        ClaimError::Full => Err(DropReason::SessionsFull.into()),
    }
}

/// Chooses source address and port, and inserts the reply's entry.
#[inline(always)]
fn claim_source<F: Family, T: Tables<F>>(
    key: &Tuple<F>,
    reply_key: &mut Tuple<F>,
    reply: &mut Session<F>,
    source: Source,
    tables: &mut T,
    config: &Config,
) -> Result<(), Exit> {
    if source == Source::Kept {
        return tables.claim(reply_key, reply).map_err(refusal);
    }
    let mut outcome = Err(Exit::from(DropReason::NoRule));
    for turn in 0..POOL_MEMBERS as u32 {
        if source == Source::Pool {
            let Some(member) = tables.snat(&key.endpoints.source, turn) else {
                break;
            };
            reply_key.endpoints.destination = member.eip;
            reply.rule = member.rule;
        }
        outcome = claim_port(key.endpoints.source_port, reply_key, reply, tables, config);
        let taken = outcome == Err(DropReason::PortsExhausted.into());
        if source != Source::Pool || !taken {
            break;
        }
    }
    outcome
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

/// A tuple that must be used as it is, and cannot.
#[inline(always)]
fn refusal(error: ClaimError) -> Exit {
    match error {
        ClaimError::Occupied => DropReason::TupleTaken.into(),
        ClaimError::Full => DropReason::SessionsFull.into(),
    }
}

/// Time since `then`.
#[inline(always)]
#[must_use]
pub fn elapsed(now: Ticks, then: Ticks) -> Ticks {
    now.wrapping_sub(then)
}
