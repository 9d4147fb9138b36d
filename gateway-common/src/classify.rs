//! Which rule applies to a packet whose flow has no session.
//!
//! Every look-up is an exact match but the one of a SNAT source, so the cost does not depend on
//! the number of rules. The order is that of Kube-OVN's chains: FIP, then DNAT, then SNAT.

use crate::{
    family::Family,
    parse::{Parsed, PortFields},
    pipeline::{Arrival, Rewrite},
    records::{Config, DnatKey, FipKey, HAIRPIN, Unmatched},
    tables::{Route, RouteQuery, Tables},
    tuple::Direction,
    verdict::{DropReason, Exit, PassReason},
};

/// How a session gets its source address and port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// As the rewrite has them.
    Kept,
    /// The address as the rewrite has it, with a free port of it.
    FreePort,
    /// A free port of an EIP from the SNAT pool of the original source.
    Pool,
}

/// What is to be done with a packet whose flow has no session, beside the rewrite.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a session.
    Open {
        /// What is still to be chosen.
        source: Source,
        /// [`HAIRPIN`] or 0.
        flags: u8,
    },
    /// Rewrite by a floating IP, which needs no state; or route it as it is.
    Stateless,
}

/// Finds the rule for a packet without a session.
///
/// `rewrite` comes in as the packet is and goes out as far as the rule decides it.
///
/// # Errors
///
/// An [`Exit`] for packets that no rule covers and for those that are the gateway's own.
#[inline(always)]
pub fn classify<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    rewrite: &mut Rewrite<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<Action, Exit> {
    let target = redirect(parsed, rewrite, tables);
    match arrival.direction {
        Direction::Outbound => outbound(parsed, target, rewrite, tables, config, arrival),
        Direction::Inbound => inbound(parsed, target, rewrite, tables, config, arrival),
    }
}

/// What the destination address stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Fip,
    Dnat,
    Itself,
}

/// Turns the destination to the inside if a rule says so: a FIP wins everything on its EIP.
#[inline(always)]
fn redirect<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    rewrite: &mut Rewrite<F>,
    tables: &mut T,
) -> Target {
    let ends = &parsed.tuple.endpoints;
    if let Some(fip) = tables.fip(&FipKey::new(ends.destination, Direction::Inbound)) {
        rewrite.endpoints.destination = fip.peer;
        rewrite.rule = fip.rule;
        return Target::Fip;
    }
    if parsed.ports != PortFields::Both {
        return Target::Itself;
    }
    let key = DnatKey {
        eip: ends.destination,
        port: ends.destination_port,
        protocol: parsed.tuple.protocol,
        zero: 0,
    };
    let Some(backend) = tables.dnat(&key) else {
        return Target::Itself;
    };
    rewrite.endpoints.destination = backend.address;
    rewrite.endpoints.destination_port = backend.port;
    rewrite.rule = backend.rule;
    Target::Dnat
}

/// From the VPC: to the outside, or back into the VPC through an EIP (RFC 4787 REQ-9).
#[inline(always)]
fn outbound<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    target: Target,
    rewrite: &mut Rewrite<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<Action, Exit> {
    let ends = &parsed.tuple.endpoints;
    // Rule 0 is no rule.
    let own =
        tables.fip(&FipKey::new(ends.source, Direction::Outbound)).copied().unwrap_or_default();
    if target != Target::Itself {
        // The other side must see an outside address, or it would answer past the gateway.
        let (source, action) = match (own.rule, target) {
            (0, _) => (ends.destination, Action::Open { source: Source::FreePort, flags: HAIRPIN }),
            // Between two floating IPs both rewrites are 1:1, so no state is needed.
            (_, Target::Fip) => (own.peer, Action::Stateless),
            (_, Target::Dnat | Target::Itself) => {
                (own.peer, Action::Open { source: Source::Kept, flags: HAIRPIN })
            }
        };
        rewrite.endpoints.source = source;
        inside_route(parsed, rewrite, tables, config, arrival)?;
        return Ok(action);
    }
    match route(parsed, rewrite, tables, arrival) {
        Route::Forward => {}
        Route::Local => return Err(PassReason::Local.into()),
        Route::Refused => return Err(DropReason::NoRoute.into()),
    }
    if own.rule != 0 {
        rewrite.endpoints.source = own.peer;
        rewrite.rule = own.rule;
        return Ok(Action::Stateless);
    }
    if rewrite.next_hop.ifindex == config.internal_ifindex {
        return Err(PassReason::VpcInternal.into());
    }
    // Kube-OVN's SNAT rules bind the external interface; a third one is not theirs.
    if rewrite.next_hop.ifindex == config.external_ifindex {
        if let Some(member) = tables.snat(&ends.source, 0) {
            rewrite.endpoints.source = member.eip;
            rewrite.rule = member.rule;
            return Ok(Action::Open { source: Source::Pool, flags: 0 });
        }
    }
    unmatched(config, DropReason::NoRule)
}

/// From outside: to an EIP.
#[inline(always)]
fn inbound<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    target: Target,
    rewrite: &mut Rewrite<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<Action, Exit> {
    if target != Target::Itself {
        inside_route(parsed, rewrite, tables, config, arrival)?;
        return Ok(match target {
            Target::Fip => Action::Stateless,
            Target::Dnat | Target::Itself => Action::Open { source: Source::Kept, flags: 0 },
        });
    }
    match route(parsed, rewrite, tables, arrival) {
        Route::Local => Err(PassReason::Local.into()),
        Route::Refused => Err(DropReason::NoRoute.into()),
        Route::Forward => {
            let action = unmatched(config, DropReason::NotAddressedHere)?;
            // Pinned, so that the reply leaves untranslated too, whatever SNAT rule covers it.
            if parsed.is_trackable() {
                return Ok(Action::Open { source: Source::Kept, flags: 0 });
            }
            Ok(action)
        }
    }
}

/// The route of a packet to an inside address: never back out by the external interface.
#[inline(always)]
fn inside_route<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    rewrite: &mut Rewrite<F>,
    tables: &mut T,
    config: &Config,
    arrival: &Arrival,
) -> Result<(), Exit> {
    match route(parsed, rewrite, tables, arrival) {
        Route::Forward if rewrite.next_hop.ifindex != config.external_ifindex => Ok(()),
        Route::Forward | Route::Local => Err(DropReason::NotInside.into()),
        Route::Refused => Err(DropReason::NoRoute.into()),
    }
}

/// Asks for the route of the rewritten packet.
#[inline(always)]
pub(crate) fn route<F: Family, T: Tables<F>>(
    parsed: &Parsed<F>,
    rewrite: &mut Rewrite<F>,
    tables: &mut T,
    arrival: &Arrival,
) -> Route {
    let query = RouteQuery { ifindex: arrival.ifindex, protocol: parsed.tuple.protocol };
    let ends = &rewrite.endpoints;
    tables.route(&query, &parsed.tuple.endpoints.source, &ends.destination, &mut rewrite.next_hop)
}

/// Applies `--unmatched`.
#[inline(always)]
fn unmatched(config: &Config, reason: DropReason) -> Result<Action, Exit> {
    match Unmatched::from_u8(config.unmatched) {
        Unmatched::Drop => Err(reason.into()),
        Unmatched::Kernel => Err(PassReason::Unmatched.into()),
        Unmatched::Forward => Ok(Action::Stateless),
    }
}
