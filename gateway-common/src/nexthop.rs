//! Next-hop groups: the records of the maps that name them.

use crate::{
    family::{Family, V4, V6},
    records::{Record, records, sealed},
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

records! {
    Group = 4 1 3 2048;
    Member<V4> = 4 4 4;
    Member<V6> = 16 4 4;
}
