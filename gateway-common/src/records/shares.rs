//! What sessions take a share of: EIPs, the limits of a host, and external endpoints.

#[cfg(doc)]
use super::{PoolMember, Ticks};
use crate::family::Family;

/// What one inside host may have of the gateway (RFC 6888 REQ-4). All zero: no limits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct HostLimits {
    /// Most open sessions. 0: no limit.
    pub sessions: u32,
    /// Time between two new sessions in the long run, in nanoseconds. 0: no limit.
    pub interval_ns: u32,
    /// Most new sessions at once, where there is an interval: at least 1.
    pub burst: u32,
}

/// Value of `EIPS_V4` and `EIPS_V6`, whose key is an external address: what it carries.
///
/// There is one for every EIP that a rule names. The data path writes the numbers, each atomically.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Eip {
    /// Open sessions: see [`crate::accounting`].
    pub sessions: u64,
    /// Sessions opened since the EIP is there.
    pub opened: u64,
    /// New flows that found no free port on it. Another EIP of the pool may have taken them over.
    pub refused: u64,
    /// Zero: the place of rate limits (rates and their state, one of each direction).
    pub reserved: [u64; 4],
}

/// Value of `HOSTS_V4` and `HOSTS_V6`, whose key is an inside address: what this host has opened.
///
/// The entry is made when the host opens a session and goes when the last one ends. So there are never
/// more of them than sessions, whatever source addresses are forged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Host {
    /// When the next session is due at the long-run rate, in nanoseconds on the scale of [`Ticks`]:
    /// see [`crate::accounting`].
    pub due: u64,
    /// Open sessions that this host opened; [`LEAVING`].
    pub sessions: u32,
    /// New flows refused by a limit of the host, wrapping.
    pub refused: u32,
}

/// Value of a count of users whose entry is just being removed: nobody may count himself in any more.
pub const LEAVING: u32 = 1 << 31;

/// Bit of [`PoolMember::options`]: an inside endpoint keeps its external one whoever it talks to
/// (endpoint-independent mapping, RFC 4787 section 4.1). Without it: a port for each remote.
pub const MAP_INDEPENDENT: u32 = 1;

/// Bit of [`PoolMember::options`]: whoever has an address that the inside endpoint has talked to gets
/// in by its mapping (address-dependent filtering, RFC 4787 section 5).
pub const FILTER_ADDRESS: u32 = 2;

/// Bit of [`PoolMember::options`]: everybody gets in by a mapping (endpoint-independent filtering).
pub const FILTER_INDEPENDENT: u32 = 4;

/// Bit of [`PoolMember::options`], alone and in a pool of one: packets from and to the prefix pass as
/// they are. [`PoolMember::eip`] means nothing then.
pub const KEEP_ADDRESS: u32 = 8;

/// What an entry of `MAPPINGS_V4` and `MAPPINGS_V6` is for, in [`MappingKey::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum MappingKind {
    /// From an inside endpoint to its external one. It counts the sessions that use the mapping.
    Inside = 1,
    /// From an external endpoint to its inside one. Inserting it is what makes the port ours.
    External = 2,
    /// An inside endpoint has sessions to a remote address. It counts them.
    Contact = 3,
}

/// Key of `MAPPINGS_V4` and `MAPPINGS_V6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C, align(4))]
pub struct MappingKey<F: Family> {
    /// Inside or external address.
    pub address: F::Addr,
    /// Remote address of a [`MappingKind::Contact`], else zero.
    pub remote: F::Addr,
    /// Port or ICMP id.
    pub port: u16,
    /// Number of the layer-4 protocol.
    pub protocol: u8,
    /// A [`MappingKind`].
    pub kind: u8,
}

/// Value of `MAPPINGS_V4` and `MAPPINGS_V6`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C, align(4))]
pub struct Mapping<F: Family> {
    /// Address on the other side; zero for a [`MappingKind::Contact`].
    pub peer: F::Addr,
    /// Port on the other side.
    pub port: u16,
    /// Zero.
    pub zero: u16,
    /// As [`PoolMember::options`].
    pub options: u32,
    /// Id of the rule, a key of `RULES`.
    pub rule: u32,
    /// Open sessions that use it; [`LEAVING`]. 0 for a [`MappingKind::External`].
    pub users: u32,
}
