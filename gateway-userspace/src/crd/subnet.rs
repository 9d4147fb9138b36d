//! `Subnet`: a network of a VPC or of the outside.

use serde::Deserialize;

use super::Resource;

/// A network of a VPC or of the outside.
pub type Subnet = Resource<SubnetSpec>;

pub(super) const UNUSED: &[&str] = &[
    "acls",
    "allowEWTraffic",
    "allowSubnets",
    "default",
    "dhcpV4Options",
    "dhcpV6Options",
    "disableGatewayCheck",
    "disableInterConnection",
    "enableDHCP",
    "enableEcmp",
    "enableExternalLBAddress",
    "enableIPv6RA",
    "enableLb",
    "enableMulticastSnoop",
    "externalEgressGateway",
    "gatewayNode",
    "gatewayNodeSelectors",
    "gatewayType",
    "ipv6RAConfigs",
    "logicalGateway",
    "mtu",
    "namespaceSelectors",
    "namespaces",
    "natOutgoing",
    "natOutgoingPolicyRules",
    "nodeNetwork",
    "policyRoutingPriority",
    "policyRoutingTableID",
    "private",
    "protocol",
    "u2oFeatures",
    "u2oInterconnection",
    "u2oInterconnectionIP",
    "u2oRouting",
    "vips",
    "vlan",
];

/// `spec` of a [`Subnet`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SubnetSpec {
    /// One CIDR, or an IPv4 and an IPv6 one with a comma between.
    pub cidr_block: String,
    /// The router of the subnet, one address for each CIDR.
    pub gateway: String,
    /// Addresses, and ranges as `first..last`, that are never given away.
    pub exclude_ips: Vec<String>,
    /// `ovn`, or `<attachment>.<namespace>[.ovn]`.
    pub provider: String,
    /// The VPC of an inside subnet.
    pub vpc: String,
    /// The table of static routes for what comes from it; the main one when empty.
    pub route_table: String,
}
