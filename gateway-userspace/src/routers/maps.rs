//! `NEXT_HOPS_V4` and `NEXT_HOPS_V6`.

use std::collections::BTreeMap;

use aya::maps::{HashMap, MapData};
use gateway_common::family::{V4, V6};
use gateway_common::nexthop::{GROUP_MEMBERS, GroupMember, HashFields, MemberState, NextHopGroup};
use gateway_common::tuple::Direction;

use super::plan::{Group, GroupKey, Place};
use crate::dataplane::kernel::Side;
use crate::dataplane::maps::{MapsError, failed, gone, open};
use crate::dataplane::pins::Pins;
use crate::dataplane::raw::Raw;
use crate::image::Addressing;

type NextHops<F> = HashMap<MapData, u32, Raw<NextHopGroup<F>>>;

/// The maps.
pub struct NextHopMaps {
    v4: NextHops<V4>,
    v6: NextHops<V6>,
}

impl NextHopMaps {
    /// Opens the pinned maps.
    ///
    /// # Errors
    ///
    /// When one is missing or is not what it should be.
    pub fn open(pins: &Pins) -> Result<Self, MapsError> {
        Ok(Self { v4: open(pins, "NEXT_HOPS_V4")?, v6: open(pins, "NEXT_HOPS_V6")? })
    }

    /// What they hold.
    #[must_use]
    pub fn read(&self) -> BTreeMap<GroupKey, Group> {
        let group = |key: GroupKey| {
            let side = side(key.side);
            let group = if key.ipv4 {
                self.v4.get(&side, 0).ok().map(|group| decode(&group.0))
            } else {
                self.v6.get(&side, 0).ok().map(|group| decode(&group.0))
            };
            group.map(|group| (key, group))
        };
        GroupKey::ALL.into_iter().filter_map(group).collect()
    }

    /// Writes a group, or removes it.
    ///
    /// # Errors
    ///
    /// When the kernel refuses.
    pub fn set(&mut self, key: GroupKey, group: Option<&Group>) -> Result<(), MapsError> {
        let id = side(key.side);
        if key.ipv4 { write(&mut self.v4, id, group) } else { write(&mut self.v6, id, group) }
            .map_err(failed("write", "NEXT_HOPS".into()))
    }
}

/// The side as the data path names it.
const fn side(side: Side) -> u32 {
    match side {
        Side::Internal => Direction::Outbound as u32,
        Side::External => Direction::Inbound as u32,
    }
}

fn write<F: Addressing>(
    map: &mut NextHops<F>,
    id: u32,
    group: Option<&Group>,
) -> Result<(), aya::maps::MapError> {
    match group {
        Some(group) => map.insert(id, Raw(encode::<F>(id, group)), 0),
        None => map.remove(&id).or_else(gone),
    }
}

fn encode<F: Addressing>(id: u32, group: &Group) -> NextHopGroup<F> {
    let mut members = [GroupMember::default(); GROUP_MEMBERS];
    for (member, place) in members.iter_mut().zip(&group.places) {
        let Some(place) = place else { continue };
        let Some(address) = F::encode(place.address) else { continue };
        *member = GroupMember { address, mac: place.mac, state: place.state as u8, zero: 0 };
    }
    NextHopGroup {
        // Any fixed number will do, as long as the sides differ.
        seed: id.wrapping_mul(0x85eb_ca77),
        hash: group.hash as u8,
        moves: u8::from(group.moves),
        zero: 0,
        slots: group.slots,
        members,
    }
}

fn decode<F: Addressing>(group: &NextHopGroup<F>) -> Group {
    let place = |member: GroupMember<F>| {
        let state = MemberState::from_u8(member.state);
        let address = F::decode(member.address);
        (state != MemberState::Absent).then_some(Place { address, mac: member.mac, state })
    };
    Group {
        hash: HashFields::from_u8(group.hash),
        moves: group.moves != 0,
        slots: group.slots,
        homes: group.slots,
        places: group.members.map(place),
    }
}
