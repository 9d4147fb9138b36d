//! Endpoint-independent mapping and filtering (RFC 4787 REQ-1 and REQ-8, RFC 5382 REQ-1 and REQ-3,
//! RFC 5508 REQ-1).
//!
//! A SNAT rule may say that an inside endpoint has one external endpoint, whoever it talks to. Sessions
//! are opened for each remote all the same, so that timeouts and counters are what they always are; the
//! mapping only decides their external port, and lives while any of them does.
//!
//! ```text
//!  Inside    10.0.1.10:4000/udp                 -> 203.0.113.10:31337   users: sessions by this mapping
//!  External  203.0.113.10:31337/udp             -> 10.0.1.10:4000
//!  Contact   10.0.1.10:4000/udp, 198.51.100.7                           users: those to this address
//! ```
//!
//! Inserting the external entry claims the port, from all other mappings and, as they look there too,
//! from sessions with a port for each remote (REQ-3: no overloading). The inside entry counts, and
//! whoever counts the last session out removes both, so nobody joins a mapping that is going.
//!
//! What comes to the external endpoint from a remote without a session gets in as the filter of the rule
//! says. A port forward of the same port wins.

use crate::{
    family::{Address, Family},
    mapping::{self, PortRange, PortWalk, TRIES, WalkEnd, has_port_classes},
    pipeline::{self, Passage, Stage, Work},
    records::{
        DnatKey, FILTER_ADDRESS, FILTER_INDEPENDENT, FipKey, LEAVING, MAP_INDEPENDENT,
        MAPPED_SOURCE, MAPPED_TARGET, Mapping, MappingKey, MappingKind, POOL_MEMBERS,
    },
    tables::{ClaimError, EipEvent, Tables},
    tuple::{Direction, Tuple},
    verdict::{DropReason, Exit, Tries},
};

/// A key that may lie on the BPF stack, where addresses are copied by eight bytes and must be aligned.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C, align(8))]
pub struct KeySlot<F: Family> {
    /// The key.
    pub key: MappingKey<F>,
}

impl<F: Family> MappingKey<F> {
    /// Becomes the key of an entry without a remote.
    #[inline(always)]
    pub fn set(&mut self, kind: MappingKind, address: &F::Addr, port: u16, protocol: u8) {
        self.address.set(address);
        self.remote.set(&F::Addr::default());
        self.port = port;
        self.protocol = protocol;
        self.kind = kind as u8;
    }
}

impl<F: Family> Mapping<F> {
    /// Whether the entry is just being removed.
    #[inline(always)]
    #[must_use]
    pub const fn is_leaving(&self) -> bool {
        self.users & LEAVING != 0
    }
}

/// Whether the source of the packet has a rule that maps it endpoint-independently.
#[inline(always)]
pub fn applies<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    if passage.config.mappings == 0 {
        return false;
    }
    let tuple = &passage.work.parsed.tuple;
    // Other protocols have no port to be kept.
    if !has_port_classes(tuple.protocol) && tuple.protocol != F::ICMP {
        return false;
    }
    let member = passage.tables.snat(&tuple.endpoints.source, 0);
    member.is_some_and(|member| member.options & MAP_INDEPENDENT != 0)
}

/// Turns the destination inside if it is the external endpoint of a mapping whose filter lets the
/// source in.
// A function of its own for its stack frame.
#[inline(never)]
pub fn redirect<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    let work = &mut *passage.work;
    let (ends, protocol) = (&work.parsed.tuple.endpoints, work.parsed.tuple.protocol);
    let (address, port) = (&ends.destination, ends.destination_port);
    work.mapping_key.set(MappingKind::External, address, port, protocol);
    let Some(mapping) = passage.tables.mapping(&work.mapping_key) else {
        return false;
    };
    let (options, rule, port) = (mapping.options, mapping.rule, mapping.port);
    work.mapping.peer.set(&mapping.peer);
    work.mapping_key.set(MappingKind::Contact, &work.mapping.peer, port, protocol);
    let admitted = options & FILTER_INDEPENDENT != 0
        || options & FILTER_ADDRESS != 0 && set_remote(passage) && has_contact(passage);
    if !admitted {
        return false;
    }
    let work = &mut *passage.work;
    work.rewrite.endpoints.destination.set(&work.mapping.peer);
    work.rewrite.endpoints.destination_port = port;
    work.rewrite.rule = rule;
    work.flags |= MAPPED_TARGET;
    true
}

#[inline(always)]
fn has_contact<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    passage.tables.mapping(&passage.work.mapping_key).is_some()
}

/// Puts the source into the key, as the inside endpoint of the mapping knows it: a host of the VPC by
/// its EIP, the first one if it has a pool.
#[inline(always)]
fn set_remote<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    let work = &mut *passage.work;
    let source = &work.parsed.tuple.endpoints.source;
    if work.arrival.direction == Direction::Inbound {
        work.mapping_key.remote.set(source);
        return true;
    }
    if let Some(own) = passage.tables.fip(&FipKey::new(source, Direction::Outbound)) {
        work.mapping_key.remote.set(&own.peer);
        return true;
    }
    let Some(member) = passage.tables.snat(source, 0) else {
        return false;
    };
    work.mapping_key.remote.set(&member.eip);
    true
}

/// Counts the session to be opened in at the mapping of its destination, as [`redirect`] found it.
#[inline(never)]
pub fn join_target<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    let work = &mut *passage.work;
    let (inside, ends) = (&work.rewrite.endpoints, &work.parsed.tuple.endpoints);
    let (address, port) = (&inside.destination, inside.destination_port);
    work.mapping_key.set(MappingKind::Inside, address, port, work.parsed.tuple.protocol);
    // The inside endpoint may have another mapping by now.
    let same = passage.tables.mapping(&work.mapping_key).is_some_and(|mapping| {
        mapping.peer == ends.destination && mapping.port == ends.destination_port
    });
    same && passage.tables.join_mapping(&work.mapping_key)
}

/// Counts the session that was not opened out again.
#[inline(always)]
pub fn give_back<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) {
    let work = &mut *passage.work;
    if work.flags & (MAPPED_SOURCE | MAPPED_TARGET) != 0 {
        let (original, reply) = (&work.parsed.tuple, &work.reply_key);
        leave(original, reply, work.flags, &mut work.mapping_keys, passage.tables);
    }
}

/// Finds or makes the mapping of the source, counts the session to be opened in there, and puts the
/// external endpoint into the reply's key.
///
/// # Errors
///
/// The [`DropReason`] for which there is no mapping; nothing is counted in then.
#[inline(always)]
pub fn join_source<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    let mapped = pipeline::apart(Stage::JoinMapping, passage)?
        || make(passage)?
        // Another CPU has made one meanwhile.
        || pipeline::apart(Stage::JoinMapping, passage)?;
    if !mapped {
        return Err(DropReason::TupleTaken.into());
    }
    passage.work.flags |= MAPPED_SOURCE;
    passage.work.draft.flags |= MAPPED_SOURCE;
    Ok(())
}

/// Counts the session in at the mapping that is there, and puts its external endpoint into the reply's
/// key; `false` if there is none.
///
/// # Errors
///
/// As [`join_source`].
#[inline(always)]
pub(crate) fn join<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<bool, Exit> {
    set_inside(passage);
    let work = &mut *passage.work;
    let Some(mapping) = passage.tables.mapping(&work.mapping_key) else {
        return Ok(false);
    };
    work.reply_key.endpoints.destination.set(&mapping.peer);
    work.reply_key.endpoints.destination_port = mapping.port;
    work.draft.rule = mapping.rule;
    let options = mapping.options;
    if !passage.tables.join_mapping(&work.mapping_key) {
        // It is just being removed.
        return Err(DropReason::TupleTaken.into());
    }
    join_contact(passage, options)
}

#[inline(always)]
fn set_inside<F: Family, T>(passage: &mut Passage<'_, F, T>) {
    let work = &mut *passage.work;
    let tuple = &work.parsed.tuple;
    let (source, port) = (&tuple.endpoints.source, tuple.endpoints.source_port);
    work.mapping_key.set(MappingKind::Inside, source, port, tuple.protocol);
}

/// Notes that the source talks to the destination's address, if its filter asks for that.
#[inline(always)]
fn join_contact<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
    options: u32,
) -> Result<bool, Exit> {
    if options & FILTER_ADDRESS == 0 {
        return Ok(true);
    }
    let work = &mut *passage.work;
    work.mapping_key.remote.set(&work.parsed.tuple.endpoints.destination);
    work.mapping_key.kind = MappingKind::Contact as u8;
    if passage.tables.join_mapping(&work.mapping_key) {
        return Ok(true);
    }
    work.mapping.peer.set(&F::Addr::default());
    work.mapping.port = 0;
    work.mapping.zero = 0;
    work.mapping.options = options;
    work.mapping.rule = work.draft.rule;
    work.mapping.users = 1;
    let reason = match passage.tables.claim_mapping(&work.mapping_key, &work.mapping) {
        Ok(()) => return Ok(true),
        // Another CPU notes the same.
        Err(ClaimError::Occupied) if passage.tables.join_mapping(&work.mapping_key) => {
            return Ok(true);
        }
        Err(ClaimError::Occupied) => DropReason::TupleTaken,
        Err(ClaimError::Full) => DropReason::SessionsFull,
    };
    // What was counted in at the mapping itself.
    leave_source(passage);
    Err(reason.into())
}

/// Counts the session out again at the mapping of its source.
#[inline(always)]
fn leave_source<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) {
    set_inside(passage);
    let work = &mut *passage.work;
    leave_inside(&work.mapping_key, &mut work.mapping_keys[0].key, passage.tables);
}

/// Makes a mapping with a free port of one of the source's EIPs, the session counted in; `false` if
/// another CPU has made one meanwhile.
#[inline(always)]
fn make<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<bool, Exit> {
    for turn in 0..POOL_MEMBERS as u32 {
        match choose(passage, turn) {
            Choice::End => break,
            Choice::Other => {}
            Choice::Mapped => match pipeline::apart(Stage::MakeMapping, passage) {
                Err(Exit::Drop(DropReason::PortsExhausted)) => {}
                outcome => return outcome,
            },
        }
    }
    Err(DropReason::PortsExhausted.into())
}

/// Member of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Choice {
    /// It maps endpoint-independently, and is in the draft.
    Mapped,
    /// It does not.
    Other,
    /// There is none.
    End,
}

/// Takes the EIP of the source's `turn`-th choice.
// A function of its own for its stack frame.
#[inline(never)]
fn choose<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>, turn: u32) -> Choice {
    let work = &mut *passage.work;
    let Some(member) = passage.tables.snat(&work.parsed.tuple.endpoints.source, turn) else {
        return Choice::End;
    };
    if member.options & MAP_INDEPENDENT == 0 {
        return Choice::Other;
    }
    work.reply_key.endpoints.destination.set(&member.eip);
    work.draft.rule = member.rule;
    work.mapping.rule = member.rule;
    work.mapping.options = member.options;
    Choice::Mapped
}

/// Makes a mapping on the EIP that is in the reply's key; `false` if another CPU has made one meanwhile.
///
/// # Errors
///
/// As [`join_source`].
#[inline(always)]
pub(crate) fn make_on_eip<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
) -> Result<bool, Exit> {
    let work = &mut *passage.work;
    let tuple = &work.parsed.tuple;
    work.mapping.peer.set(&tuple.endpoints.source);
    work.mapping.port = tuple.endpoints.source_port;
    work.mapping.zero = 0;
    work.mapping.users = 0;
    let eip = &work.reply_key.endpoints.destination;
    work.mapping_key.set(MappingKind::External, eip, 0, tuple.protocol);
    if !find_port(passage)? {
        passage.tables.count_event(Tries::Exhausted.counter());
        let eip = &passage.work.reply_key.endpoints.destination;
        passage.tables.count_eip(eip, EipEvent::Refused);
        return Err(DropReason::PortsExhausted.into());
    }
    let work = &mut *passage.work;
    let options = work.mapping.options;
    work.mapping.peer.set(&work.mapping_key.address);
    work.mapping.port = work.mapping_key.port;
    work.mapping.users = 1;
    work.reply_key.endpoints.destination_port = work.mapping_key.port;
    set_inside(passage);
    let work = &mut *passage.work;
    let Err(error) = passage.tables.claim_mapping(&work.mapping_key, &work.mapping) else {
        return join_contact(passage, options);
    };
    let (eip, protocol) = (&work.mapping.peer, work.parsed.tuple.protocol);
    work.mapping_key.set(MappingKind::External, eip, work.mapping.port, protocol);
    passage.tables.release_mapping(&work.mapping_key);
    match error {
        ClaimError::Occupied => Ok(false),
        ClaimError::Full => Err(DropReason::SessionsFull.into()),
    }
}

/// Inserts the external entry with a free port: a few at random, then all of them in turn; `false` if
/// none is free.
#[inline(always)]
fn find_port<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<bool, Exit> {
    let tuple = &passage.work.parsed.tuple;
    let classes = has_port_classes(tuple.protocol);
    let source_port = tuple.endpoints.source_port;
    let range = PortRange::for_source(classes, source_port, passage.config);
    let mut seed = passage.tables.random();
    for index in 0..TRIES {
        passage.work.mapping_key.port = range.candidate(seed);
        seed = mapping::next_seed(seed);
        if pipeline::apart(Stage::TryExternal, passage)? {
            passage.tables.count_event(Tries::at(index + 1).counter());
            return Ok(true);
        }
    }
    let low = u32::from(range.low());
    let mut walk = PortWalk {
        work: passage.work,
        timeouts: &passage.config.timeouts,
        mappings: passage.config.mappings != 0,
        external: true,
        low,
        size: range.size(),
        start: u32::from(range.candidate(seed)) - low,
        end: WalkEnd::Exhausted,
    };
    passage.tables.walk(&mut walk);
    match walk.end {
        WalkEnd::Claimed => {
            passage.tables.count_event(Tries::Walk.counter());
            Ok(true)
        }
        WalkEnd::Exhausted => Ok(false),
        WalkEnd::Full => Err(DropReason::SessionsFull.into()),
    }
}

/// Inserts the external entry with the port that is in its key; `false` if that is taken.
///
/// # Errors
///
/// [`DropReason::SessionsFull`].
#[inline(always)]
pub(crate) fn try_external<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
) -> Result<bool, Exit> {
    let port = passage.work.mapping_key.port;
    match claim_external(passage.work, port, passage.tables) {
        WalkEnd::Claimed => Ok(true),
        WalkEnd::Exhausted => Ok(false),
        WalkEnd::Full => Err(DropReason::SessionsFull.into()),
    }
}

/// Inserts the external entry with this port; [`WalkEnd::Exhausted`] if that is taken.
#[inline(always)]
pub fn claim_external<F: Family, T: Tables<F>>(
    work: &mut Work<F>,
    port: u16,
    tables: &mut T,
) -> WalkEnd {
    work.mapping_key.port = port;
    work.reply_key.endpoints.destination_port = port;
    if has_other_use(work, tables) {
        return WalkEnd::Exhausted;
    }
    match tables.claim_mapping(&work.mapping_key, &work.mapping) {
        Ok(()) => {}
        Err(ClaimError::Occupied) => return WalkEnd::Exhausted,
        Err(ClaimError::Full) => return WalkEnd::Full,
    }
    // Sessions look for mappings after they have claimed a port, so one of both sees the other.
    if tables.session(&work.reply_key).is_none() {
        return WalkEnd::Claimed;
    }
    tables.release_mapping(&work.mapping_key);
    WalkEnd::Exhausted
}

/// Whether a port forward would hide the mapping, or a session with a port for each remote has this one
/// towards the same remote.
#[inline(always)]
fn has_other_use<F: Family, T: Tables<F>>(work: &Work<F>, tables: &mut T) -> bool {
    let (eip, protocol) = (work.mapping_key.address, work.mapping_key.protocol);
    let dnat = DnatKey { eip, port: work.mapping_key.port, protocol, zero: 0 };
    tables.dnat(&dnat).is_some() || tables.session(&work.reply_key).is_some()
}

/// Whether a mapping has the port that a session is about to claim for itself. Looked at first, so that
/// sessions of the mapping find their tuples free at all times.
#[inline(always)]
pub fn has_port<F: Family, T: Tables<F>>(work: &mut Work<F>, tables: &mut T) -> bool {
    let ends = &work.reply_key.endpoints;
    let (eip, port) = (&ends.destination, ends.destination_port);
    work.mapping_key.set(MappingKind::External, eip, port, work.reply_key.protocol);
    tables.mapping(&work.mapping_key).is_some()
}

/// Whether a mapping was given the port that a session has just claimed for itself; it is given back then.
#[inline(always)]
pub fn got_port<F: Family, T: Tables<F>>(work: &mut Work<F>, tables: &mut T) -> bool {
    if !has_port(work, tables) {
        return false;
    }
    tables.release(&work.reply_key);
    true
}

/// Counts a session out at the mappings that it used, as `flags` of its entries say, and removes those
/// that it was the last one of.
///
/// `original` is the key of its original entry, `reply` that of the other one; what `keys` hold does not
/// matter.
// A function of its own for its stack frame.
#[inline(never)]
pub fn leave<F: Family, T: Tables<F>>(
    original: &Tuple<F>,
    reply: &Tuple<F>,
    flags: u8,
    keys: &mut [KeySlot<F>; 2],
    tables: &mut T,
) {
    let [KeySlot { key }, KeySlot { key: external }] = keys;
    if flags & MAPPED_TARGET != 0 {
        let ends = &reply.endpoints;
        key.set(MappingKind::Inside, &ends.source, ends.source_port, reply.protocol);
        leave_inside(key, external, tables);
    }
    if flags & MAPPED_SOURCE != 0 {
        let ends = &original.endpoints;
        key.set(MappingKind::Contact, &ends.source, ends.source_port, original.protocol);
        key.remote.set(&ends.destination);
        if tables.leave_mapping(key, external) {
            tables.release_mapping(key);
        }
        key.remote.set(&F::Addr::default());
        key.kind = MappingKind::Inside as u8;
        leave_inside(key, external, tables);
    }
}

#[inline(always)]
fn leave_inside<F: Family, T: Tables<F>>(
    key: &MappingKey<F>,
    external: &mut MappingKey<F>,
    tables: &mut T,
) {
    if tables.leave_mapping(key, external) {
        // The inside endpoint gets no other mapping before this one is gone altogether.
        tables.release_mapping(external);
        tables.release_mapping(key);
    }
}
