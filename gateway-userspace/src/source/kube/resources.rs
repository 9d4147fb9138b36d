//! The resources that are watched, as the API server calls them.

use kube::api::ApiResource;

use crate::crd::{GROUP, Kind, VERSION};

/// A kind of objects on the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The kind as manifests spell it.
    pub kind: &'static str,
    /// The name in URLs and in RBAC.
    pub plural: &'static str,
    /// The short names for `kubectl`.
    pub short: &'static [&'static str],
    /// Whether its objects have a namespace.
    pub namespaced: bool,
    /// Whether a gateway can do without: older releases of Kube-OVN do not have all of them.
    pub optional: bool,
}

/// Everything that is watched.
pub const RESOURCES: [Resource; 9] = [
    required("VpcNatGateway", "vpc-nat-gateways", &["vpc-nat-gw"]),
    required("IptablesEIP", "iptables-eips", &["eip"]),
    required("IptablesFIPRule", "iptables-fip-rules", &["fip"]),
    required("IptablesDnatRule", "iptables-dnat-rules", &["dnat"]),
    required("IptablesSnatRule", "iptables-snat-rules", &["snat"]),
    required("Subnet", "subnets", &["subnet"]),
    required("Vpc", "vpcs", &["vpc"]),
    Resource { optional: true, ..required("QoSPolicy", "qos-policies", &["qos"]) },
    Resource {
        namespaced: true,
        optional: true,
        ..required("VpcEgressGateway", "vpc-egress-gateways", &["vpc-egress-gw", "veg"])
    },
];

const fn required(
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
) -> Resource {
    Resource { kind, plural, short, namespaced: false, optional: false }
}

impl Resource {
    /// The resource of a kind.
    #[must_use]
    pub fn of(kind: Kind) -> Option<Self> {
        RESOURCES.into_iter().find(|resource| resource.kind == kind.as_str())
    }

    /// What the client needs to know.
    #[must_use]
    pub fn api(&self) -> ApiResource {
        ApiResource {
            group: GROUP.to_owned(),
            version: VERSION.to_owned(),
            api_version: format!("{GROUP}/{VERSION}"),
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_watched() {
        for kind in Kind::ALL {
            assert!(Resource::of(kind).is_some(), "{kind}");
        }
    }
}
