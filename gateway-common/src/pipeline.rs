//! The path of a packet, in one page.

use crate::{
    classify::{self, Action},
    endpoint_independent::{self, KeySlot},
    family::Family,
    forward, fragment, icmp_error, mss,
    packet::Packet,
    parse::{self, Fragment, Parsed, PortFields},
    records::{Config, Datagram, HeldKey, Mapping, MappingKey, Session, Ticks},
    session,
    spread::{self, Kept},
    tables::Tables,
    translate::translate,
    tuple::{Direction, Endpoints, Tuple},
    verdict::{DropReason, Exit, NextHop, PassReason, Verdict},
    wire::ethernet::Ethernet,
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

impl Arrival {
    /// Becomes `other`. By fields: the verifier refuses to read the padding between them.
    #[inline(always)]
    fn set(&mut self, other: &Self) {
        self.now = other.now;
        self.ifindex = other.ifindex;
        self.direction = other.direction;
        self.frame_bytes = other.frame_bytes;
    }
}

impl Default for Arrival {
    fn default() -> Self {
        Self { now: 0, ifindex: 0, direction: Direction::Outbound, frame_bytes: 0 }
    }
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
    /// How the packet came in.
    pub arrival: Arrival,
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
    /// Key of the datagram that the packet is a fragment of, with a place where one is held.
    pub held_key: HeldKey<F>,
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
    /// Where the flow went so far, while a next hop is looked for.
    pub kept: Kept<F>,
    /// MAC address of the router that the packet came from, if there is any next-hop group.
    pub came_from: [u8; 6],
    /// Why the slow path ended, if it did.
    exit: Exit,
}

impl<F: Family> Default for Work<F> {
    fn default() -> Self {
        Self {
            arrival: Arrival::default(),
            parsed: Parsed::new(Direction::Outbound),
            rewrite: Rewrite::default(),
            quote: Parsed::new(Direction::Outbound),
            action: Action::Stateless,
            flags: 0,
            draft: Session::default(),
            datagram: Datagram::default(),
            held_key: HeldKey::default(),
            reply_key: Tuple::default(),
            holder: Session::default(),
            holder_key: Tuple::default(),
            mapping: Mapping::default(),
            mapping_key: MappingKey::default(),
            mapping_keys: [KeySlot::default(); 2],
            kept: Kept::default(),
            came_from: [0; 6],
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
    work.arrival.set(arrival);
    let mut passage = Passage { work, tables, config };
    match run(packet, &mut passage) {
        Ok(()) => forward::forward(passage.work),
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
    passage.work.parsed.clear(passage.work.arrival.direction);
    parse::parse(packet, &mut passage.work.parsed)?;
    if P::ACCELERATES {
        leave_the_rare(&passage.work.parsed, passage.config)?;
    } else if passage.work.parsed.fragment == Fragment::Later {
        fragment::recall(packet, passage);
    }
    if passage.work.parsed.is_trackable() && session::lookup(packet, passage)? {
        identify(packet, passage)?;
    } else if !P::ACCELERATES
        && icmp_error::is_error(&passage.work.parsed)
        && apart_with(PacketStage::Related, packet, passage)?
    {
        return Ok(());
    } else if let Err(exit) = decide(packet, passage) {
        return Err(wait(exit, packet, passage));
    }
    if !P::ACCELERATES && mss::applies(&passage.work.parsed, passage.config) {
        apart_with(PacketStage::ClampMss, packet, passage)?;
    }
    translate(packet, &passage.work.parsed, &passage.work.rewrite.endpoints)?;
    let (rule, bytes) = (passage.work.rewrite.rule, passage.work.arrival.frame_bytes);
    passage.tables.count_rule(rule, bytes);
    Ok(())
}

/// Leaves to the complete path what an accelerator does not do.
#[inline(always)]
fn leave_the_rare<F: Family>(parsed: &Parsed<F>, config: &Config) -> Result<(), PassReason> {
    if parsed.fragment != Fragment::Whole {
        return Err(PassReason::Fragment);
    }
    if icmp_error::is_error(parsed) {
        return Err(PassReason::IcmpError);
    }
    if mss::applies(parsed, config) {
        return Err(PassReason::Syn);
    }
    Ok(())
}

/// Gives a packet of a session a new identification, unless it is atomic.
#[inline(always)]
fn identify<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<(), Exit> {
    if passage.work.parsed.atomic {
        return Ok(());
    }
    match fragment::identify(packet, passage) {
        Outcome::Yes => Ok(()),
        Outcome::No => Err(DropReason::Truncated.into()),
        Outcome::Exit => apart_with(PacketStage::Replay, packet, passage).map(drop),
    }
}

/// Holds a later fragment that is for a session or for nobody, before its first one has come. One that
/// may be for the gateway itself goes there, too.
#[inline(always)]
fn wait<F: Family, P: Packet, T: Tables<F>>(
    exit: Exit,
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Exit {
    let held = match exit {
        Exit::Pass(PassReason::Local) => exit,
        // Answers of a port forward's backend are covered by their session alone.
        Exit::Drop(DropReason::Fragment | DropReason::NoRule) => DropReason::FragmentHeld.into(),
        _ => return exit,
    };
    let large = passage.work.arrival.frame_bytes > fragment::HELD_BYTES;
    if P::ACCELERATES || large || passage.work.parsed.fragment != Fragment::Later {
        return exit;
    }
    match apart_with(PacketStage::Hold, packet, passage) {
        Ok(true) => held,
        Ok(false) => exit,
        Err(replayed) => replayed,
    }
}

/// The slow path: no session, so a rule decides.
#[inline(always)]
fn decide<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<(), Exit> {
    apart(Stage::Classify, passage)?;
    forward::check(packet, passage.work, passage.config)?;
    let ports = passage.work.parsed.ports;
    let quotes = matches!(ports, PortFields::Quoted | PortFields::Redirect);
    let complete = match passage.work.action {
        Action::Unchanged => ports != PortFields::Redirect,
        // A floating IP does not pass on an error about somebody else: its quote would stay as it is.
        Action::Stateless => !(quotes && passage.work.rewrite.rule != 0),
        Action::OpenKept | Action::OpenPort | Action::OpenPool | Action::OpenMapped => false,
    };
    if complete {
        return Ok(());
    }
    if !passage.work.parsed.can_open() {
        return Err(parse::untrackable_reason(&passage.work.parsed).into());
    }
    if passage.config.next_hops != 0 {
        passage.work.came_from = packet.at::<Ethernet>(0)?.source;
    }
    match open(passage) {
        Ok(()) => {}
        // Another CPU may have opened the same flow meanwhile: its session is the one.
        Err(Exit::Drop(DropReason::TupleTaken)) if !P::ACCELERATES => {
            if !apart_with(PacketStage::Lookup, packet, passage)? {
                return Err(DropReason::TupleTaken.into());
            }
        }
        Err(exit) => return Err(exit),
    }
    identify(packet, passage)
}

/// A part of the path that few packets take.
///
/// The kernel shell makes each a function that the verifier looks at once, whatever led there, and
/// that has a stack frame only while it runs. So a stage takes and leaves all it knows in [`Work`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// A session whose route may have changed, or which may have ended.
    Settle,
    /// Which rule applies.
    Classify,
    /// The permission for a new session, and its draft.
    Begin,
    /// The external endpoint that the source has for everybody, if its rule says so.
    MapSource,
    /// Both entries of a new session.
    Insert,
    /// The reply's entry with one of a few random ports; no if they are taken.
    DrawPort,
    /// The reply's entry with one port; no if that is taken.
    TryPort,
    /// The reply's entry with the next free port; no if all are taken.
    WalkPorts,
    /// The reply's entry, if its holder is over; no if it is not.
    ClaimOver,
    /// A place in the mapping of the source; no if there is none.
    JoinMapping,
    /// A mapping on one EIP; no if another CPU has made one meanwhile.
    MakeMapping,
    /// The external entry of a mapping with one port; no if that is taken.
    TryExternal,
}

/// As [`Stage`], for what needs the packet too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PacketStage {
    /// An ICMP error about a translated packet, from its quote to its new bytes; no if it is about none
    /// of ours.
    Related,
    /// The session that another CPU has opened meanwhile; no if there is none.
    Lookup,
    /// A place for a later fragment until its first one comes; no if there is none.
    Hold,
    /// Everything that is held of the packet's datagram, once more.
    Replay,
    /// A smaller MSS in a SYN, if it has one that is too large.
    ClampMss,
}

/// How a [`Stage`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Outcome {
    /// No.
    No = 0,
    /// Yes, or done.
    Yes = 1,
    /// The packet goes no further, as [`Work`] says.
    Exit = 2,
}

impl Outcome {
    /// The outcome stored as `value`.
    #[inline(always)]
    #[must_use]
    pub const fn from_u32(value: u32) -> Self {
        match value {
            0 => Self::No,
            1 => Self::Yes,
            _ => Self::Exit,
        }
    }
}

impl Stage {
    /// Runs the stage right here.
    #[inline(always)]
    pub fn run<F: Family, T: Tables<F>>(self, passage: &mut Passage<'_, F, T>) -> Outcome {
        let result = match self {
            Self::Settle => session::settle(passage).map(|()| true),
            Self::Classify => start(passage).map(|()| true),
            Self::Begin => session::begin(passage).map(|()| true),
            Self::MapSource => map_source(passage).map(|()| true),
            Self::Insert => session::open(passage).map(|()| true),
            Self::DrawPort => session::draw_port(passage),
            Self::TryPort => session::try_port(passage),
            Self::WalkPorts => session::walk_ports(passage),
            Self::ClaimOver => session::claim_over(passage),
            Self::JoinMapping => endpoint_independent::join(passage),
            Self::MakeMapping => endpoint_independent::make_on_eip(passage),
            Self::TryExternal => endpoint_independent::try_external(passage),
        };
        passage.work.conclude(result)
    }
}

impl PacketStage {
    /// Runs the stage right here.
    #[inline(always)]
    pub fn run<F: Family, P: Packet, T: Tables<F>>(
        self,
        packet: &mut P,
        passage: &mut Passage<'_, F, T>,
    ) -> Outcome {
        let result = match self {
            Self::Related => related(packet, passage),
            Self::Lookup => session::lookup(packet, passage),
            Self::Hold => fragment::hold(passage),
            Self::Replay => fragment::replay(passage).map(|()| true),
            Self::ClampMss => Ok(mss::clamp(packet, &passage.work.parsed, passage.config)),
        };
        passage.work.conclude(result)
    }
}

impl<F: Family> Work<F> {
    /// Keeps what does not fit into a register.
    #[inline(always)]
    fn conclude(&mut self, result: Result<bool, Exit>) -> Outcome {
        match result {
            Ok(false) => Outcome::No,
            Ok(true) => Outcome::Yes,
            Err(exit) => {
                self.exit = exit;
                Outcome::Exit
            }
        }
    }

    #[inline(always)]
    fn concluded(&self, outcome: Outcome) -> Result<bool, Exit> {
        match outcome {
            Outcome::No => Ok(false),
            Outcome::Yes => Ok(true),
            Outcome::Exit => Err(self.exit),
        }
    }
}

/// Runs a stage as the shell runs it.
#[inline(always)]
pub(crate) fn apart<F: Family, T: Tables<F>>(
    stage: Stage,
    passage: &mut Passage<'_, F, T>,
) -> Result<bool, Exit> {
    let outcome = T::apart(stage, passage);
    passage.work.concluded(outcome)
}

#[inline(always)]
fn apart_with<F: Family, P: Packet, T: Tables<F>>(
    stage: PacketStage,
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<bool, Exit> {
    let outcome = T::apart_with(stage, packet, passage);
    passage.work.concluded(outcome)
}

#[inline(always)]
fn related<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<bool, Exit> {
    icmp_error::parse_quote(packet, passage.work)?;
    if !icmp_error::find(passage) {
        return Ok(false);
    }
    icmp_error::route(passage)?;
    forward::check(packet, passage.work, passage.config)?;
    identify(packet, passage)?;
    icmp_error::translate(packet, passage)?;
    Ok(true)
}

#[inline(always)]
fn start<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    passage.work.rewrite.endpoints.set(&passage.work.parsed.tuple.endpoints);
    passage.work.rewrite.rule = 0;
    passage.work.flags = 0;
    passage.work.action = classify::classify(passage)?;
    // Of a fragmented datagram that no session knows, all pieces must go the same way.
    let ports = match passage.work.action {
        Action::Stateless | Action::Unchanged => passage.work.parsed.fragment == Fragment::Whole,
        Action::OpenKept | Action::OpenPort | Action::OpenPool | Action::OpenMapped => true,
    };
    spread::spread(passage, None, ports)
}

#[inline(always)]
fn open<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    let mapped = passage.work.action == Action::OpenMapped;
    let opened = apart(Stage::Begin, passage)
        .and_then(|_| if mapped { apart(Stage::MapSource, passage) } else { Ok(true) })
        .and_then(|_| apart(Stage::Insert, passage));
    if opened.is_err() {
        endpoint_independent::give_back(passage);
    }
    opened.map(drop)
}

#[inline(always)]
fn map_source<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    match passage.work.action {
        Action::OpenMapped => endpoint_independent::join_source(passage),
        Action::Stateless
        | Action::Unchanged
        | Action::OpenKept
        | Action::OpenPort
        | Action::OpenPool => Ok(()),
    }
}
