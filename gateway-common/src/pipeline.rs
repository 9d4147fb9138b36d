//! The path of a packet, in one page.

use crate::{
    classify::{self, Action},
    family::Family,
    forward, icmp_error,
    packet::Packet,
    parse::{self, Parsed},
    records::{Config, Ticks},
    session,
    tables::Tables,
    translate::translate,
    tuple::{Direction, Endpoints},
    verdict::{DropReason, Exit, NextHop, Verdict},
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

/// What is found out about a packet: everything whose size depends on the family.
///
/// For IPv6 it does not fit on the BPF stack, so the caller says where it lies.
#[derive(Clone, Copy, Debug)]
pub struct Work<F: Family> {
    /// What the packet says.
    pub parsed: Parsed<F>,
    /// What it becomes, as far as that is decided.
    pub rewrite: Rewrite<F>,
}

impl<F: Family> Default for Work<F> {
    #[inline(always)]
    fn default() -> Self {
        Self { parsed: Parsed::new(Direction::Outbound), rewrite: Rewrite::default() }
    }
}

/// A packet on its way through, with everything that is known about it.
#[derive(Debug)]
pub struct Passage<'a, F: Family, T> {
    /// See [`Work::parsed`].
    pub parsed: &'a mut Parsed<F>,
    /// See [`Work::rewrite`].
    pub rewrite: &'a mut Rewrite<F>,
    /// What the gateway knows.
    pub tables: &'a mut T,
    /// What the gateway is told.
    pub config: &'a Config,
    /// How the packet came in.
    pub arrival: &'a Arrival,
    /// What its rule asks for, if it has no session.
    pub action: Action,
    /// [`crate::records::HAIRPIN`] or 0, for the session to be opened.
    pub flags: u8,
    /// Why the slow path ended, if it did.
    exit: Exit,
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

/// As [`process`], with the work done in a place of the caller's. What it holds does not matter.
#[inline(always)]
pub fn process_in<F: Family, P: Packet, T: Tables<F>>(
    work: &mut Work<F>,
    packet: &mut P,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Verdict<F> {
    let mut passage = Passage {
        parsed: &mut work.parsed,
        rewrite: &mut work.rewrite,
        tables,
        config,
        arrival,
        action: Action::Stateless,
        flags: 0,
        exit: Exit::Drop(DropReason::HelperFailed),
    };
    match run(packet, &mut passage) {
        Ok(()) => forward::forward(passage.rewrite),
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
    passage.parsed.clear(passage.arrival.direction);
    parse::parse(packet, passage.parsed)?;
    if passage.parsed.is_trackable() && session::lookup(passage)? {
        forward::check(packet, passage)?;
    } else if icmp_error::is_error(passage.parsed) && related(packet, passage)? {
        return Ok(());
    } else {
        decide(packet, passage)?;
    }
    translate(packet, passage.parsed, &passage.rewrite.endpoints)?;
    passage.tables.count_rule(passage.rewrite.rule, passage.arrival.frame_bytes);
    Ok(())
}

/// An ICMP error about a translated packet; `false` if it is about none of ours.
#[inline(always)]
fn related<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<bool, Exit> {
    match find_related(packet, passage) {
        Related::Found => {}
        Related::Unknown => return Ok(false),
        Related::Refused => return Err(passage.exit),
    }
    icmp_error::route(passage)?;
    forward::check(packet, passage)?;
    if translate_error(packet, passage) { Ok(true) } else { Err(passage.exit) }
}

/// The slow path: no session, so a rule decides.
#[inline(always)]
fn decide<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Result<(), Exit> {
    passage.rewrite.endpoints = passage.parsed.tuple.endpoints;
    passage.rewrite.rule = 0;
    if !classify(passage) {
        return Err(passage.exit);
    }
    forward::check(packet, passage)?;
    if passage.action == Action::Stateless {
        return Ok(());
    }
    if !passage.parsed.is_trackable() {
        return Err(parse::untrackable_reason(passage.parsed).into());
    }
    // Another CPU may have opened the same flow meanwhile: its session is the one.
    if open(passage) || passage.exit == DropReason::TupleTaken.into() && lookup(passage) {
        return Ok(());
    }
    Err(passage.exit)
}

// Functions of their own, so that the packets of open sessions do not carry their stack frames.
// A BPF function returns one register, and the verifier refuses to store what success leaves
// undefined of a `Result`: hence `bool`, and `Passage::exit` for the failures.

#[inline(never)]
fn classify<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    match classify::classify(passage) {
        Ok(action) => {
            passage.action = action;
            true
        }
        Err(exit) => {
            passage.exit = exit;
            false
        }
    }
}

#[inline(never)]
fn open<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    match session::open(passage) {
        Ok(()) => true,
        Err(exit) => {
            passage.exit = exit;
            false
        }
    }
}

#[inline(never)]
fn lookup<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    session::lookup(passage) == Ok(true)
}

#[inline(never)]
fn find_related<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> Related {
    match icmp_error::find(packet, passage) {
        Ok(true) => Related::Found,
        Ok(false) => Related::Unknown,
        Err(exit) => {
            passage.exit = exit;
            Related::Refused
        }
    }
}

/// What [`find_related`] found.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Related {
    Found,
    Unknown,
    Refused,
}

#[inline(never)]
fn translate_error<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    passage: &mut Passage<'_, F, T>,
) -> bool {
    match icmp_error::translate(packet, passage) {
        Ok(()) => true,
        Err(exit) => {
            passage.exit = exit;
            false
        }
    }
}
