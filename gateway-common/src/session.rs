//! Sessions: looked up, refreshed, opened.

use crate::{
    accounting,
    classify::{self, Action},
    endpoint_independent::{self, has_port},
    family::{Address, Family},
    forward,
    mapping::{self, EXHAUSTED_TICKS, PortRange, PortWalk, TRIES, WalkEnd},
    packet::Packet,
    pipeline::{Arrival, Passage, Work},
    records::{HAIRPIN, MAPPED_SOURCE, MAPPED_TARGET, ORIGINAL, POOL_MEMBERS, Session, Ticks},
    tables::{ClaimError, EipEvent, Route, Tables},
    tuple::{Direction, Tuple},
    verdict::{DropReason, Exit, SESSIONS_OPENED, Tries},
    wire::transport::{ACK, FIN, RST, SYN},
};

/// Sessions look their route up again when their time crosses a multiple of 2^11 ticks (2.1 s).
///
/// So a change of routes is followed even if nobody raises [`Config::routing`].
const ROUTE_EPOCH_SHIFT: u32 = 11;

/// Finds the session of a packet, fills `rewrite` and, if the packet may leave, counts it in.
///
/// `false` if there is no session.
///
/// # Errors
///
/// [`DropReason::NoRoute`] if the route that the session needs is gone, [`DropReason::NotInside`]
/// if only one to the outside is left; or what [`forward::check`] says. Then nothing is counted.
#[inline(always)]
pub fn lookup<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<bool, Exit> {
    let (parsed, rewrite) = (&passage.work.parsed, &mut passage.work.rewrite);
    let Some(session) = passage.tables.session(&parsed.tuple) else {
        return Ok(false);
    };
    let routed = session.routing == passage.config.routing
        && session.egress != 0
        && (session.last_seen ^ passage.arrival.now) >> ROUTE_EPOCH_SHIFT == 0;
    rewrite.endpoints.set(&session.translated);
    rewrite.next_hop.address.set(&session.next_hop);
    rewrite.next_hop.ifindex = session.egress;
    rewrite.rule = session.rule;
    let session = if routed {
        session
    } else {
        reroute(passage)?;
        let Some(session) = passage.tables.session(&passage.work.parsed.tuple) else {
            return Ok(false);
        };
        session
    };
    forward::check(packet, passage.work, passage.config, passage.arrival)?;
    let parsed = &passage.work.parsed;
    let closing = session.seen & (FIN | RST) != 0;
    touch(session, parsed.tcp_flags, passage.arrival);
    if closing && parsed.tcp_flags & (SYN | ACK) == SYN {
        reopen(&parsed.tuple, passage.tables);
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
///
/// # Errors
///
/// [`DropReason::NoRoute`] or [`DropReason::NotInside`].
#[inline(always)]
fn reroute<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    let routed = classify::route(passage) == Route::Forward;
    let leaves = routed && classify::turns_outside(passage);
    let work = &*passage.work;
    if let Some(session) = passage.tables.session(&work.parsed.tuple) {
        if routed && !leaves {
            session.next_hop.set(&work.rewrite.next_hop.address);
            session.egress = work.rewrite.next_hop.ifindex;
            session.routing = passage.config.routing;
        } else {
            // The next packet asks again.
            session.egress = 0;
        }
    }
    match (routed, leaves) {
        (false, _) => Err(DropReason::NoRoute.into()),
        (true, true) => Err(DropReason::NotInside.into()),
        (true, false) => Ok(()),
    }
}

/// Asks whether the packet may have a session, and drafts it.
///
/// # Errors
///
/// The [`DropReason`] for which it may not.
#[inline(always)]
pub fn begin<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    let admitted = accounting::admit(passage);
    draft_reply(passage);
    let mapped = passage.work.flags & MAPPED_TARGET != 0;
    if admitted.is_ok() && (!mapped || endpoint_independent::join_target(passage)) {
        return Ok(());
    }
    // It is counted in nowhere.
    passage.work.flags &= !MAPPED_TARGET;
    admitted.and(Err(DropReason::TupleTaken.into()))
}

/// Opens a session for the packet that asks for it, as [`begin`] drafted it, and completes `rewrite`.
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
    insert(passage)?;
    passage.tables.count_event(SESSIONS_OPENED);
    accounting::opened(passage);
    Ok(())
}

/// Inserts both entries.
#[inline(always)]
fn insert<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    if leads_to_itself(passage.work) {
        return Err(DropReason::TupleTaken.into());
    }
    if original_first(passage.work) {
        return insert_original_first(passage);
    }
    let claimed = claim_source(passage)?;
    complete(passage);
    if !claimed && is_reply(passage) {
        let work = &*passage.work;
        let _ = passage.tables.claim(&work.parsed.tuple, &work.draft);
        return Err(DropReason::TupleTaken.into());
    }
    let Err(error) = passage.tables.claim(&passage.work.parsed.tuple, &passage.work.draft) else {
        return Ok(());
    };
    // An entry that was there already belongs to whoever made it, and one that the session of another
    // CPU leads to has become part of that.
    let work = &*passage.work;
    let shared = match passage.tables.session(&work.parsed.tuple) {
        Some(there) => there.translated == work.draft.translated,
        None => false,
    };
    if claimed && !shared {
        passage.tables.release(&work.reply_key);
    }
    Err(refused(error))
}

/// Whether an inside endpoint talks to itself by its own mapping: both entries would have one key.
#[inline(always)]
fn leads_to_itself<F: Family>(work: &Work<F>) -> bool {
    let [original, reply] = [&work.parsed.tuple, &work.reply_key].map(|key| &key.endpoints);
    work.flags & MAPPED_SOURCE != 0
        && work.flags & MAPPED_TARGET != 0
        && original.source_port == reply.source_port
        && original.source == reply.source
}

/// Whether the entry that the reply will find is the original of a session that the other end has just
/// opened. Then the packet is a reply itself, and the draft becomes the entry for it, which the other CPU
/// may not have inserted yet.
#[inline(always)]
fn is_reply<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    let work = &mut *passage.work;
    let Some(there) = passage.tables.session(&work.reply_key) else {
        return false;
    };
    if there.flags & ORIGINAL == 0 {
        return false;
    }
    work.draft.flags = there.flags & !ORIGINAL;
    work.draft.packets = 0;
    work.draft.bytes = 0;
    work.draft.seen = 0;
    true
}

/// Two ends may open the same flow towards each other at the same moment where both have external
/// endpoints that are known beforehand. Then both insert the same entry first, whichever way it goes for
/// them: so one of them is the original, and only one.
#[inline(always)]
fn original_first<F: Family>(work: &Work<F>) -> bool {
    if work.flags & (MAPPED_SOURCE | MAPPED_TARGET) == 0
        || matches!(work.action, Action::OpenPort | Action::OpenPool)
    {
        return false;
    }
    if work.flags & HAIRPIN == 0 {
        return work.flags & MAPPED_TARGET != 0;
    }
    let [original, reply] = [&work.parsed.tuple, &work.reply_key].map(|key| &key.endpoints);
    let [one, other] = [original, reply].map(|ends| ends.source.spread());
    one < other || one == other && original.source_port < reply.source_port
}

#[inline(always)]
fn insert_original_first<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
) -> Result<(), Exit> {
    complete(passage);
    let work = &*passage.work;
    passage.tables.claim(&work.parsed.tuple, &work.draft).map_err(refused)?;
    draft_reply(passage);
    match claim_kept(passage) {
        Ok(_) => Ok(()),
        Err(exit) => {
            passage.tables.release(&passage.work.parsed.tuple);
            Err(exit)
        }
    }
}

fn refused(error: ClaimError) -> Exit {
    match error {
        ClaimError::Occupied => DropReason::TupleTaken.into(),
        ClaimError::Full => DropReason::SessionsFull.into(),
    }
}

/// Completes the rewrite by the source that was chosen, and makes the reply's record the original's.
#[inline(always)]
fn complete<F: Family, T>(passage: &mut Passage<'_, F, T>) {
    let work = &mut *passage.work;
    work.rewrite.endpoints.source.set(&work.reply_key.endpoints.destination);
    work.rewrite.endpoints.source_port = work.reply_key.endpoints.destination_port;
    work.rewrite.rule = work.draft.rule;
    let record = &mut work.draft;
    record.packets = 1;
    record.bytes = u64::from(passage.arrival.frame_bytes);
    record.translated.set(&work.rewrite.endpoints);
    record.next_hop.set(&work.rewrite.next_hop.address);
    record.egress = work.rewrite.next_hop.ifindex;
    record.seen = work.parsed.tcp_flags & (FIN | SYN | RST | ACK);
    record.flags = work.flags | ORIGINAL;
}

/// Fills in the reply's entry and its key, as far as the rule decides them.
///
/// Its content does not depend on the port that is still to be found, and its route back is
/// looked up by the first packet that needs it.
#[inline(always)]
fn draft_reply<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) {
    let work = &mut *passage.work;
    let key = &work.parsed.tuple;
    let turns_back = key.direction == Direction::Outbound as u8 && work.flags & HAIRPIN == 0;
    let direction = if turns_back { Direction::Inbound } else { Direction::Outbound };
    work.reply_key.endpoints.set_reversed(&work.rewrite.endpoints);
    work.reply_key.protocol = key.protocol;
    work.reply_key.direction = direction as u8;
    work.reply_key.zero = 0;

    let record = &mut work.draft;
    record.packets = 0;
    record.bytes = 0;
    record.last_seen = passage.arrival.now;
    record.rule = work.rewrite.rule;
    record.translated.set_reversed(&key.endpoints);
    record.next_hop = F::Addr::default();
    record.egress = 0;
    record.routing = passage.config.routing;
    record.seen = 0;
    record.flags = work.flags;
    record.padding = F::Padding::default();
}

/// Chooses source address and port, and inserts the reply's entry; `false` if it was there.
#[inline(always)]
fn claim_source<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<bool, Exit> {
    match passage.work.action {
        Action::OpenKept | Action::OpenMapped | Action::Stateless => claim_kept(passage),
        Action::OpenPort => claim_port(passage).map(|()| true),
        Action::OpenPool => claim_pool(passage).map(|()| true),
    }
}

/// Takes a port of the source's own EIP, or of the next ones when that has none left.
#[inline(always)]
fn claim_pool<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    for turn in 0..POOL_MEMBERS as u32 {
        let source = &passage.work.parsed.tuple.endpoints.source;
        let Some(member) = passage.tables.snat(source, turn) else {
            break;
        };
        passage.work.reply_key.endpoints.destination.set(&member.eip);
        passage.work.draft.rule = member.rule;
        let outcome = claim_port(passage);
        if outcome != Err(DropReason::PortsExhausted.into()) {
            return outcome;
        }
    }
    Err(DropReason::PortsExhausted.into())
}

/// Finds a free port of the source port's class: a few at random, then all of them in turn.
///
/// A protocol without ports has one try: its only tuple.
#[inline(always)]
fn claim_port<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    let work = &mut *passage.work;
    let classes = mapping::has_port_classes(work.parsed.tuple.protocol);
    if !classes && work.parsed.tuple.protocol != F::ICMP {
        return match passage.tables.claim(&work.reply_key, &work.draft) {
            Ok(()) => Ok(()),
            Err(ClaimError::Full) => Err(DropReason::SessionsFull.into()),
            Err(ClaimError::Occupied) => match claim_over(passage) {
                WalkEnd::Claimed => Ok(()),
                WalkEnd::Exhausted => refuse(passage),
                WalkEnd::Full => Err(DropReason::SessionsFull.into()),
            },
        };
    }
    let source_port = work.parsed.tuple.endpoints.source_port;
    let range = PortRange::for_source(classes, source_port, passage.config);
    let mut seed = passage.tables.random();
    for index in 0..TRIES {
        work.reply_key.endpoints.destination_port = range.candidate(seed);
        seed = mapping::next_seed(seed);
        match passage.tables.claim(&work.reply_key, &work.draft) {
            Ok(()) if passage.config.mappings != 0 && has_port(work, passage.tables) => {}
            Ok(()) => {
                passage.tables.count_event(Tries::at(index + 1).counter());
                return Ok(());
            }
            Err(ClaimError::Occupied) => {}
            Err(ClaimError::Full) => return Err(DropReason::SessionsFull.into()),
        }
    }
    walk_ports(passage, range, seed)
}

/// Walks through the whole range, unless that was in vain a moment ago.
#[inline(always)]
fn walk_ports<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
    range: PortRange,
    seed: u32,
) -> Result<(), Exit> {
    let now = passage.arrival.now;
    passage.work.reply_key.endpoints.destination_port = range.low();
    let until = passage.tables.exhausted(&passage.work.reply_key);
    if until.is_some_and(|until| elapsed(until, now) <= EXHAUSTED_TICKS) {
        return refuse(passage);
    }
    let low = u32::from(range.low());
    let mut walk = PortWalk {
        work: passage.work,
        timeouts: &passage.config.timeouts,
        mappings: passage.config.mappings != 0,
        external: false,
        low,
        size: range.size(),
        start: u32::from(range.candidate(seed)) - low,
        end: WalkEnd::Exhausted,
    };
    passage.tables.walk(&mut walk);
    match walk.end {
        WalkEnd::Claimed => {
            passage.tables.count_event(Tries::Walk.counter());
            Ok(())
        }
        WalkEnd::Full => Err(DropReason::SessionsFull.into()),
        WalkEnd::Exhausted => {
            let key = &mut passage.work.reply_key;
            key.endpoints.destination_port = range.low();
            passage.tables.set_exhausted(key, now.wrapping_add(EXHAUSTED_TICKS));
            refuse(passage)
        }
    }
}

/// The EIP has no port left for the packet.
#[inline(always)]
fn refuse<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    passage.tables.count_event(Tries::Exhausted.counter());
    passage.tables.count_eip(&passage.work.reply_key.endpoints.destination, EipEvent::Refused);
    Err(DropReason::PortsExhausted.into())
}

/// Inserts the reply's entry for a tuple that must be used as it is; `false` if it was there.
///
/// An entry that is there and leads back to the same flow is ours: another CPU is opening it too,
/// or its other half got lost and is made again here.
#[inline(always)]
fn claim_kept<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<bool, Exit> {
    let (key, reply) = (&passage.work.reply_key, &passage.work.draft);
    match passage.tables.claim(key, reply) {
        Ok(()) => return Ok(true),
        Err(ClaimError::Full) => return Err(DropReason::SessionsFull.into()),
        Err(ClaimError::Occupied) => {}
    }
    match passage.tables.session(key) {
        Some(there) if there.translated == reply.translated && there.rule == reply.rule => {
            Ok(false)
        }
        _ => match claim_over(passage) {
            WalkEnd::Claimed => Ok(true),
            WalkEnd::Exhausted => Err(DropReason::TupleTaken.into()),
            WalkEnd::Full => Err(DropReason::SessionsFull.into()),
        },
    }
}

/// Inserts the reply's entry for its only tuple, if the session that has it is over. A function of its
/// own for its stack frame.
#[inline(never)]
fn claim_over<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> WalkEnd {
    if mapping::is_taken(passage.work, &passage.config.timeouts, passage.tables) {
        return WalkEnd::Exhausted;
    }
    match passage.tables.claim(&passage.work.reply_key, &passage.work.draft) {
        Ok(()) => WalkEnd::Claimed,
        Err(ClaimError::Occupied) => WalkEnd::Exhausted,
        Err(ClaimError::Full) => WalkEnd::Full,
    }
}

/// Time since `then`.
#[inline(always)]
#[must_use]
pub fn elapsed(now: Ticks, then: Ticks) -> Ticks {
    now.wrapping_sub(then)
}
