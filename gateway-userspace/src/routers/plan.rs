//! The routers that are wanted, and what is around -> a group. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use gateway_common::nexthop::{GROUP_MEMBERS, HashFields, MemberState, SLOTS};
use ipnet::IpNet;

use super::report::{GroupStatus, MemberStatus, State};
use crate::dataplane::kernel::Side;
use crate::desired::{NextHopRouter, NextHops, hash_word};
use crate::egress::slots::{self, Share, Slots};

/// Which group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKey {
    /// The side of the gateway.
    pub side: Side,
    /// The family.
    pub ipv4: bool,
}

impl GroupKey {
    /// All that there can be.
    pub const ALL: [Self; 4] = [
        Self { side: Side::Internal, ipv4: true },
        Self { side: Side::Internal, ipv4: false },
        Self { side: Side::External, ipv4: true },
        Self { side: Side::External, ipv4: false },
    ];

    /// `IPv4` or `IPv6`.
    #[must_use]
    pub const fn family(self) -> &'static str {
        if self.ipv4 { "IPv4" } else { "IPv6" }
    }

    fn has(self, address: IpAddr) -> bool {
        address.is_ipv4() == self.ipv4
    }

    /// The routers that are wanted for it.
    pub fn wanted(self, all: &NextHops) -> impl Iterator<Item = &NextHopRouter> {
        let routers = match self.side {
            Side::Internal => &all.internal,
            Side::External => &all.external,
        };
        routers.iter().filter(move |router| self.has(router.address))
    }

    /// What is hashed for it.
    const fn hash(self, all: &NextHops) -> HashFields {
        match self.side {
            Side::Internal => all.hash.internal,
            Side::External => all.hash.external,
        }
    }
}

/// A group as the map has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// What is hashed.
    pub hash: HashFields,
    /// Whether open sessions go to the router that has their slot.
    pub moves: bool,
    /// The place of the router that has the slot, from 1; 0 for none.
    pub slots: Slots,
    /// The place of the router that shall have the slot while it lives. Only the process knows; of what
    /// an earlier one has left, what the slots say.
    pub homes: Slots,
    /// The places.
    pub places: [Option<Place>; GROUP_MEMBERS],
}

/// A router in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address; zeros if that is not known.
    pub mac: [u8; 6],
    /// What becomes of packets for it.
    pub state: MemberState,
}

impl Group {
    /// Whether packets go other ways than by `other`.
    #[must_use]
    pub fn leads_elsewhere(&self, other: &Self) -> bool {
        let without_mac = |group: &Self| {
            let bare = |place: Place| Place { mac: [0; 6], ..place };
            let places = group.places.map(|place| place.map(bare));
            Self { places, homes: [0; SLOTS], ..group.clone() }
        };
        without_mac(self) != without_mac(other)
    }

    /// The routers that were taken out and that sessions may still use.
    pub fn draining(&self) -> impl Iterator<Item = IpAddr> {
        let places = self.places.iter().flatten();
        places.filter(|place| place.state == MemberState::Draining).map(|place| place.address)
    }

    fn at(&self, address: IpAddr) -> Option<(usize, &Place)> {
        let mut places = self.places.iter().enumerate();
        places.find_map(|(index, place)| {
            place.as_ref().filter(|place| place.address == address).map(|place| (index, place))
        })
    }
}

/// What is known around a group.
pub struct Around<'a> {
    /// The networks of the interface.
    pub links: &'a [IpNet],
    /// The routers of routes that the group stands for, whether they are members or not.
    pub represented: &'a BTreeSet<IpAddr>,
    /// The MAC addresses of neighbours.
    pub macs: &'a BTreeMap<IpAddr, [u8; 6]>,
    /// Whether a router is alive; `None`: not known yet.
    pub alive: &'a dyn Fn(IpAddr) -> Option<bool>,
}

/// A group, what to show of it, and what is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// What the map shall hold; `None` if no router can be used, so that routes decide.
    pub group: Option<Group>,
    /// For people.
    pub status: GroupStatus,
    /// One line each.
    pub problems: Vec<String>,
}

/// Plans a group. `before` is what the map holds: what can stay, stays. `None` if nobody wants it.
#[must_use]
pub fn plan(
    key: GroupKey,
    wanted: &NextHops,
    around: &Around<'_>,
    before: Option<&Group>,
) -> Option<Planned> {
    let routers: Vec<_> = key.wanted(wanted).copied().collect();
    if routers.is_empty() {
        return None;
    }
    let mut problems = Vec::new();
    let states = states(key, &routers, around, before, &mut problems);
    let places = seat(key, &routers, &states, around, before);
    let (homes, slots) = kept_slots(&places, before);
    let members = routers.iter().zip(&states).filter(|(_, state)| **state != State::NotOnLink);
    let members: Vec<_> = members.filter_map(|(router, _)| share(router, &places)).collect();
    let homes = slots::home(&homes, &slots, &members);
    let lives = |share: &Share| {
        let place = places[usize::from(share.id) - 1];
        place.is_some_and(|place| place.state == MemberState::Alive)
    };
    let shares: Vec<_> = members.into_iter().filter(lives).collect();
    let slots = slots::stand_in(&homes, &slots, &shares);
    let group = Group { hash: key.hash(wanted), moves: wanted.moves, slots, homes, places };
    let usable = states.iter().any(|state| *state != State::NotOnLink);
    if usable && shares.is_empty() {
        let (side, family) = (key.side.as_str(), key.family());
        problems.push(format!(
            "{side} next hops, {family}: none is alive, what should go by them is dropped"
        ));
    }
    let status = status(key, wanted, &routers, &states, &group);
    Some(Planned { group: usable.then_some(group), status, problems })
}

/// What is known of each router.
fn states(
    key: GroupKey,
    routers: &[NextHopRouter],
    around: &Around<'_>,
    before: Option<&Group>,
    problems: &mut Vec<String>,
) -> Vec<State> {
    let mut links = around.links.iter().filter(|link| key.has(link.addr())).peekable();
    let addressed = links.peek().is_some();
    let links: Vec<_> = links.collect();
    let state = |router: &NextHopRouter| {
        let address = router.address;
        if !links.iter().any(|link| link.contains(&address)) {
            let why = if addressed {
                "it is in no network of the interface".to_owned()
            } else {
                format!("the interface has no {} address", key.family())
            };
            let side = key.side.as_str();
            problems.push(format!("{side} next hop {address} is left out: {why}"));
            return State::NotOnLink;
        }
        let there = before.and_then(|group| group.at(address)).map(|(_, place)| place.state);
        match (around.alive)(address) {
            Some(true) => State::Alive,
            Some(false) => State::Dead,
            None if there.is_some_and(MemberState::keeps) => State::Alive,
            None if there == Some(MemberState::Dead) => State::Dead,
            None => State::Unknown,
        }
    };
    let mut states: Vec<State> = routers.iter().map(state).collect();
    let serves =
        |(state, router): (&State, &NextHopRouter)| *state == State::Alive && router.weight > 0;
    // Rather one that may be dead than none at all.
    if !states.iter().zip(routers).any(serves) {
        let unknown = states.iter_mut().filter(|state| **state == State::Unknown);
        unknown.for_each(|state| *state = State::Alive);
    }
    states
}

/// Gives each router a place: the one that it had, if it had one.
fn seat(
    key: GroupKey,
    routers: &[NextHopRouter],
    states: &[State],
    around: &Around<'_>,
    before: Option<&Group>,
) -> [Option<Place>; GROUP_MEMBERS] {
    let had = |address| before.and_then(|group| group.at(address));
    let mac = |address| {
        let known = around.macs.get(&address).copied();
        known.or_else(|| had(address).map(|(_, place)| place.mac)).unwrap_or_default()
    };
    let place = |address, state| Some(Place { address, mac: mac(address), state });
    let mut places = [None; GROUP_MEMBERS];
    let is_wanted = |address| routers.iter().any(|router| router.address == address);
    // Those that were taken out, while they live.
    let drains: BTreeMap<usize, IpAddr> = before
        .into_iter()
        .flat_map(|group| group.places.iter().enumerate())
        .filter_map(|(index, place)| Some((index, place.as_ref()?)))
        .filter(|(_, place)| place.state.keeps() && !is_wanted(place.address))
        .filter(|(_, place)| (around.alive)(place.address) != Some(false))
        .map(|(index, place)| (index, place.address))
        .collect();
    let (mut fresh, mut taken) = (Vec::new(), BTreeSet::new());
    for (router, state) in routers.iter().zip(states) {
        let state = match state {
            State::Alive if router.weight > 0 => MemberState::Alive,
            State::Alive => MemberState::Draining,
            State::Dead | State::Unknown | State::NotOnLink | State::Draining => MemberState::Dead,
        };
        match had(router.address) {
            Some((index, _)) => {
                places[index] = place(router.address, state);
                taken.insert(index);
            }
            None => fresh.push((router.address, state)),
        }
    }
    let others = around.represented.iter().copied();
    let others = others.filter(|address| key.has(*address) && !is_wanted(*address));
    let others = others.filter(|address| drains.values().all(|other| other != address));
    fresh.extend(others.map(|address| (address, MemberState::Represented)));
    let mut vacant: Vec<_> = (0..GROUP_MEMBERS).filter(|index| !taken.contains(index)).collect();
    // The places of those that drain come last.
    vacant.sort_by_key(|index| drains.contains_key(index));
    let mut vacant = vacant.into_iter();
    for ((address, state), index) in fresh.into_iter().zip(vacant.by_ref()) {
        places[index] = place(address, state);
    }
    for index in vacant {
        if let Some(address) = drains.get(&index) {
            places[index] = place(*address, MemberState::Draining);
        }
    }
    places
}

/// Homes and slots as they were, without those of routers whose place another one has now.
fn kept_slots(places: &[Option<Place>; GROUP_MEMBERS], before: Option<&Group>) -> (Slots, Slots) {
    let Some(before) = before else { return ([0; SLOTS], [0; SLOTS]) };
    let address = |places: &[Option<Place>; GROUP_MEMBERS], slot: u16| {
        let index = usize::from(slot).checked_sub(1)?;
        places.get(index)?.map(|place| place.address)
    };
    let same = |slot: u16| address(places, slot) == address(&before.places, slot);
    let kept = |slot: u16| if same(slot) { slot } else { 0 };
    (before.homes.map(kept), before.slots.map(kept))
}

fn share(router: &NextHopRouter, places: &[Option<Place>; GROUP_MEMBERS]) -> Option<Share> {
    let is_it = |place: &Option<Place>| place.is_some_and(|it| it.address == router.address);
    let index = places.iter().position(is_it)?;
    let id = u16::try_from(index + 1).ok()?;
    (router.weight > 0).then_some(Share { id, weight: router.weight })
}

fn status(
    key: GroupKey,
    wanted: &NextHops,
    routers: &[NextHopRouter],
    states: &[State],
    group: &Group,
) -> GroupStatus {
    let member = |address, state, weight| {
        let place = group.at(address);
        let id = place.and_then(|(index, _)| u16::try_from(index + 1).ok());
        let mac = place.map(|(_, place)| place.mac).filter(|mac| *mac != [0; 6]);
        let slots = id.map_or(0, |id| slots::count(&group.slots, id));
        MemberStatus { address, state, weight, slots, mac: mac.map(written) }
    };
    let wanted_ones = routers.iter().zip(states);
    let mut members: Vec<_> =
        wanted_ones.map(|(router, state)| member(router.address, *state, router.weight)).collect();
    let gone =
        group.draining().filter(|address| routers.iter().all(|router| router.address != *address));
    members.extend(gone.map(|address| member(address, State::Draining, 0)));
    GroupStatus {
        side: key.side,
        family: key.family().to_owned(),
        hash: hash_word(group.hash).to_owned(),
        on_return: if wanted.moves { "move" } else { "stay" }.to_owned(),
        members,
    }
}

fn written(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

#[cfg(test)]
mod tests;
