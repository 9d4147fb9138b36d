//! What XDP must know of the world around it: its own interfaces, and the MAC addresses of next hops.
//!
//! TC asks the kernel, which resolves, confirms and forgets neighbours by itself. XDP sends past it,
//! so a daemon has to tell it, and to vouch for what it told.

#[cfg(doc)]
use crate::verdict::NextHop;
use crate::{records::Ticks, tuple::Direction};

/// Value of `XDP_FACTS`, an array of one: what XDP must know of the interfaces.
///
/// All-zero means that nothing is known: no frame is addressed to the MAC address 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct XdpFacts {
    /// Until when the daemon vouches for this record, `NEIGHBORS_V4`, `NEIGHBORS_V6` and `DEVICES`.
    /// Then XDP leaves everything to TC, which asks the kernel.
    pub until: Ticks,
    /// MAC address of the internal interface.
    pub internal_mac: [u8; 6],
    /// MAC address of the external interface.
    pub external_mac: [u8; 6],
}

impl XdpFacts {
    /// Whether somebody vouches for them.
    #[inline(always)]
    #[must_use]
    pub const fn hold_at(&self, now: Ticks) -> bool {
        self.until.wrapping_sub(now) <= Ticks::MAX / 2
    }

    /// MAC address of the interface that packets of `direction` come in by.
    #[inline(always)]
    #[must_use]
    pub const fn mac(&self, direction: Direction) -> &[u8; 6] {
        match direction {
            Direction::Outbound => &self.internal_mac,
            Direction::Inbound => &self.external_mac,
        }
    }
}

/// Value of `NEIGHBORS_V4` and `NEIGHBORS_V6`, whose key is a [`NextHop`]: how a frame to it begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Neighbor {
    /// MAC address of the next hop.
    pub destination: [u8; 6],
    /// MAC address of the interface.
    pub source: [u8; 6],
    /// When XDP last sent to it, give or take [`USED_TICKS`]. The kernel does not see these packets,
    /// so the daemon asks it to probe neighbours that are in use.
    pub used: Ticks,
}

/// How old [`Neighbor::used`] becomes before XDP writes it again (about 1 s): the record is shared by
/// all CPUs.
pub const USED_TICKS: Ticks = 1 << 10;
