//! The path of a packet, in one page.

use crate::{
    classify::{self, Action},
    endpoint_independent::{self, KeySlot},
    family::Family,
    forward, fragment, icmp_error,
    packet::Packet,
    parse::{self, Fragment, Parsed, PortFields},
    records::{Config, Datagram, DatagramKey, Mapping, MappingKey, Session, Ticks},
    session,
    tables::Tables,
    translate::translate,
    tuple::{Direction, Endpoints, Tuple},
    verdict::{DropReason, Exit, NextHop, PassReason, Verdict},
};

/// How a packet came in.
#[derive(Clone, Copy, Debug)]
pub struct Arrival {
    /// Time of arrival.
    pub now: Ticks,
    /// Index of the interface.
    pub ifindex: u32,
    /// Which of the two interfaces it is.
    pub direction: Direction,
    /// Length of the frame in bytes, Ethernet header included.
    pub frame_bytes: u32,
}

/// What a packet becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite<F: Family> {
    /// Both ends after translation.
    pub endpoints: Endpoints<F>,
    /// Where it goes.
    pub next_hop: NextHop<F>,
    /// Id of the rule that decided; 0 for none.
    pub rule: u32,
}

/// What is found out about a packet.
///
/// It does not fit on the BPF stack, so the kernel shell keeps one for each CPU. That also makes
/// the verifier forget what it knew of these values, and look at each step once and not once for
/// every way to get there.
#[derive(Clone, Copy, Debug)]
pub struct Work<F: Family> {
    /// What the packet says.
    pub parsed: Parsed<F>,
    /// What it becomes, as far as that is decided.
    pub rewrite: Rewrite<F>,
    /// What the packet says that an ICMP error quotes.
    pub quote: Parsed<F>,
    /// What its rule asks for, if it has no session.
    pub action: Action,
    /// Flags of the session to be opened, but [`crate::records::ORIGINAL`].
    pub flags: u8,
    /// The session to be opened: one record for both of its entries, one after the other.
    pub draft: Session<F>,
    /// The datagram that the packet is a fragment of. Only the identification counts if it is whole.
    pub datagram: Datagram,
    /// Key of the datagram that the packet is a fragment of.
    pub datagram_key: DatagramKey<F>,
    /// Key of the entry that the reply will find.
    pub reply_key: Tuple<F>,
    /// The session that holds a wanted port, and the key of its other entry.
    pub holder: Session<F>,
    /// See [`Work::holder`].
    pub holder_key: Tuple<F>,
    /// A mapping that is looked for or made, and its key.
    pub mapping: Mapping<F>,
    /// See [`Work::mapping`].
    pub mapping_key: MappingKey<F>,
    /// Keys of mappings that a session is counted out of.
    pub mapping_keys: [KeySlot<F>; 2],
    /// Why the slow path ended, if it did.
    exit: Exit,
}

impl<F: Family> Default for Work<F> {
    fn default() -> Self {
        Self {
            parsed: Parsed::new(Direction::Outbound),
            rewrite: Rewrite::default(),
            quote: Parsed::new(Direction::Outbound),
            action: Action::Stateless,
            flags: 0,
            draft: Session::default(),
            datagram: Datagram::default(),
            datagram_key: DatagramKey::default(),
            reply_key: Tuple::default(),
            holder: Session::default(),
            holder_key: Tuple::default(),
            mapping: Mapping::default(),
            mapping_key: MappingKey::default(),
            mapping_keys: [KeySlot::default(); 2],
            exit: Exit::Drop(DropReason::HelperFailed),
        }
    }
}

/// A packet on its way through, with everything that the steps need.
#[derive(Debug)]
pub struct Passage<'a, F: Family, T> {
    /// What is found out about the packet.
    pub work: &'a mut Work<F>,
    /// What the gateway knows.
    pub tables: &'a mut T,
    /// What the gateway is told.
    pub config: &'a Config,
    /// How the packet came in.
    pub arrival: &'a Arrival,
}

/// Takes one packet through the gateway.
#[inline(always)]
pub fn process<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Verdict<F> {
    process_in(&mut Work::default(), packet, tables, config, arrival)
}

/// As [`process`], in a place of the caller's. What that holds of an earlier packet does not matter.
#[inline(always)]
pub fn process_in<F: Family, P: Packet, T: Tables<F>>(
    work: &mut Work<F>,
    packet: &mut P,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Verdict<F> {
    let mut passage = Passage { work, tables, config, arrival };
    match run(packet, &mut passage) {
        Ok(()) => forward::forward(&passage.work.rewrite),
        Err(exit) => exit.into(),
    }
}

#[inline(always)]
fn run<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<(), Exit> {
    if passage.config.generation == 0 {
        return Err(DropReason::NotConfigured.into());
    }
    passage.work.parsed.clear(passage.arrival.direction);
    parse::parse(packet, &mut passage.work.parsed)?;
    if P::ACCELERATES {
        leave_the_rare(&passage.work.parsed)?;
    } else if passage.work.parsed.fragment == Fragment::Later {
        fragment::recall(packet, passage);
    }
    if passage.work.parsed.is_trackable() && session::lookup(packet, passage)? {
        identify(packet, passage)?;
    } else if !P::ACCELERATES
        && icmp_error::is_error(&passage.work.parsed)
        && related(packet, passage)?
    {
        return Ok(());
    } else {
        decide(packet, passage)?;
    }
    if P::ACCELERATES {
        if !translate_apart(packet, passage.work) {
            return Err(passage.work.exit);
        }
    } else {
        translate(packet, &passage.work.parsed, &passage.work.rewrite.endpoints)?;
    }
    passage.tables.count_rule(passage.work.rewrite.rule, passage.arrival.frame_bytes);
    Ok(())
}

/// Leaves to the complete path what an accelerator does not do.
#[inline(always)]
fn leave_the_rare<F: Family>(parsed: &Parsed<F>) -> Result<(), PassReason> {
    if parsed.fragment != Fragment::Whole {
        return Err(PassReason::Fragment);
    }
    if icmp_error::is_error(parsed) {
        return Err(PassReason::IcmpError);
    }
    Ok(())
}

/// Gives a packet of a session a new identification, unless it is atomic.
#[inline(always)]
fn identify<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<(), Exit> {
    if passage.work.parsed.atomic || fragment::identify(packet, passage) {
        return Ok(());
    }
    Err(DropReason::Truncated.into())
}

/// An ICMP error about a translated packet; `false` if it is about none of ours.
#[inline(always)]
fn related<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<bool, Exit> {
    if !parse_quote(packet, passage.work) {
        return Err(passage.work.exit);
    }
    if !find_related(passage) {
        return Ok(false);
    }
    icmp_error::route(passage)?;
    forward::check(packet, passage.work, passage.config, passage.arrival)?;
    identify(packet, passage)?;
    if translate_error(packet, passage) { Ok(true) } else { Err(passage.work.exit) }
}

/// The slow path: no session, so a rule decides.
#[inline(always)]
fn decide<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<(), Exit> {
    passage.work.rewrite.endpoints.set(&passage.work.parsed.tuple.endpoints);
    passage.work.rewrite.rule = 0;
    passage.work.flags = 0;
    if !classify(passage) {
        return Err(passage.work.exit);
    }
    forward::check(packet, passage.work, passage.config, passage.arrival)?;
    let ports = passage.work.parsed.ports;
    let quotes = matches!(ports, PortFields::Quoted | PortFields::Redirect);
    // A floating IP does not pass on an error about somebody else: its quote would stay as it is.
    if passage.work.action == Action::Stateless && !(quotes && passage.work.rewrite.rule != 0) {
        return Ok(());
    }
    if !passage.work.parsed.can_open() {
        return Err(parse::untrackable_reason(&passage.work.parsed).into());
    }
    let opened = begin(passage) && map_source(passage) && open(passage);
    if !opened {
        endpoint_independent::give_back(passage);
    }
    // Another CPU may have opened the same flow meanwhile: its session is the one.
    if opened || passage.work.exit == DropReason::TupleTaken.into() && lookup(packet, passage) {
        return identify(packet, passage);
    }
    Err(passage.work.exit)
}

// Functions of their own, so that the packets of open sessions do not carry their stack frames.
// A BPF function returns one register, and the verifier refuses to store what success leaves
// undefined of a `Result`: hence `bool`, and `Passage::exit` for the failures.

#[inline(never)]
fn classify<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    match classify::classify(passage) {
        Ok(action) => {
            passage.work.action = action;
            true
        }
        Err(exit) => {
            passage.work.exit = exit;
            false
        }
    }
}

#[inline(never)]
fn begin<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    match session::begin(passage) {
        Ok(()) => true,
        Err(exit) => {
            passage.work.exit = exit;
            false
        }
    }
}

#[inline(never)]
fn map_source<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    if passage.work.action != Action::OpenMapped {
        return true;
    }
    match endpoint_independent::join_source(passage) {
        Ok(()) => true,
        Err(exit) => {
            passage.work.exit = exit;
            false
        }
    }
}

#[inline(never)]
fn open<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    match session::open(passage) {
        Ok(()) => true,
        Err(exit) => {
            passage.work.exit = exit;
            false
        }
    }
}

// Without the helper calls of the other medium in between, the compiler keeps both tuples at hand,
// which is more than fits on the stack below the slow path.
#[inline(never)]
fn translate_apart<F: Family, P: Packet>(packet: &mut P, work: &mut Work<F>) -> bool {
    match translate(packet, &work.parsed, &work.rewrite.endpoints) {
        Ok(()) => true,
        Err(exit) => {
            work.exit = exit;
            false
        }
    }
}

#[inline(never)]
fn lookup<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> bool {
    match session::lookup(packet, passage) {
        Ok(found) => found,
        Err(exit) => {
            passage.work.exit = exit;
            false
        }
    }
}

#[inline(never)]
fn parse_quote<F: Family, P: Packet>(packet: &mut P, work: &mut Work<F>) -> bool {
    match icmp_error::parse_quote(packet, work) {
        Ok(()) => true,
        Err(exit) => {
            work.exit = exit;
            false
        }
    }
}

#[inline(never)]
fn find_related<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    icmp_error::find(passage)
}

#[inline(never)]
fn translate_error<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> bool {
    match icmp_error::translate(packet, passage) {
        Ok(()) => true,
        Err(exit) => {
            passage.work.exit = exit;
            false
        }
    }
}
