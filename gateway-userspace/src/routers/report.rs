//! What a gateway says about its routers.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::dataplane::kernel::Side;

/// The file in the state directory.
pub const FILE: &str = "next-hops.json";

/// The groups of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The groups.
    pub groups: Vec<GroupStatus>,
    /// What is wrong, one line each.
    pub problems: Vec<String>,
}

/// A group and its members.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// The side of the gateway.
    pub side: Side,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// `5-tuple` or `source`.
    pub hash: String,
    /// `move` or `stay`.
    pub on_return: String,
    /// The members in the order of the annotation, then those that were taken out.
    pub members: Vec<MemberStatus>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its address.
    pub address: IpAddr,
    /// What is known of it.
    pub state: State,
    /// Its weight.
    pub weight: u32,
    /// How many of the slots it has.
    pub slots: usize,
    /// Its MAC address, if that is known.
    pub mac: Option<String>,
}

/// What is known of a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// BFD says that it is alive; without BFD, the neighbour table does not say that it is not.
    Alive,
    /// BFD or the neighbour table says no.
    Dead,
    /// BFD has not said anything yet.
    Unknown,
    /// In no network of the interface.
    NotOnLink,
    /// Taken out of the annotation: open sessions stay, no others come.
    Draining,
}

impl State {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Alive => "alive",
            Self::Dead => "dead",
            Self::Unknown => "unknown",
            Self::NotOnLink => "not on link",
            Self::Draining => "draining",
        }
    }
}
