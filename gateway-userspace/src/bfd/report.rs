//! What sessions look like from outside.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::packet::{Diagnostic, State};

/// The file in the state directory.
pub const FILE: &str = "sessions.json";

/// All sessions of a gateway.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Sessions {
    /// The sessions, ordered by their ends.
    pub sessions: Vec<Report>,
}

/// Both ends of a session: at most one session for each such pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Ends {
    /// Our address.
    pub local: IpAddr,
    /// The neighbour's.
    pub remote: IpAddr,
}

/// What a session looks like from outside.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// Both ends.
    #[serde(flatten)]
    pub ends: Ends,
    /// The state.
    pub state: State,
    /// The state that the other side last reported.
    pub remote_state: State,
    /// Why the state is as it is.
    pub diagnostic: Diagnostic,
    /// Why the session last went down; `None` if it never did.
    pub last_down: Option<Diagnostic>,
    /// How often it went down after having been up.
    pub flaps: u64,
    /// Seconds since the state last changed.
    pub since_seconds: u64,
    /// Interval between our packets in milliseconds, before jitter; `None` while silent.
    pub transmit_interval_ms: Option<u64>,
    /// For how long nothing may be heard, in milliseconds.
    pub detection_time_ms: u64,
    /// Our discriminator.
    pub discriminator: u32,
    /// The other side's, 0 if unknown.
    pub remote_discriminator: u32,
    /// Packets sent.
    pub sent: u64,
    /// Packets taken.
    pub received: u64,
    /// Packets from this neighbour that were discarded: malformed, TTL too low, not for this session.
    pub discarded: u64,
    /// Why nothing can be sent, if so.
    pub error: Option<String>,
}
