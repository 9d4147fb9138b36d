//! `VpcEgressGateway`: several equal gateways through which tenants leave the VPC.

use serde::Deserialize;

use super::Resource;

/// Several equal gateways through which tenants leave the VPC.
pub type VpcEgressGateway = Resource<EgressGatewaySpec, EgressGatewayStatus>;

pub(super) const UNUSED: &[&str] = &[
    "bgpConf",
    "evpnConf",
    "externalIPPool",
    "image",
    "internalIPPool",
    "nodeSelector",
    "observability",
    "podAntiAffinity",
    "prefix",
    "resources",
    "tolerations",
];

/// `spec` of a [`VpcEgressGateway`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EgressGatewaySpec {
    /// The VPC that the gateway serves.
    pub vpc: String,
    /// How many replicas there are; absent: 1.
    pub replicas: Option<u32>,
    /// The subnet of the VPC in which the internal interfaces stand.
    pub internal_subnet: String,
    /// The subnet of the external interfaces.
    pub external_subnet: String,
    /// The internal addresses of the replicas.
    #[serde(rename = "internalIPs")]
    pub internal_ips: Vec<String>,
    /// The external addresses of the replicas.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// Who may leave through the gateway, and how.
    pub policies: Vec<EgressPolicy>,
    /// Pods that may leave through it.
    pub selectors: Vec<PodSelector>,
    /// Whether the replicas are watched.
    pub bfd: BfdSpec,
    /// `Cluster` (the default) or `Local`.
    pub traffic_policy: String,
    /// Rates of each replica.
    pub bandwidth: Bandwidth,
}

/// One entry of `spec.policies`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EgressPolicy {
    /// Whether sources are hidden behind the external address of the replica.
    pub snat: bool,
    /// CIDRs.
    pub ip_blocks: Vec<String>,
    /// Names of Subnets.
    pub subnets: Vec<String>,
}

/// One entry of `spec.selectors`. What is absent selects everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSelector {
    /// The namespaces.
    pub namespace_selector: Option<LabelSelector>,
    /// The pods.
    pub pod_selector: Option<LabelSelector>,
}

/// A label selector of Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct LabelSelector {
    /// Labels that must be there.
    pub match_labels: std::collections::BTreeMap<String, String>,
    /// Expressions that must hold.
    pub match_expressions: Vec<LabelExpression>,
}

/// One entry of `matchExpressions`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct LabelExpression {
    /// The label.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`.
    pub operator: String,
    /// The values.
    pub values: Vec<String>,
}

/// `spec.bfd`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct BfdSpec {
    /// Whether there is a session with each replica.
    pub enabled: bool,
    /// Shortest interval at which a replica receives, in milliseconds; absent: 1000.
    #[serde(rename = "minRX")]
    pub min_rx: Option<u32>,
    /// Shortest interval at which a replica sends, in milliseconds; absent: 1000.
    #[serde(rename = "minTX")]
    pub min_tx: Option<u32>,
    /// How many packets may be lost in a row; absent: 3.
    pub multiplier: Option<u32>,
}

/// `spec.bandwidth`. A number of Mbit/s, or a quantity such as `100M`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Bandwidth {
    /// Towards the VPC.
    pub ingress: super::PortText,
    /// Towards the outside.
    pub egress: super::PortText,
}

/// `status` of a [`VpcEgressGateway`], as far as it says where replicas are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct EgressGatewayStatus {
    /// The internal addresses of the replicas that run, one entry each, `v4,v6` if both.
    #[serde(rename = "internalIPs")]
    pub internal_ips: Vec<String>,
    /// Their external addresses, in the same order.
    #[serde(rename = "externalIPs")]
    pub external_ips: Vec<String>,
    /// Where they run.
    pub workload: EgressWorkload,
}

/// `status.workload`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct EgressWorkload {
    /// The node of each replica, in the order of the addresses.
    pub nodes: Vec<String>,
}
