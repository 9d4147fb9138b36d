//! `Pod` and `Namespace`: the few fields that tell whom a selector takes.

use std::collections::BTreeMap;

use serde::Deserialize;

/// `metadata` of a pod or a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodMetadata {
    /// The name.
    pub name: String,
    /// The namespace; empty: `default`.
    pub namespace: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// When it was made, as RFC 3339 has it.
    pub creation_timestamp: String,
    /// Not empty: it is being deleted.
    pub deletion_timestamp: String,
}

/// `spec` of a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct PodSpec {
    /// Whether it is in the network of its node.
    pub host_network: bool,
}

/// `status` of a pod.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
}
