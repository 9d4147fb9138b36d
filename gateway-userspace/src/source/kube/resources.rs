//! The resources that are watched, as the API server calls them.

use kube::api::ApiResource;

use crate::crd::{GROUP, Kind, VERSION};

/// A kind of objects on the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resource {
    /// The API group; empty: that of Kubernetes itself.
    pub group: &'static str,
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

/// The pods, watched beside the others while a gateway of concern has selectors. Those that have ended are
/// gone: the API server says so when they do.
pub const PODS: Resource =
    Resource { group: "", namespaced: true, ..required("Pod", "pods", &["po"]) };

/// The namespaces, watched with the pods.
pub const NAMESPACES: Resource =
    Resource { group: "", ..required("Namespace", "namespaces", &["ns"]) };

const fn required(
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
) -> Resource {
    Resource { group: GROUP, kind, plural, short, namespaced: false, optional: false }
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
        let (group, version) = if self.group.is_empty() { ("", "v1") } else { (GROUP, VERSION) };
        ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: format!("{group}/{version}").trim_start_matches('/').to_owned(),
            kind: self.kind.to_owned(),
            plural: self.plural.to_owned(),
        }
    }

    /// As RBAC calls it.
    #[must_use]
    pub fn qualified(&self) -> String {
        format!("{}.{}", self.plural, self.group).trim_end_matches('.').to_owned()
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
