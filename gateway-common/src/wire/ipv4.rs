//! IPv4 (RFC 791).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian::U16};

/// IPv4 header without options.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ipv4Header {
    /// Version (4) in the high nibble, header length in 32-bit words in the low one.
    pub version_ihl: u8,
    /// DSCP and ECN: never changed.
    pub tos: u8,
    /// Header and payload in bytes. May be short of the truth in a GSO packet.
    pub total_length: U16,
    /// Identification, shared by the fragments of a datagram.
    pub identification: U16,
    /// Three flag bits, then the fragment offset in units of 8 bytes.
    pub fragment: U16,
    /// Time to live.
    pub ttl: u8,
    /// Number of the payload's protocol.
    pub protocol: u8,
    /// Header checksum, as it lies in memory.
    pub checksum: [u8; 2],
    /// Source address.
    pub source: [u8; 4],
    /// Destination address.
    pub destination: [u8; 4],
}

/// Size of the header without options, in bytes.
pub const BYTES: usize = size_of::<Ipv4Header>();

/// Bit of [`Ipv4Header::fragment`] without a meaning.
pub const RESERVED: u16 = 0x8000;

/// Bit of [`Ipv4Header::fragment`]: no router may fragment this packet.
pub const DONT_FRAGMENT: u16 = 0x4000;

/// Bit of [`Ipv4Header::fragment`]: more fragments follow.
pub const MORE_FRAGMENTS: u16 = 0x2000;

/// Bits of [`Ipv4Header::fragment`]: offset in units of 8 bytes.
pub const FRAGMENT_OFFSET: u16 = 0x1fff;
