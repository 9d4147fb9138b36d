//! What one gateway shall do: valid by construction, free of references by name, ordered.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroU16;
use std::str::FromStr;

use gateway_common::records::{FILTER_ADDRESS, FILTER_INDEPENDENT, MAP_INDEPENDENT};
use ipnet::IpNet;
use serde::{Serialize, Serializer};

use super::NextHops;
use crate::crd::ObjectRef;
use crate::rejection::{Origin, Problem};

/// Everything one gateway shall do.
///
/// Two states are equal when they ask for the same, wherever in the input that stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct DesiredState {
    /// The gateway itself.
    pub gateway: Gateway,
    /// The external addresses.
    pub eips: BTreeMap<IpAddr, Eip>,
    /// The floating IPs, by external address.
    pub fips: BTreeMap<IpAddr, Fip>,
    /// The port forwards.
    pub dnats: BTreeMap<DnatKey, Dnat>,
    /// The sources that share external addresses; the longest prefix wins.
    pub snats: BTreeMap<IpNet, Snat>,
    /// The prefixes whose packets pass as they are, in both directions; the longest prefix wins, among
    /// these and [`DesiredState::snats`]. Only an egress gateway has them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub forwards: BTreeMap<IpNet, Owner>,
}

/// The gateway itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gateway {
    /// The name of the `VpcNatGateway`.
    pub name: String,
    /// The VPC that it serves.
    pub vpc: String,
    /// The subnet of the internal interface.
    pub subnet: Option<Network>,
    /// The addresses of the internal interface, at most one of each family.
    pub lan_ips: Vec<IpAddr>,
    /// The subnets of the external interface, as far as they are known by name or more.
    pub external_subnets: Vec<Network>,
    /// Further routes by the internal interface: destination and next hop.
    pub routes: BTreeMap<IpNet, IpAddr>,
    /// The routers among which the gateway chooses, if there are several.
    #[serde(skip_serializing_if = "NextHops::is_empty")]
    pub next_hops: NextHops,
    /// The object.
    pub owner: Owner,
}

/// A Subnet as the gateway sees it. Without its object in the input only the name is known.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Network {
    /// The name of the Subnet.
    pub name: String,
    /// The CIDRs, at most one of each family.
    pub cidrs: Vec<IpNet>,
    /// The routers, at most one of each family.
    pub gateways: Vec<IpAddr>,
}

impl Network {
    /// The router for traffic of the family of `address`.
    #[must_use]
    pub fn gateway_for(&self, address: IpAddr) -> Option<IpAddr> {
        self.gateways.iter().copied().find(|gateway| gateway.is_ipv4() == address.is_ipv4())
    }
}

/// An external address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Eip {
    /// The address with the prefix length of its network: what the external interface gets.
    pub address: IpNet,
    /// The name of the Subnet it comes from; none in a v1.7 gateway.
    pub subnet: Option<String>,
    /// The router of that network.
    pub gateway: Option<IpAddr>,
    /// The object.
    pub owner: Owner,
}

/// One internal address for one external one, in both directions and for every protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fip {
    /// The internal address.
    pub internal: IpAddr,
    /// The object.
    pub owner: Owner,
}

/// The identity of a port forward. Written `203.0.113.10:8080/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DnatKey {
    /// The external address.
    pub eip: IpAddr,
    /// The protocol.
    pub protocol: Protocol,
    /// The external port.
    pub port: Port,
}

impl fmt::Display for DnatKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.eip, self.port.get()), self.protocol)
    }
}

impl Serialize for DnatKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Where a port forward leads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Dnat {
    /// Whether other rules may add backends.
    pub sharing: Sharing,
    /// Whether a client keeps its backend. It does anyway while a connection lasts.
    pub affinity: Affinity,
    /// The backends in the order of their endpoints; never empty.
    pub backends: Vec<Backend>,
}

/// One backend of a port forward.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Backend {
    /// The internal address and port.
    pub endpoint: SocketAddr,
    /// Its share of the new connections, in proportion to the weights of the others: from 1 to
    /// [`MAX_WEIGHT`].
    pub weight: u16,
    /// The object.
    pub owner: Owner,
}

/// Whether several rules may serve one external port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Sharing {
    /// One rule, one backend.
    Exclusive,
    /// Any number of rules, each a backend.
    Share,
}

/// Which backend of a shared port a new connection gets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Affinity {
    /// Any, at random.
    #[default]
    None,
    /// The same for all connections of a client address.
    #[serde(rename = "ClientIP")]
    ClientIp,
}

/// The greatest [`Backend::weight`].
pub const MAX_WEIGHT: u16 = 256;

/// The external addresses of one internal CIDR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Snat {
    /// The addresses in ascending order; never empty, all of the family of the CIDR.
    pub eips: Vec<SnatEip>,
}

/// One external address of an internal CIDR.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnatEip {
    /// The external address.
    pub eip: IpAddr,
    /// How it maps and filters.
    #[serde(flatten)]
    pub behavior: NatBehavior,
    /// The object.
    pub owner: Owner,
}

/// How a SNAT rule maps and filters (RFC 4787 sections 4.1 and 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NatBehavior {
    /// Which remotes see the same external endpoint.
    pub mapping: NatMapping,
    /// Which remotes get in.
    pub filtering: NatFiltering,
}

/// Which remotes see the same external endpoint of an inside one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatMapping {
    /// A port for each remote: one EIP carries 64 512 flows to each of them.
    #[default]
    AddressAndPortDependent,
    /// All of them: one EIP carries 64 512 inside endpoints.
    EndpointIndependent,
}

/// Which remotes get in by an external endpoint without having been talked to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum NatFiltering {
    /// None.
    #[default]
    AddressAndPortDependent,
    /// Those at an address that the inside endpoint has talked to.
    AddressDependent,
    /// All.
    EndpointIndependent,
}

impl NatBehavior {
    /// As the maps have it.
    #[must_use]
    pub const fn options(self) -> u32 {
        let mapping = match self.mapping {
            NatMapping::AddressAndPortDependent => 0,
            NatMapping::EndpointIndependent => MAP_INDEPENDENT,
        };
        let filtering = match self.filtering {
            NatFiltering::AddressAndPortDependent => 0,
            NatFiltering::AddressDependent => FILTER_ADDRESS,
            NatFiltering::EndpointIndependent => FILTER_INDEPENDENT,
        };
        mapping | filtering
    }
}

/// The object behind a rule, and where it stands. Compared by the object only.
#[derive(Clone, Debug)]
pub struct Owner {
    /// The object.
    pub object: ObjectRef,
    /// Where it stands.
    pub origin: Origin,
}

impl PartialEq for Owner {
    fn eq(&self, other: &Self) -> bool {
        self.object == other.object
    }
}

impl Eq for Owner {}

impl Serialize for Owner {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.object)
    }
}

/// A transport protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

impl FromStr for Protocol {
    type Err = Problem;

    /// Accepts any case, as Kube-OVN does.
    fn from_str(text: &str) -> Result<Self, Problem> {
        [Self::Tcp, Self::Udp]
            .into_iter()
            .find(|protocol| text.eq_ignore_ascii_case(&protocol.to_string()))
            .ok_or_else(|| Problem::Invalid {
                value: text.to_owned(),
                not: "a protocol of DNAT rules",
                expected: "tcp or udp",
            })
    }
}

/// A port, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Port(NonZeroU16);

impl Port {
    /// The port of that number, unless it is 0.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        match NonZeroU16::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Port {
    type Err = Problem;

    fn from_str(text: &str) -> Result<Self, Problem> {
        // `u16` would take "+80".
        let digits = text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse().ok().filter(|_| digits).map(Self).ok_or_else(|| Problem::Invalid {
            value: text.to_owned(),
            not: "a port",
            expected: "1 to 65535",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_1_to_65535() {
        for good in ["1", "80", "65535", "0080"] {
            assert!(good.parse::<Port>().is_ok(), "{good}");
        }
        for bad in ["0", "70000", "65536", "80-90", "+80", "-1", " 80", "", "http"] {
            assert!(bad.parse::<Port>().is_err(), "{bad:?}");
        }
        assert_eq!(
            "70000".parse::<Port>().unwrap_err().to_string(),
            "70000 is not a port, expected 1 to 65535"
        );
    }

    #[test]
    fn a_protocol_is_read_in_any_case() {
        assert_eq!("TCP".parse::<Protocol>().unwrap(), Protocol::Tcp);
        assert_eq!("Udp".parse::<Protocol>().unwrap(), Protocol::Udp);
        assert!("sctp".parse::<Protocol>().is_err());
    }

    #[test]
    fn a_dnat_key_reads_like_a_socket() {
        let key = |eip: &str| DnatKey {
            eip: eip.parse().unwrap(),
            protocol: Protocol::Udp,
            port: "53".parse().unwrap(),
        };
        assert_eq!(key("203.0.113.10").to_string(), "203.0.113.10:53/udp");
        assert_eq!(key("2001:db8::1").to_string(), "[2001:db8::1]:53/udp");
    }
}
