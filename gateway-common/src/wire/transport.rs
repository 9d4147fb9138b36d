//! TCP, UDP and ICMP: the fields a NAT looks at.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned, network_endian::U16};

/// Number of ICMP for IPv4.
pub const ICMP: u8 = 1;
/// Number of TCP.
pub const TCP: u8 = 6;
/// Number of UDP.
pub const UDP: u8 = 17;
/// Number of DCCP (RFC 4340).
pub const DCCP: u8 = 33;
/// Number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Number of UDP-Lite (RFC 3828).
pub const UDP_LITE: u8 = 136;

/// The ports with which TCP, UDP, UDP-Lite, SCTP and DCCP begin.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Ports {
    /// Source port.
    pub source: U16,
    /// Destination port.
    pub destination: U16,
}

/// UDP, and what UDP-Lite and DCCP have in common with it: ports, and a checksum at the end.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct UdpHeader {
    /// Source and destination port.
    pub ports: Ports,
    /// Length in UDP, something else in the others.
    pub length: U16,
    /// Checksum, as it lies in memory.
    pub checksum: [u8; 2],
}

/// TCP up to and including the checksum (RFC 9293 section 3.1).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct TcpStart {
    /// Source and destination port.
    pub ports: Ports,
    /// Sequence and acknowledgment number.
    pub numbers: [u8; 8],
    /// Length of the header in 32-bit words, in the high nibble.
    pub data_offset: u8,
    /// CWR ECE URG ACK PSH RST SYN FIN.
    pub flags: u8,
    /// Receive window.
    pub window: U16,
    /// Checksum, as it lies in memory.
    pub checksum: [u8; 2],
}

/// TCP flag: no more data from the sender.
pub const FIN: u8 = 0x01;
/// TCP flag: synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// TCP flag: reset.
pub const RST: u8 = 0x04;
/// TCP flag: the acknowledgment number is valid.
pub const ACK: u8 = 0x10;

/// ICMP and ICMPv6 up to the identifier of a query.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct IcmpStart {
    /// Type of the message.
    pub kind: u8,
    /// Code within the type.
    pub code: u8,
    /// Checksum, as it lies in memory.
    pub checksum: [u8; 2],
    /// Identifier, in query messages only.
    pub id: U16,
}

/// Size of the TCP header without options, in bytes.
pub const TCP_BYTES: u32 = 20;
/// Size of the headers of UDP and UDP-Lite, in bytes; of DCCP as far as a NAT looks at it.
pub const UDP_BYTES: u32 = 8;
/// Size of the fixed part of ICMP and ICMPv6, in bytes.
pub const ICMP_BYTES: u32 = 8;
/// Where the checksum of TCP lies, from the start of its header.
pub const TCP_CHECKSUM: u8 = 16;
/// Where the checksum of UDP, UDP-Lite and DCCP lies, from the start of their header.
pub const UDP_CHECKSUM: u8 = 6;
/// Where the checksum of ICMP and ICMPv6 lies, from the start of their header.
pub const ICMP_CHECKSUM: u8 = 2;
