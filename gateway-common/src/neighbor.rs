//! What XDP must know of the world around it: its own interfaces, and the MAC addresses of next hops.
//!
//! TC asks the kernel, which resolves, confirms and forgets neighbours by itself. XDP sends past it,
//! so a daemon has to tell it, and to vouch for what it told.

use crate::{
    family::{Address, Family, V4, V6},
    records::{Record, Ticks, records, sealed},
    session::elapsed,
    tuple::Direction,
    verdict::NextHop,
};

/// Value of `XDP_FACTS`, an array of one: what XDP must know of the interfaces.
///
/// All-zero means that nothing is known: no frame is addressed to the MAC address 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct XdpFacts {
    /// Until when the daemon vouches for this record, `NEIGHBORS_V4`, `NEIGHBORS_V6` and `DEVICES`.
    /// Then XDP leaves everything to TC, which asks the kernel. Becomes another number with every change
    /// of a neighbour: see [`KnownNeighbor`].
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

/// Neighbours that each CPU remembers, in each family: 2 kB or less.
pub const NEAR: u32 = 64;

/// Value of `NEAR_V4` and `NEAR_V6`: a neighbour that this CPU has looked up, at the place of its address.
///
/// A look-up in an array is a few instructions, one in a hash map four nested calls. What is remembered
/// counts while the daemon has changed nothing, which [`XdpFacts::until`] tells, and for [`USED_TICKS`],
/// because the map must be told again then that the neighbour is in use.
///
/// All-zero is none: no interface has the index 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct KnownNeighbor<F: Family> {
    /// Its key.
    pub next_hop: NextHop<F>,
    /// Its record.
    pub neighbor: Neighbor,
    /// [`XdpFacts::until`] before it was looked up.
    pub until: Ticks,
}

impl<F: Family> KnownNeighbor<F> {
    /// The place of a neighbour, below [`NEAR`]. Those of one network that follow one another have one each.
    #[inline(always)]
    #[must_use]
    pub fn place(next_hop: &NextHop<F>) -> u32 {
        next_hop.address.last_octets() % NEAR
    }

    /// Whether this is what there is to know of `next_hop`.
    #[inline(always)]
    #[must_use]
    pub fn holds(&self, next_hop: &NextHop<F>, until: Ticks, now: Ticks) -> bool {
        self.next_hop.ifindex == next_hop.ifindex
            && self.next_hop.address.same(&next_hop.address)
            && self.until == until
            && elapsed(now, self.neighbor.used) <= USED_TICKS
    }

    /// Becomes what there is to know of `next_hop`, which was looked up after `until` was read.
    #[inline(always)]
    pub fn set(&mut self, next_hop: &NextHop<F>, neighbor: &Neighbor, until: Ticks) {
        self.next_hop.address.set(&next_hop.address);
        self.next_hop.ifindex = next_hop.ifindex;
        self.neighbor = *neighbor;
        self.until = until;
    }
}

records! {
    KnownNeighbor<V4> = 8 16 4;
    KnownNeighbor<V6> = 20 16 4;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::Ipv4;

    const ROUTER: NextHop<V4> = NextHop { ifindex: 3, address: Ipv4 { octets: [203, 0, 113, 1] } };

    fn known() -> KnownNeighbor<V4> {
        let mut known = KnownNeighbor::default();
        known.set(&ROUTER, &Neighbor { used: 5000, ..Neighbor::default() }, 9000);
        known
    }

    #[test]
    fn a_neighbour_is_remembered_until_something_changes() {
        assert!(known().holds(&ROUTER, 9000, 5000));
        assert!(!known().holds(&ROUTER, 9001, 5000), "the daemon has changed something");
        let other = NextHop { ifindex: 4, ..ROUTER };
        assert!(!known().holds(&other, 9000, 5000), "another interface");
        let other = NextHop { address: Ipv4 { octets: [203, 0, 113, 65] }, ..ROUTER };
        assert_eq!(KnownNeighbor::place(&other), KnownNeighbor::place(&ROUTER));
        assert!(!known().holds(&other, 9000, 5000), "another address in the same place");
        assert!(!KnownNeighbor::default().holds(&ROUTER, 0, 0), "none");
    }

    #[test]
    fn its_use_is_told_again_after_a_second() {
        assert!(known().holds(&ROUTER, 9000, 5000 + USED_TICKS));
        assert!(!known().holds(&ROUTER, 9000, 5001 + USED_TICKS));
    }

    #[test]
    fn a_network_fills_all_places() {
        let mut taken = [false; NEAR as usize];
        for last in 0..NEAR as u8 {
            let address = Ipv4 { octets: [10, 0, 1, last] };
            taken[KnownNeighbor::<V4>::place(&NextHop { ifindex: 2, address }) as usize] = true;
        }
        assert!(taken.iter().all(|&taken| taken));
    }
}
