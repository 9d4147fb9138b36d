//! Sessions: looked up, refreshed, opened.

use crate::{
    classify::{Opening, Source},
    family::Family,
    mapping::{self, PortRange, TRIES},
    parse::Parsed,
    pipeline::{Arrival, Rewrite},
    records::{Config, ORIGINAL, POOL_MEMBERS, Session, Ticks},
    tables::{ClaimError, Route, RouteQuery, Tables},
    tuple::Tuple,
    verdict::{DropReason, Exit, NextHop, SESSIONS_OPENED},
    wire::transport::{ACK, FIN, RST, SYN},
};

/// Sessions look their route up again when their time crosses a multiple of 2^11 ticks (2.1 s).
///
/// So a change of routes is followed even if nobody raises [`Config::routing`].
const ROUTE_EPOCH_SHIFT: u32 = 11;

/// Finds the session of a packet and counts the packet in.
///
/// `None` if there is no session.
///
/// # Errors
///
/// [`DropReason::NoRoute`] if the route that the session needs is gone.
#[inline(always)]
pub fn lookup<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<Option<Rewrite<F>>, Exit> {
    let Some(session) = tables.session(&parsed.tuple) else {
        return Ok(None);
    };
    let routed = session.routing == config.routing
        && session.egress != 0
        && (session.last_seen ^ arrival.now) >> ROUTE_EPOCH_SHIFT == 0;
    let closing = session.seen & (FIN | RST) != 0;
    touch(session, parsed.tcp_flags, arrival);
    let rewrite = Rewrite {
        endpoints: session.translated,
        next_hop: NextHop { ifindex: session.egress, address: session.next_hop },
        rule: session.rule,
    };
    if closing && parsed.tcp_flags & (SYN | ACK) == SYN {
        reopen(&parsed.tuple, tables);
    }
    if routed {
        return Ok(Some(rewrite));
    }
    reroute(parsed, tables, config, arrival, rewrite).map(Some)
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
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
    mut rewrite: Rewrite<F>,
) -> Result<Rewrite<F>, Exit> {
    let query = RouteQuery {
        ifindex: arrival.ifindex,
        source: parsed.tuple.endpoints.source,
        destination: rewrite.endpoints.destination,
        protocol: parsed.tuple.protocol,
    };
    let Route::Forward(next_hop) = tables.route(&query) else {
        return Err(DropReason::NoRoute.into());
    };
    rewrite.next_hop = next_hop;
    if let Some(session) = tables.session(&parsed.tuple) {
        session.next_hop = next_hop.address;
        session.egress = next_hop.ifindex;
        session.routing = config.routing;
    }
    Ok(rewrite)
}

/// Opens the session that `opening` describes, for the packet that asks for it.
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
    opening: &Opening<F>,
    next_hop: NextHop<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<Rewrite<F>, Exit> {
    let key = parsed.tuple;
    let mut original = Session {
        packets: 1,
        bytes: u64::from(arrival.frame_bytes),
        last_seen: arrival.now,
        rule: opening.rule,
        translated: opening.translated,
        next_hop: next_hop.address,
        egress: next_hop.ifindex,
        routing: config.routing,
        seen: parsed.tcp_flags & (FIN | SYN | RST | ACK),
        flags: ORIGINAL | opening.flags,
        padding: F::Padding::default(),
    };
    claim_source(&key, &mut original, opening.source, tables, config)?;
    match tables.claim(&key, &original) {
        Ok(()) => {
            tables.count_event(SESSIONS_OPENED);
            Ok(Rewrite { endpoints: original.translated, next_hop, rule: original.rule })
        }
        Err(error) => {
            tables.release(&original.opposite(&key));
            match error {
                // Another CPU opened the same flow meanwhile: its session is the one.
                ClaimError::Occupied => {
                    lookup(parsed, tables, config, arrival)?.ok_or(DropReason::TupleTaken.into())
                }
                ClaimError::Full => Err(DropReason::SessionsFull.into()),
            }
        }
    }
}

/// Chooses source address and port, and inserts the reply's entry.
#[inline(always)]
fn claim_source<F: Family, T: Tables<F>>(
    key: &Tuple<F>,
    original: &mut Session<F>,
    source: Source,
    tables: &mut T,
    config: &Config,
) -> Result<(), Exit> {
    let has_id = key.endpoints.source_port != 0 || mapping::has_port_classes(key.protocol);
    match source {
        Source::Kept => claim_reply(key, original, tables).map_err(refusal),
        Source::FreePort if has_id => claim_port(key, original, tables, config),
        Source::FreePort => claim_reply(key, original, tables).map_err(refusal),
        Source::Pool => {
            let mut outcome = Err(Exit::from(DropReason::NoRule));
            for turn in 0..POOL_MEMBERS as u32 {
                let Some(member) = tables.snat(key.endpoints.source, turn) else {
                    break;
                };
                original.translated.source = member.eip;
                original.rule = member.rule;
                outcome = if has_id {
                    claim_port(key, original, tables, config)
                } else {
                    claim_reply(key, original, tables).map_err(refusal)
                };
                if outcome != Err(DropReason::PortsExhausted.into())
                    && outcome != Err(DropReason::TupleTaken.into())
                {
                    break;
                }
            }
            outcome
        }
    }
}

/// Walks the ports of the session's class until one is free.
#[inline(never)]
fn claim_port<F: Family, T: Tables<F>>(
    key: &Tuple<F>,
    original: &mut Session<F>,
    tables: &mut T,
    config: &Config,
) -> Result<(), Exit> {
    let range = PortRange::for_source(
        mapping::has_port_classes(key.protocol),
        key.endpoints.source_port,
        config,
    );
    let seed = tables.random();
    for attempt in 0..TRIES {
        original.translated.source_port = range.candidate(seed, attempt);
        match claim_reply(key, original, tables) {
            Ok(()) => return Ok(()),
            Err(ClaimError::Occupied) => {}
            Err(ClaimError::Full) => return Err(DropReason::SessionsFull.into()),
        }
    }
    Err(DropReason::PortsExhausted.into())
}

/// Inserts the entry that replies to `original` will find.
#[inline(always)]
fn claim_reply<F: Family, T: Tables<F>>(
    key: &Tuple<F>,
    original: &Session<F>,
    tables: &mut T,
) -> Result<(), ClaimError> {
    let reply = Session {
        packets: 0,
        bytes: 0,
        translated: key.endpoints.reversed(),
        next_hop: F::Addr::default(),
        // The route back is looked up by the first packet that needs it.
        egress: 0,
        seen: 0,
        flags: original.flags & !ORIGINAL,
        ..*original
    };
    tables.claim(&original.opposite(key), &reply)
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
