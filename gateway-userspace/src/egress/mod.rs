//! The selector: tenants' flows to the replicas of their egress gateways.
//!
//! ```text
//! manifests ─► egress gateways, routes of VPCs ┐
//! network   ─► links                           ├─► plan ─► image ─► maps ─► the program `select`
//! BFD       ─► who is alive                    ┘
//! ```
//!
//! - [`slots`]: which member has which slot of a group (pure).
//! - [`choices`]: which group a packet takes (pure).
//! - [`plan`]: what the maps shall hold (pure).
//! - [`maps`]: the maps, the program, and where they are pinned.
//! - [`daemon`]: one loop over files, network, BFD and the clock.
//! - [`report`]: what `vpc-gateway nexthops` shows.

pub mod choices;
pub mod daemon;
pub mod maps;
pub mod plan;
pub mod report;
pub mod slots;
