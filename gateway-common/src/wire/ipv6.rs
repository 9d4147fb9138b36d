//! IPv6 (RFC 8200) and its extension headers.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian::U16};

/// IPv6 fixed header.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ipv6Header {
    /// Version (6), traffic class and flow label: only the version is looked at.
    pub version_class_flow: [u8; 4],
    /// Bytes after this header. May be short of the truth in a GSO packet.
    pub payload_length: U16,
    /// Number of the next header.
    pub next_header: u8,
    /// Hop limit.
    pub hop_limit: u8,
    /// Source address.
    pub source: [u8; 16],
    /// Destination address.
    pub destination: [u8; 16],
}

/// Size of the fixed header in bytes.
pub const BYTES: usize = size_of::<Ipv6Header>();

/// The first two bytes that all extension headers share.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Extension {
    /// Number of the header that follows.
    pub next_header: u8,
    /// Length in units that depend on the header.
    pub length: u8,
}

/// Fragment header (RFC 8200 section 4.5).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct FragmentHeader {
    /// Number of the header that follows.
    pub next_header: u8,
    /// Zero.
    pub reserved: u8,
    /// Offset in units of 8 bytes in the high 13 bits, "more fragments" in the lowest.
    pub offset_more: U16,
    /// Identification, shared by the fragments of a datagram.
    pub identification: [u8; 4],
}

/// Hop-by-hop options.
pub const HOP_BY_HOP: u8 = 0;
/// Routing header.
pub const ROUTING: u8 = 43;
/// Fragment header.
pub const FRAGMENT: u8 = 44;
/// Authentication header (RFC 4302): its length counts 32-bit words.
pub const AUTHENTICATION: u8 = 51;
/// Destination options.
pub const DESTINATION_OPTIONS: u8 = 60;
