//! Next-hop groups: the records of the maps that name them.

#[cfg(doc)]
use crate::tuple::Direction;
use crate::{
    family::{Address, Family, V4, V6},
    records::{Record, records, sealed},
    wire::ethernet::words,
};

/// Number of slots of a group. With ten members of equal weight a share is right to 0.4 %.
pub const SLOTS: usize = 1024;

/// Largest id of a member, over all groups.
pub const MEMBER_IDS: usize = 1024;

/// Which fields of a packet choose the slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum HashFields {
    /// Addresses, protocol and ports: the connections of one host spread.
    #[default]
    FiveTuple = 0,
    /// The source address: all that a host does goes one way.
    Source = 1,
}

impl HashFields {
    /// The choice stored as `value`; anything unknown is the default.
    #[inline(always)]
    #[must_use]
    pub const fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::Source,
            _ => Self::FiveTuple,
        }
    }
}

/// Value of `GROUPS`, whose key is the group's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Group {
    /// Mixed into the hash, so that one group does not follow another's choices.
    pub seed: u32,
    /// A [`HashFields`].
    pub hash: u8,
    /// Zero.
    pub zero: [u8; 3],
    /// The id of the member that has the slot; 0: none is alive.
    pub slots: [u16; SLOTS],
}

/// Value of `MEMBERS_V4` and `MEMBERS_V6`, whose key is the member's id, from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Member<F: Family> {
    /// Address of the next hop.
    pub address: F::Addr,
    /// Index of the interface that it is reached by.
    pub ifindex: u32,
    /// MTU of that interface in bytes.
    pub mtu: u32,
}

/// Most members of a [`NextHopGroup`], those included that only drain.
pub const GROUP_MEMBERS: usize = 16;

/// What a [`NextHopGroup`] knows of one of its places.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum MemberState {
    /// The place is free.
    #[default]
    Absent = 0,
    /// Not a member, but the group takes the place of it in routes.
    Represented = 1,
    /// Nothing is sent to it.
    Dead = 2,
    /// Alive and taken out: open sessions stay, no others come.
    Draining = 3,
    /// It has slots, or would have with a weight.
    Alive = 4,
}

impl MemberState {
    /// The state stored as `value`; anything unknown is dead.
    #[inline(always)]
    #[must_use]
    pub const fn from_u8(value: u8) -> Self {
        match value {
            0 => Self::Absent,
            1 => Self::Represented,
            3 => Self::Draining,
            4 => Self::Alive,
            _ => Self::Dead,
        }
    }

    /// Whether sessions may stay there.
    #[inline(always)]
    #[must_use]
    pub const fn keeps(self) -> bool {
        matches!(self, Self::Draining | Self::Alive)
    }
}

/// A place of a [`NextHopGroup`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct GroupMember<F: Family> {
    /// Address of the next hop.
    pub address: F::Addr,
    /// Its MAC address; zeros if that is not known.
    pub mac: [u8; 6],
    /// A [`MemberState`].
    pub state: u8,
    /// Zero.
    pub zero: u8,
}

/// Value of `NEXT_HOPS_V4` and `NEXT_HOPS_V6`, whose key is the [`Direction`] of packets that come in by
/// the interface: the routers of one side of a gateway.
///
/// One record, so that members and slots change at once for whoever reads them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct NextHopGroup<F: Family> {
    /// As [`Group::seed`].
    pub seed: u32,
    /// A [`HashFields`].
    pub hash: u8,
    /// 1 if open sessions go to the member that has their slot, 0 if they stay where they are.
    pub moves: u8,
    /// Zero.
    pub zero: u16,
    /// The place of the member that has the slot, from 1; 0: none is alive.
    pub slots: [u16; SLOTS],
    /// The places.
    pub members: [GroupMember<F>; GROUP_MEMBERS],
}

impl<F: Family> NextHopGroup<F> {
    /// The place with that address, from 1; 0 if there is none.
    // A loop of its own: inlined, it falls through into its head, which the verifier of 6.1 refuses.
    #[inline(never)]
    #[must_use]
    pub fn place(&self, address: &F::Addr) -> u32 {
        for (index, member) in self.members.iter().enumerate() {
            if member.state != MemberState::Absent as u8 && member.address.same(address) {
                return index as u32 + 1;
            }
        }
        0
    }

    /// The place of the living member with that MAC address, from 1; 0 if there is none.
    #[inline(never)]
    #[must_use]
    pub fn place_of_mac(&self, mac: &[u8; 6]) -> u32 {
        let wanted = words(mac);
        for (index, member) in self.members.iter().enumerate() {
            if MemberState::from_u8(member.state).keeps() && words(&member.mac) == wanted {
                return index as u32 + 1;
            }
        }
        0
    }

    /// What is at a place.
    #[inline(always)]
    #[must_use]
    pub fn member(&self, place: u32) -> Option<&GroupMember<F>> {
        self.members.get((place as usize).wrapping_sub(1))
    }
}

/// Key of `CHOICES`: the networks that both ends of a packet are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct ChoiceKey {
    /// Id of the longest network with the source, from `SOURCES_V4` or `SOURCES_V6`; 0 for none.
    pub source: u32,
    /// Id of the longest network with the destination, from `DESTINATIONS_V4` or `DESTINATIONS_V6`; 0
    /// for none.
    pub destination: u32,
}

/// Value of `CHOICES` in place of the id of a group: a rule says that the packet is dropped.
pub const DENIED: u32 = 0;

records! {
    ChoiceKey = 4 4;
    Group = 4 1 3 2048;
    Member<V4> = 4 4 4;
    Member<V6> = 16 4 4;
    GroupMember<V4> = 4 6 1 1;
    GroupMember<V6> = 16 6 1 1;
    NextHopGroup<V4> = 4 1 1 2 2048 192;
    NextHopGroup<V6> = 4 1 1 2 2048 384;
}
