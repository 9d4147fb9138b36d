//! The path of a packet, in one page.

use crate::{
    classify::{self, Action},
    family::Family,
    forward,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rewrite<F: Family> {
    /// Both ends after translation.
    pub endpoints: Endpoints<F>,
    /// Where it goes.
    pub next_hop: NextHop<F>,
    /// Id of the rule that decided; 0 for none.
    pub rule: u32,
}

impl<F: Family> Rewrite<F> {
    /// The packet as it is, with no place to go yet.
    #[inline(always)]
    #[must_use]
    pub fn none(parsed: &Parsed<F>) -> Self {
        Self { endpoints: parsed.tuple.endpoints, next_hop: NextHop::default(), rule: 0 }
    }
}

/// Takes one packet through the gateway.
#[inline(always)]
pub fn process<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Verdict<F> {
    run(packet, tables, config, arrival).unwrap_or_else(Verdict::from)
}

#[inline(always)]
fn run<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<Verdict<F>, Exit> {
    if config.generation == 0 {
        return Err(DropReason::NotConfigured.into());
    }
    let mut parsed = Parsed::new(arrival.direction);
    parse::parse(packet, &mut parsed)?;
    let mut rewrite = Rewrite::none(&parsed);
    decide(packet, &parsed, &mut rewrite, tables, config, arrival)?;
    translate(packet, &parsed, &rewrite.endpoints)?;
    tables.count_rule(rewrite.rule, arrival.frame_bytes);
    Ok(forward::forward(&rewrite))
}

/// Session, else rule: what the packet becomes.
#[inline(always)]
fn decide<F: Family, P: Packet, T: Tables<F>>(
    packet: &mut P,
    parsed: &Parsed<F>,
    rewrite: &mut Rewrite<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<(), Exit> {
    if parsed.is_trackable() && session::lookup(parsed, rewrite, tables, config, arrival)? {
        return forward::check(packet, parsed, rewrite, config, arrival.direction);
    }
    let action = classify::classify(parsed, rewrite, tables, config, arrival)?;
    forward::check(packet, parsed, rewrite, config, arrival.direction)?;
    match action {
        Action::Stateless => Ok(()),
        Action::Open { .. } if !parsed.is_trackable() => {
            Err(parse::untrackable_reason(parsed).into())
        }
        Action::Open { source, flags } => {
            session::open(parsed, source, flags, rewrite, tables, config, arrival)
        }
    }
}
