//! Frames, read back: an opinion on bytes that shares nothing with the pipeline under test.
//!
//! Checksums are computed in full, never by difference.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::build_packet::{DCCP, Draft, ICMP, ICMPV6, TCP, Transport, UDP, UDP_LITE};

/// The internet checksum over `parts` one after the other, each but the last of even length
/// (RFC 1071).
#[must_use]
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 =
        words.map(|word| u32::from(word[0]) << 8 | u32::from(*word.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// What the checksums of TCP, UDP and ICMPv6 cover beside the segment.
#[must_use]
pub fn pseudo_header(source: IpAddr, destination: IpAddr, protocol: u8, length: usize) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(v4) => Ipv4Addr::octets(&v4).to_vec(),
        IpAddr::V6(v6) => Ipv6Addr::octets(&v6).to_vec(),
    };
    let mut bytes = [octets(source), octets(destination)].concat();
    bytes.extend((length as u32).to_be_bytes());
    bytes.extend([0, 0, 0, protocol]);
    bytes
}

/// The IP packet in a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Protocol number of the layer-4 header.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// DSCP and ECN.
    pub tos: u8,
    /// IPv4 options.
    pub options: Vec<u8>,
    /// IPv6 extension headers, as they are.
    pub extensions: Vec<u8>,
    /// Identification, "don't fragment", offset in bytes, "more fragments".
    pub fragment: (u32, bool, usize, bool),
    /// Ports, where the protocol has them and this is no later fragment.
    pub ports: Option<(u16, u16)>,
    /// ICMP type, code and identifier.
    pub icmp: Option<(u8, u8, u16)>,
    /// TCP flags.
    pub tcp_flags: Option<u8>,
    /// The checksum field of the layer-4 header.
    pub checksum: Option<u16>,
    /// Everything from the layer-4 header on.
    pub segment: Vec<u8>,
    /// Every checksum and length that is wrong.
    pub faults: Vec<String>,
}

/// Reads the IP packet in a frame.
///
/// # Errors
/// It is not an untagged IP packet, or it ends inside a header.
pub fn decode(frame: &[u8]) -> Result<Decoded, String> {
    read(frame, true)
}

/// As [`decode`], but believes in the length of the frame and not in what the IP header says of it,
/// as the data path does.
///
/// # Errors
/// As [`decode`].
pub fn decode_whole(frame: &[u8]) -> Result<Decoded, String> {
    read(frame, false)
}

fn read(frame: &[u8], believe_length: bool) -> Result<Decoded, String> {
    let ether_type = word(frame, 12)?;
    let packet = &frame[14..];
    let mut decoded = match ether_type {
        0x0800 => ipv4(packet, believe_length)?,
        0x86dd => ipv6(packet, believe_length)?,
        other => return Err(format!("ether type {other:#06x}")),
    };
    if decoded.fragment.2 == 0 {
        transport(&mut decoded)?;
    }
    Ok(decoded)
}

fn word(bytes: &[u8], at: usize) -> Result<u16, String> {
    let bytes = bytes.get(at..at + 2).ok_or_else(|| format!("cut off before byte {}", at + 2))?;
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}

fn slice(bytes: &[u8], range: std::ops::Range<usize>) -> Result<&[u8], String> {
    let end = range.end;
    bytes.get(range).ok_or_else(|| format!("cut off before byte {end}"))
}

fn blank(source: IpAddr, destination: IpAddr) -> Decoded {
    Decoded {
        source,
        destination,
        protocol: 0,
        ttl: 0,
        tos: 0,
        options: Vec::new(),
        extensions: Vec::new(),
        fragment: (0, false, 0, false),
        ports: None,
        icmp: None,
        tcp_flags: None,
        checksum: None,
        segment: Vec::new(),
        faults: Vec::new(),
    }
}

fn ipv4(packet: &[u8], believe_length: bool) -> Result<Decoded, String> {
    let fixed = slice(packet, 0..20)?;
    let header_bytes = usize::from(fixed[0] & 15) * 4;
    if fixed[0] >> 4 != 4 || header_bytes < 20 {
        return Err(format!("first byte {:#04x}", fixed[0]));
    }
    let header = &packet[..header_bytes.min(packet.len())];
    let address = |at: usize| Ipv4Addr::new(fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]);
    let mut decoded = blank(address(12).into(), address(16).into());
    (decoded.tos, decoded.ttl, decoded.protocol) = (fixed[1], fixed[8], fixed[9]);
    decoded.options = header[20..].to_vec();
    let field = word(packet, 6)?;
    decoded.fragment = (
        word(packet, 4)?.into(),
        field & 0x4000 != 0,
        usize::from(field & 0x1fff) * 8,
        field & 0x2000 != 0,
    );
    if header.len() < header_bytes {
        decoded.faults.push(format!("header of {header_bytes} bytes"));
    } else if checksum(&[header]) != 0 {
        decoded.faults.push("IP header checksum".into());
    }
    let total = usize::from(word(packet, 2)?);
    if total > packet.len() || total < header_bytes {
        decoded.faults.push(format!("total length {total} of {}", packet.len()));
    }
    let end = if believe_length { total } else { packet.len() };
    decoded.segment = packet[header.len()..end.clamp(header.len(), packet.len())].to_vec();
    Ok(decoded)
}

fn ipv6(packet: &[u8], believe_length: bool) -> Result<Decoded, String> {
    let fixed = slice(packet, 0..40)?;
    if fixed[0] >> 4 != 6 {
        return Err(format!("first byte {:#04x}", fixed[0]));
    }
    let address = |at: usize| {
        let mut octets = [0; 16];
        octets.copy_from_slice(&fixed[at..at + 16]);
        Ipv6Addr::from(octets)
    };
    let mut decoded = blank(address(8).into(), address(24).into());
    decoded.tos = fixed[0] << 4 | fixed[1] >> 4;
    (decoded.protocol, decoded.ttl) = (fixed[6], fixed[7]);
    let mut at = 40;
    while matches!(decoded.protocol, 0 | 43 | 44 | 51 | 60) && decoded.fragment.2 == 0 {
        let Some(start) = packet.get(at..at + 8) else {
            break;
        };
        let units = usize::from(start[1]);
        let length = match decoded.protocol {
            44 => {
                let field = u16::from_be_bytes([start[2], start[3]]);
                let id = u32::from_be_bytes([start[4], start[5], start[6], start[7]]);
                decoded.fragment = (id, false, usize::from(field & 0xfff8), field & 1 != 0);
                8
            }
            51 => (units + 2) * 4,
            _ => (units + 1) * 8,
        };
        decoded.protocol = start[0];
        at += length;
    }
    if at > packet.len() {
        decoded.faults.push(format!("extension headers of {} bytes", at - 40));
        at = packet.len();
    }
    decoded.extensions = packet[40..at].to_vec();
    let total = 40 + usize::from(word(packet, 4)?);
    if total > packet.len() || total < at {
        decoded.faults.push(format!("payload length {} of {}", total - 40, packet.len() - 40));
    }
    let end = if believe_length { total } else { packet.len() };
    decoded.segment = packet[at..end.clamp(at, packet.len())].to_vec();
    Ok(decoded)
}

fn transport(decoded: &mut Decoded) -> Result<(), String> {
    let segment = decoded.segment.clone();
    let at = match decoded.protocol {
        TCP | UDP | UDP_LITE | DCCP => {
            decoded.ports = Some((word(&segment, 0)?, word(&segment, 2)?));
            if decoded.protocol == TCP { 16 } else { 6 }
        }
        ICMP | ICMPV6 if (decoded.protocol == ICMP) == decoded.source.is_ipv4() => {
            let kind = slice(&segment, 0..2)?;
            decoded.icmp = Some((kind[0], kind[1], word(&segment, 4)?));
            2
        }
        _ => return Ok(()),
    };
    if decoded.protocol == TCP {
        decoded.tcp_flags = Some(slice(&segment, 13..14)?[0]);
    }
    let field = word(&segment, at)?;
    decoded.checksum = Some(field);
    let fragmented = decoded.fragment.3;
    if !fragmented && !decoded.checksum_holds(field) {
        decoded.faults.push(format!("layer-4 checksum {field:#06x}"));
    }
    Ok(())
}

impl Decoded {
    fn checksum_holds(&self, field: u16) -> bool {
        if self.protocol == UDP && field == 0 {
            // RFC 768: none. RFC 8200 section 8.1: IPv6 has no such thing.
            return self.source.is_ipv4();
        }
        if self.protocol == ICMP {
            return checksum(&[&self.segment]) == 0;
        }
        let length = self.segment.len();
        let pseudo = pseudo_header(self.source, self.destination, self.protocol, length);
        checksum(&[&pseudo, &self.segment]) == 0
    }

    /// Source address and port; the identifier of an ICMP query stands for its port.
    #[must_use]
    pub fn from(&self) -> SocketAddr {
        SocketAddr::new(self.source, self.port(|ports| ports.0, [8, 13, 15, 17, 128]))
    }

    /// Destination address and port; the identifier of a reply to an ICMP query stands for its port.
    #[must_use]
    pub fn to(&self) -> SocketAddr {
        SocketAddr::new(self.destination, self.port(|ports| ports.1, [0, 14, 16, 18, 129]))
    }

    fn port(&self, of: impl Fn((u16, u16)) -> u16, queries: [u8; 5]) -> u16 {
        let id = self.icmp.filter(|(kind, ..)| queries.contains(kind)).map(|(.., id)| id);
        self.ports.map(of).or(id).unwrap_or(0)
    }

    /// What follows the layer-4 header that the pipeline may touch.
    #[must_use]
    pub fn payload(&self) -> &[u8] {
        let header = match self.protocol {
            _ if self.fragment.2 != 0 => 0,
            TCP => 20,
            UDP | UDP_LITE | DCCP | ICMP | ICMPV6 => 8,
            _ => 0,
        };
        self.segment.get(header..).unwrap_or(&[])
    }

    /// A draft of the answer that the receiver of this packet sends, with SYN and ACK set in TCP.
    #[must_use]
    pub fn answer(&self) -> Draft {
        let transport = match (self.protocol, self.icmp) {
            (TCP, _) => {
                let flags = self.tcp_flags.unwrap_or(0) | crate::build_packet::ACK;
                Transport::Tcp { ports: self.ports.unwrap_or_default(), flags }
            }
            (UDP | UDP_LITE | DCCP, _) => {
                let ports = self.ports.unwrap_or_default();
                Transport::Datagram { protocol: self.protocol, ports, checksum: true }
            }
            (_, Some((kind, _, id))) if matches!(kind, 0 | 8 | 128 | 129) => {
                Transport::Echo { reply: matches!(kind, 0 | 129), id }
            }
            (protocol, _) => Transport::Other { protocol },
        };
        Draft {
            source: self.source,
            destination: self.destination,
            transport,
            payload: b"what the other side says".to_vec(),
            ttl: 57,
            tos: 0,
            identification: 0x2e2e,
            dont_fragment: false,
            tcp_options: Vec::new(),
            ipv4_options: Vec::new(),
            extensions: Vec::new(),
            part: None,
            vlan: None,
            mac: None,
        }
        .reversed()
    }
}

impl fmt::Display for Decoded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.protocol {
            TCP => "tcp".to_owned(),
            UDP => "udp".to_owned(),
            ICMP | ICMPV6 => "icmp".to_owned(),
            number => format!("proto {number}"),
        };
        write!(f, "{name} {} > {} ttl {}", self.from(), self.to(), self.ttl)?;
        if let Some((kind, code, id)) = self.icmp {
            write!(f, " type {kind} code {code} id {id}")?;
        }
        if let Some(flags) = self.tcp_flags {
            write!(f, " flags {flags:#04x}")?;
        }
        if let (id, df, offset, more) = self.fragment
            && (df || more || offset != 0)
        {
            write!(f, " fragment id {id:#06x} df {df} offset {offset} more {more}")?;
        }
        if let Some(sum) = self.checksum {
            write!(f, " sum {sum:#06x}")?;
        }
        write!(f, " {} bytes", self.segment.len())?;
        for fault in &self.faults {
            write!(f, ", WRONG {fault}")?;
        }
        Ok(())
    }
}

/// A frame in one line for a person, whatever is in it.
#[must_use]
pub fn describe(frame: &[u8]) -> String {
    match decode(frame) {
        Ok(decoded) => decoded.to_string(),
        Err(why) => {
            let hex: String = frame.iter().take(64).map(|byte| format!("{byte:02x}")).collect();
            format!("{} bytes, {why}: {hex}", frame.len())
        }
    }
}

#[cfg(test)]
mod tests;
