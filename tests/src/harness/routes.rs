//! The interfaces and routes that every backend has.

use std::collections::BTreeMap;
use std::net::IpAddr;

use gateway_common::tuple::Direction;

use super::notation::covers;
use crate::build_packet::{embed, end};

/// MAC address of the interface towards the VPC.
pub const INTERNAL_MAC: [u8; 6] = [2, 0, 0, 0, 1, 0xfe];

/// MAC address of the interface towards the outside.
pub const EXTERNAL_MAC: [u8; 6] = [2, 0, 0, 0, 2, 2];

/// MTU of all interfaces.
pub const MTU: u32 = 1500;

/// Address of the gateway in the VPC.
pub const LAN: &str = "10.0.1.254";

/// Address of the gateway outside.
pub const WAN: &str = "203.0.113.2";

/// The EIPs: addresses of the external interface, each of which a case may give a rule.
pub const EIPS: [&str; 8] = [
    "203.0.113.10",
    "203.0.113.11",
    "203.0.113.12",
    "203.0.113.13",
    "203.0.113.14",
    "203.0.113.15",
    "203.0.113.16",
    "203.0.113.17",
];

/// Indices of the interfaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Links {
    /// `eth0`, towards the VPC.
    pub internal: u32,
    /// `net1`, towards the outside.
    pub external: u32,
    /// `aux0`, towards something else.
    pub third: u32,
}

impl Links {
    /// Indices for a backend that has no real interfaces.
    pub const IMAGINED: Self = Self { internal: 2, external: 3, third: 4 };

    /// Index of the interface that packets of `direction` come in by.
    #[must_use]
    pub fn ingress(&self, direction: Direction) -> u32 {
        match direction {
            Direction::Outbound => self.internal,
            Direction::Inbound => self.external,
        }
    }
}

/// MAC address of the interface that packets of `direction` come in by.
#[must_use]
pub fn ingress_mac(direction: Direction) -> [u8; 6] {
    match direction {
        Direction::Outbound => INTERNAL_MAC,
        Direction::Inbound => EXTERNAL_MAC,
    }
}

/// Where a route leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// To a neighbour; to the destination itself if it is `None`.
    Forward {
        /// Index of the interface.
        ifindex: u32,
        /// The gateway.
        via: Option<IpAddr>,
    },
    /// To this machine.
    Local,
    /// Nowhere: a blackhole.
    Refused,
}

/// A network: address and length in bits.
pub type Prefix = (IpAddr, u32);

/// Reads `10.0.1.0/24`, or an address alone.
///
/// # Panics
/// It is neither.
#[must_use]
pub fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap_or((text, "32"));
    (end(address).ip(), length.parse().expect("a prefix length"))
}

/// The IPv6 prefix that stands for an IPv4 prefix.
#[must_use]
pub fn embed_prefix((address, length): Prefix) -> Prefix {
    match address {
        IpAddr::V4(v4) => (embed(v4).into(), length + 96),
        IpAddr::V6(_) => (address, length),
    }
}

/// A routing table.
#[derive(Clone, Debug, Default)]
pub struct Routes(BTreeMap<Prefix, Target>);

impl Routes {
    /// The table that every test begins with, in both families.
    #[must_use]
    pub fn of(links: &Links) -> Self {
        let on_link = |ifindex| Target::Forward { ifindex, via: None };
        let via = |ifindex, gateway| Target::Forward { ifindex, via: Some(end(gateway).ip()) };
        let mut routes = Self::default();
        for (text, target) in [
            ("0.0.0.0/0", via(links.external, "203.0.113.1")),
            ("203.0.113.0/24", on_link(links.external)),
            ("10.0.1.0/24", on_link(links.internal)),
            ("10.0.2.0/24", via(links.internal, "10.0.1.1")),
            ("172.16.0.0/24", on_link(links.third)),
            ("192.0.2.0/24", Target::Refused),
            (LAN, Target::Local),
            (WAN, Target::Local),
            ("172.16.0.254", Target::Local),
        ] {
            routes.set_in_both(text, target);
        }
        for eip in EIPS {
            routes.set_in_both(eip, Target::Local);
        }
        for network in ["10.0.1", "203.0.113", "172.16.0"] {
            // The kernel's own broadcast addresses, and those of any router in IPv6 (RFC 4291 2.6.1).
            routes.set(prefix(&format!("{network}.255")), Target::Local);
            routes.set(embed_prefix(prefix(&format!("{network}.0"))), Target::Local);
        }
        routes
    }

    fn set_in_both(&mut self, text: &str, target: Target) {
        let embedded = match target {
            Target::Forward { ifindex, via: Some(IpAddr::V4(via)) } => {
                Target::Forward { ifindex, via: Some(embed(via).into()) }
            }
            other => other,
        };
        self.set(prefix(text), target);
        self.set(embed_prefix(prefix(text)), embedded);
    }

    /// Adds or replaces a route.
    pub fn set(&mut self, prefix: Prefix, target: Target) {
        self.0.insert(prefix, target);
    }

    /// The route of exactly this prefix.
    #[must_use]
    pub fn get(&self, prefix: Prefix) -> Option<Target> {
        self.0.get(&prefix).copied()
    }

    /// The route to `destination`, by the longest prefix. No route is like a local one: either way
    /// nothing is forwarded.
    #[must_use]
    pub fn lookup(&self, destination: IpAddr) -> Target {
        let matching =
            self.0.iter().filter(|((net, length), _)| covers(*net, *length, destination));
        matching.max_by_key(|((_, length), _)| *length).map_or(Target::Local, |(_, target)| *target)
    }
}
