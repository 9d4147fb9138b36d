//! `VpcNatGateway`: the current spec, and beside it the lists of Kube-OVN v1.7 to v1.9.

use serde::Deserialize;

use super::{PortText, Resource};

/// A gateway of a VPC.
pub type VpcNatGateway = Resource<NatGatewaySpec>;

pub(super) const UNUSED: &[&str] = &[
    "affinity",
    "annotations",
    "bfd",
    "bgpSpeaker",
    "internalCIDRs",
    "internalSubnets",
    "namespace",
    "noDefaultEIP",
    "qosPolicy",
    "replicas",
    "selector",
    "tolerations",
];

/// `spec` of a [`VpcNatGateway`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NatGatewaySpec {
    /// The VPC that the gateway serves.
    pub vpc: String,
    /// The subnet of the VPC in which the internal interface stands.
    pub subnet: String,
    /// The address of the internal interface.
    pub lan_ip: String,
    /// The outside subnets; Kube-OVN uses the first only.
    pub external_subnets: Vec<String>,
    /// Further routes by the internal interface.
    pub routes: Vec<NatGatewayRoute>,
    /// v1.7: the external addresses.
    pub eips: Vec<InlineEip>,
    /// v1.7: the floating IPs.
    pub floating_ip_rules: Vec<InlineFip>,
    /// v1.7: the port forwards.
    pub dnat_rules: Vec<InlineDnat>,
    /// v1.7: the sources that share an address.
    pub snat_rules: Vec<InlineSnat>,
}

/// One entry of `spec.routes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct NatGatewayRoute {
    /// The destination.
    pub cidr: String,
    /// The next hop: an address, or the word `gateway` for the gateway of the subnet.
    #[serde(rename = "nextHopIP")]
    pub next_hop_ip: String,
}

/// One entry of `spec.eips`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct InlineEip {
    /// The address with the prefix length of its network.
    #[serde(rename = "eipCIDR")]
    pub eip_cidr: String,
    /// The router of that network.
    pub gateway: String,
}

/// One entry of `spec.floatingIpRules`. `eip` is an address, not the name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct InlineFip {
    /// The external address.
    pub eip: String,
    /// The internal address.
    pub internal_ip: String,
}

/// One entry of `spec.dnatRules`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct InlineDnat {
    /// The external address.
    pub eip: String,
    /// The port on it.
    pub external_port: PortText,
    /// `tcp` or `udp`.
    pub protocol: String,
    /// The internal address.
    pub internal_ip: String,
    /// The port there.
    pub internal_port: PortText,
}

/// One entry of `spec.snatRules`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct InlineSnat {
    /// The external address.
    pub eip: String,
    /// The sources.
    #[serde(rename = "internalCIDR")]
    pub internal_cidr: String,
}
