//! What an agent says about itself and its pods: written after every change, read by
//! `vpc-gateway agent status`.

use serde::{Deserialize, Serialize};

use super::pods::GatewayPod;

/// The file in the directory of the agent.
pub const FILE: &str = "status.json";

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodState {
    /// It has no network namespace yet.
    Waits,
    /// A process serves it.
    Runs,
    /// Its process has ended or cannot be started; the next try is a matter of time.
    Failed,
}

impl PodState {
    /// The word for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Waits => "waits",
            Self::Runs => "runs",
            Self::Failed => "failed",
        }
    }
}

/// A gateway pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodStatus {
    /// The pod.
    pub pod: GatewayPod,
    /// What the other verbs call its data plane: `--gateway`.
    pub data_plane: String,
    /// How far it is.
    pub state: PodState,
    /// What it waits for, or what has gone wrong.
    pub reason: String,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// The process that serves it.
    pub process: Option<u32>,
    /// How often its process has ended by itself since the agent knows the pod.
    pub restarts: u32,
}

/// An agent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The version of the program.
    pub version: String,
    /// The process.
    pub pid: u32,
    /// The node.
    pub node: String,
    /// The API server.
    pub server: String,
    /// When it started, in seconds since 1970.
    pub started_at: u64,
    /// When this was written, in seconds since 1970. A running agent writes every ten seconds.
    pub written_at: u64,
    /// Whether the pods of the node have been listed.
    pub synced: bool,
    /// What is wrong, one line each. Pods that are known stay.
    pub problems: Vec<String>,
    /// The gateway pods of the node.
    pub pods: Vec<PodStatus>,
}
