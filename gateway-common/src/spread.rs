//! Which of several routers a packet leaves by.
//!
//! The routing table decides by which interface, and whether by a router at all. Where it names a router
//! that is in the interface's [`NextHopGroup`], a member of the group takes its place:
//!
//! ```text
//! route ─on link, or another router─► as it says
//!   │
//!   └► group ─► the member that the session has, while it lives   (or, if the group moves sessions,
//!            └► the member that has the slot of the flow's hash    the second at once)
//!            └► none alive: drop
//! ```
//!
//! It is asked wherever the route is: by the first packet of a flow, by every one that has no session,
//! and by a session whose route may have changed. A packet of a settled session never comes here.
//!
//! The reply leaves by the router that the first packet came from, which its MAC address tells.

#[cfg(doc)]
use crate::nexthop::NextHopGroup;
use crate::{
    family::{Address, Family},
    icmp_error,
    nexthop::{HashFields, MemberState},
    pipeline::Passage,
    records::SYMMETRIC,
    select,
    tables::Tables,
    tuple::{Direction, Tuple},
    verdict::{DropReason, Exit},
};

/// Where a flow went so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept<F: Family> {
    /// The next hop.
    pub address: F::Addr,
    /// Whether it stays there even if the group moves sessions: [`SYMMETRIC`], or 0.
    pub symmetric: u8,
}

/// Lets the group of the interface choose the next hop, if there is one. `key` is the session that the
/// packet belongs to, and `ports` says whether all packets of the flow have their ports.
///
/// # Errors
///
/// [`DropReason::NoNextHop`] if no member of the group is alive.
#[inline(always)]
pub(crate) fn spread<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
    session: Option<Of>,
    ports: bool,
) -> Result<(), Exit> {
    if passage.config.next_hops == 0 {
        return Ok(());
    }
    recall(passage, session);
    if choose(passage, ports) { Ok(()) } else { Err(DropReason::NoNextHop.into()) }
}

/// Which session tells where the flow went so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Of {
    /// The one of the packet.
    Packet,
    /// The one that an ICMP error is about.
    Quote,
}

/// As [`spread`], for a packet of a session. What the session keeps of the choice is kept there.
///
/// # Errors
///
/// As [`spread`].
#[inline(always)]
pub(crate) fn spread_session<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
) -> Result<(), Exit> {
    spread(passage, Some(Of::Packet), true)?;
    if passage.config.next_hops != 0
        && passage.work.kept.symmetric == 0
        && let Some(session) = passage.tables.session(&passage.work.parsed.tuple)
    {
        session.flags &= !SYMMETRIC;
    }
    Ok(())
}

/// As [`spread`], for an ICMP error.
///
/// # Errors
///
/// As [`spread`].
#[inline(always)]
pub(crate) fn spread_error<F: Family, T: Tables<F>>(
    passage: &mut Passage<'_, F, T>,
) -> Result<(), Exit> {
    spread(passage, Some(Of::Quote), true)
}

/// Finds out where the flow went so far.
#[inline(always)]
fn recall<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>, session: Option<Of>) {
    let work = &mut *passage.work;
    work.kept.address = F::Addr::default();
    work.kept.symmetric = 0;
    let key: &Tuple<F> = match session {
        None => return,
        Some(Of::Packet) => &work.parsed.tuple,
        Some(Of::Quote) => &work.reply_key,
    };
    if let Some(session) = passage.tables.session(key) {
        work.kept.address.set(&session.next_hop);
        work.kept.symmetric = session.flags & SYMMETRIC;
    }
}

/// Puts the member of the group into the rewrite; `false` if none is alive.
// A function of its own for its stack frame.
#[inline(never)]
fn choose<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>, ports: bool) -> bool {
    let (work, config) = (&mut *passage.work, passage.config);
    let next_hop = &work.rewrite.next_hop;
    let side = if next_hop.ifindex == config.external_ifindex {
        Direction::Inbound
    } else if next_hop.ifindex == config.internal_ifindex {
        Direction::Outbound
    } else {
        return true;
    };
    if next_hop.address.same(&work.rewrite.endpoints.destination) {
        return true;
    }
    let Some(group) = passage.tables.next_hops(side as u32) else {
        return true;
    };
    if group.place(&next_hop.address) == 0 {
        return true;
    }
    if let Some(member) = group.member(group.place(&work.kept.address)) {
        let state = MemberState::from_u8(member.state);
        let stays = group.moves == 0 || work.kept.symmetric != 0 || state == MemberState::Draining;
        if state.keeps() && stays {
            work.rewrite.next_hop.address.set(&work.kept.address);
            return true;
        }
    }
    work.kept.symmetric = 0;
    let fields = HashFields::from_u8(group.hash);
    let hash = if icmp_error::is_error(&work.parsed) {
        select::quoted_hash(work, fields, group.seed)
    } else {
        select::hash(&work.parsed.tuple, ports, fields, group.seed)
    };
    let place = group.slots.get(select::slot(hash)).copied().unwrap_or(0);
    match group.member(place.into()) {
        Some(member) if MemberState::from_u8(member.state).keeps() => {
            work.rewrite.next_hop.address.set(&member.address);
            true
        }
        _ => false,
    }
}

/// Drafts the reply's entry with the router as next hop that the packet came from. Whether it goes there
/// is decided with the first reply, as ever.
#[inline(always)]
pub(crate) fn answer_by_the_way_it_came<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) {
    if passage.config.next_hops != 0 {
        find_the_way_it_came(passage);
    }
}

#[inline(never)]
fn find_the_way_it_came<F: Family, T: Tables<F>>(passage: &mut Passage<'_, F, T>) -> bool {
    let work = &mut *passage.work;
    let Some(group) = passage.tables.next_hops(work.arrival.direction as u32) else {
        return false;
    };
    let Some(member) = group.member(group.place_of_mac(&work.came_from)) else {
        return false;
    };
    work.draft.next_hop.set(&member.address);
    work.draft.flags |= SYMMETRIC;
    true
}
