//! Ethernet II (IEEE 802.3).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian::U16};

/// Ethernet header without VLAN tag.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ethernet {
    /// Destination MAC address.
    pub destination: [u8; 6],
    /// Source MAC address.
    pub source: [u8; 6],
    /// Type of the payload: [`IPV4`], [`IPV6`] or something we leave to the kernel.
    pub ether_type: U16,
}

/// A MAC address as two words, as they lie in memory: of a comparison of arrays BPF makes a call.
#[inline(always)]
#[must_use]
pub const fn words(mac: &[u8; 6]) -> (u32, u16) {
    (u32::from_ne_bytes([mac[0], mac[1], mac[2], mac[3]]), u16::from_ne_bytes([mac[4], mac[5]]))
}

/// Size of the header in bytes.
pub const BYTES: usize = size_of::<Ethernet>();

/// Ether type of IPv4.
pub const IPV4: u16 = 0x0800;

/// Ether type of IPv6.
pub const IPV6: u16 = 0x86dd;
