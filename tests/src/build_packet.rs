//! Frames, built from what a test wants to say about them.
//!
//! A [`Draft`] is written in IPv4 notation; [`Draft::over_ipv6`] carries the same packet over IPv6.
//! Lengths and checksums are always right, unless a test asks for a UDP datagram without one.

mod headers;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::ops::Range;

use crate::decode::{checksum, pseudo_header};

/// Number of ICMP for IPv4.
pub const ICMP: u8 = 1;
/// Number of TCP.
pub const TCP: u8 = 6;
/// Number of UDP.
pub const UDP: u8 = 17;
/// Number of DCCP.
pub const DCCP: u8 = 33;
/// Number of ICMPv6.
pub const ICMPV6: u8 = 58;
/// Number of UDP-Lite.
pub const UDP_LITE: u8 = 136;

/// TCP flag FIN.
pub const FIN: u8 = 0x01;
/// TCP flag SYN.
pub const SYN: u8 = 0x02;
/// TCP flag RST.
pub const RST: u8 = 0x04;
/// TCP flag ACK.
pub const ACK: u8 = 0x10;

/// The first 96 bits of the IPv6 address that stands for an IPv4 address.
const EMBEDDED: [u16; 6] = [0x2001, 0xdb8, 0x64, 0, 0, 0];

/// The IPv6 address that stands for `v4` when a case runs over IPv6.
#[must_use]
pub fn embed(v4: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d, e, f] = EMBEDDED;
    let [high, low] = [v4.to_bits() >> 16, v4.to_bits() & 0xffff].map(|half| half as u16);
    Ipv6Addr::new(a, b, c, d, e, f, high, low)
}

/// The inverse of [`embed`]; any other address stays as it is.
#[must_use]
pub fn unembed(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if v6.segments()[..6] == EMBEDDED => {
            Ipv4Addr::from_bits(v6.to_bits() as u32).into()
        }
        IpAddr::V4(_) | IpAddr::V6(_) => address,
    }
}

/// What is in the IP packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP with these ports and flags.
    Tcp {
        /// Source and destination port.
        ports: (u16, u16),
        /// FIN, SYN, ...
        flags: u8,
    },
    /// UDP, UDP-Lite or DCCP with these ports.
    Datagram {
        /// Protocol number.
        protocol: u8,
        /// Source and destination port.
        ports: (u16, u16),
        /// Whether the checksum is computed; otherwise it is 0.
        checksum: bool,
    },
    /// An echo request or reply of the family's ICMP.
    Echo {
        /// Whether it is the reply.
        reply: bool,
        /// Identifier.
        id: u16,
    },
    /// Any message of the family's ICMP.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// The four bytes after the checksum.
        rest: [u8; 4],
    },
    /// Another protocol, all payload.
    Other {
        /// Protocol number.
        protocol: u8,
    },
}

/// A frame to be built.
#[derive(Clone, Debug)]
pub struct Draft {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// What is in the packet.
    pub transport: Transport,
    /// What follows the layer-4 header.
    pub payload: Vec<u8>,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// Identification of the IP packet.
    pub identification: u16,
    /// "Don't fragment" (IPv4).
    pub dont_fragment: bool,
    /// TCP options, padded to four bytes with "end of options".
    pub tcp_options: Vec<u8>,
    /// IPv4 options, padded to four bytes with "end of options".
    pub ipv4_options: Vec<u8>,
    /// IPv6 extension headers: number and content after the first two bytes, padded to eight.
    pub extensions: Vec<(u8, Vec<u8>)>,
    /// The bytes of the whole layer-4 segment that this fragment carries.
    pub part: Option<Range<usize>>,
    /// VLAN id.
    pub vlan: Option<u16>,
    /// Destination MAC address; that of the receiving interface if `None`.
    pub mac: Option<[u8; 6]>,
}

/// Parses an address, with or without port.
///
/// # Panics
/// It is neither.
#[must_use]
pub fn end(text: &str) -> SocketAddr {
    let parsed = text.parse().ok();
    parsed
        .or_else(|| Some(SocketAddr::new(text.parse().ok()?, 0)))
        .unwrap_or_else(|| panic!("{text} is neither an address nor address:port"))
}

fn draft(source: SocketAddr, destination: SocketAddr, transport: Transport) -> Draft {
    Draft {
        source: source.ip(),
        destination: destination.ip(),
        transport,
        payload: b"what the tenant says".to_vec(),
        ttl: 64,
        tos: 0,
        identification: 0x1d1d,
        dont_fragment: false,
        tcp_options: Vec::new(),
        ipv4_options: Vec::new(),
        extensions: Vec::new(),
        part: None,
        vlan: None,
        mac: None,
    }
}

/// A TCP segment between two endpoints.
#[must_use]
pub fn tcp(source: &str, destination: &str, flags: u8) -> Draft {
    let (source, destination) = (end(source), end(destination));
    let ports = (source.port(), destination.port());
    draft(source, destination, Transport::Tcp { ports, flags })
}

/// A UDP datagram between two endpoints.
#[must_use]
pub fn udp(source: &str, destination: &str) -> Draft {
    datagram(UDP, source, destination)
}

/// A UDP, UDP-Lite or DCCP packet between two endpoints.
#[must_use]
pub fn datagram(protocol: u8, source: &str, destination: &str) -> Draft {
    let (source, destination) = (end(source), end(destination));
    let ports = (source.port(), destination.port());
    draft(source, destination, Transport::Datagram { protocol, ports, checksum: true })
}

/// An echo request between two addresses.
#[must_use]
pub fn ping(source: &str, destination: &str, id: u16) -> Draft {
    draft(end(source), end(destination), Transport::Echo { reply: false, id })
}

/// An ICMP message between two addresses.
#[must_use]
pub fn icmp(source: &str, destination: &str, kind: u8, code: u8, rest: [u8; 4]) -> Draft {
    draft(end(source), end(destination), Transport::Icmp { kind, code, rest })
}

/// A packet of another protocol between two addresses.
#[must_use]
pub fn other(protocol: u8, source: &str, destination: &str) -> Draft {
    draft(end(source), end(destination), Transport::Other { protocol })
}

impl Draft {
    /// The same with another payload.
    #[must_use]
    pub fn with_payload(self, payload: &[u8]) -> Self {
        Self { payload: payload.to_vec(), ..self }
    }

    /// With these TCP flags.
    ///
    /// # Panics
    /// It is not TCP.
    #[must_use]
    pub fn with_tcp_flags(mut self, to: u8) -> Self {
        let Transport::Tcp { flags, .. } = &mut self.transport else { panic!("not TCP") };
        *flags = to;
        self
    }

    /// The same with another TTL.
    #[must_use]
    pub fn with_ttl(self, ttl: u8) -> Self {
        Self { ttl, ..self }
    }

    /// The same UDP datagram with checksum 0, which means none.
    #[must_use]
    pub fn without_checksum(mut self) -> Self {
        if let Transport::Datagram { checksum, .. } = &mut self.transport {
            *checksum = false;
        }
        self
    }

    /// The same with both ends exchanged, as an answer to it comes.
    #[must_use]
    pub fn reversed(mut self) -> Self {
        std::mem::swap(&mut self.source, &mut self.destination);
        match &mut self.transport {
            Transport::Tcp { ports, .. } | Transport::Datagram { ports, .. } => {
                *ports = (ports.1, ports.0);
            }
            Transport::Echo { reply, .. } => *reply = !*reply,
            Transport::Icmp { .. } | Transport::Other { .. } => {}
        }
        self
    }

    /// The packet as two fragments, the first with `first` bytes of the layer-4 segment.
    ///
    /// # Panics
    /// `first` is not a multiple of 8 within the segment.
    #[must_use]
    pub fn fragments(self, first: usize) -> [Self; 2] {
        let whole = self.segment().len();
        assert!(first.is_multiple_of(8) && (8..whole).contains(&first), "{first} of {whole} bytes");
        [0..first, first..whole].map(|part| Self { part: Some(part), ..self.clone() })
    }

    /// The packet as fragments of `size` bytes of the layer-4 segment each, the last perhaps shorter.
    ///
    /// # Panics
    /// `size` is not a multiple of 8.
    #[must_use]
    pub fn pieces(&self, size: usize) -> Vec<Self> {
        assert!(size > 0 && size.is_multiple_of(8), "{size} bytes");
        let whole = self.segment().len();
        let parts = (0..whole).step_by(size).map(|start| start..(start + size).min(whole));
        parts.map(|part| Self { part: Some(part), ..self.clone() }).collect()
    }

    /// The same with another identification.
    #[must_use]
    pub fn with_identification(self, identification: u16) -> Self {
        Self { identification, ..self }
    }

    /// The same packet over IPv6, with every IPv4 address embedded.
    #[must_use]
    pub fn over_ipv6(mut self) -> Self {
        for address in [&mut self.source, &mut self.destination] {
            if let IpAddr::V4(v4) = *address {
                *address = embed(v4).into();
            }
        }
        self
    }

    /// Protocol number of the layer-4 header.
    #[must_use]
    pub fn protocol(&self) -> u8 {
        match self.transport {
            Transport::Tcp { .. } => TCP,
            Transport::Datagram { protocol, .. } | Transport::Other { protocol } => protocol,
            Transport::Echo { .. } | Transport::Icmp { .. } if self.source.is_ipv6() => ICMPV6,
            Transport::Echo { .. } | Transport::Icmp { .. } => ICMP,
        }
    }

    /// The layer-4 header and payload of the whole, unfragmented packet.
    #[must_use]
    pub fn segment(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let checksum_at = match &self.transport {
            Transport::Tcp { ports, flags } => {
                put(&mut bytes, &[ports.0, ports.1, 0x0102, 0x0304, 0x0506, 0x0708]);
                let mut options = self.tcp_options.clone();
                options.resize(options.len().next_multiple_of(4), 0);
                bytes.extend([(5 + options.len() as u8 / 4) << 4, *flags]);
                put(&mut bytes, &[0xfaf0, 0, 0]);
                bytes.extend(options);
                Some(16)
            }
            Transport::Datagram { protocol, ports, checksum } => {
                let length = if *protocol == UDP { 8 + self.payload.len() } else { 0 };
                put(&mut bytes, &[ports.0, ports.1, length as u16, 0]);
                checksum.then_some(6)
            }
            Transport::Echo { reply, id } => {
                let kind = match (self.source.is_ipv6(), reply) {
                    (false, false) => 8,
                    (false, true) => 0,
                    (true, false) => 128,
                    (true, true) => 129,
                };
                bytes.extend([kind, 0, 0, 0]);
                put(&mut bytes, &[*id, 1]);
                Some(2)
            }
            Transport::Icmp { kind, code, rest } => {
                bytes.extend([*kind, *code, 0, 0]);
                bytes.extend(rest);
                Some(2)
            }
            Transport::Other { .. } => None,
        };
        bytes.extend(&self.payload);
        if let Some(at) = checksum_at {
            let sum = self.checksum_of(&bytes);
            bytes[at..at + 2].copy_from_slice(&sum);
        }
        bytes
    }

    fn checksum_of(&self, segment: &[u8]) -> [u8; 2] {
        let protocol = self.protocol();
        let sum = if protocol == ICMP {
            checksum(&[segment])
        } else {
            let length = segment.len();
            checksum(&[&pseudo_header(self.source, self.destination, protocol, length), segment])
        };
        // RFC 768: 0 means none, so a computed 0 is sent as all ones.
        let sum = if sum == 0 && protocol == UDP { 0xffff } else { sum };
        sum.to_be_bytes()
    }
}

/// Appends words in network order.
fn put(bytes: &mut Vec<u8>, words: &[u16]) {
    bytes.extend(words.iter().flat_map(|word| word.to_be_bytes()));
}
