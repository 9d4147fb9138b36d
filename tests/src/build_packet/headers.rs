//! Everything below layer 4: Ethernet, IPv4 with options, IPv6 with extension headers.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Draft, put};
use crate::decode::checksum;

/// Source of every frame: a MAC address that nobody looks at.
const SENDER_MAC: [u8; 6] = [2, 0, 0, 0, 0xee, 1];

impl Draft {
    /// The frame, sent to `mac` unless the draft names another address.
    ///
    /// # Panics
    /// The two addresses are of different families.
    #[must_use]
    pub fn frame(&self, mac: [u8; 6]) -> Vec<u8> {
        let segment = self.segment();
        let part = self.part.clone().unwrap_or(0..segment.len());
        let more = part.end < segment.len();
        let carried = &segment[part.clone()];
        let mut frame = Vec::new();
        frame.extend(self.mac.unwrap_or(mac));
        frame.extend(SENDER_MAC);
        if let Some(vlan) = self.vlan {
            put(&mut frame, &[0x8100, vlan]);
        }
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                put(&mut frame, &[0x0800]);
                frame.extend(self.ipv4_header(
                    source,
                    destination,
                    carried.len(),
                    part.start,
                    more,
                ));
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                put(&mut frame, &[0x86dd]);
                let fragment = self.part.is_some().then_some((part.start, more));
                frame.extend(self.ipv6_headers(source, destination, carried.len(), fragment));
            }
            (source, destination) => panic!("from {source} to {destination}"),
        }
        frame.extend(carried);
        frame
    }

    fn ipv4_header(
        &self,
        source: Ipv4Addr,
        destination: Ipv4Addr,
        carried: usize,
        offset: usize,
        more: bool,
    ) -> Vec<u8> {
        let mut options = self.ipv4_options.clone();
        options.resize(options.len().next_multiple_of(4), 0);
        let words = 5 + options.len() / 4;
        let flags = u16::from(self.dont_fragment) << 14 | u16::from(more) << 13;
        let mut header = vec![0x40 | words as u8, self.tos];
        let length = words * 4 + carried;
        put(&mut header, &[length as u16, self.identification, flags | (offset / 8) as u16]);
        header.extend([self.ttl, self.protocol(), 0, 0]);
        header.extend(source.octets());
        header.extend(destination.octets());
        header.extend(options);
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn ipv6_headers(
        &self,
        source: Ipv6Addr,
        destination: Ipv6Addr,
        carried: usize,
        fragment: Option<(usize, bool)>,
    ) -> Vec<u8> {
        let mut chain = self.extensions.clone();
        if let Some((offset, more)) = fragment {
            let field = (offset as u16 | u16::from(more)).to_be_bytes();
            let id = self.identification.to_be_bytes();
            chain.push((44, vec![field[0], field[1], 0, 0, id[0], id[1]]));
        }
        let numbers: Vec<u8> =
            chain.iter().map(|(number, _)| *number).chain([self.protocol()]).collect();
        let mut extensions = Vec::new();
        for ((number, content), next) in chain.iter().zip(&numbers[1..]) {
            let length = (content.len() + 2).next_multiple_of(8);
            // The length of an authentication header counts words of four bytes, minus two.
            let units = if *number == 51 { length / 4 - 2 } else { length / 8 - 1 };
            let start = extensions.len();
            extensions.extend([*next, units as u8]);
            extensions.extend(content);
            extensions.resize(start + length, 0);
        }
        let mut headers = vec![0x60 | self.tos >> 4, self.tos << 4, 0, 0];
        put(&mut headers, &[(extensions.len() + carried) as u16]);
        headers.extend([numbers[0], self.ttl]);
        headers.extend(source.octets());
        headers.extend(destination.octets());
        headers.extend(extensions);
        headers
    }
}
