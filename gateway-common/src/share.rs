//! Shared ports: how a new flow finds one of several backends, and backends that drain.
//!
//! A port of [`DNATS_V4`](Dnat) that is shared leads to its slot table, and each slot to a backend. A
//! backend that goes loses its slots first, so it gets no new flow; its rule is draining until the
//! last session of it is over.

use crate::family::Family;
use crate::records::DnatKey;
#[cfg(doc)]
use crate::records::{Dnat, Rule};

/// Length of the slot table of a shared port: the grain of the shares that weights ask for, and the
/// most backends that a port can have. A power of two.
pub const BACKEND_SLOTS: usize = 512;

/// How a new flow to a port finds its backend, in [`Dnat::balance`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u16)]
pub enum Balance {
    /// There is one backend, in the record itself.
    #[default]
    Exclusive = 0,
    /// At random, through the slot table.
    Random = 1,
    /// By the client's address, through the slot table.
    ClientAddress = 2,
}

impl Balance {
    /// The way stored as `value`.
    #[inline(always)]
    #[must_use]
    pub const fn from_u16(value: u16) -> Option<Self> {
        match value {
            0 => Some(Self::Exclusive),
            1 => Some(Self::Random),
            2 => Some(Self::ClientAddress),
            _ => None,
        }
    }
}

/// Value of `SLOTS_V4` and `SLOTS_V6`, whose key is a [`DnatKey`]: who gets which share of the new
/// flows to a shared port.
///
/// Each slot gets as many flows as every other. A change of backends moves as few slots as it can
/// (resilient hashing), so that a client's slot mostly keeps its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Slots {
    /// For each slot the id of a rule, a key of `BACKENDS_V4` or `BACKENDS_V6`.
    pub rules: [u32; BACKEND_SLOTS],
}

impl Slots {
    /// The rule in the slot that `hash` falls into.
    #[inline(always)]
    #[must_use]
    pub fn rule(&self, hash: u32) -> u32 {
        self.rules[hash as usize % BACKEND_SLOTS]
    }
}

const _: () = assert!(BACKEND_SLOTS.is_power_of_two());

/// Value of `BACKENDS_V4` and `BACKENDS_V6`, whose key is a rule's id: a backend of a shared port.
///
/// One without a slot gets no new flows and keeps those that it has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Backend<F: Family> {
    /// The port.
    pub key: DnatKey<F>,
    /// Inside address.
    pub address: F::Addr,
    /// Inside port.
    pub port: u16,
    /// Its share of the new flows, in proportion to the weights of the others.
    pub weight: u16,
}

/// Whether a rule takes new flows, in [`Rule::state`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum RuleState {
    /// It does.
    #[default]
    Active = 0,
    /// It keeps the flows that it has, until the last of them is over.
    Draining = 1,
}

/// Value of `DRAINING`, whose key is the id of a rule that is [`RuleState::Draining`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Draining {
    /// Sessions of the rule that the sweep has met that is going on.
    pub met: u32,
    /// Sessions that the last whole sweep has met; `u32::MAX` before the first one.
    pub sessions: u32,
}
