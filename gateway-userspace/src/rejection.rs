//! How problems are named: where, which object, which field, and what was expected there.
//!
//! A [`Rejection`] is an object (or a field of a gateway) that is not acted upon; the exit code of
//! `check` is 1 as soon as there is one. A [`Note`] is a decision that the user may want to know.

mod remark;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

pub use self::remark::Remark;
use crate::crd::{GROUP, ObjectRef, VERSION};

/// Where an object, or a field of it, stands.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin {
    /// The file, or whatever else the object came from.
    pub source: Arc<str>,
    /// The document in the file, counted from 1; 0 where there are no documents.
    pub document: u32,
    /// The line in the file, counted from 1; 0 where there are no lines.
    pub line: u32,
}

impl Origin {
    /// The same document at another line.
    #[must_use]
    pub fn at(&self, line: u32) -> Self {
        Self { source: Arc::clone(&self.source), document: self.document, line }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if self.document > 0 {
            write!(f, ": document {}", self.document)?;
        }
        Ok(())
    }
}

/// Something that is not acted upon, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Where.
    pub origin: Origin,
    /// The object, when it could be told.
    pub object: Option<ObjectRef>,
    /// The path of the field, such as `spec.externalPort`.
    pub field: Option<String>,
    /// The gateway that it concerns, when there is exactly one.
    pub gateway: Option<String>,
    /// Why.
    pub problem: Problem,
}

impl Rejection {
    /// The class of the problem: a stable word for metrics and JSON.
    #[must_use]
    pub const fn kind(&self) -> RejectionKind {
        self.problem.kind()
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        place(f, &self.origin, self.object.as_ref(), self.field.as_deref())?;
        self.problem.fmt(f)
    }
}

/// A decision that the user may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Where.
    pub origin: Origin,
    /// The object, when it is of a kind that we act upon.
    pub object: Option<ObjectRef>,
    /// The path of the field.
    pub field: Option<String>,
    /// The gateway that it concerns, when there is exactly one.
    pub gateway: Option<String>,
    /// What was decided.
    pub remark: Remark,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        place(f, &self.origin, self.object.as_ref(), self.field.as_deref())?;
        self.remark.fmt(f)
    }
}

fn place(
    f: &mut fmt::Formatter<'_>,
    origin: &Origin,
    object: Option<&ObjectRef>,
    field: Option<&str>,
) -> fmt::Result {
    write!(f, "{origin}: ")?;
    if let Some(object) = object {
        write!(f, "{object}: ")?;
    }
    if let Some(field) = field {
        write!(f, "{field}: ")?;
    }
    Ok(())
}

/// The class of a [`Problem`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RejectionKind {
    /// The document is not valid YAML or not an object.
    Syntax,
    /// The object has a field that does not exist, or one of the wrong type.
    Schema,
    /// A value makes no sense.
    Value,
    /// Something that the object names is not there (yet).
    Waiting,
    /// Another object holds what this one asks for.
    Conflict,
    /// There is no free address.
    Exhausted,
}

impl RejectionKind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Syntax, Self::Schema, Self::Value, Self::Waiting, Self::Conflict, Self::Exhausted];

    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Syntax => "syntax",
            Self::Schema => "schema",
            Self::Value => "value",
            Self::Waiting => "waiting",
            Self::Conflict => "conflict",
            Self::Exhausted => "exhausted",
        }
    }
}

/// Why something was rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The YAML parser stopped.
    #[error("not valid YAML: {message} (column {column}); check the indentation around this line")]
    Syntax {
        /// What the parser says.
        message: String,
        /// The column, counted from 1.
        column: usize,
    },
    /// A "YAML bomb".
    #[error("anchors and aliases expand to more than {limit} values")]
    AliasBudget {
        /// The largest number allowed in one file.
        limit: usize,
    },
    /// More than any real set of manifests has.
    #[error("more than {limit} values in one file")]
    TooLarge {
        /// The largest number allowed in one file.
        limit: usize,
    },
    /// A file with comments only, or with nothing.
    #[error("no object in this file, expected at least one document with kind and metadata")]
    NoObjects,
    /// A scalar or a list where an object should be.
    #[error("{found}, expected an object with kind and metadata")]
    NotAnObject {
        /// What is there.
        found: &'static str,
    },
    /// Two objects in one document.
    #[error("a second object in this document (the first in line {first}), expected --- between")]
    MissingSeparator {
        /// The line of the first one.
        first: u32,
    },
    /// A field that must be there is not.
    #[error("missing, expected {expected}")]
    Missing {
        /// What should be there.
        expected: &'static str,
    },
    /// A field that Kube-OVN does not have.
    #[error("unknown field{}", did_you_mean(*suggestion))]
    UnknownField {
        /// The field that was probably meant.
        suggestion: Option<&'static str>,
    },
    /// An annotation of ours that does not exist.
    #[error("unknown annotation{}", there_are(known))]
    UnknownAnnotation {
        /// Those that exist.
        known: &'static [&'static str],
    },
    /// The same field twice in one object.
    #[error("given twice, the first time in line {first}")]
    DuplicateField {
        /// The line of the first one.
        first: u32,
    },
    /// A list instead of a string, and the like.
    #[error("{found}, expected {expected}")]
    WrongType {
        /// What is there.
        found: String,
        /// What should be there.
        expected: String,
    },
    /// Another version of the API group.
    #[error("{found} is not supported, expected {GROUP}/{VERSION}")]
    UnsupportedVersion {
        /// The `apiVersion` of the object.
        found: String,
    },
    /// A value that cannot be read.
    #[error("{value} is not {not}, expected {expected}")]
    Invalid {
        /// The value as written.
        value: String,
        /// What it should be, with its article.
        not: &'static str,
        /// How such a value looks.
        expected: &'static str,
    },
    /// `${VAR}` in a name.
    #[error("{value} has a placeholder that was not replaced, expected the output of envsubst")]
    Placeholder {
        /// The value as written.
        value: String,
    },
    /// A reference to an object that is not in the input.
    #[error("waits for {target}, which is not in the input")]
    Unresolved {
        /// The object that is missing.
        target: ObjectRef,
    },
    /// A v1.7 rule for an address that the gateway does not have.
    #[error("{address} is not one of spec.eips")]
    NotAnEip {
        /// The address.
        address: IpAddr,
    },
    /// An EIP has no address of the family that the rule needs.
    #[error("{internal} needs an EIP of its own family, and {eip} has none (expected {field})")]
    FamilyMismatch {
        /// The internal address or CIDR.
        internal: String,
        /// The EIP.
        eip: ObjectRef,
        /// The field of the EIP that is empty.
        field: &'static str,
    },
    /// An address that is not in the subnet it belongs to.
    #[error("{address} is outside {subnet} ({})", list(cidrs))]
    OutsideSubnet {
        /// The address.
        address: IpAddr,
        /// The subnet.
        subnet: ObjectRef,
        /// Its CIDRs.
        cidrs: Vec<IpNet>,
    },
    /// An address that already means something else.
    #[error("{address} is {role}")]
    Reserved {
        /// The address.
        address: IpAddr,
        /// What it already is.
        role: Role,
    },
    /// A subnet of another VPC.
    #[error("{subnet} belongs to VPC {found}, expected {expected}")]
    OtherVpc {
        /// The subnet.
        subnet: ObjectRef,
        /// Its VPC.
        found: String,
        /// The VPC of the gateway.
        expected: String,
    },
    /// `gateway` as next hop without a subnet whose gateway it could be.
    #[error("the gateway of the subnet is not known for {cidr}, expected an address")]
    NoSubnetGateway {
        /// The destination of the route.
        cidr: IpNet,
    },
    /// Two routes to one destination.
    #[error("a route to {cidr} is given already")]
    RepeatedRoute {
        /// The destination.
        cidr: IpNet,
    },
    /// Two objects want the same thing.
    #[error("{claim} already belongs to {holder} ({at})")]
    Taken {
        /// What both want.
        claim: Claim,
        /// The object that has it.
        holder: ObjectRef,
        /// Where that one stands.
        at: Origin,
    },
    /// One CIDR in a policy with SNAT and in one without.
    #[error("{cidr} is in a policy with snat and in one without")]
    BothSnat {
        /// The CIDR.
        cidr: IpNet,
    },
    /// Fewer addresses than replicas.
    #[error("{given} addresses for {replicas} replicas, expected one for each")]
    TooFewAddresses {
        /// How many replicas there shall be.
        replicas: usize,
        /// How many addresses are given.
        given: usize,
    },
    /// The same next hop twice in a group.
    #[error("{address} is given already")]
    RepeatedMember {
        /// The address.
        address: IpAddr,
    },
    /// An EIP without address, and no Subnet to choose one from.
    #[error(
        "waits for {subnet}, from which a free address is to be chosen (or expected spec.v4ip)"
    )]
    NoSubnet {
        /// The Subnet that is missing.
        subnet: ObjectRef,
    },
    /// An EIP of a cluster without an address.
    #[error(
        "waits for kube-ovn-controller to write an address into status.ip (or expected one here)"
    )]
    NoAddressYet,
    /// Every address of the Subnet is taken or excluded.
    #[error("no free address in {subnet} ({})", list(cidrs))]
    Exhausted {
        /// The Subnet.
        subnet: ObjectRef,
        /// Its CIDRs.
        cidrs: Vec<IpNet>,
    },
}

impl Problem {
    /// The class of the problem.
    #[must_use]
    pub const fn kind(&self) -> RejectionKind {
        match self {
            Self::Syntax { .. }
            | Self::AliasBudget { .. }
            | Self::TooLarge { .. }
            | Self::NoObjects
            | Self::MissingSeparator { .. }
            | Self::NotAnObject { .. } => RejectionKind::Syntax,
            Self::UnknownField { .. }
            | Self::UnknownAnnotation { .. }
            | Self::DuplicateField { .. }
            | Self::WrongType { .. }
            | Self::UnsupportedVersion { .. } => RejectionKind::Schema,
            Self::Missing { .. }
            | Self::Invalid { .. }
            | Self::Placeholder { .. }
            | Self::NotAnEip { .. }
            | Self::FamilyMismatch { .. }
            | Self::OutsideSubnet { .. }
            | Self::Reserved { .. }
            | Self::OtherVpc { .. }
            | Self::NoSubnetGateway { .. }
            | Self::BothSnat { .. }
            | Self::TooFewAddresses { .. }
            | Self::RepeatedMember { .. } => RejectionKind::Value,
            Self::Unresolved { .. } | Self::NoSubnet { .. } | Self::NoAddressYet => {
                RejectionKind::Waiting
            }
            Self::Taken { .. } | Self::RepeatedRoute { .. } => RejectionKind::Conflict,
            Self::Exhausted { .. } => RejectionKind::Exhausted,
        }
    }
}

fn did_you_mean(suggestion: Option<&str>) -> String {
    suggestion.map_or_else(String::new, |field| format!(", did you mean {field}?"))
}

fn there_are(known: &[&str]) -> String {
    match known {
        [] => " (this kind has none)".to_owned(),
        known => format!(", expected one of {}", known.join(", ")),
    }
}

fn list(cidrs: &[IpNet]) -> String {
    cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// What an address already is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Role {
    /// The router of a subnet.
    #[error("the gateway of {0}")]
    SubnetGateway(ObjectRef),
    /// The first or last address of a subnet, which no host can have.
    #[error("the network or broadcast address of {0}")]
    NetworkOrBroadcast(ObjectRef),
    /// An address inside the VPC.
    #[error("inside {0}, the VPC side of the gateway")]
    InsideVpc(ObjectRef),
    /// The internal address of a gateway.
    #[error("the lanIp of {0}")]
    LanIp(ObjectRef),
    /// An external address.
    #[error("itself the address of {0}")]
    Eip(ObjectRef),
}

/// What two objects can quarrel about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Claim {
    /// An external address.
    #[error("{0}")]
    Address(IpAddr),
    /// The one FIP of an EIP.
    #[error("the FIP of {0}")]
    FipOf(IpAddr),
    /// The one FIP of an internal address.
    #[error("the FIP for {0}")]
    FipFor(IpAddr),
    /// A port of an EIP.
    #[error("{0}")]
    Port(String),
    /// A backend of a shared port.
    #[error("backend {0}")]
    Backend(String),
    /// A CIDR that leaves through an egress gateway.
    #[error("egress of {0}")]
    Egress(IpNet),
    /// A CIDR on an EIP.
    #[error("SNAT of {0} to {1}")]
    Source(IpNet, IpAddr),
}
