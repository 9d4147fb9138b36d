//! Which rule applies to a packet whose flow has no session.
//!
//! Every look-up is an exact match but the one of a SNAT source, so the cost does not depend on
//! the number of rules. The order is that of Kube-OVN's chains: FIP, then DNAT, then SNAT.

use crate::{
    endpoint_independent,
    family::{Address, Family},
    known_route::{KnownRoute, Moment},
    parse::PortFields,
    pipeline::Passage,
    records::{Balance, Config, DnatKey, FipKey, HAIRPIN, KEEP_ADDRESS, Unmatched},
    tables::{Route, RouteQuery, Tables},
    tuple::Direction,
    verdict::{DropReason, Exit, PassReason},
};

/// What is still to be done once a rule is found.
///
/// Without a payload: the verifier refuses to store the part of a variant that is undefined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Action {
    /// Nothing: the rewrite is complete and needs no state.
    Stateless,
    /// Nothing: a rule says that the packet passes as it is.
    Unchanged,
    /// Open a session with the source as the rewrite has it.
    OpenKept,
    /// Open a session with a free port of the source address that the rewrite has.
    OpenPort,
    /// Open a session with a free port of an EIP from the SNAT pool of the original source.
    OpenPool,
    /// Open a session with the external endpoint that the original source has for everybody.
    OpenMapped,
}

/// Finds the rule for a packet without a session.
///
/// The rewrite comes in as the packet is and goes out as far as the rule decides it.
///
/// # Errors
///
/// An [`Exit`] for packets that no rule covers and for those that are the gateway's own.
#[inline(always)]
pub fn classify<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<Action, Exit> {
    let ends = &passage.work.parsed.tuple.endpoints;
    // RFC 3927 section 7: "a router MUST NOT forward" them. Of IPv6 the parser has left them to the
    // kernel, which does not forward them either; of IPv4 it would.
    if F::BITS == 32 && (ends.source.is_link_local() || ends.destination.is_link_local()) {
        return Err(match route(passage) {
            Route::Local => PassReason::Local.into(),
            Route::Forward | Route::Refused => DropReason::LinkLocal.into(),
        });
    }
    let target = redirect(passage);
    match passage.work.arrival.direction {
        Direction::Outbound => outbound(passage, target),
        Direction::Inbound => inbound(passage, target),
    }
}

/// What the destination address stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Target {
    Fip,
    Dnat,
    Mapping,
    Itself,
}

/// Turns the destination to the inside if a rule says so: a FIP wins everything on its EIP.
#[inline(always)]
fn redirect<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Target {
    let (parsed, rewrite) = (&passage.work.parsed, &mut passage.work.rewrite);
    let ends = &parsed.tuple.endpoints;
    if let Some(fip) = passage.tables.fip(&FipKey::new(&ends.destination, Direction::Inbound)) {
        rewrite.endpoints.destination.set(&fip.peer);
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
    let Some(dnat) = passage.tables.dnat(&key) else {
        let mapped = passage.config.mappings != 0 && endpoint_independent::redirect(passage);
        return if mapped { Target::Mapping } else { Target::Itself };
    };
    rewrite.endpoints.destination.set(&dnat.address);
    rewrite.endpoints.destination_port = dnat.port;
    rewrite.rule = dnat.rule;
    match Balance::from_u16(dnat.balance) {
        None | Some(Balance::Exclusive) => {}
        Some(Balance::Random) => balance(passage, &key, false),
        Some(Balance::ClientAddress) => balance(passage, &key, true),
    }
    Target::Dnat
}

/// Chooses among the backends of a shared port. The session pins the choice.
///
/// The record of the port names a backend too, so that a packet which meets the change to an
/// exclusive port, whose slots are gone, still finds one.
// A function of its own for its stack frame.
#[inline(never)]
fn balance<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
    key: &DnatKey<F>,
    by_client: bool,
) {
    let client = &passage.work.parsed.tuple.endpoints.source;
    let hash = if by_client { client.spread() } else { passage.tables.draw(key) };
    let Some((rule, backend)) = passage.tables.backend(key, hash) else {
        return;
    };
    let rewrite = &mut passage.work.rewrite;
    rewrite.endpoints.destination.set(&backend.address);
    rewrite.endpoints.destination_port = backend.port;
    rewrite.rule = rule;
}

/// From the VPC: to the outside, or back into the VPC through an EIP (RFC 4787 REQ-9).
#[inline(always)]
fn outbound<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
    target: Target,
) -> Result<Action, Exit> {
    let own_rule = own_fip(passage);
    if target != Target::Itself {
        passage.work.flags |= HAIRPIN;
        let action = match (own_rule, target) {
            // RFC 4787 REQ-9a: the other side sees the external endpoint.
            (0, _) if endpoint_independent::applies(passage) => Action::OpenMapped,
            (0, _) => {
                // The other side must see an outside address, or it would answer past the gateway.
                passage.work.rewrite.endpoints.source =
                    passage.work.parsed.tuple.endpoints.destination;
                Action::OpenPort
            }
            // Between two floating IPs both rewrites are 1:1, so no state is needed.
            (_, Target::Fip) => Action::Stateless,
            (_, Target::Dnat | Target::Mapping | Target::Itself) => Action::OpenKept,
        };
        inside_route(passage)?;
        return Ok(action);
    }
    match route(passage) {
        Route::Forward => {}
        Route::Local => return Err(PassReason::Local.into()),
        Route::Refused => return Err(DropReason::NoRoute.into()),
    }
    let egress = passage.work.rewrite.next_hop.ifindex;
    // Also from a floating IP, whose rule names no interface in Kube-OVN: the answer to its EIP could
    // not be told from a new hairpin flow, and would come from a port of the EIP.
    if egress == passage.config.internal_ifindex {
        return Err(PassReason::VpcInternal.into());
    }
    if own_rule != 0 {
        passage.work.rewrite.rule = own_rule;
        return Ok(Action::Stateless);
    }
    // Kube-OVN's SNAT rules bind the external interface; a third one is not theirs.
    let source = &passage.work.parsed.tuple.endpoints.source;
    if egress == passage.config.external_ifindex
        && let Some(member) = passage.tables.snat(source, 0)
    {
        if member.options & KEEP_ADDRESS != 0 {
            passage.work.rewrite.rule = member.rule;
            return Ok(Action::Unchanged);
        }
        let mapped = endpoint_independent::applies(passage);
        return Ok(if mapped { Action::OpenMapped } else { Action::OpenPool });
    }
    unmatched(passage.config, DropReason::NoRule)
}

/// Rewrites the source by its own floating IP. Returns the rule's id; 0 if there is none.
#[inline(always)]
fn own_fip<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> u32 {
    let key = FipKey::new(&passage.work.parsed.tuple.endpoints.source, Direction::Outbound);
    let Some(own) = passage.tables.fip(&key) else {
        return 0;
    };
    passage.work.rewrite.endpoints.source.set(&own.peer);
    own.rule
}

/// From outside: to an EIP, or to a prefix whose packets pass as they are.
#[inline(always)]
fn inbound<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
    target: Target,
) -> Result<Action, Exit> {
    if target != Target::Itself {
        inside_route(passage)?;
        return Ok(if target == Target::Fip { Action::Stateless } else { Action::OpenKept });
    }
    match route(passage) {
        Route::Local => Err(PassReason::Local.into()),
        Route::Refused => Err(DropReason::NoRoute.into()),
        Route::Forward => {
            let destination = &passage.work.parsed.tuple.endpoints.destination;
            if let Some(member) = passage.tables.snat(destination, 0)
                && member.options & KEEP_ADDRESS != 0
            {
                passage.work.rewrite.rule = member.rule;
                let external = passage.config.external_ifindex;
                let inside = passage.work.rewrite.next_hop.ifindex != external;
                return if inside {
                    Ok(Action::Unchanged)
                } else {
                    Err(DropReason::NotInside.into())
                };
            }
            let action = unmatched(passage.config, DropReason::NotAddressedHere)?;
            // Pinned, so that the reply leaves untranslated too, whatever SNAT rule covers it.
            Ok(if passage.work.parsed.can_open() { Action::OpenKept } else { action })
        }
    }
}

/// The route of a packet to an inside address: never back out by the external interface.
#[inline(always)]
fn inside_route<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Result<(), Exit> {
    let external = passage.config.external_ifindex;
    match route(passage) {
        Route::Forward if passage.work.rewrite.next_hop.ifindex != external => Ok(()),
        Route::Forward | Route::Local => Err(DropReason::NotInside.into()),
        Route::Refused => Err(DropReason::NoRoute.into()),
    }
}

/// Whether the route leads outside and the destination inside, as one that was rewritten does: where
/// the way into the VPC is lost, the default route takes over.
// A function of its own for its stack frame.
#[inline(never)]
pub(crate) fn turns_outside<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    let work = &*passage.work;
    work.rewrite.next_hop.ifindex == passage.config.external_ifindex
        && work.rewrite.endpoints.destination != work.parsed.tuple.endpoints.destination
}

/// The route of the rewritten packet: one that this CPU remembers, or the kernel's answer.
// A function of its own for its stack frame.
#[inline(never)]
pub(crate) fn route<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> Route {
    let (work, tables) = (&mut *passage.work, &mut *passage.tables);
    let tuple = &work.parsed.tuple;
    let query = RouteQuery { ifindex: work.arrival.ifindex, protocol: tuple.protocol };
    let at = Moment { now: work.arrival.now, routing: passage.config.routing };
    let (source, destination) = (&tuple.endpoints.source, &work.rewrite.endpoints.destination);
    let next_hop = &mut work.rewrite.next_hop;
    let place = KnownRoute::<F>::place(source, destination);
    if let Some(known) = tables.known_route(place) {
        if known.answers(&query, source, destination, at) {
            next_hop.address.set(&known.next_hop.address);
            next_hop.ifindex = known.next_hop.ifindex;
            return Route::Forward;
        }
        known.ask(&query, source, destination, at);
    }
    let route = tables.route(&query, source, destination, next_hop);
    if route == Route::Forward
        && let Some(known) = tables.known_route(place)
    {
        known.answer(next_hop);
    }
    route
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
