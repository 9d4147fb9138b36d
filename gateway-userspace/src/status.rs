//! What a daemon says about itself: written after every round, read by `vpc-gateway status`.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::dataplane::attach::AttachKind;
use crate::dataplane::kernel::Side;
use crate::dataplane::mode::Hook;

/// The file in the state directory.
pub const FILE: &str = "status.json";

/// The state of one gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The gateway.
    pub gateway: String,
    /// The version of the program.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// When it started, in seconds since 1970.
    pub started_at: u64,
    /// The network namespace as it was given, if it was.
    pub netns: Option<PathBuf>,
    /// The capabilities that the process has kept.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// Whether a complete state has been applied and both programs are attached.
    pub ready: bool,
    /// Number of the applied state.
    pub generation: u32,
    /// The interfaces.
    pub interfaces: Vec<InterfaceStatus>,
    /// The external addresses.
    pub eips: Vec<EipStatus>,
    /// How many rules there are of each kind.
    pub rules: BTreeMap<String, usize>,
    /// Where the objects come from.
    #[serde(default)]
    pub source: SourceStatus,
    /// The last round that changed something.
    pub last_apply: Option<ApplyStatus>,
    /// The last sweep that ended sessions or took long.
    #[serde(default)]
    pub last_sweep: Option<SweepStatus>,
    /// What is wrong, one line each.
    pub problems: Vec<String>,
    /// Where maps and links are pinned.
    pub pins: PathBuf,
}

/// The source of the objects.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// The API server; `None` for files.
    pub server: Option<String>,
    /// Whether everything has been read once.
    pub synced: bool,
    /// The kinds that were not read yet.
    pub waits_for: Vec<String>,
    /// How many objects of each kind there are on the API server, those of other gateways included.
    pub objects: BTreeMap<String, usize>,
    /// What cannot be watched at the moment, and why. What was read before stays in force.
    pub trouble: Vec<String>,
    /// Since when, in seconds since 1970.
    pub trouble_since: Option<u64>,
    /// How often everything of a kind was listed again because a watch could not be taken up.
    pub expired: u64,
}

/// An interface and the program on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterfaceStatus {
    /// `internal` or `external`.
    pub side: Side,
    /// Its name.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// The hook.
    pub mode: Hook,
    /// Why this hook.
    pub reason: String,
    /// How the program is attached.
    pub attach: AttachKind,
    /// The kernel's id of the program.
    pub program_id: u32,
    /// The one of the XDP program in front of it, if there is one.
    #[serde(default)]
    pub xdp_program_id: Option<u32>,
}

/// An external address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EipStatus {
    /// The address.
    pub address: IpAddr,
    /// The object.
    pub name: String,
    /// Its Subnet, if it has one.
    pub subnet: Option<String>,
}

/// A round that changed something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplyStatus {
    /// When, in seconds since 1970.
    pub at: u64,
    /// How long it took, in microseconds.
    pub duration_us: u64,
    /// New map entries.
    pub inserted: usize,
    /// Map entries with another value.
    pub updated: usize,
    /// Map entries that went.
    pub deleted: usize,
    /// Sessions that ended with their rules.
    pub sessions_cut: u64,
    /// How long it took from when the first of the changes was heard of, in microseconds, if they came from
    /// an API server.
    #[serde(default)]
    pub event_to_map_us: Option<u64>,
}

/// A sweep: the search for sessions that are over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SweepStatus {
    /// When it ended, in seconds since 1970.
    pub at: u64,
    /// How long it took, in microseconds, whatever else was done in between.
    pub duration_us: u64,
    /// How many sessions ended.
    pub ended: u64,
    /// How long the longest run of a program took, in microseconds, time that the CPU gave to others
    /// included.
    pub longest_run_us: u64,
}
