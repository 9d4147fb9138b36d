//! What a note says.

use std::net::IpAddr;

use ipnet::IpNet;

use super::Origin;
use crate::crd::ObjectRef;

/// What a [`Note`](super::Note) says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Remark {
    /// A kind that has nothing to do with a NAT gateway.
    #[error("{kind}/{name}: not a kind of NAT gateways, left alone")]
    LeftAlone {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
    },
    /// A kind of Kube-OVN that a later version acts upon.
    #[error("{kind}/{name}: not handled yet, left alone")]
    NotHandledYet {
        /// The kind.
        kind: String,
        /// The name.
        name: String,
    },
    /// `name` stands beside `metadata` instead of in it.
    #[error("taken as metadata.name (kubectl would refuse it here)")]
    NameOutsideMetadata,
    /// The same object again, later in the input.
    #[error("replaces the one at {earlier}, as with kubectl apply")]
    Replaces {
        /// The one that no longer counts.
        earlier: Origin,
    },
    /// Host bits of a CIDR were cleared.
    #[error("{written} is used as {cidr}")]
    HostBits {
        /// As written.
        written: String,
        /// As used.
        cidr: IpNet,
    },
    /// `externalSubnets` names the provider.
    #[error("no Subnet is called {name}, taking {subnet}, whose provider is {provider}")]
    SubnetByProvider {
        /// As written.
        name: String,
        /// The Subnet that was found.
        subnet: ObjectRef,
        /// Its provider.
        provider: String,
    },
    /// The outside Subnet of an EIP is not in the input.
    #[error("{subnet} is not in the input, so {address} is used as a single address, unchecked")]
    NoExternalSubnet {
        /// The Subnet that is missing.
        subnet: ObjectRef,
        /// The address.
        address: IpAddr,
    },
    /// The inside Subnet of a gateway is not in the input.
    #[error("{subnet} is not in the input, so addresses are not checked against it")]
    NoInternalSubnet {
        /// The Subnet that is missing.
        subnet: ObjectRef,
    },
    /// `selectors` before the pods of the cluster are known.
    #[error("the pods of the cluster are not known yet, so nobody leaves by it")]
    PodsNotYet,
    /// A selector that takes nobody.
    #[error("selects no pod that has an address in VPC {vpc}")]
    SelectsNobody {
        /// The VPC of the gateway.
        vpc: String,
    },
    /// Pods that leave through another gateway.
    #[error("{count} of the addresses it selects leave through {holder}, such as that of {first}")]
    PodsTaken {
        /// How many.
        count: usize,
        /// One of the pods.
        first: String,
        /// The gateway.
        holder: ObjectRef,
    },
    /// A selected pod with an annotation that says no address.
    #[error(
        "{pod}: metadata.annotations.{annotation}: {value:?} is not an IP address or one of each \
         family, so the pod does not leave by it"
    )]
    BadPod {
        /// The pod.
        pod: String,
        /// The annotation.
        annotation: String,
        /// What it says.
        value: String,
    },
    /// Selected pods of a family in which the replica has no external address.
    #[error("the {family} addresses of pods are dropped: the replica has no external one")]
    NoExternalFamily {
        /// `IPv4` or `IPv6`.
        family: &'static str,
    },
    /// `ecmpMode` asks for symmetric replies.
    #[error("equal routes share the traffic, but answers to connections from outside do so too")]
    NotSymmetric,
    /// `bandwidth`.
    #[error("read, but not enforced")]
    NotEnforced,
    /// A Subnet of an egress policy that is not in the input.
    #[error("{subnet} is not in the input, so nobody of it leaves through this gateway yet")]
    NoSourceSubnet {
        /// The Subnet.
        subnet: ObjectRef,
    },
    /// Neither `spec.internalIPs` nor `status.internalIPs`.
    #[error("no addresses here or in status.internalIPs, so the gateway has no replicas yet")]
    NoReplicas,
    /// A source with SNAT of a family in which the replica has no external address.
    #[error("{cidr} is dropped: the replica has no external address of its family")]
    NoExternalAddress {
        /// The source.
        cidr: IpNet,
    },
    /// An address was chosen for an EIP.
    #[error("no address given, uses {address}")]
    Allocated {
        /// The address.
        address: IpAddr,
    },
    /// Something it needs was rejected.
    #[error("left out, because {because} was rejected")]
    LeftOut {
        /// The object with the rejection.
        because: ObjectRef,
    },
    /// FIP and DNAT on one EIP.
    #[error("never used, because {fip} takes every packet to {eip}")]
    ShadowedByFip {
        /// The FIP.
        fip: ObjectRef,
        /// The address.
        eip: IpAddr,
    },
    /// An annotation for shared ports on another one.
    #[error("has no effect, because the type of the rule is not share")]
    NotShared,
    /// The rules of a shared port want different things.
    #[error("has no effect, because {other} asks for ClientIP on {port}")]
    OtherAffinity {
        /// The rule that is followed.
        other: ObjectRef,
        /// The port.
        port: String,
    },
    /// The new form was rejected, the old one goes on.
    #[error("stays as it was before")]
    KeptAsBefore,
}

impl Remark {
    /// Whether it is about the pods that selectors take.
    #[must_use]
    pub const fn is_about_pods(&self) -> bool {
        matches!(
            self,
            Self::PodsNotYet
                | Self::SelectsNobody { .. }
                | Self::PodsTaken { .. }
                | Self::BadPod { .. }
        )
    }
}
