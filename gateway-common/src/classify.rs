//! Which rule applies to a packet whose flow has no session.
//!
//! Every look-up is an exact match but the one of a SNAT source, so the cost does not depend on
//! the number of rules. The order is that of Kube-OVN's chains: FIP, then DNAT, then SNAT.

use crate::{
    family::Family,
    parse::{Parsed, PortFields},
    pipeline::Arrival,
    records::{Config, DnatKey, Fip, FipKey, HAIRPIN, Unmatched},
    tables::{Route, RouteQuery, Tables},
    tuple::{Direction, Endpoints},
    verdict::{DropReason, Exit, NextHop, PassReason},
};

/// How a session gets its source address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// As [`Opening::translated`] has them.
    Kept,
    /// The address as [`Opening::translated`] has it, with a free port of it.
    FreePort,
    /// A free port of an EIP from the SNAT pool of the original source.
    Pool,
}

/// A session to be opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening<F: Family> {
    /// Both ends after translation, as far as they are known.
    pub translated: Endpoints<F>,
    /// What is still to be chosen.
    pub source: Source,
    /// Id of the rule; 0 while the pool has not been asked.
    pub rule: u32,
    /// [`HAIRPIN`] or 0.
    pub flags: u8,
}

/// What is to be done with a packet whose flow has no session.
#[derive(Clone, Copy, Debug)]
pub enum Action<F: Family> {
    /// Open a session.
    Open(Opening<F>),
    /// Rewrite by a floating IP, which needs no state.
    Float {
        /// Both ends after translation.
        translated: Endpoints<F>,
        /// Id of the rule.
        rule: u32,
    },
    /// Route it as it is (`--unmatched forward`).
    Untranslated,
}

/// The rule's action and the neighbour to send the packet to.
pub type Classified<F> = (Action<F>, NextHop<F>);

/// Finds the rule for a packet without a session.
///
/// # Errors
///
/// An [`Exit`] for packets that no rule covers and for those that are the gateway's own.
#[inline(always)]
pub fn classify<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<Classified<F>, Exit> {
    match arrival.direction {
        Direction::Outbound => outbound(parsed, tables, config, arrival),
        Direction::Inbound => inbound(parsed, tables, config, arrival),
    }
}

/// From the VPC: to the outside, or back into the VPC through an EIP.
#[inline(always)]
fn outbound<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<Classified<F>, Exit> {
    let ends = parsed.tuple.endpoints;
    let own_fip = tables.fip(&FipKey::new(ends.source, Direction::Outbound));
    if let Some(action) = hairpin(parsed, tables, own_fip) {
        let next_hop = inside_route(parsed, tables, config, arrival, translated_of(&action))?;
        return Ok((action, next_hop));
    }
    let next_hop = match tables.route(&query(parsed, arrival, ends.destination)) {
        Route::Forward(next_hop) => next_hop,
        Route::Local => return Err(PassReason::Local.into()),
        Route::Refused => return Err(DropReason::NoRoute.into()),
    };
    if let Some(fip) = own_fip {
        let translated = Endpoints { source: fip.peer, ..ends };
        return Ok((Action::Float { translated, rule: fip.rule }, next_hop));
    }
    if next_hop.ifindex == config.internal_ifindex {
        return Err(PassReason::VpcInternal.into());
    }
    // Kube-OVN's SNAT rules bind the external interface; a third one is not theirs.
    if next_hop.ifindex != config.external_ifindex || tables.snat(ends.source, 0).is_none() {
        return unmatched(config, DropReason::NoRule, next_hop);
    }
    Ok((
        Action::Open(Opening { translated: ends, source: Source::Pool, rule: 0, flags: 0 }),
        next_hop,
    ))
}

/// From the VPC to an EIP that leads back into the VPC (RFC 4787 REQ-9).
///
/// The other side must see an outside address, or it would answer past the gateway.
#[inline(always)]
fn hairpin<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    tables: &mut T,
    own_fip: Option<Fip<F>>,
) -> Option<Action<F>> {
    let ends = parsed.tuple.endpoints;
    if let Some(target) = tables.fip(&FipKey::new(ends.destination, Direction::Inbound)) {
        let translated = Endpoints { destination: target.peer, ..ends };
        return Some(match own_fip {
            // Between two floating IPs both rewrites are 1:1, so no state is needed.
            Some(own) => Action::Float {
                translated: Endpoints { source: own.peer, ..translated },
                rule: target.rule,
            },
            None => Action::Open(Opening {
                translated: Endpoints { source: ends.destination, ..translated },
                source: Source::FreePort,
                rule: target.rule,
                flags: HAIRPIN,
            }),
        });
    }
    let backend = tables.dnat(&dnat_key(parsed)?)?;
    let (source, choice) = match own_fip {
        Some(own) => (own.peer, Source::Kept),
        None => (ends.destination, Source::FreePort),
    };
    Some(Action::Open(Opening {
        translated: Endpoints {
            source,
            destination: backend.address,
            source_port: ends.source_port,
            destination_port: backend.port,
        },
        source: choice,
        rule: backend.rule,
        flags: HAIRPIN,
    }))
}

/// From outside: to an EIP.
#[inline(always)]
fn inbound<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<Classified<F>, Exit> {
    let ends = parsed.tuple.endpoints;
    if let Some(fip) = tables.fip(&FipKey::new(ends.destination, Direction::Inbound)) {
        let translated = Endpoints { destination: fip.peer, ..ends };
        let next_hop = inside_route(parsed, tables, config, arrival, &translated)?;
        return Ok((Action::Float { translated, rule: fip.rule }, next_hop));
    }
    let dnat = dnat_key(parsed).and_then(|key| tables.dnat(&key));
    if let Some(backend) = dnat {
        let translated =
            Endpoints { destination: backend.address, destination_port: backend.port, ..ends };
        let next_hop = inside_route(parsed, tables, config, arrival, &translated)?;
        let opening = Opening { translated, source: Source::Kept, rule: backend.rule, flags: 0 };
        return Ok((Action::Open(opening), next_hop));
    }
    match tables.route(&query(parsed, arrival, ends.destination)) {
        Route::Local => Err(PassReason::Local.into()),
        Route::Refused => Err(DropReason::NoRoute.into()),
        Route::Forward(next_hop) => {
            let (action, next_hop) = unmatched(config, DropReason::NotAddressedHere, next_hop)?;
            // Pinned, so that the reply leaves untranslated too, whatever SNAT rule covers it.
            let pinned = Opening { translated: ends, source: Source::Kept, rule: 0, flags: 0 };
            let action = if parsed.is_trackable() { Action::Open(pinned) } else { action };
            Ok((action, next_hop))
        }
    }
}

/// The DNAT rule that the packet's destination names, if its protocol has ports.
#[inline(always)]
fn dnat_key<F: Family>(parsed: &Parsed<F>) -> Option<DnatKey<F>> {
    (parsed.ports == PortFields::Both).then(|| DnatKey {
        eip: parsed.tuple.endpoints.destination,
        port: parsed.tuple.endpoints.destination_port,
        protocol: parsed.tuple.protocol,
        zero: 0,
    })
}

#[inline(always)]
fn translated_of<F: Family>(action: &Action<F>) -> &Endpoints<F> {
    match action {
        Action::Open(Opening { translated, .. }) | Action::Float { translated, .. } => translated,
        Action::Untranslated => unreachable!("a hairpin is always translated"),
    }
}

/// The route of a packet to an inside address: never back out by the external interface.
#[inline(always)]
fn inside_route<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
    translated: &Endpoints<F>,
) -> Result<NextHop<F>, Exit> {
    match tables.route(&query(parsed, arrival, translated.destination)) {
        Route::Forward(next_hop) if next_hop.ifindex != config.external_ifindex => Ok(next_hop),
        Route::Forward(_) | Route::Local => Err(DropReason::NotInside.into()),
        Route::Refused => Err(DropReason::NoRoute.into()),
    }
}

#[inline(always)]
fn query<F: Family>(parsed: &Parsed<F>, arrival: &Arrival, destination: F::Addr) -> RouteQuery<F> {
    RouteQuery {
        ifindex: arrival.ifindex,
        source: parsed.tuple.endpoints.source,
        destination,
        protocol: parsed.tuple.protocol,
    }
}

/// Applies `--unmatched`.
#[inline(always)]
fn unmatched<F: Family>(
    config: &Config,
    reason: DropReason,
    next_hop: NextHop<F>,
) -> Result<Classified<F>, Exit> {
    match Unmatched::from_u8(config.unmatched) {
        Unmatched::Drop => Err(reason.into()),
        Unmatched::Kernel => Err(PassReason::Unmatched.into()),
        Unmatched::Forward => Ok((Action::Untranslated, next_hop)),
    }
}
