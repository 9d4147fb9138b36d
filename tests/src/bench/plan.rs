//! Who lives where in the bench, and which flows there are.
//!
//! ```text
//!   10.0.0.0/14              10.0.0.254  203.0.113.2             198.18.0.0/15 (RFC 2544)
//!   [vpc] eth0 ------------- eth0 [gateway] net1 ------------- ext [outside]
//! ```
//!
//! No router is in between: the two cores of a small machine are for the gateway.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::flow::{End, Flows};

/// The VPC subnet.
pub const VPC_NET: &str = "10.0.0.0/14";
/// The gateway towards the VPC, its `lanIp`.
pub const LAN: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
/// The floating-IP host.
pub const A: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 5);
/// The host that port forwards lead to, and the client of connections to outside.
pub const B: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 10);
/// Where the sources of generated flows begin.
pub const SOURCES: Ipv4Addr = Ipv4Addr::new(10, 2, 0, 0);
/// The gateway towards the outside.
pub const WAN: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
/// The host outside.
pub const X: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// Where the addresses of generated outside hosts begin.
pub const OUTSIDE: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// EIP of the floating IP.
pub const EIP_FIP: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 10);
/// EIP of the SNAT rule.
pub const EIP_SNAT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 20);
/// EIP of the first port forwards; more follow.
pub const EIP_DNAT: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 30);
/// Port forwards on one EIP.
pub const DNATS_PER_EIP: u32 = 30_000;
/// First external port of a port forward, and the port that it leads to.
pub const DNAT_PORT: u32 = 10_000;

/// The VPC subnet over IPv6.
pub const VPC_NET_6: &str = "fd00:10::/64";
/// [`LAN`] over IPv6.
pub const LAN_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x254);
/// [`B`] over IPv6.
pub const B_6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 0, 0x10);
/// [`WAN`] over IPv6.
pub const WAN_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 2);
/// [`X`] over IPv6.
pub const X_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 1);
/// [`EIP_SNAT`] over IPv6.
pub const EIP_SNAT_6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x20);

/// Ethernet addresses in the order VPC, gateway inside, gateway outside, outside.
pub const MACS: [[u8; 6]; 4] =
    [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2], [2, 0, 0, 0, 0, 3], [2, 0, 0, 0, 0, 4]];

/// Masks of 15 and 17 bits: together the 32 bits of a flow's number.
const PORTS: u32 = 0x7fff;
const HOSTS: u32 = 0x1_ffff;

/// What the gateway does with the flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// From a VPC host to outside, over IPv4.
    Snat,
    /// The same over IPv6.
    Snat6,
    /// From outside to port forwards, of which there are so many.
    Dnat(u32),
    /// From outside to the floating IP.
    Fip,
    /// From VPC hosts to a port forward.
    Hairpin,
}

impl Kind {
    /// One word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Snat => "SNAT",
            Self::Snat6 => "SNAT IPv6",
            Self::Dnat(_) => "DNAT",
            Self::Fip => "FIP",
            Self::Hairpin => "hairpin",
        }
    }

    /// Whether packets come from outside.
    pub fn is_inbound(self) -> bool {
        matches!(self, Self::Dnat(_) | Self::Fip)
    }

    /// `count` flows in frames of so many bytes; interface and Ethernet addresses are left open.
    pub fn flows(self, count: u32, frame_bytes: u32) -> Flows {
        let vpc = end(SOURCES, 0x3, 1024, PORTS);
        let outside = end(OUTSIDE, HOSTS, 1024, PORTS);
        let mut flows =
            Flows { frame_bytes, count, stride: stride(count), version: 4, ..Flows::default() };
        (flows.source, flows.destination) = match self {
            Self::Snat => (vpc, end(OUTSIDE, 0, 1, PORTS)),
            Self::Snat6 => {
                flows.version = 6;
                // 60 bytes do not hold the headers.
                flows.frame_bytes = frame_bytes.max(64);
                let source = Ipv6Addr::new(0xfd00, 0x10, 0, 0, 0, 0, 1, 0);
                let far = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 7);
                (
                    End { address: words(source), ..vpc },
                    End { address: words(far), ..end(OUTSIDE, 0, 1, PORTS) },
                )
            }
            Self::Dnat(rules) => {
                let mut to = end(EIP_DNAT, 0, DNAT_PORT, 0);
                to.port_turns = rules.clamp(1, DNATS_PER_EIP);
                (outside, to)
            }
            Self::Fip => (end(OUTSIDE, 0x3, 1024, PORTS), end(EIP_FIP, 0, 1, PORTS)),
            Self::Hairpin => (end(SOURCES, HOSTS, 1024, PORTS), end(EIP_DNAT, 0, DNAT_PORT, 0)),
        };
        flows
    }
}

fn end(address: Ipv4Addr, address_mask: u32, port: u32, port_mask: u32) -> End {
    End { address: [0, 0, 0, address.to_bits()], address_mask, port, port_mask, port_turns: 0 }
}

fn words(address: Ipv6Addr) -> [u32; 4] {
    let bits = address.to_bits();
    [(bits >> 96) as u32, (bits >> 64) as u32, (bits >> 32) as u32, bits as u32]
}

/// A step that visits every flow, and none soon after its neighbour.
fn stride(count: u32) -> u32 {
    // A prime: it divides no count below it.
    const PRIME: u32 = 2_654_435_761;
    if count < 3 { 1 } else { PRIME % count }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_flow_has_its_turn_and_a_tuple_of_its_own() {
        for kind in
            [Kind::Snat, Kind::Snat6, Kind::Dnat(1), Kind::Dnat(1000), Kind::Fip, Kind::Hairpin]
        {
            let count = 100_000;
            let flows = kind.flows(count, 60);
            let tuples: BTreeSet<_> = (0..u64::from(count))
                .map(|turn| flows.ends(flows.number(turn)))
                .map(|(source, to)| (source.low, source.port, to.low, to.port))
                .collect();
            assert_eq!(tuples.len(), count as usize, "{kind:?}");
        }
    }
}
