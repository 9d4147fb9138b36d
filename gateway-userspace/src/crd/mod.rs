//! The objects of Kube-OVN as users write them: serde structs, no decisions.
//!
//! Every field is optional here, as it is in the CRDs themselves; an absent field is an empty
//! string or list. What is really required is decided in [`crate::desired`], where the message
//! can say what for. A struct names the fields that a gateway uses; the fields that Kube-OVN has
//! beside them are listed in `unused_fields`, so that only a field nobody knows is an error.

mod egress_gateway;
mod eip;
mod nat_gateway;
mod pod;
mod rule;
mod subnet;
mod vpc;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

pub use self::egress_gateway::{
    Bandwidth, BfdSpec, EgressGatewaySpec, EgressGatewayStatus, EgressPolicy, EgressWorkload,
    LabelExpression, LabelSelector, PodSelector, VpcEgressGateway,
};
pub use self::eip::{EipSpec, EipStatus, IptablesEip};
pub use self::nat_gateway::{
    InlineDnat, InlineEip, InlineFip, InlineSnat, NatGatewayRoute, NatGatewaySpec, VpcNatGateway,
};
pub use self::pod::{PodMetadata, PodSpec, PodStatus};
pub use self::rule::{
    DnatSpec, FipSpec, IptablesDnatRule, IptablesFipRule, IptablesSnatRule, PortText, SnatSpec,
};
pub use self::subnet::{Subnet, SubnetSpec};
pub use self::vpc::{PolicyRoute, StaticRoute, Vpc, VpcSpec};

/// The API group of every object this program reads.
pub const GROUP: &str = "kubeovn.io";
/// The version of [`GROUP`] that is served.
pub const VERSION: &str = "v1";

/// Where an object of a kind with namespaces is if it does not say.
pub const DEFAULT_NAMESPACE: &str = "default";

/// The kinds that this program acts upon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Kind {
    /// A gateway of a VPC.
    VpcNatGateway,
    /// An external address of a gateway.
    #[serde(rename = "IptablesEIP")]
    IptablesEip,
    /// A floating IP: one external address for one internal one.
    #[serde(rename = "IptablesFIPRule")]
    IptablesFipRule,
    /// A port of an external address for a port of an internal one.
    IptablesDnatRule,
    /// An external address for the outbound connections of a CIDR.
    IptablesSnatRule,
    /// A subnet, of a VPC or of the outside.
    Subnet,
    /// A virtual private cloud: the router of a tenant.
    Vpc,
    /// Several equal gateways through which tenants leave a VPC.
    VpcEgressGateway,
}

impl Kind {
    /// All kinds, in the order in which they depend on each other, last first.
    pub const ALL: [Self; 8] = [
        Self::VpcNatGateway,
        Self::IptablesEip,
        Self::IptablesFipRule,
        Self::IptablesDnatRule,
        Self::IptablesSnatRule,
        Self::Subnet,
        Self::Vpc,
        Self::VpcEgressGateway,
    ];

    /// The kind as manifests spell it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::VpcNatGateway => "VpcNatGateway",
            Self::IptablesEip => "IptablesEIP",
            Self::IptablesFipRule => "IptablesFIPRule",
            Self::IptablesDnatRule => "IptablesDnatRule",
            Self::IptablesSnatRule => "IptablesSnatRule",
            Self::Subnet => "Subnet",
            Self::Vpc => "Vpc",
            Self::VpcEgressGateway => "VpcEgressGateway",
        }
    }

    /// The name by which an object is told from all others of its kind: `NAMESPACE/NAME` where it has a
    /// namespace that is not [`DEFAULT_NAMESPACE`].
    #[must_use]
    pub fn qualified(self, namespace: &str, name: &str) -> String {
        match (self, namespace) {
            (Self::VpcEgressGateway, "" | DEFAULT_NAMESPACE) => name.to_owned(),
            (Self::VpcEgressGateway, namespace) => format!("{namespace}/{name}"),
            _ => name.to_owned(),
        }
    }

    /// Whether objects of this kind are rules: nothing refers to them.
    #[must_use]
    pub const fn is_rule(self) -> bool {
        matches!(self, Self::IptablesFipRule | Self::IptablesDnatRule | Self::IptablesSnatRule)
    }

    /// The kind of that spelling, if it is one of ours.
    #[must_use]
    pub fn from_manifest(kind: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.as_str() == kind)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Names one object, or one entry of the lists in a v1.7 gateway.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ObjectRef {
    /// The kind of the object.
    pub kind: Kind,
    /// `metadata.name`, with the namespace before it as [`Kind::qualified`] has it.
    pub name: String,
    /// The entry inside the object that is meant, such as `dnatRules[0]`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
}

impl ObjectRef {
    /// A whole object.
    #[must_use]
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into(), part: None }
    }

    /// One entry of a list in this object.
    #[must_use]
    pub fn part(&self, part: String) -> Self {
        Self { kind: self.kind, name: self.name.clone(), part: Some(part) }
    }

    /// The object without the entry.
    #[must_use]
    pub fn whole(&self) -> Self {
        Self::new(self.kind, self.name.clone())
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)?;
        self.part.as_ref().map_or(Ok(()), |part| write!(f, "/{part}"))
    }
}

/// `metadata`, as far as it matters here. Anything else in it is accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Metadata {
    /// The name; unique among the objects of one kind.
    pub name: String,
    /// The namespace, for the kinds that have one.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
}

/// What every object has: `metadata`, `spec` and, where it is used, `status`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resource<S, T = ()> {
    /// Who the object is.
    pub metadata: Metadata,
    /// What the user asks for.
    pub spec: S,
    /// What kube-ovn-controller says about it.
    pub status: T,
}

/// An object of one of the kinds in [`Kind`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Object {
    /// [`Kind::VpcNatGateway`].
    NatGateway(VpcNatGateway),
    /// [`Kind::IptablesEip`].
    Eip(IptablesEip),
    /// [`Kind::IptablesFipRule`].
    Fip(IptablesFipRule),
    /// [`Kind::IptablesDnatRule`].
    Dnat(IptablesDnatRule),
    /// [`Kind::IptablesSnatRule`].
    Snat(IptablesSnatRule),
    /// [`Kind::Subnet`].
    Subnet(Subnet),
    /// [`Kind::Vpc`].
    Vpc(Vpc),
    /// [`Kind::VpcEgressGateway`].
    EgressGateway(VpcEgressGateway),
}

impl Object {
    /// The kind of the object.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::NatGateway(_) => Kind::VpcNatGateway,
            Self::Eip(_) => Kind::IptablesEip,
            Self::Fip(_) => Kind::IptablesFipRule,
            Self::Dnat(_) => Kind::IptablesDnatRule,
            Self::Snat(_) => Kind::IptablesSnatRule,
            Self::Subnet(_) => Kind::Subnet,
            Self::Vpc(_) => Kind::Vpc,
            Self::EgressGateway(_) => Kind::VpcEgressGateway,
        }
    }

    /// The metadata of the object.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        match self {
            Self::NatGateway(object) => &object.metadata,
            Self::Eip(object) => &object.metadata,
            Self::Fip(object) => &object.metadata,
            Self::Dnat(object) => &object.metadata,
            Self::Snat(object) => &object.metadata,
            Self::Subnet(object) => &object.metadata,
            Self::Vpc(object) => &object.metadata,
            Self::EgressGateway(object) => &object.metadata,
        }
    }

    /// The reference to the object.
    #[must_use]
    pub fn object_ref(&self) -> ObjectRef {
        let Metadata { name, namespace, .. } = self.metadata();
        ObjectRef::new(self.kind(), self.kind().qualified(namespace, name))
    }
}

/// Which fields of a struct are fine although the struct does not have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnusedFields {
    /// Any field whatsoever.
    Any,
    /// These, which Kube-OVN has and a gateway does not need.
    Named(&'static [&'static str]),
}

/// The fields that Kube-OVN has beside those of the struct called `name`.
pub(crate) fn unused_fields(name: &str) -> UnusedFields {
    match name {
        "Metadata"
        | "EipStatus"
        | "EgressGatewayStatus"
        | "EgressWorkload"
        | "PodMetadata"
        | "PodSpec"
        | "PodStatus" => UnusedFields::Any,
        "NatGatewaySpec" => UnusedFields::Named(nat_gateway::UNUSED),
        "EipSpec" => UnusedFields::Named(eip::UNUSED),
        "SubnetSpec" => UnusedFields::Named(subnet::UNUSED),
        "EgressGatewaySpec" => UnusedFields::Named(egress_gateway::UNUSED),
        "VpcSpec" => UnusedFields::Named(vpc::UNUSED),
        _ => UnusedFields::Named(&[]),
    }
}
