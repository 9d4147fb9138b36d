//! `Vpc`: the router of a tenant.

use serde::Deserialize;

use super::Resource;

/// The router of a tenant.
pub type Vpc = Resource<VpcSpec>;

pub(super) const UNUSED: &[&str] = &[
    "bfdPort",
    "defaultSubnet",
    "dynamicRouting",
    "enableBfd",
    "enableExternal",
    "extraExternalSubnets",
    "namespaces",
    "vpcPeerings",
];

/// `spec` of a [`Vpc`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct VpcSpec {
    /// Routes by destination or source.
    pub static_routes: Vec<StaticRoute>,
    /// Routes by match expression.
    pub policy_routes: Vec<PolicyRoute>,
}

/// One entry of `spec.staticRoutes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StaticRoute {
    /// `policyDst` (the default) or `policySrc`.
    pub policy: String,
    /// The destination or source.
    pub cidr: String,
    /// The next hop.
    #[serde(rename = "nextHopIP")]
    pub next_hop_ip: String,
    /// How equal routes share the traffic.
    pub ecmp_mode: String,
    /// The BFD session that guards the route.
    pub bfd_id: String,
    /// The table; the main one when empty.
    pub route_table: String,
}

/// One entry of `spec.policyRoutes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PolicyRoute {
    /// The larger is looked at first.
    pub priority: i32,
    /// An OVN match expression.
    #[serde(rename = "match")]
    pub expression: String,
    /// `allow`, `drop` or `reroute`.
    pub action: String,
    /// Where `reroute` leads, several with commas between.
    #[serde(rename = "nextHopIP")]
    pub next_hop_ip: String,
}
