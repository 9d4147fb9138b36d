//! Sessions: looked up, refreshed, opened.

use crate::{
    accounting,
    classify::{self, Action},
    endpoint_independent::{self, got_port, has_port},
    expire,
    family::{Address, Family},
    forward,
    known_route::same_epoch,
    mapping::{self, EXHAUSTED_TICKS, PortRange, PortWalk, TRIES, WalkEnd},
    packet::Packet,
    pipeline::{self, Arrival, Passage, Stage, Work},
    records::{HAIRPIN, MAPPED_SOURCE, MAPPED_TARGET, ORIGINAL, POOL_MEMBERS, Session, Ticks},
    spread,
    tables::{ClaimError, EipEvent, Route, Tables},
    tuple::Direction,
    verdict::{DropReason, Exit, SESSIONS_OPENED, Tries},
    wire::transport::{ACK, FIN, RST, SYN},
};

/// The TCP flags that sessions keep.
const FLAGS: u8 = FIN | SYN | RST | ACK;

/// Finds the session of a packet, fills `rewrite` and, if the packet may leave, counts it in.
///
/// `false` if there is no session.
///
/// # Errors
///
/// [`DropReason::NoRoute`] if the route that the session needs is gone, [`DropReason::NotInside`]
/// if only one to the outside is left, [`DropReason::NoNextHop`] if none of its routers is alive; or
/// what [`forward::check`] says. Then nothing is counted.
#[inline(always)]
pub fn lookup<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<bool, Exit> {
    let (parsed, rewrite) = (&passage.work.parsed, &mut passage.work.rewrite);
    let Some(session) = passage.tables.session(&parsed.tuple) else {
        return Ok(false);
    };
    // A SYN may begin a new flow on the tuple: rare enough to look at the route again as well.
    let settled = session.routing == passage.config.routing
        && session.egress != 0
        && same_epoch(session.last_seen, passage.work.arrival.now)
        && parsed.tcp_flags & (SYN | ACK) != SYN;
    rewrite.endpoints.set(&session.translated);
    rewrite.next_hop.address.set(&session.next_hop);
    rewrite.next_hop.ifindex = session.egress;
    rewrite.rule = session.rule;
    let session = if settled {
        session
    } else {
        pipeline::apart(Stage::Settle, passage)?;
        let Some(session) = passage.tables.session(&passage.work.parsed.tuple) else {
            return Ok(false);
        };
        session
    };
    forward::check(packet, passage.work, passage.config)?;
    touch(session, passage.work.parsed.tcp_flags, &passage.work.arrival);
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
    // What follows a reset takes it back (RFC 7857 section 2.2).
    let seen = session.seen & !RST | tcp_flags & FLAGS;
    if session.seen != seen {
        session.seen = seen;
    }
}

/// A SYN on a flow that is closing or has been idle for too long begins a new one on the same tuple;
/// on a live one it changes nothing.
#[inline(always)]
fn reopen<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) {
    let work = &mut *passage.work;
    if work.parsed.tcp_flags & (SYN | ACK) != SYN {
        return;
    }
    let Some(session) = passage.tables.session(&work.parsed.tuple) else {
        return;
    };
    session.write_opposite(&work.parsed.tuple, &mut work.holder_key);
    expire::keep(session, &mut work.holder);
    let original = session.flags & ORIGINAL != 0;
    let Some(other) = passage.tables.session(&work.holder_key) else {
        return;
    };
    let now = work.arrival.now;
    let timeouts = &passage.config.timeouts;
    let over = if original {
        expire::may_reopen(work.parsed.tuple.direction, &work.holder, other, timeouts, now)
    } else {
        expire::may_reopen(work.holder_key.direction, other, &work.holder, timeouts, now)
    };
    if !over {
        return;
    }
    other.seen = 0;
    if let Some(session) = passage.tables.session(&work.parsed.tuple) {
        session.seen = 0;
    }
}

/// Brings a session up to date whose route may have changed, or which may have ended.
///
/// # Errors
///
/// As [`lookup`].
#[inline(always)]
pub(crate) fn settle<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    reroute(passage)?;
    reopen(passage);
    Ok(())
}

/// Looks the route of a session up and keeps it there.
///
/// # Errors
///
/// [`DropReason::NoRoute`], [`DropReason::NotInside`] or [`DropReason::NoNextHop`].
#[inline(always)]
fn reroute<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    let routed = match classify::route(passage) {
        Route::Forward if classify::turns_outside(passage) => Err(DropReason::NotInside.into()),
        Route::Forward => spread::spread_session(passage),
        Route::Local | Route::Refused => Err(DropReason::NoRoute.into()),
    };
    let work = &*passage.work;
    if let Some(session) = passage.tables.session(&work.parsed.tuple) {
        if routed.is_ok() {
            session.next_hop.set(&work.rewrite.next_hop.address);
            session.egress = work.rewrite.next_hop.ifindex;
            session.routing = passage.config.routing;
        } else {
            // The next packet asks again.
            session.egress = 0;
        }
    }
    routed
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
    // CPU leads to has become part of that; but one that is in its own way is nobody's.
    let work = &*passage.work;
    let shared = match passage.tables.session(&work.parsed.tuple) {
        Some(there) => there.translated == work.draft.translated,
        None => false,
    };
    if claimed && (!shared || leads_to_itself(work)) {
        passage.tables.release(&work.reply_key);
    }
    Err(refused(error))
}

/// Whether an inside endpoint talks to itself, and is seen where it talks to: both entries would have one
/// key.
#[inline(always)]
fn leads_to_itself<F: Family>(work: &Work<F>) -> bool {
    let [original, reply] = [&work.parsed.tuple, &work.reply_key].map(|key| &key.endpoints);
    work.flags & HAIRPIN != 0
        && original.source_port == reply.source_port
        && original.destination_port == reply.destination_port
        && original.source == reply.source
        && original.destination == reply.destination
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
    record.bytes = u64::from(work.arrival.frame_bytes);
    record.translated.set(&work.rewrite.endpoints);
    record.next_hop.set(&work.rewrite.next_hop.address);
    record.egress = work.rewrite.next_hop.ifindex;
    record.seen = work.parsed.tcp_flags & FLAGS;
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
    record.last_seen = work.arrival.now;
    record.rule = work.rewrite.rule;
    record.translated.set_reversed(&key.endpoints);
    record.next_hop = F::Addr::default();
    record.egress = 0;
    record.routing = passage.config.routing;
    record.seen = 0;
    record.flags = work.flags;
    record.padding = F::Padding::default();
    spread::answer_by_the_way_it_came(passage);
}

/// Chooses source address and port, and inserts the reply's entry; `false` if it was there.
#[inline(always)]
fn claim_source<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<bool, Exit> {
    match passage.work.action {
        Action::OpenKept | Action::OpenMapped | Action::Stateless | Action::Unchanged => {
            claim_kept(passage)
        }
        Action::OpenPort => claim_on_eip(passage).map(|()| true),
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
        let outcome = claim_on_eip(passage);
        if outcome != Err(DropReason::PortsExhausted.into()) {
            return outcome;
        }
    }
    Err(DropReason::PortsExhausted.into())
}

/// Takes a port of the EIP that is in the reply's key: one of a few at random, or the next that is free.
///
/// A protocol without ports has one try: its only tuple.
#[inline(always)]
fn claim_on_eip<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    let protocol = passage.work.parsed.tuple.protocol;
    let claimed = if mapping::has_port_classes(protocol) || protocol == F::ICMP {
        pipeline::apart(Stage::DrawPort, passage)? || pipeline::apart(Stage::WalkPorts, passage)?
    } else {
        pipeline::apart(Stage::TryPort, passage)? || pipeline::apart(Stage::ClaimOver, passage)?
    };
    if claimed {
        return Ok(());
    }
    passage.tables.count_event(Tries::Exhausted.counter());
    passage.tables.count_eip(&passage.work.reply_key.endpoints.destination, EipEvent::Refused);
    Err(DropReason::PortsExhausted.into())
}

/// The range that the packet's source port is translated into.
#[inline(always)]
fn port_range<F: Family, T>(passage: &Passage<'_, F, T>) -> PortRange {
    let tuple = &passage.work.parsed.tuple;
    let classes = mapping::has_port_classes(tuple.protocol);
    PortRange::for_source(classes, tuple.endpoints.source_port, passage.config)
}

/// Tries a few ports at random; `false` if all of them are taken.
#[inline(always)]
pub(crate) fn draw_port<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
) -> Result<bool, Exit> {
    let range = port_range(passage);
    let mut seed = passage.tables.random();
    for index in 0..TRIES {
        passage.work.reply_key.endpoints.destination_port = range.candidate(seed);
        seed = mapping::next_seed(seed);
        if pipeline::apart(Stage::TryPort, passage)? {
            passage.tables.count_event(Tries::at(index + 1).counter());
            return Ok(true);
        }
    }
    Ok(false)
}

/// Inserts the reply's entry with the port that is in its key; `false` if that is taken.
#[inline(always)]
pub(crate) fn try_port<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
) -> Result<bool, Exit> {
    let (work, tables) = (&mut *passage.work, &mut *passage.tables);
    let mappings = passage.config.mappings != 0;
    if mappings && has_port(work, tables) {
        return Ok(false);
    }
    match tables.claim(&work.reply_key, &work.draft) {
        Ok(()) => Ok(!(mappings && got_port(work, tables))),
        Err(ClaimError::Occupied) => Ok(false),
        Err(ClaimError::Full) => Err(DropReason::SessionsFull.into()),
    }
}

/// Walks through the whole range from a random start, unless that was in vain a moment ago; `false` if
/// no port is free.
#[inline(always)]
pub(crate) fn walk_ports<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
) -> Result<bool, Exit> {
    let (range, now) = (port_range(passage), passage.work.arrival.now);
    passage.work.reply_key.endpoints.destination_port = range.low();
    let until = passage.tables.exhausted(&passage.work.reply_key);
    if until.is_some_and(|until| elapsed(until, now) <= EXHAUSTED_TICKS) {
        return Ok(false);
    }
    let low = u32::from(range.low());
    let mut walk = PortWalk {
        start: u32::from(range.candidate(passage.tables.random())) - low,
        work: passage.work,
        timeouts: &passage.config.timeouts,
        mappings: passage.config.mappings != 0,
        external: false,
        low,
        size: range.size(),
        end: WalkEnd::Exhausted,
    };
    passage.tables.walk(&mut walk);
    match walk.end {
        WalkEnd::Claimed => {
            passage.tables.count_event(Tries::Walk.counter());
            Ok(true)
        }
        WalkEnd::Full => Err(DropReason::SessionsFull.into()),
        WalkEnd::Exhausted => {
            let key = &mut passage.work.reply_key;
            key.endpoints.destination_port = range.low();
            passage.tables.set_exhausted(key, now.wrapping_add(EXHAUSTED_TICKS));
            Ok(false)
        }
    }
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
    if let Some(there) = passage.tables.session(key)
        && there.translated == reply.translated
        && there.rule == reply.rule
    {
        return Ok(false);
    }
    if pipeline::apart(Stage::ClaimOver, passage)? {
        return Ok(true);
    }
    Err(DropReason::TupleTaken.into())
}

/// Inserts the reply's entry for its only tuple, if the session that has it is over.
#[inline(always)]
pub(crate) fn claim_over<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
) -> Result<bool, Exit> {
    if mapping::is_taken(passage.work, &passage.config.timeouts, passage.tables) {
        return Ok(false);
    }
    match passage.tables.claim(&passage.work.reply_key, &passage.work.draft) {
        Ok(()) => Ok(true),
        Err(ClaimError::Occupied) => Ok(false),
        Err(ClaimError::Full) => Err(DropReason::SessionsFull.into()),
    }
}

/// Time since `then`.
#[inline(always)]
#[must_use]
pub fn elapsed(now: Ticks, then: Ticks) -> Ticks {
    now.wrapping_sub(then)
}
