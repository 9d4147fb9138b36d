//! What the selector says about itself.

use serde::{Deserialize, Serialize};

use super::plan::GroupStatus;

/// The file in the state directory.
pub const FILE: &str = "nexthops.json";

/// The file that says what the maps hold.
pub const IMAGE: &str = "choices.json";

/// The state of a selector.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// The interfaces that tenants' packets come in by.
    pub interfaces: Vec<String>,
    /// The groups.
    pub groups: Vec<GroupStatus>,
    /// What is wrong, one line each.
    pub problems: Vec<String>,
}
